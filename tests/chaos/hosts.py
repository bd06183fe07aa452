"""Machines of the test's own: network namespaces, each joined to this one by a cable for each store.

Needs root and `ip`; where it may not make one, `why_not` says so.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

IP = shutil.which("ip")


def _ip(*arguments: str) -> None:
    assert IP is not None
    done = subprocess.run([IP, *arguments], check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Why there can be no machines here; None where there can."""
    if IP is None:
        return "there is no ip (iproute2)"
    if os.geteuid():
        return "only root makes network namespaces"
    try:
        with machine(0, ("probe",)):
            return None
    except OSError as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class Cable:
    """What joins a machine to a store. It is pulled and put in again at our end."""

    name: str
    address: str
    """Of our end."""

    def swallow(self) -> None:
        """Pull it: whatever is under way gets nowhere, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("link", "set", self.name, "up")

    def listen(self) -> socket.socket:
        """Listen at our end."""
        return socket.create_server((self.address, 0))


@dataclass(frozen=True, slots=True)
class Machine:
    """A network namespace, and its cables by what each leads to."""

    name: str
    cables: dict[str, Cable]

    @property
    def through(self) -> tuple[str, ...]:
        """What runs a command there."""
        assert IP is not None
        return (IP, "netns", "exec", self.name)


@contextmanager
def machine(number: int, stores: tuple[str, ...]) -> Iterator[Machine]:
    """Make a machine, and take it away again whatever happens.

    Args:
        number: from 0; no two at a time have the same.
        stores: a cable is made for each.

    Raises:
        OSError: this system lets nobody make one.
    """
    name = f"nightcourt-{os.getpid()}-{number}"
    with ExitStack() as ends:
        _ip("netns", "add", name)
        ends.callback(partial(_ip, "netns", "del", name))  # the cables go with it
        _ip("-n", name, "link", "set", "lo", "up")
        cables = {}
        for place, store in enumerate(stores):
            # Of the range for tests between machines (RFC 2544), which nobody routes.
            ours, theirs = (f"198.18.{number}.{place * 4 + end}" for end in (1, 2))
            end = f"nc{os.getpid()}.{number}.{place}"
            _ip("link", "add", end, "type", "veth", "peer", "name", store, "netns", name)
            _ip("address", "add", f"{ours}/30", "dev", end)
            _ip("-n", name, "address", "add", f"{theirs}/30", "dev", store)
            _ip("link", "set", end, "up")
            _ip("-n", name, "link", "set", store, "up")
            cables[store] = Cable(end, ours)
        yield Machine(name, cables)
