"""How a command of the worker speaks: progress on standard error, its result on standard output."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

Say = Callable[[str], None]
"""Tells a person how far a command has come."""


def say(text: str) -> None:
    """Tell a person how far the command has come."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def keep_output() -> TextIO:
    """Keep standard output for the result. What a library prints there, be it in C++, is progress from now on.

    TensorRT-LLM says its version when it is imported.
    """
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which holds no line back until after ours
    return kept


def print_json(result: dict[str, Any], to: TextIO, *, pretty: bool) -> None:
    """Give the result: in one line for a program, laid out for a person."""
    to.write(json.dumps(result, indent=2 if pretty else None) + "\n")
    to.flush()
