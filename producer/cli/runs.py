"""What `nightcourt batch run` remembers, so that the same command finds its batch again instead of filing it anew."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict

from infra.local.folder import default_folder, private_folder, running_stack, write_private
from infra.settings import Settings
from producer.cli.inputs import raw
from producer.cli.server import find_server


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch goes, and where it is remembered."""

    url: str
    key: str | None = field(repr=False)
    name: str
    """What stays the same over restarts: an embedded stack's folder, else the URL."""
    folder: Path


def find_place(chosen: Settings) -> Place:
    """Find the service. An embedded stack's batches are remembered in its own folder where that was given by hand."""
    url, key = find_server(chosen)
    remembered = platformdirs.user_state_path("nightcourt", appauthor=False)
    if chosen.server is not None:
        return Place(url, key, url.rstrip("/"), remembered)
    stack = running_stack(chosen.data_dir)
    if stack is None:
        return Place(url, key, url, remembered)
    home = (chosen.data_dir or default_folder()).expanduser().resolve()
    return Place(url, key, str(home), remembered if chosen.data_dir is None else home)


def run_key(place: Place, files: Sequence[Path], options: dict[str, Any]) -> str:
    """Name a run: a hash of the files' bytes, of what is to be made of them, and of where.

    Raises:
        Problem: a file cannot be read.
    """
    digests = []
    for path in files:
        with raw(path) as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    told = json.dumps({"files": digests, "options": options, "server": place.name}, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


class Remembered(BaseModel):
    """How far a run got: its file arrived, and perhaps its batch was made."""

    model_config = ConfigDict(frozen=True)

    file: str = ""
    server: str = ""
    input_file_id: str = ""
    idempotency_key: str = ""
    """What the batch of that file is asked for by, each time."""
    batch: str | None = None


@contextmanager
def held(place: Place, key: str, waiting: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a run, so that whoever else begins it meanwhile waits, and finds the batch that came of it.

    Args:
        place: where runs are remembered; where that cannot be written, nobody waits.
        key: the name of the run.
        waiting: what waiting is done in, where somebody else holds it.
    """
    with ExitStack() as ends:
        with suppress(OSError):
            # A file of its own that stays: what is remembered is replaced, and a lock is of the file that was opened.
            path = _file(place, key).with_suffix(".lock")
            private_folder(path.parent)
            lock = ends.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with waiting():
                    fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def recall(place: Place, key: str) -> Remembered:
    """Tell how far a run got, if it is remembered."""
    with suppress(OSError, ValueError):
        return Remembered.model_validate_json(_file(place, key).read_bytes())
    return Remembered()


def remember(place: Place, key: str, run: Remembered) -> bool:
    """Write down how far a run got; False where that cannot be written."""
    try:
        path = _file(place, key)
        private_folder(path.parent)
        write_private(path, run.model_dump_json(exclude_none=True) + "\n")
    except OSError:
        return False
    return True


def _file(place: Place, key: str) -> Path:
    return place.folder / "batch-runs" / f"{key[:32]}.json"
