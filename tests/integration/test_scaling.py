"""How many judges the work is worth: the query that KEDA asks, as the user that the page has it ask as."""

import re
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from support.deployed import KUBERNETES, ROOT, rendered
from support.dockets import LONG, a_line

from infra import docket
from schemas.states import Lane

[SCALED] = [each["spec"] for each in rendered(KUBERNETES / "gpu") if each["kind"] == "ScaledObject"]
QUERY = SCALED["triggers"][0]["metadata"]["query"]
[GRANTS] = re.findall(r"```sql\n(CREATE ROLE keda.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)


@pytest.fixture
def keda(connection: Connection, database_url: str) -> Iterator[Connection]:
    """A connection of the user that docs/deployment.md makes for KEDA."""
    name, password = f"keda_{uuid.uuid4().hex}", uuid.uuid4().hex
    grants = re.sub(r"\bkeda\b", name, GRANTS).replace("'...'", f"'{password}'")
    for statement in filter(str.strip, grants.split(";")):
        connection.execute(text(statement))
    url = make_url(database_url).set(drivername="postgresql+psycopg", username=name, password=password)
    engine = create_engine(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as asking:
        yield asking
    engine.dispose()
    connection.execute(text(f"DROP OWNED BY {name}"))
    connection.execute(text(f"DROP ROLE {name}"))


def worth(keda: Connection) -> int:
    """What KEDA would be told."""
    answer = keda.execute(text(QUERY)).scalar_one()
    assert isinstance(answer, int)
    return answer


def file(connection: Connection, *, lane: Lane = Lane.INTERACTIVE) -> uuid.UUID:
    """File a comparison."""
    filing_id = uuid.uuid4()
    docket.file(connection, tenant="default", filing_id=filing_id, lane=lane, comparisons=[a_line(0)], shard_lines=1)
    return filing_id


def test_nothing_to_do_is_worth_no_judge(keda: Connection):
    """An empty docket is a number, and it is zero."""
    assert worth(keda) == 0


def test_work_counts_from_being_filed_until_it_is_done(connection: Connection, keda: Connection):
    """A shard counts while it waits, while it is released and while it runs, so that no judge at work is taken away."""
    file(connection)
    assert worth(keda) == 1
    [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=10, limit=10)
    assert worth(keda) == 1
    assert docket.claim(connection, shard, worker="w", lease_seconds=LONG)
    assert worth(keda) == 1
    connection.execute(
        text("UPDATE shards SET state = 'done', lease_token = NULL, lease_until = NULL, ended_at = now()")
    )
    assert worth(keda) == 0


def test_work_that_is_not_due_yet_is_worth_no_judge(connection: Connection, keda: Connection):
    """A shard whose next attempt is an hour away waits without a GPU."""
    file(connection)
    connection.execute(text("UPDATE shards SET due_at = now() + interval '1 hour'"))
    assert worth(keda) == 0


@pytest.mark.parametrize(("is_open", "count"), [(True, 1), (False, 0)], ids=["open", "closed"])
def test_a_batch_counts_while_it_is_open(connection: Connection, keda: Connection, is_open: bool, count: int):
    """An open batch wakes the first judge, as none of it is released before; a paused one, or one by day, does not."""
    filing_id = file(connection, lane=Lane.BULK)
    connection.execute(
        text("""
            INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                                 open, expires_at)
            VALUES (:id, 'default', :id, '/v1/comparisons', 'in_progress', '{}', '24h', 'fail', 1, :open,
                    now() + interval '1 day')
        """),
        {"id": filing_id, "open": is_open},
    )
    assert worth(keda) == count


def test_whoever_scales_reads_no_contents(keda: Connection):
    """The user sees how much there is to do, and neither prompts nor verdicts."""
    for table in ("comparisons", "outcomes", "shards"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            keda.execute(text(f"SELECT * FROM {table}"))  # noqa: S608 (three names of our own)
