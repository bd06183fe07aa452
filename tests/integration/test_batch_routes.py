"""A batch over HTTP: for how long its events are sent to whom, and whose requests touch it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
from sqlalchemy import Connection, Engine, text
from support.dockets import an_outcome, claim_one, reads
from support.dockets import batch as insert_batch
from support.edge import open_edge
from support.keys import a_key, bearer

from infra import docket
from infra.outcomes import Outcome
from producer import keys
from producer.keyring import SECONDS
from schemas import ids
from schemas.keys import parse_key


def events(answer: httpx2.Response, *, within: float) -> Iterator[str]:
    """Read a stream's lines, none of which may come later than that."""
    began = time.monotonic()
    for line in answer.iter_lines():
        assert time.monotonic() - began < within, "the stream goes on"
        yield line


def test_a_stream_ends_with_its_key(database_url: str, connection: Connection):
    """Whoever follows a batch by a key that is revoked hears no more of it; another key's reader goes on."""
    path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 1))}/events"
    ending, lasting = a_key(database_url), a_key(database_url)
    with (
        open_edge(database_url) as http,
        http.stream("GET", path, headers=bearer(ending)) as ended,
        http.stream("GET", path, headers=bearer(lasting)) as other,
    ):
        lines = events(ended, within=SECONDS + 60)
        assert next(lines) == "event: batch"
        keys.revoke(connection, parse_key(ending).id)
        assert "event: batch" not in list(lines)
        connection.execute(text("UPDATE batches SET paused = true"))
        assert next(line for line in events(other, within=60) if '"paused":true' in line)


def test_anothers_retry_asks_for_no_lock(database_url: str, database: Engine, connection: Connection):
    """Whoever retries another tenant's batch is told at once that there is none, and holds nobody up."""
    path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 1))}/retry"
    with database.begin() as owner, open_edge(database_url) as http:
        owner.execute(text("SELECT FROM batches FOR UPDATE"))
        assert http.post(path, headers=bearer(a_key(database_url, tenant="other")), timeout=60).status_code == 404


def test_what_is_held_is_held_from_the_answer_on(database_url: str, connection: Connection):
    """Before any dispatcher has looked: what was out has come back, and nothing more of it is let go."""
    path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 3))}"
    with open_edge(database_url) as http:
        http.headers.update(bearer(a_key(database_url)))
        for hold, undo in (("pause", "UPDATE batches SET paused = false, open = true"), ("cancel", "SELECT 1")):
            claim_one(connection)
            assert len(docket.release_bulk(connection, room=2, limit=1)) == 1
            assert http.post(f"{path}/{hold}").status_code == 200
            assert docket.release_bulk(connection, room=9, limit=9) == []
            states = connection.execute(text("SELECT DISTINCT state, attempt FROM shards")).all()
            assert states == [("waiting", 0)]
            connection.execute(text(undo))


def test_what_is_retried_is_as_it_was_the_first_time(database_url: str, connection: Connection):
    """Its errored lines alone go again, as urgent and told of as before, with the time that the batch had at first."""
    filing = insert_batch(connection, 3, priority=7)
    connection.execute(text("UPDATE shards SET notify = true"))
    for line, good in ((1, True), (2, False), (3, False)):
        docket.finish(connection, claim_one(connection).lease, [an_outcome(line, good=good)])
    connection.execute(text("UPDATE outcomes SET error_code = 'bad_line' WHERE line = 2"))
    connection.execute(
        text("UPDATE batches SET status = 'completed', open = false, expires_at = now(), samples = '[1]'")
    )
    with open_edge(database_url) as http:
        retried = http.post(f"/v1/batches/{ids.batch_id(filing)}/retry", headers=bearer(a_key(database_url))).json()
    assert (retried["request_counts"]["succeeded"], retried["request_counts"]["errored"]) == (1, 0)
    again = connection.execute(
        text("""
            SELECT s.first_line, s.last_line, s.lane, s.priority, s.notify, s.deadline_at = b.expires_at AS in_time,
                   b.expires_at > now() + interval '23 h' AS has_time, b.samples
            FROM shards s JOIN batches b ON b.id = s.filing_id WHERE s.state = 'waiting'
        """)
    ).one()
    assert tuple(again) == (3, 3, "bulk", 7, True, True, True, [])


def test_what_is_retried_is_paused_no_more(database_url: str, connection: Connection):
    """A batch that ended while it was paused goes on at once: nobody who retries it thinks of resuming it."""
    path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 1))}/retry"
    docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=False)])
    connection.execute(text("UPDATE batches SET status = 'failed', open = false, paused = true, ended_at = now()"))
    with open_edge(database_url) as http:
        retried = http.post(path, headers=bearer(a_key(database_url))).json()
    assert (retried["status"], retried["paused"]) == ("in_progress", False)


def test_what_a_batch_took_is_told_while_it_goes_on(database_url: str, connection: Connection):
    """Tokens, engine time and verdicts used again are added up over what was stored on the way and at the end."""
    filing = insert_batch(connection, 2)

    def judged(line: int, **took: Any) -> Outcome:
        return replace(an_outcome(line, good=True), **took)

    first = claim_one(connection)
    docket.record(
        connection,
        first.lease,
        [judged(1, prompt_tokens=700, cached_tokens=50, gpu_seconds=0.5)],
        lease_seconds=60,
    )
    docket.finish(connection, first.lease, [])
    second = claim_one(connection)
    docket.finish(
        connection, second.lease, [judged(2, prompt_tokens=90, cached_tokens=8, gpu_seconds=0.25, reused=True)]
    )
    with open_edge(database_url) as http:
        read = http.get(f"/v1/batches/{ids.batch_id(filing)}", headers=bearer(a_key(database_url))).json()
    assert read["usage"] == {
        "input_tokens": 790,
        "input_tokens_details": {"cached_tokens": 58},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 790,
        "gpu_seconds": 0.75,
    }
    assert read["request_counts"]["reused"] == 1


def test_why_a_large_batch_failed_is_told_from_some_of_its_lines(database_url: str, connection: Connection):
    """Whoever reads a failed batch again and again has no more of its outcomes read than some thousands each time."""
    batch = insert_batch(connection, 1)
    failed = """
        INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message)
        SELECT :batch, n, 'default', 'errored', CASE WHEN n % 10 < 3 THEN 'unparseable' ELSE 'engine_failed' END, '-'
        FROM generate_series(1, 30000) n
    """
    connection.execute(text(failed), {"batch": batch})
    connection.execute(
        text("UPDATE batches SET status = 'failed', total = 30000, in_progress_at = now(), ended_at = now()")
    )
    connection.execute(text("VACUUM ANALYZE outcomes"))
    before = reads(connection, "outcomes")
    with open_edge(database_url) as http:
        read = http.get(f"/v1/batches/{ids.batch_id(batch)}", headers=bearer(a_key(database_url))).json()
    assert [each["message"] for each in read["errors"]["data"]] == [
        "of the first 10000 lines, 7000 lines ended so, for instance: -",
        "of the first 10000 lines, 3000 lines ended so, for instance: -",
    ]
    assert reads(connection, "outcomes") - before <= 10_000


def test_a_time_to_complete_is_asked_for_in_words(database_url: str):
    """Whoever writes it another way is told the field and what it takes, and gets no pattern to read."""
    asked = {"input_file_id": "file-0", "endpoint": "/v1/comparisons", "completion_window": "1 day"}
    with open_edge(database_url) as http:
        refused = http.post("/v1/batches", json=asked, headers=bearer(a_key(database_url)))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "completion_window")
    assert error["message"] == (
        "completion_window: takes a whole number from 1 to 9999 and m, h or d after it, such as 90m, 24h or 7d."
    )


def test_what_would_expire_before_it_may_run_is_refused(database_url: str):
    """A window that does not open in time is told of when the batch is made, and not by morning."""
    now = datetime.now(UTC)
    later, last = (f"{now + timedelta(hours=hours):%H:%M}" for hours in (3, 4))
    with open_edge(database_url) as http:
        http.headers.update(bearer(a_key(database_url)))
        line = b'{"prompt": "p", "response_a": "a", "response_b": "b"}'
        file = http.post("/v1/files", files={"file": ("f", line)}, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/comparisons", "window": {"start": later, "end": last}}
        refused = http.post("/v1/batches", json={**asked, "completion_window": "2h"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "window")
        assert "does not open before the completion_window of 2h is over" in refused.json()["error"]["message"]
        waits = int((now + timedelta(hours=2)).timestamp())
        for time_enough in ({"completion_window": "24h"}, {"completion_window": "2h", "not_before": waits}):
            assert http.post("/v1/batches", json={**asked, **time_enough}).status_code == 200


def test_what_was_taken_in_time_is_taken_for_good(database_url: str):
    """A batch that is sent again when its window has closed is answered as the first time, and another is refused."""
    now = datetime.now(UTC)
    window = {"start": f"{now + timedelta(hours=3):%H:%M}", "end": f"{now + timedelta(hours=5):%H:%M}"}
    key = bearer(a_key(database_url))
    with open_edge(database_url, clock_shift_seconds=4 * 3600.0) as http:
        line = b'{"prompt": "p", "response_a": "a", "response_b": "b"}'
        sent = http.post("/v1/files", files={"file": ("f", line)}, data={"purpose": "batch"}, headers=key).json()
        asked = {
            "input_file_id": sent["id"],
            "endpoint": "/v1/comparisons",
            "window": window,
            "completion_window": "2h",
        }
        first = http.post("/v1/batches", json=asked, headers={**key, "Idempotency-Key": "tonight"})
    with open_edge(database_url) as http:
        again = http.post("/v1/batches", json=asked, headers={**key, "Idempotency-Key": "tonight"})
        other = http.post("/v1/batches", json=asked, headers={**key, "Idempotency-Key": "another"})
    assert (first.status_code, again.status_code, again.json()["id"]) == (200, 200, first.json()["id"])
    assert (other.status_code, other.json()["error"]["param"]) == (422, "window")
