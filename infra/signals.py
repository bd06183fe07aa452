"""Handling signals without a deadlock."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


def threaded_handler(then: Callable[[], object]) -> Callable[..., None]:
    """Make a signal handler that has a thread of its own call `then`, once; it may be called like a function, too.

    Python runs a signal handler in the main thread, between two steps of whatever that was doing. If the main thread
    held a lock that `then` wants, such as that of the very event it waits for, a handler that called `then` itself
    would wait for it for ever; so would a second handler that interrupts the first.
    """
    told: SimpleQueue[None] = SimpleQueue()  # its `put` is reentrant: it may interrupt anything, even itself

    def wait_and_call() -> None:
        told.get()
        then()

    threading.Thread(target=wait_and_call, name="signals", daemon=True).start()
    return lambda *_: told.put(None)
