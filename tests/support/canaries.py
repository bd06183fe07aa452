"""Words that are known again wherever they turn up, and the search for them in all that the suite makes anything say.

Fixtures and helpers plant them in prompts, responses and names; keys, callback secrets and passwords are known by their
form, or by the files that keep them. `nothing_leaks` fails the run where one stands in a log, a metric, a span, an
error, or what a test's own process wrote.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import psycopg
import pytest

MARK = "XYZZY"
"""Stands in every canary and nowhere else, in letters that no escaping changes."""

_TELLTALE = re.compile(
    rf"{MARK}\w*"
    r"|nck_[0-9a-f]{32}_[\w-]{43}"  # a key; its id alone may be told
    r"|whsec_[\w+/=]{24,}"
    r"|(?<=://)[^\s/:@]*:[^\s/:@*]+@"  # the password in a URL
)
_LONG_WORD = re.compile(r"[\w-]{43,}")
_SECRET = re.compile(r"[\w-]{43}|[0-9a-f]{64}")
_ERRORS = (
    "SELECT error_message FROM outcomes",
    "SELECT message FROM bad_lines",
    "SELECT unnest(losses) FROM shards",
)

_found: list[str] = []


def canary(name: str) -> str:
    """Make a word that is known again wherever it turns up, and whose name tells where it was sent."""
    return f"{MARK}{name}{MARK}"


def leaks(place: str, said: str, secrets: Collection[str] = ()) -> list[str]:
    """What must not stand in a text, each with where it does."""
    found = []
    for number, line in enumerate(said.splitlines(), 1):
        words = _TELLTALE.findall(line)
        words += [word for word in _LONG_WORD.findall(line) if word in secrets]
        found += [f"{place}:{number}: {word}" for word in words]
    return found


def watch(place: str, said: str) -> None:
    """Look through a text, for `nothing_leaks` to tell of."""
    _found.extend(leaks(place, said))


def watch_answer(answer: httpx2.Response) -> None:
    """Look through a refusal, as a hook of a client; its sender's own path may be told."""
    if answer.is_error and MARK not in str(answer.request.url):
        watch(f"{answer.request.method} {answer.request.url.path} -> {answer.status_code}", answer.read().decode())


def watch_errors(database_url: str) -> None:
    """Look through the errors that are stored in a database, if it is still there."""
    with suppress(psycopg.OperationalError), psycopg.connect(database_url, connect_timeout=5) as connection:
        for statement in _ERRORS:
            for (message,) in connection.execute(statement):
                watch(statement, message or "")


def in_logs(folder: Path) -> list[str]:
    """What must not stand in the logs below a folder, the secrets that are kept there included."""
    files = list(_files(folder))
    secrets = {text for file in files if (text := _secret(file))}
    return [
        leak
        for file in files
        if ".log" in file.suffixes or file.name == "said"
        for leak in leaks(str(file), file.read_text(errors="replace"), secrets)
    ]


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [] if "PG_VERSION" in names else folders  # what Postgres stores
        yield from (Path(parent, name) for name in names)


def _secret(file: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        if file.is_file() and file.stat().st_size <= 100:
            text = file.read_text().strip()
            return text if _SECRET.fullmatch(text) else None
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look through what a test's own process wrote and logged."""
    if report.when == "teardown":  # which tells of all that came before
        for title, said in report.sections:
            watch(f"{report.nodeid}, {title}", said)


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end of the run no canary, key, secret or password stands where nobody may read it."""
    yield
    found = _found + in_logs(tmp_path_factory.getbasetemp())
    assert not found, "\n".join(["contents or secrets are told:", *found[:50]])
