"""What a handler of signals may do: tell a thread, and nothing that may have to wait."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


def passed_on(then: Callable[[], object]) -> Callable[..., None]:
    """Make what a handler of signals may be, or call: when it was called, a thread of its own calls `then`, once.

    A handler runs between two steps of whatever the main thread does. That may hold the very lock that `then` wants, an
    event's own where it was waiting for that, and the handler would wait for it without an end; so would a second one
    within the first.
    """
    told: SimpleQueue[None] = SimpleQueue()  # whose `put` may interrupt anything, even itself

    def pass_on() -> None:
        told.get()
        then()

    threading.Thread(target=pass_on, name="signals", daemon=True).start()
    return lambda *_: told.put(None)
