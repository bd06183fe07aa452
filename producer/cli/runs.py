"""What `nightcourt batch run` remembers, so that the same command finds its batch again instead of filing it anew."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from infra.local import LocalStackError
from infra.local.folder import default_folder, private_folder, running_stack, write_private
from infra.settings import Settings
from producer.cli.submit import find_server
from schemas.problems import BAD_INPUT_FILE, LOCAL_STACK, Problem


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
    try:
        stack = running_stack(chosen.data_dir)
    except LocalStackError as error:
        raise Problem(LOCAL_STACK, str(error)) from None
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
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise Problem(BAD_INPUT_FILE, f"{path}: {error.strerror}.") from None
    told = json.dumps({"files": digests, "options": options, "server": place.name}, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def recall(place: Place, key: str) -> str | None:
    """Tell the batch that a run made, if it is remembered."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(_file(place, key).read_text())["batch"])
    return None


def remember(place: Place, key: str, batch_id: str, file: Path) -> bool:
    """Write down which batch a run made; False where that cannot be written."""
    try:
        path = _file(place, key)
        private_folder(path.parent)
        write_private(path, json.dumps({"batch": batch_id, "file": str(file.resolve()), "server": place.url}) + "\n")
    except OSError:
        return False
    return True


def _file(place: Place, key: str) -> Path:
    return place.folder / "batch-runs" / f"{key[:32]}.json"
