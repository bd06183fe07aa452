"""Ports and addresses that servers of one machine listen on: choosing free ones, and telling who listens."""

import errno
import secrets
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.local import LocalStackError

LOOPBACK = "127.0.0.1"
_LOOPBACK_HOSTS = (LOOPBACK, "::1", "localhost")
_FIRST_PORT = 20000
_TRIES = 20
_USUAL_FIRST_OF_CLIENTS = 32768
_LISTENING = "0A"
"""In the kernel's table of sockets."""
_CHOSEN_MOST = 64
_chosen: deque[socket.socket] = deque()
"""Holds the ports that were chosen of late: seconds pass before their servers are there."""


def metrics_ports(names: Sequence[str], first: int) -> dict[str, int]:
    """Give each application but the API, which has a port, one for its metrics: from `first` on, or where 0 any."""
    others = [name for name in names if name != "api"]
    ports = dict.fromkeys(range(first, first + len(others))) if first else {}
    while len(ports) < len(others):
        ports[free_port()] = None
    return dict(zip(others, ports, strict=True))


def authority(host: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free now; whoever wants it for sure has to be ready to try another.

    It is none of those that the kernel gives to outgoing connections, where it leaves others: one of them may be
    given away before the server is there or while it starts again, and a client that tries and tries to reach a
    server that is away is given the server's own port in the end, and is connected to itself. Nor is it one that
    another process has chosen, whose server is still to come.

    Raises:
        LocalStackError: The host is none of this machine's.
    """
    ours = _first_of_clients() - _FIRST_PORT
    for _ in range(_TRIES if ours > 0 else 0):
        with suppress(_BusyError):
            return _choose(host, _FIRST_PORT + secrets.randbelow(ours))
    return _choose(host, 0)


def _choose(host: str, port: int) -> int:
    """Bind a port that nobody has, and let servers that reuse an address, as all of ours do, listen there beside.

    Returns:
        The port: for 0 one of the kernel's choice.
    """
    holder, address = _socket(host, port)
    with _failing_at(host, port):
        try:
            holder.bind(address)
        except OSError:
            holder.close()
            raise
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _chosen.append(holder)
    if len(_chosen) > _CHOSEN_MOST:
        _chosen.popleft().close()
    chosen: int = holder.getsockname()[1]
    return chosen


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now.

    Raises:
        LocalStackError: The host is none of this machine's, or the port is not for this user.
    """
    probe, address = _socket(host, port)
    try:
        with probe, _failing_at(host, port):
            # As servers do: else a port would count as busy for a minute after its last server ended.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except _BusyError:
        return False
    return True


class _BusyError(LocalStackError):
    """Somebody else has the port."""


def _socket(host: str, port: int) -> tuple[socket.socket, Any]:
    """Make a socket for an address, and say how it calls that."""
    with _failing_at(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.socket(family, kind, protocol), address


@contextmanager
def _failing_at(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failure = _BusyError if error.errno == errno.EADDRINUSE else LocalStackError
        raise failure(f"cannot listen on {host}, port {port}: {error}") from error


def _first_of_clients() -> int:
    """Where the ports begin that the kernel gives to outgoing connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return _USUAL_FIRST_OF_CLIENTS


def choose_port(host: str, usual: int, asked: int | None) -> int:
    """The port for a server that may be asked to use a certain one.

    Args:
        host: Where it listens.
        usual: Taken when it is free and no other is asked for.
        asked: The one that it has to be; 0 for any; None for the usual one or else any.

    Raises:
        LocalStackError: The one that was asked for is busy.
    """
    if asked is None:
        return usual if is_free(host, usual) else free_port(host)
    if asked == 0:
        return free_port(host)
    if not is_free(host, asked):
        raise LocalStackError(f"port {asked} on {host} is busy: stop what listens there, or choose another with --port")
    return asked


def reachable(host: str) -> str:
    """Where this machine reaches what listens on an address; a wildcard is for listening alone."""
    return {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)  # noqa: S104 (compared, not bound)


def own_receivers(host: str) -> str:
    """What callbacks may go to beyond the public internet, with commas between, unless someone says otherwise.

    That is this machine where nobody else can file work: a receiver being tried out is on it, too. Others must not
    be able to send requests to what listens here for this machine alone.

    Args:
        host: Where the API listens.
    """
    return ",".join(_LOOPBACK_HOSTS) if host in _LOOPBACK_HOSTS else ""


def listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens on a port."""
    process = Path(f"/proc/{pid}")
    try:
        rows = [
            row.split()
            for table in ("tcp", "tcp6")
            if (process / "net" / table).exists()
            for row in (process / "net" / table).read_text().splitlines()[1:]
        ]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENING and row[1].endswith(f":{port:04X}")}
        return any(str(link.readlink()) in sockets for link in (process / "fd").iterdir())
    except OSError:
        # A file closed while we looked, or the process ended.
        return False
