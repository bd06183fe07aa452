"""Makes a Python see of its packages only those that a lock lists, as the image made from that lock would.

On the module path (PYTHONPATH) of a process and of all that it starts; NIGHTCOURT_TEST_LOCK names the lock.
"""

import os
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

OURS = "nightcourt"


class Absent(MetaPathFinder):
    """Says of modules that they are not there."""

    def __init__(self, modules: set[str]) -> None:
        self._modules = modules

    def find_spec(self, fullname: str, _path: Sequence[str] | None = None, _target: object = None) -> None:
        """Refuse what belongs to an absent package; leave the rest to others."""
        if fullname.partition(".")[0] in self._modules:
            raise ModuleNotFoundError(f"No module named {fullname!r} in this image", name=fullname)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


lock = Path(os.environ["NIGHTCOURT_TEST_LOCK"]).read_text()  # noqa: TID251 (no setting of the program)
listed = {OURS, *(_plain(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))}
owners = packages_distributions()
sys.meta_path.insert(0, Absent({module for module, names in owners.items() if not listed & set(map(_plain, names))}))
