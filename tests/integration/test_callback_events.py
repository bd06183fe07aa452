"""Events: written with what makes them true, once, for those who want them, and for nobody else."""

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection
from support.desk import LOOPBACK, Desk, body_of
from support.dockets import an_outcome, reads
from support.inbox import Inbox

from infra import callbacks, docket
from infra.database import at_once
from producer import batches, callback_endpoints, lifecycle
from schemas import ids
from schemas.batch import BatchRequest
from schemas.callback import EventType
from schemas.problems import OutcomeError, Problem

HOOK = "http://127.0.0.1:9/hook"
"""A receiver that nothing is ever sent to in these tests."""


async def admit_all(_: AsyncConnection, *, lines: int) -> None:
    """Find room for any batch."""
    assert lines


def make_batch(desk: Desk, lines: int = 3, **options: object) -> str:
    """A batch of an uploaded file, its shards waiting."""
    file = ids.new_filing_id()
    desk.do(
        "INSERT INTO files (id, tenant, filename, purpose, state, lines) "
        "VALUES (:file, 'default', 'f', 'batch', 'processed', :lines)",
        file=file,
        lines=lines,
    )
    desk.do(
        "INSERT INTO comparisons (source_id, line, tenant, body) SELECT :file, n, 'default', "
        """'{"prompt": "?", "response_a": "a", "response_b": "b"}' FROM generate_series(1, :lines) AS n""",
        file=file,
        lines=lines,
    )
    desk.do("INSERT INTO file_runs VALUES (:file, 1, :lines, :lines, 10)", file=file, lines=lines)
    request = BatchRequest(
        input_file_id=ids.file_id(file), endpoint="/v1/comparisons", completion_window="1h", **options
    )
    batch, _ = desk.run(batches.create, request, tenant="default", allowed=LOOPBACK, admit=admit_all, worker_seconds=30)
    return batch.id


def judge_batch(desk: Desk, *lines: bool) -> None:
    """Open the batch, judge its one shard, and let the batch end."""
    with desk.database.begin() as connection:
        lifecycle.tend(connection)
        [shard] = docket.release_bulk(connection, room=10, limit=10)
        claimed = docket.claim(connection, shard, worker="w", lease_seconds=60)
        outcomes = [an_outcome(number, good=good) for number, good in enumerate(lines, start=1)]
        undecided = {filed.line for filed in docket.undecided(connection, claimed)}
        docket.finish(connection, claimed.lease, [each for each in outcomes if each.line in undecided])
    with desk.database.begin() as connection:
        lifecycle.tend(connection)


class TestComparisons:
    def test_an_event_for_each_way_to_end(self, desk: Desk):
        """Judged well, judged badly, called off, and out of time: four comparisons, four events."""
        desk.tell(callback_url=HOOK)
        desk.file(callback_url=HOOK)
        desk.decide(good=False)
        called_off = desk.file(callback_url=HOOK)
        with desk.database.begin() as connection:
            docket.cancel(connection, tenant="default", filing_id=called_off)
        desk.file(callback_url=HOOK, deadline_in=0)
        with desk.database.begin() as connection:
            docket.expire(connection, limit=10)
        assert desk.events() == [
            "comparison.succeeded",
            "comparison.errored",
            "comparison.cancelled",
            "comparison.expired",
        ]

    def test_the_last_failed_attempt_tells(self, desk: Desk):
        """An attempt that failed and will be repeated is no event; the last one is."""
        filing = desk.file(callback_url=HOOK)
        for attempt in (1, 2):
            claimed = desk.claim()
            with desk.database.begin() as connection:
                docket.fail(
                    connection, claimed, code=OutcomeError.ENGINE_FAILED, message="-", retry_in=0, max_attempts=2
                )
            assert desk.events() == [] if attempt == 1 else ["comparison.errored"]
        assert desk.one("SELECT subject_id FROM callback_events") == filing

    def test_halves_of_a_shard_tell_too(self, desk: Desk):
        """What was to be told before a shard was split is told after it."""
        desk.file(callback_url=HOOK, lines=[1, 2])
        claimed = desk.claim()
        with desk.database.begin() as connection:
            docket.split(connection, claimed.lease)
        assert [row.notify for row in desk.rows("SELECT notify FROM shards WHERE state = 'waiting'")] == [True, True]

    def test_no_event_without_what_it_tells(self, desk: Desk):
        """A transaction that is rolled back takes outcome and event with it."""
        desk.file(callback_url=HOOK)
        claimed = desk.claim()
        with desk.database.connect() as connection, connection.begin() as transaction:
            docket.finish(connection, claimed.lease, [an_outcome(0, good=True)])
            transaction.rollback()
        assert desk.events() == []
        assert desk.one("SELECT count(*) FROM outcomes") == 0

    def test_a_write_repeated_in_doubt_tells_once(self, desk: Desk):
        """A worker that does not know whether its commit arrived stores again, and nothing is told twice."""
        desk.file(callback_url=HOOK, lines=[1, 2])
        claimed = desk.claim()
        for _ in range(3):
            with desk.database.begin() as connection:
                docket.record(connection, claimed.lease, [an_outcome(1, good=True)], lease_seconds=60)
        assert desk.events() == ["comparison.succeeded"]

    def test_who_asked_for_nothing_pays_nothing(self, desk: Desk):
        """Where neither a request nor an endpoint wants callbacks, no statement of a verdict touches their tables."""
        said: list[str] = []
        filing = desk.file(lines=[1, 2, 3])
        event.listen(desk.database, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))
        desk.decide(lines=[1, 2, 3])
        assert desk.one("SELECT count(*) FROM outcomes WHERE filing_id = :filing", filing=filing) == 3
        assert any("outcomes" in statement for statement in said)
        assert not any("callback" in statement for statement in said)
        assert desk.events() == []

    def test_an_endpoint_hears_of_what_is_filed_after_it(self, desk: Desk):
        """A registered endpoint hears of single comparisons without their asking, from its registration on."""
        desk.tell()
        desk.add_endpoint(HOOK, EventType.COMPARISON_SUCCEEDED)
        desk.tell(2)
        assert desk.events() == ["comparison.succeeded"] * 2

    def test_an_endpoint_that_wants_batches_alone(self, desk: Desk):
        """Comparisons are told of where somebody wants them, and an endpoint may not."""
        desk.add_endpoint(HOOK, EventType.BATCH_COMPLETED)
        desk.tell()
        assert desk.events() == []

    def test_what_anothers_request_or_endpoint_wants(self, desk: Desk):
        """A URL that one request named hears of that request alone, and an endpoint of its own tenant's alone."""
        desk.add_endpoint(HOOK)
        desk.do("UPDATE callback_endpoints SET tenant = 'other'")
        desk.tell(callback_url=HOOK)
        assert desk.events() == ["comparison.succeeded"]
        desk.tell()
        called_off, _late = desk.file(), desk.file(deadline_in=0)
        with desk.database.begin() as connection:
            assert docket.cancel(connection, tenant="default", filing_id=called_off) == 1
            assert docket.expire(connection, limit=10) == 1
        assert desk.events() == ["comparison.succeeded"]


class TestBatches:
    @pytest.mark.parametrize(
        ("lines", "said"), [((True, False), "batch.completed"), ((False, False), "batch.failed")], ids=str
    )
    def test_a_batch_tells_of_its_end(self, desk: Desk, lines: tuple[bool, ...], said: str):
        """Of a batch its end alone is told, unless its comparisons were asked for."""
        make_batch(desk, len(lines), callback_url=HOOK)
        judge_batch(desk, *lines)
        assert desk.events() == [said]

    def test_comparisons_of_a_batch_where_asked(self, desk: Desk):
        """With callback_comparisons each line tells as well, under ids that name the batch."""
        batch = make_batch(desk, 2, callback_url=HOOK, callback_comparisons=True)
        judge_batch(desk, True, False)
        assert sorted(desk.events()) == ["batch.completed", "comparison.errored", "comparison.succeeded"]
        assert desk.rows("SELECT DISTINCT subject_id FROM callback_events") == [(ids.parse_prefixed(batch, "batch_"),)]

    def test_a_batch_that_never_ran(self, desk: Desk):
        """A batch that is refused for its bad lines has failed, and says so."""
        make_batch(desk, 0, callback_url=HOOK)
        assert desk.events() == ["batch.failed"]

    def test_nobody_asked(self, desk: Desk):
        """A batch without callback_url, of a tenant without endpoints, tells nobody, whoever else listens."""
        desk.add_endpoint(HOOK)
        desk.do("UPDATE callback_endpoints SET tenant = 'other'")
        desk.file(callback_url=HOOK)
        make_batch(desk, 1)
        judge_batch(desk, True)
        assert desk.events() == []

    def test_a_batch_retried_tells_again(self, desk: Desk):
        """What is retried ends once more: the batch, and of its comparisons those that were judged anew."""
        batch = make_batch(desk, 2, callback_url=HOOK, callback_comparisons=True)
        judge_batch(desk, True, False)
        key = ids.parse_prefixed(batch, "batch_")
        desk.run(batches.retry, tenant="default", batch_id=key, shard_lines=256, admit=admit_all, worker_seconds=30)
        judge_batch(desk, True, True)
        assert sorted(desk.events()) == sorted(
            [
                "comparison.succeeded",
                "comparison.errored",
                "batch.completed",
                "comparison.succeeded",
                "batch.completed",
            ]
        )


class TestReceivers:
    def test_each_receiver_gets_what_it_wants(self, desk: Desk, inbox: Inbox):
        """One event goes to the request's own URL and to every endpoint that wants its type, under one id."""
        desk.add_endpoint(f"{inbox.url}/all")
        desk.add_endpoint(f"{inbox.url}/errors", EventType.COMPARISON_ERRORED)
        [filing] = desk.tell(callback_url=f"{inbox.url}/own?job=7")
        desk.deliver()
        assert sorted(message.path for message in inbox.messages) == ["/hook/all", "/hook/own?job=7"]
        assert len(inbox.counts()) == 1
        assert body_of(inbox.messages[0])["data"] == {"id": f"cmp_{filing.hex}", "object": "comparison"}

    def test_what_came_before_it_is_not_for_an_endpoint(self, desk: Desk):
        """Whoever registers, however soon after, is sent nothing of before; and nothing of another tenant's."""
        desk.add_endpoint(f"{HOOK}/other")
        desk.do("UPDATE callback_endpoints SET tenant = 'other'")
        desk.tell(callback_url=f"{HOOK}/own")
        desk.add_endpoint(f"{HOOK}/late")
        desk.fan_out()
        assert [row.url for row in desk.rows("SELECT url FROM callbacks")] == [f"{HOOK}/own"]

    def test_fanned_out_once(self, desk: Desk):
        """However often events are looked at, each receiver is owed each event once."""
        desk.add_endpoint(HOOK)
        desk.tell(3)
        assert desk.fan_out() == 3
        assert desk.fan_out() == 0
        desk.do("UPDATE callback_events SET fanned_out = false")
        desk.fan_out()
        assert desk.states() == ["waiting"] * 3

    def test_what_a_disabled_endpoint_misses_is_kept(self, desk: Desk):
        """Events for an endpoint that is disabled are dead from the start, and can be replayed."""
        endpoint = desk.add_endpoint(HOOK)
        desk.do("UPDATE callback_endpoints SET state = 'disabled' WHERE id = :id", id=endpoint)
        desk.tell()
        desk.fan_out()
        assert desk.rows("SELECT state, reason FROM callbacks") == [("dead", "endpoint_disabled")]

    def test_a_url_that_callbacks_may_not_go_to(self, desk: Desk):
        """It is refused when it is filed, naming the field, and nothing is filed."""
        with pytest.raises(Problem, match=r"callback_url: ") as refused:
            desk.file(callback_url="http://169.254.169.254/latest")
        assert refused.value.errors[0].field == "callback_url"
        assert desk.one("SELECT count(*) FROM comparisons") == 0

    def test_without_a_secret_nothing_is_promised(self, database: Engine, database_url: str):
        """A request that wants a callback is refused while there is nothing to sign it with."""
        with pytest.raises(Problem, match="rotate-secret"):
            Desk(database, database_url).file(callback_url=HOOK)

    def test_receivers_that_took_nothing_yet_are_so_many(self, desk: Desk, monkeypatch: pytest.MonkeyPatch):
        """A new one is refused beyond that; not one named before, nor where another does well or is an old story."""
        monkeypatch.setattr(callback_endpoints, "_UNPROVEN_MOST", 2)
        urls = [f"http://127.0.0.1:{port}/hook" for port in range(1, 6)]
        for url in urls[:2]:
            desk.file(callback_url=url)
        with pytest.raises(Problem, match="named 2 receivers") as refused:
            desk.file(callback_url=urls[2])
        assert refused.value.kind.code == "too_many_receivers"
        desk.file(callback_url=urls[0])
        change = "UPDATE callback_endpoints SET {} WHERE url = 'http://127.0.0.1:{}'"
        desk.do(change.format("succeeded_at = now()", 1))
        desk.file(callback_url=urls[2])
        desk.do(change.format("created_at = now() - interval '6 days'", 2))
        desk.file(callback_url=urls[3])
        desk.do(change.format("succeeded_at = now()", 3))
        desk.do(change.format("failures = 1", 1))
        with pytest.raises(Problem):
            desk.file(callback_url=urls[4])
        desk.add_endpoint(urls[4])

    def test_so_many_endpoints_may_be_registered(self, desk: Desk, monkeypatch: pytest.MonkeyPatch):
        """Beyond that one has to be removed first; another tenant's, and those that requests named, do not count."""
        monkeypatch.setattr(callback_endpoints, "_REGISTERED_MOST", 2)
        desk.add_endpoint(HOOK)
        desk.do("UPDATE callback_endpoints SET tenant = 'other'")
        desk.file(callback_url=HOOK)
        first, _ = desk.add_endpoint(HOOK), desk.add_endpoint(HOOK)
        desk.run(callback_endpoints.switch, tenant="default", endpoint=first, enabled=False)
        with pytest.raises(Problem, match="2 callback endpoints are registered") as refused:
            desk.add_endpoint(HOOK)
        assert refused.value.kind.code == "too_many_receivers"
        desk.run(callback_endpoints.remove, tenant="default", endpoint=first)
        desk.add_endpoint(HOOK)

    def test_requests_to_one_origin_share_an_endpoint(self, desk: Desk):
        """What breaks the circuit for one request breaks it for all that go to the same host and port."""
        for path in ("a", "b"):
            desk.file(callback_url=f"http://127.0.0.1:9/{path}")
        desk.file(callback_url="http://127.0.0.1:10/a")
        origins = [row.url for row in desk.rows("SELECT url FROM callback_endpoints ORDER BY url")]
        assert origins == ["http://127.0.0.1:10", "http://127.0.0.1:9"]


def test_each_tenant_is_told_in_its_turn(desk: Desk):
    """However many events of another came before, a tenant's go out in the next step, the oldest first."""
    tell = """
        INSERT INTO callback_events (id, tenant, type, subject_id, line, at)
        SELECT lpad(to_hex(n), 32, '0')::uuid, :tenant, 'comparison.cancelled', gen_random_uuid(), 0, now()
        FROM generate_series(CAST(:first AS int), :last) n
    """
    desk.do(tell, tenant="flood", first=1, last=5_000)
    desk.do(tell, tenant="small", first=5_001, last=5_003)
    with at_once(desk.database) as connection:
        connection.execute(text("VACUUM ANALYZE callback_events"))
        before = reads(connection, "callback_events")
        assert callbacks.fan_out(connection, limit=10) == 10
        assert reads(connection, "callback_events") - before < 500
    told = desk.rows("SELECT right(id::text, 4) FROM callback_events WHERE fanned_out ORDER BY id")
    assert [int(row[0], 16) for row in told] == [*range(1, 8), *range(5_001, 5_004)]


def test_fan_out_takes_a_step_at_a_time(desk: Desk):
    """A great many events do not make a long transaction."""
    desk.tell(3, callback_url=HOOK)
    with desk.database.begin() as connection:
        assert callbacks.fan_out(connection, limit=2) == 2
    assert len(desk.states()) == 2


def test_fan_out_of_many_receivers_takes_fewer_events(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """A step makes about so many callbacks and no more, and always those of one event."""
    for _ in range(3):
        desk.add_endpoint(HOOK)
    desk.tell(5)
    for most, events in ((1, 1), (8, 2), (100, 2)):
        monkeypatch.setattr(callbacks, "_FAN_OUT_MOST", most)
        assert desk.fan_out() == events
    assert desk.states() == ["waiting"] * 15
