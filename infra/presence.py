"""Presence: a locked file for as long as a process lives, by which a successor on its machine knows that it died.

The kernel lets go of a lock (`flock`) when the process that took it is gone, and at no other time: whoever gets the
lock of somebody else's file has the proof. A frozen process keeps its lock. The folder has to be on a disk of this
machine, as locks across a network lapse with the connection.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ENDING = ".alive"


def hold(folder: Path, name: str) -> int:
    """Be present under a name until this process ends, and return the descriptor that holds the lock.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{name}.draft"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Nobody looks at a draft: under its own name the file is locked from the first moment.
    draft.rename(folder / f"{name}{_ENDING}")
    return descriptor


def leave(folder: Path, name: str) -> None:
    """Take the name away, as the process ends with nothing left to bring back."""
    with suppress(OSError):
        (folder / f"{name}{_ENDING}").unlink()


def bury(folder: Path, see_to: Callable[[str], None]) -> list[str]:
    """See to those who died here, and take their names away.

    Args:
        folder: where they were present; it need not be there.
        see_to: called with each name. Where it raises, the name stays for the next to see to.

    Returns:
        The names.
    """
    dead = []
    for file in sorted(folder.glob(f"*{_ENDING}")):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # its owner took it away, or it is not ours to read
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = file.name.removesuffix(_ENDING)
            see_to(name)
            file.unlink(missing_ok=True)
            dead.append(name)
        except BlockingIOError:
            continue  # alive
        finally:
            os.close(descriptor)
    return dead
