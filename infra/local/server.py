"""How a server from a wheel is started: on a port that somebody else may take first, and heard out until it answers."""

import signal
import time
from collections.abc import Callable
from functools import partial

from infra.local import LocalStackError, StartCancelledError
from infra.local.child import Child
from infra.local.ports import free_port

SILENCE_SECONDS = 120.0
"""How long a server may say nothing at all before we stop believing in it."""
_PORT_TRIES = 3


class SilentError(Exception):
    """The server does not answer yet; one that `loads` its data may take as long as that takes."""

    def __init__(self, problem: str, *, loads: bool) -> None:
        super().__init__(problem)
        self.loads = loads


def start_server(
    launch: Callable[[int], Child],
    ask: Callable[[int], None],
    *,
    port: int | None,
    end: signal.Signals,
    cancelled: Callable[[], bool],
    advice: str = "",
) -> tuple[Child, int]:
    """Start a server, and wait until it answers.

    Args:
        launch: Starts it on a port.
        ask: Asks something of the one on a port; raises SilentError until it answers.
        port: The port that it has to have; a free one when None.
        end: The signal for one that will not be used.
        cancelled: Asked again and again while this waits; a True gives up.
        advice: What else to say of one that ends instead of answering.

    Returns:
        The running server, and its port.

    Raises:
        StartCancelledError: `cancelled` said so. Nothing is left running.
        LocalStackError: It cannot run. Nothing is left running.
    """
    tries = _PORT_TRIES if port is None else 1
    while True:
        chosen = free_port() if port is None else port
        child = launch(chosen)
        try:
            if _answers(child, partial(ask, chosen), cancelled):
                return child, chosen
        except BaseException:
            child.stop(end, 10)
            raise
        tries -= 1
        # Somebody else may have taken the free port between our looking and the server's taking it.
        if not tries or "Address already in use" not in child.tail():
            raise LocalStackError(f"{child.name} ended while it was starting{advice}:\n{child.tail()}")


def _answers(child: Child, ask: Callable[[], None], cancelled: Callable[[], bool]) -> bool:
    """Wait until a server answers, or has ended."""
    deadline = time.monotonic() + SILENCE_SECONDS
    while child.poll() is None:
        if cancelled():
            raise StartCancelledError("starting was cancelled")
        try:
            ask()
        except SilentError as error:
            if error.loads:
                deadline = time.monotonic() + SILENCE_SECONDS
            elif time.monotonic() > deadline:
                raise LocalStackError(f"{child.name} does not answer ({error}):\n{child.tail()}") from error
        else:
            return True
        time.sleep(0.05)
    return False
