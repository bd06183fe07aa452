"""What this process connects to, as Python's own audit events tell it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_listeners: list["Connects"] = []


class Connects(list[tuple[object, ...]]):
    """The addresses of all attempts to connect, in order.

    Attributes:
        forbidden: Whether each attempt is stopped before a packet leaves.
    """

    forbidden = False


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        for listener in _listeners:
            listener.append(arguments[1])
            if listener.forbidden:
                raise ConnectionAbortedError("stopped by the test")


sys.addaudithook(_hear)  # for the life of the process: there is no way to take one off


@contextmanager
def connects(*, forbidden: bool = False) -> Iterator[Connects]:
    """Hear of every attempt to connect, from any thread, and stop it where it is forbidden."""
    listener = Connects()
    listener.forbidden = forbidden
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)
