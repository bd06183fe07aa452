"""How a command of the worker speaks: progress on standard error, its result on standard output."""

import json
import sys
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
"""Tells a person how far a command has come."""


def say(text: str) -> None:
    """Tell a person how far the command has come."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_json(result: dict[str, Any], *, pretty: bool) -> None:
    """Give the result: in one line for a program, laid out for a person."""
    sys.stdout.write(json.dumps(result, indent=2 if pretty else None) + "\n")
    sys.stdout.flush()
