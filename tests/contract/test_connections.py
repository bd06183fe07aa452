"""How many connections to Postgres docs/deployment.md counts on, held to the pools that processes make."""

import math
import re
from collections.abc import Callable

import pytest
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool
from support.deployed import ROOT

from infra.database import connect_async
from infra.local.tree import CONNECTIONS
from infra.settings import Settings
from producer.cli.processes import open_dispatchers
from worker.app import open_databases
from worker.callbacks_app import open_database

PAGE = (ROOT / "docs" / "deployment.md").read_text()
TIMES = "\N{MULTIPLICATION SIGN}"
URL = "postgresql://nobody@127.0.0.1:1/nothing"


def most(database: Engine) -> int:
    """How many connections a pool opens at the most."""
    assert isinstance(database.pool, QueuePool)
    return database.pool.size() + database.pool._max_overflow


@pytest.mark.parametrize("slots", [2, 4, 8, 80])
def test_a_judge_opens_as_many_as_the_page_says(slots: int):
    """The smaller of its slots and eight, and so many more."""
    [(more, at_most)] = re.findall(
        r"^\| judge \| the smaller of `NIGHTCOURT_SLOTS` and 8, and (\d+) more: (\d+) \|$", PAGE, re.MULTILINE
    )
    opened = sum(map(most, open_databases(Settings(slots=slots, bulk_slots=1, database_url=URL))))
    assert opened == min(slots, 8) + int(more)
    assert int(at_most) == 8 + int(more) == CONNECTIONS["worker"]


def test_the_api_opens_as_many_as_the_page_says():
    """Its one pool, with what is opened under load."""
    assert most(connect_async(URL, application="test").sync_engine) == CONNECTIONS["api"]


@pytest.mark.parametrize(("process", "opens"), [("dispatcher", open_dispatchers), ("callbacks", open_database)])
def test_others_open_as_many_as_the_page_says(process: str, opens: Callable[[Settings], Engine]):
    """Each has one pool."""
    assert most(opens(Settings(database_url=URL))) == CONNECTIONS[process]


def test_the_page_adds_up():
    """Its table is what the embedded Postgres is given room for, and its sum is one."""
    for process in ("api", "dispatcher", "callbacks"):
        assert f"\n| {process} | {CONNECTIONS[process]} |\n" in PAGE
    [(terms, total)] = re.findall(rf"come to\s+([\d {TIMES}+]+) = (\d+)", PAGE)
    assert sum(math.prod(map(int, term.split(TIMES))) for term in terms.split("+")) == int(total)
    assert f"4 {TIMES} {CONNECTIONS['worker']} " in terms
    assert f"[{CONNECTIONS['worker']} connections to Postgres]" in (ROOT / "docs" / "gpu.md").read_text()
