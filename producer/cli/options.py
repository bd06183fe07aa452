"""What options of several commands have in common."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from schemas import ids
from schemas.problems import NO_SERVER, Problem

Server = Annotated[str | None, typer.Option(help="URL of the service.")]
DataDir = Annotated[Path | None, typer.Option(help="Data folder of the embedded stack to use.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def no_stack(folder: Path) -> Problem:
    """Say that on the folder that somebody named no stack runs: what runs elsewhere is not what they meant."""
    return Problem(
        NO_SERVER,
        f"No stack runs on {folder}. Start one with `nightcourt up --data-dir {folder}`, or leave --data-dir and "
        "NIGHTCOURT_DATA_DIR out.",
    )


def again(server: str | None, data_dir: Path | None) -> str:
    """Spell the options that have another command find the same service, with a blank before each."""
    return (f" --server {server}" if server else "") + (f" --data-dir {data_dir}" if data_dir else "")


def finite(value: float | None) -> float | None:
    """Refuse what is no number or without end: the callback of every option that takes a number with a point."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"takes a number; {value} is none to count with")
    return value


def _margin(value: float | None) -> float | None:
    value = finite(value)
    if value is not None and not 0 <= value < 0.5:  # noqa: PLR2004 - half of all probability is on either side
        raise typer.BadParameter("takes a number from 0 to less than 0.5")
    return value


TieMargin = Annotated[float | None, typer.Option(help="Call it a tie this close to 0.5.", callback=_margin)]


def ask(question: str, *, yes: bool) -> None:
    """Ask, on standard error, whether somebody means what cannot be undone.

    Args:
        question: to be answered by y or n.
        yes: what `--yes` says; then nobody is asked.

    Raises:
        typer.Abort: they do not mean it.
        typer.BadParameter: nobody is there to be asked.
    """
    if yes:
        return
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        raise typer.BadParameter("say it where nobody can be asked", param_hint="--yes") from None
    if not sure:
        raise typer.Abort


def id_of(text: str, prefix: str, option: str | None = None) -> UUID:
    """Understand an id as it is typed; a callback needs not say what the option is called."""
    found = ids.parse_prefixed(text, prefix)
    if found is None:
        raise typer.BadParameter(f"looks like {prefix} and 32 hexadecimal digits; this is none", param_hint=option)
    return found


def id_like(prefix: str) -> Callable[[str | None], str | None]:
    """Make the callback of an option or argument that takes an id, so that it is told by the name it has there."""

    def check(value: str | None) -> str | None:
        if value is not None:
            id_of(value, prefix)
        return value

    return check


def span(text: str, option: str) -> float:
    """Understand a span of time, such as 90s or 7d, as seconds."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter("takes a span of time: 90s, 30m, 12h, 7d", param_hint=option)
    return float(int(match[1]) * _UNITS[match[2]])
