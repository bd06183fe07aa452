"""Renders docs/settings.md from the settings themselves: `python -m infra.settings_page > docs/settings.md`."""

import sys
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from infra.settings import Settings

_HEAD = """\
# Settings

Every setting of every process is an environment variable. `infra/settings.py` reads them all, this page is made from
it (`python -m infra.settings_page > docs/settings.md`), and a test compares the two. Times are seconds. A value that
cannot be is refused at the start, in a sentence that names its variable.

`nightcourt up` decides some of them for the processes that it starts: where Postgres and Redis are, and the port where
none is asked for. The options of a command (`nightcourt COMMAND --help`) win over the environment.

| variable | default | what it is |
|---|---|---|
"""


def render() -> str:
    """Render the page: a row for each setting, in the order of the source."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return _HEAD + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    if get_origin(field.annotation) is Literal:
        words = ", ".join(f"`{word}`" for word in get_args(field.annotation))
        meaning = f"{meaning} One of {words}."
    return f"| `NIGHTCOURT_{name.upper()}` | {_default(field.default)} | {meaning} |"


def _default(value: Any) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(render())
