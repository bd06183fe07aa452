"""The data folder of the embedded stack: private, held by one supervisor at a time, and telling what runs."""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.local import LocalStackError

_LOCK = "nightcourt.lock"
_STACK = "stack.json"
_TARGETS = "prometheus.json"
_KEY = "key"
_LOG_BYTES = 16 * 1024 * 1024
_ROOM = 4
"""How many times a log must fit on its disk to be copied: a disk that is nearly full is left to what needs it more."""
_LOCK_SECONDS = 1.0


class StackInfo(BaseModel):
    """What runs on a data folder, for other commands to find it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pid: int
    api_url: str
    database_url: str = Field(repr=False)
    redis_url: str = Field(repr=False)
    key: str | None = Field(default=None, repr=False)
    """A key that the API takes, for whatever this user runs beside the stack."""
    metrics: dict[str, str] = {}
    """Where each process serves `/metrics`: host and port by the name of the part."""
    started_at: datetime


def default_folder() -> Path:
    """Where the embedded stack lives unless told otherwise."""
    return platformdirs.user_data_path("nightcourt", appauthor=False)


class DataFolder:
    """A data folder that this process holds, from construction to `close`.

    Attributes:
        path: The folder, absolute and without symbolic links.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Create the folder where it is missing, and take it.

        Args:
            path: The folder; `default_folder()` when None.

        Raises:
            LocalStackError: Another stack holds it, or it is not a folder for this.
        """
        self.path = (path or default_folder()).expanduser().resolve()
        try:
            self._prepare()
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._take()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise unusable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def publish(self, info: StackInfo) -> None:
        """Let other commands find what runs here, and Prometheus (`file_sd_configs`) where its metrics are."""
        targets = [{"targets": [at], "labels": {"part": name}} for name, at in info.metrics.items()]
        write_private(self.path / _TARGETS, json.dumps(targets, indent=2) + "\n")
        write_private(self.path / _STACK, info.model_dump_json(indent=2) + "\n")

    @property
    def key_file(self) -> Path:
        """Where a key for this user's own commands is kept."""
        return self.path / _KEY

    def key(self) -> str | None:
        """That key, once there is one."""
        return self.key_file.read_text().strip() if self.key_file.exists() else None

    def log(self, name: str) -> Path:
        """The log file of a part."""
        return private_folder(self.path / "logs") / f"{name}.log"

    def trim_logs(self) -> None:
        """Begin each log anew that has grown large, whoever writes to it, and keep the old one beside it.

        Who writes appends, and so goes on at the new end; a line that comes between the copy and the cut is lost.
        """
        for file in (self.path / "logs").glob("*.log"):
            half = file.with_name(f"{file.name}.half")
            with suppress(OSError):  # nothing is cut that could not be kept
                size = file.stat().st_size
                if size <= _LOG_BYTES or shutil.disk_usage(file).free < _ROOM * size:
                    continue
                private = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(private, "wb") as copy, file.open("rb") as log:
                    shutil.copyfileobj(log, copy)
                half.replace(file.with_name(f"{file.name}.1"))
                os.truncate(file, 0)
            with suppress(OSError):
                half.unlink(missing_ok=True)

    def part(self, name: str) -> Path:
        """The private folder of a part."""
        return private_folder(self.path / name)

    def close(self) -> None:
        """Say that nothing runs here any more, and let go of the folder."""
        if self._lock >= 0:
            (self.path / _STACK).unlink(missing_ok=True)
            (self.path / _TARGETS).unlink(missing_ok=True)
            # The lock file itself stays: removing it would let two processes lock two different files.
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    def _prepare(self) -> None:
        if not self.path.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not (self.path / _LOCK).exists() and any(self.path.iterdir()):
            # `--data-dir ~` is a slip of the finger that would scatter databases over somebody's home.
            raise LocalStackError(
                f"{self.path} is not empty and was not made by nightcourt: choose another folder with --data-dir"
            )

    def _take(self) -> None:
        # Someone who only asks whether a stack runs holds the lock for an instant, hence more than one try.
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(self._lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                pid = _holder(self._lock)
                raise LocalStackError(
                    f"already running (pid {pid or 'unknown'}) on {self.path}: stop it, or choose another "
                    "folder with --data-dir"
                )
            time.sleep(0.05)
        # What a killed stack left behind goes first, so that its words never stand beside the new pid.
        (self.path / _STACK).unlink(missing_ok=True)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)


def unusable(path: Path, error: OSError) -> LocalStackError:
    """Say of an error on a data folder, or of the machine, what it keeps from running."""
    what = f"{error.strerror}: {error.filename}" if error.filename not in (None, str(path)) else error.strerror
    return LocalStackError(
        f"{path} cannot hold nightcourt's data ({what}): mend that, or choose another folder with --data-dir"
    )


def running_stack(path: Path | None = None) -> StackInfo | None:
    """What runs on a data folder now, if anything does.

    The lock decides, since the kernel takes it from whoever dies; a file that was left behind says nothing.

    Args:
        path: The folder; `default_folder()` when None.

    Returns:
        The stack that is ready there; None when there is none, or when it is still starting.

    Raises:
        LocalStackError: This user may not look into the folder.
    """
    folder = (path or default_folder()).expanduser()
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _try_lock(lock, fcntl.LOCK_SH):
                return None
            info = StackInfo.model_validate_json((folder / _STACK).read_bytes())
            return info if info.pid == _holder(lock) else None
        finally:
            os.close(lock)
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    except PermissionError as error:
        raise LocalStackError(f"{folder} belongs to another user: choose another folder with --data-dir") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, all of it or not at all."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def private_folder(path: Path) -> Path:
    """Make sure of a folder that its owner alone may enter.

    Returns:
        The same path.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def keep_secret(path: Path, make: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """The secret that a file holds, made up on first use of 32 random bytes. Its characters are safe in a URL."""
    if not path.exists():
        write_private(path, make(32) + "\n")
    return path.read_text().strip()


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: int) -> int | None:
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else None
