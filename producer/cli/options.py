"""What options of several commands have in common."""

import math
from typing import Annotated

import typer


def finite(value: float | None) -> float | None:
    """Refuse what is no number or without end: the callback of every option that takes a number with a point."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"takes a number; {value} is none to count with")
    return value


TieMargin = Annotated[float | None, typer.Option(help="Call it a tie this close to 0.5.", callback=finite)]
