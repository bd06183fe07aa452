"""How the command line speaks: rich on a terminal, plain when piped, JSON when asked; and how it ends."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from schemas.problems import BAD_OUTPUT_FILE, NO_SERVER, NOT_DECIDED, UNAVAILABLE, Problem, ProblemDocument


class Exit(IntEnum):
    """What the process ends with."""

    OK = 0
    FAILED = 1
    """Something was wrong, and standard error says what."""
    USAGE = 2
    """The command line could not be understood."""
    NO_SERVER = 3
    """There is no server, or it cannot answer now: trying again later may help."""
    NOT_DECIDED = 4
    """The time was up before everything was decided; what was filed stays filed."""
    INTERRUPTED = 130


_EXITS = {
    NO_SERVER.code: Exit.NO_SERVER,
    UNAVAILABLE.code: Exit.NO_SERVER,
    NOT_DECIDED.code: Exit.NOT_DECIDED,
}

_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_SHOWN |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
"""What a terminal would obey instead of showing it, and what is shown for it."""


class Screen(Console):
    """A console on which text cannot command a terminal: names and columns of a data set may be anybody's.

    What goes into a file or a pipe stays as it is.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        """Make what is printed of a string, with pictures of control characters that came with it."""
        return super().render_str(text.translate(_SHOWN) if self.is_terminal else text, **how)


# A name such as eval:cat:1 is somebody's own, and no picture of a cat.
console = Screen(highlight=False, emoji=False)
"""Standard output: results."""
progress = Screen(stderr=True, highlight=False, emoji=False)
"""Standard error: everything else."""


WIDE = 240
"""Columns of a table that has all the room that it may want."""


def screen(of: Console) -> Console:
    """Give what a table is printed on: there is room for all of it where nobody sees a screen's edge."""
    return of if of.is_terminal else Console(file=of.file, width=WIDE, highlight=False, emoji=False)


def local_time(when: datetime | int) -> str:
    """Write a moment, or Unix seconds, as the clock here shows it, and how far that is from UTC: options take it so."""
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line, whatever the width of the terminal."""
    console.file.write(json.dumps(value, ensure_ascii=False) + "\n")
    console.file.flush()


def fail(problem: ProblemDocument, *, as_json: bool = False) -> NoReturn:
    """Say what is wrong, on standard error, and end."""
    if as_json:
        sys.stderr.write(problem.model_dump_json(exclude_none=True) + "\n")
    else:
        progress.print("[bold red]error[/]:", end=" ")
        progress.print(f"{problem.title}.", markup=False, style="bold")
        progress.print(problem.detail, markup=False, soft_wrap=True)
        # Of what the service did wrong, its logs say more under this id; what a user did wrong is all said.
        if problem.request_id and problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            progress.print(f"The request's id: {problem.request_id}", markup=False, soft_wrap=True)
    sys.exit(_EXITS.get(problem.code, Exit.FAILED))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Lend a folder that is gone when the block ends.

    Raises:
        Problem: there is no place for one.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="nightcourt-")
    except OSError as error:
        raise Problem(BAD_OUTPUT_FILE, f"A temporary folder: {error.strerror or error}.") from None
    with folder as path:
        yield Path(path)


def write_lines(lines: Iterable[bytes], path: Path) -> None:
    """Write lines to a file, all of them or none; `-` is standard output, which takes each as it comes.

    Raises:
        Problem: the file cannot be written.
    """
    if _is_standard_output(path):
        if sys.stdout is None:  # it was closed before we began
            raise Problem(BAD_OUTPUT_FILE, "Standard output is closed.")
        for line in lines:
            sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        return
    _write((line + b"\n" for line in lines), path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file, all of it or nothing.

    Raises:
        Problem: the file cannot be written.
    """
    _write([data], path)


def is_stream(path: Path) -> bool:
    """Tell whether what goes there is read as it comes, and cannot be taken back: standard output, a pipe, a device."""
    return _is_standard_output(path) or (path.exists() and not path.is_file())


def _is_standard_output(path: Path) -> bool:
    """Tell whether a path is a name of standard output, where what else is printed has its turn."""
    if str(path) == "-" or sys.stdout is None:
        return str(path) == "-"
    with suppress(OSError, ValueError):
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    return False


def _write(pieces: Iterable[bytes], path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe, such as the shell's >(...), is written to and not replaced.
            with path.open("wb") as there:
                there.writelines(pieces)
        else:
            _replace(pieces, path.resolve())
    except OSError as error:
        raise Problem(BAD_OUTPUT_FILE, f"{path}: {error.strerror or error}.") from None


def _replace(pieces: Iterable[bytes], target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines(pieces)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
