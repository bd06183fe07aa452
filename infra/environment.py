"""The environment of processes: what a child is told, and what is kept from it and from us."""

import os
from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import SecretStr

from infra.settings import Settings

_OF_THE_SAMPLE = "NIGHTCOURT_SECRET"
"""What examples/receiver.py checks signatures by."""


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings that were set by someone, as the variables that set them again in a child process."""
    variables: dict[str, str] = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if isinstance(value, tuple):
            value = ",".join(value)
        if value is not None:
            variables[f"NIGHTCOURT_{name.upper()}"] = str(value)
    return variables


def unknown_settings() -> dict[str, str | None]:
    """Name the variables that look like settings and are none, each with the setting that it may be meant for."""
    known = [f"NIGHTCOURT_{name.upper()}" for name in Settings.model_fields]
    strange = sorted(
        name
        for name in os.environ  # noqa: TID251 (names alone)
        if name.startswith("NIGHTCOURT_") and name not in known and name != _OF_THE_SAMPLE
    )
    return {name: next(iter(get_close_matches(name, known, n=1, cutoff=0.85)), None) for name in strange}


def forget_libpq() -> None:
    """Drop libpq's own variables from this process, before it connects to the embedded stack; see below why."""
    for name in [name for name in os.environ if name.startswith("PG")]:  # noqa: TID251 (none of them is read)
        del os.environ[name]  # noqa: TID251 (as above)


def child_environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """This process' environment with some variables replaced, for a child process.

    libpq's own variables stay behind: it takes them for whatever a database URL leaves open, and a PGSSLMODE
    that suits somebody's other database would lock our processes out of theirs.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 (handed on whole, not read for settings)
        if not name.startswith("PG")
    }
    return {**inherited, **overrides}
