"""Where a command may write, found out before anything is judged: never over what it reads."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from producer.cli.output import is_stream

REPORT = ("report.html", "report.json", "rows.csv", "rows.jsonl")
"""What an eval writes into the folder of `--output`."""
OF_SYSTEMS = ("annotations.json", "comparisons.csv")
"""What it writes there, too, where systems met."""


def datasheet(training_file: Path) -> Path:
    """Name the datasheet that lies beside a training file."""
    return training_file.with_name(f"{training_file.name}.datasheet.json")


def check_file(path: Path, option: str, read: Iterable[Path | None]) -> None:
    """Refuse a file that cannot be written, or that is read.

    Raises:
        typer.BadParameter: naming the option.
    """
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=option)
    # A file is replaced, so its folder decides. Root is told, too, where that is mounted to be read alone.
    if not is_stream(path) and not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"nothing can be written into {path.parent.resolve()}", param_hint=option)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give the name of a file", param_hint=option)
    if path.resolve() in {each.resolve() for each in read if each is not None}:
        raise typer.BadParameter(f"{path} is the input itself", param_hint=option)


def check_report(
    output: Path | None, read: Sequence[Path | None], written: Sequence[Path] = (), *, systems: bool = False
) -> None:
    """Refuse a folder for the report in which a file has a name of the report's, and is read or written beside it.

    Raises:
        typer.BadParameter: naming the file.
    """
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise typer.BadParameter(f"{output} is no folder", param_hint="--output")
    nearest = next(each for each in (output.absolute(), *output.absolute().parents) if each.exists())
    if not os.access(nearest, os.W_OK):
        raise typer.BadParameter(f"nothing can be written into {nearest}", param_hint="--output")
    taken = {each.resolve() for each in (*read, *written) if each is not None}
    for name in REPORT + OF_SYSTEMS if systems else REPORT:
        if (output / name).resolve() in taken:
            raise typer.BadParameter(
                f"the report would be written over {output / name}; give another folder", param_hint="--output"
            )
