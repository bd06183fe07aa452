"""Limits of keys, over HTTP on a real Postgres: what is let in, what is refused, and what the refusal says."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy import Connection, text
from support.dockets import batch as insert_batch
from support.edge import open_edge
from support.keys import a_key, bearer
from support.service import QUESTION
from support.waiting import wait_until

from producer import limits
from producer.api import app
from producer.dashboard import batches as pages
from producer.limits import WINDOW, Rates
from schemas import ids
from schemas.keys import KeyLimits

_QUEUING = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
_READING = text("SELECT count(*) FROM pg_locks WHERE relation = 'comparisons'::regclass AND NOT granted")
_BEHIND = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
LINE = b'{"prompt": "Which?", "response_a": "this", "response_b": "that"}\n'


class Edge(NamedTuple):
    """The HTTP edge, and the database under it."""

    http: httpx2.Client
    database_url: str

    def key(self, tenant: str = "default", **limits: Any) -> dict[str, str]:
        """Make a key with limits, and give the header that it is sent in."""
        return bearer(a_key(self.database_url, tenant=tenant, limits=KeyLimits(**limits)))

    def file(self, key: dict[str, str], **headers: str) -> httpx2.Response:
        """File a comparison."""
        return self.http.post("/v1/comparisons", json=QUESTION, headers={**key, **headers})

    def upload(self, key: dict[str, str], lines: int | bytes) -> str:
        """Upload a file of so many lines, or of these."""
        content = LINE * lines if isinstance(lines, int) else lines
        answer = self.http.post(
            "/v1/files", files={"file": ("f.jsonl", content)}, data={"purpose": "batch"}, headers=key
        )
        return answer.raise_for_status().json()["id"]

    def batch(self, key: dict[str, str], file: str, **options: str) -> httpx2.Response:
        """Make a batch of a file."""
        asked = {"input_file_id": file, "endpoint": "/v1/comparisons", "completion_window": "24h", **options}
        return self.http.post("/v1/batches", json=asked, headers=key)


@pytest.fixture
def edge(database_url: str) -> Iterator[Edge]:
    """An edge whose keys may have little, unless a key says more."""
    with open_edge(database_url, queued_comparisons=5, concurrent_batches=2) as http:
        yield Edge(http, database_url)


def refusal(answer: httpx2.Response) -> tuple[int, str, int]:
    """The status, the code and the wait of a refusal."""
    said = answer.json()
    return answer.status_code, said.get("error", said)["code"], int(answer.headers["retry-after"])


class TestRequests:
    def test_ten_seconds_worth_may_come_at_once(self, edge: Edge):
        """A key that may send one request in five seconds has two, is told so, and then has to wait."""
        key = edge.key(requests_per_second=0.2)
        first, second, third = (edge.http.get("/v1/comparisons", headers=key) for _ in range(3))
        assert [first.status_code, second.status_code] == [200, 200]
        assert first.headers["ratelimit-policy"] == '"requests";q=2;w=10'
        assert first.headers["ratelimit"] == '"requests";r=1;t=5'
        assert second.headers["ratelimit"].startswith('"requests";r=0;t=')
        status, code, wait = refusal(third)
        assert (status, code) == (429, "rate_limited")
        assert 0 < wait <= 5
        assert third.headers["ratelimit"].startswith('"requests";r=0;')

    def test_one_keys_requests_are_not_anothers(self, edge: Edge):
        """Another key of the same tenant has its own count."""
        key, other = edge.key(requests_per_second=0.01), edge.key()
        edge.http.get("/v1/comparisons", headers=key)
        assert edge.http.get("/v1/comparisons", headers=key).status_code == 429
        assert edge.http.get("/v1/comparisons", headers=other).status_code == 200

    def test_half_of_what_a_process_takes_is_not_held(self, database_url: str, monkeypatch: pytest.MonkeyPatch):
        """Of three that ask to wait where two may, one is answered at once and told of no wait; so are probes."""
        monkeypatch.setattr(app, "_REQUESTS_AT_ONCE", 5)
        with open_edge(database_url) as http, ThreadPoolExecutor(3) as pool:
            edge = Edge(http, database_url)
            key = edge.key()
            held = [pool.submit(edge.file, key, Prefer="wait=6") for _ in range(3)]
            wait_until(lambda: any(each.done() for each in held), within=5, what="one is answered")
            assert http.get("/livez").status_code == 200
            answers = [each.result() for each in held]
        assert [each.status_code for each in answers] == [202] * 3
        assert sorted("preference-applied" in each.headers for each in answers) == [False, True, True]

    def test_openais_clients_find_their_own_shape(self, edge: Edge):
        """Where OpenAI's clients go, a refusal is an error of theirs."""
        key = edge.key(requests_per_second=0.01)
        edge.http.get("/v1/batches", headers=key)
        error = edge.http.get("/v1/batches", headers=key).json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")


class TestLines:
    @pytest.mark.parametrize("end", [b"\n", b"\n" + LINE, b""], ids=["whole", "followed", "last"])
    def test_one_that_is_too_long(self, edge: Edge, end: bytes):
        """Each line of a file has the limit of a body, wherever it ends; the file may be as long as it likes."""
        key = edge.key(max_body_bytes=1000)
        edge.upload(key, 100)
        long = json.dumps({"prompt": "w" * 5000, "response_a": "this", "response_b": "that"}).encode()
        form: Any = {"files": {"file": ("f.jsonl", LINE + long + end)}, "data": {"purpose": "batch"}}
        answer = edge.http.post("/v1/files", headers=key, **form)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert "Line 2 " in answer.json()["error"]["message"]


class TestTheQueue:
    def test_a_full_queue_takes_no_more(self, edge: Edge, connection: Connection):
        """What is undecided counts, of the whole tenant; nothing of what was refused is stored."""
        key, other = edge.key(), edge.key()
        assert [edge.file(each).status_code for each in (key, other, key, other, key)] == [202] * 5
        answer = edge.file(other)
        assert refusal(answer) == (429, "queue_full", 10)
        assert '"queued-comparisons";q=5' in answer.headers["ratelimit-policy"]
        assert '"queued-comparisons";r=0' in answer.headers["ratelimit"]
        assert connection.execute(text("SELECT count(*) FROM comparisons")).scalar() == 5

    def test_another_tenant_has_a_queue_of_its_own(self, edge: Edge):
        """One tenant's full queue is nothing to another."""
        for _ in range(5):
            edge.file(edge.key())
        assert edge.file(edge.key(tenant="other")).status_code == 202

    def test_a_keys_own_limit_goes_before_the_setting(self, edge: Edge):
        """A key may be allowed more than the others of its tenant, or less."""
        assert edge.file(edge.key(queued_comparisons=1)).status_code == 202
        assert edge.file(edge.key(queued_comparisons=1)).status_code == 429
        assert edge.file(edge.key(queued_comparisons=2)).status_code == 202

    def test_there_is_room_again_once_some_are_decided(self, edge: Edge, connection: Connection):
        """Within about a second of a decision the next is let in."""
        key = edge.key(queued_comparisons=1)
        edge.file(key)
        assert edge.file(key).status_code == 429
        connection.execute(text("UPDATE shards SET state = 'done', ended_at = now()"))
        wait_until(lambda: edge.file(key).status_code == 202, within=60, every=0.3, what="there is room")

    def test_what_was_filed_before_is_answered_all_the_same(self, edge: Edge):
        """A key to send it again by is no way past the limit, and no way to lose an answer."""
        key = edge.key(queued_comparisons=1)
        first = edge.file(key, **{"Idempotency-Key": "once"})
        again = edge.file(key, **{"Idempotency-Key": "once"})
        assert again.json()["id"] == first.json()["id"]
        assert edge.file(key, **{"Idempotency-Key": "twice"}).status_code == 429

    def test_many_at_once_do_not_slip_past(self, edge: Edge, connection: Connection):
        """Of thirty that come at once to one process, no more are let in than what was under way at its count."""
        key = edge.key()
        edge.file(key)
        with ThreadPoolExecutor(30) as pool:
            answers = [each.status_code for each in pool.map(lambda _: edge.file(key), range(30))]
        stored = connection.execute(text("SELECT count(*) FROM comparisons")).scalar()
        assert set(answers) == {202, 429}
        assert stored == answers.count(202) + 1 <= 5 + 16

    def test_a_batch_counts_by_its_lines(self, edge: Edge):
        """A batch fits whole, or not at all; one that could never fit is told to be filed in parts."""
        key = edge.key()
        assert edge.batch(key, edge.upload(key, 3)).status_code == 200
        assert refusal(edge.batch(key, edge.upload(key, 3))) == (429, "queue_full", 10)
        never = edge.batch(key, edge.upload(key, 6))
        assert never.status_code == 422
        assert "File it in parts" in never.json()["error"]["message"]

    def test_a_retry_that_can_never_fit(self, edge: Edge, connection: Connection):
        """It is told of its lines, and not of a field that it does not have."""
        key = edge.key()
        batch = edge.batch(key, edge.upload(key, 5)).json()["id"]
        connection.execute(text("UPDATE shards SET state = 'done', ended_at = now()"))
        connection.execute(text("UPDATE batches SET status = 'completed', open = false, ended_at = now()"))
        connection.execute(
            text("""
                INSERT INTO outcomes (filing_id, line, tenant, attempt, status, error_code, error_message)
                SELECT id, n, tenant, 1, 'errored', 'engine_failed', 'It failed.'
                FROM batches, generate_series(1, 6) AS n
            """)
        )
        refused = edge.http.post(f"/v1/batches/{batch}/retry", headers=key)
        assert refused.status_code == 422
        assert refused.json()["error"]["message"] == (
            "6 of its lines are errored; you may have 5 queued. File those anew, as batches of fewer lines."
        )

    @pytest.mark.parametrize("errored", [0, 1])
    def test_a_retry_counts_what_is_judged_again(self, edge: Edge, connection: Connection, errored: int):
        """Six lines that are no comparison need no room in a queue of five, and the line beside them needs its own."""
        key = edge.key()
        batch = edge.batch(key, edge.upload(key, LINE + b"{}\n" * 6), on_bad_line="skip").json()["id"]
        connection.execute(text("UPDATE shards SET state = 'done', ended_at = now()"))
        connection.execute(text("UPDATE batches SET status = 'completed', open = false, ended_at = now()"))
        connection.execute(
            text("""
                INSERT INTO outcomes (filing_id, line, tenant, attempt, status, error_code, error_message)
                SELECT id, 1, tenant, 1, 'errored', 'engine_failed', 'It failed.' FROM batches WHERE :errored = 1
            """),
            {"errored": errored},
        )
        answer = edge.http.post(f"/v1/batches/{batch}/retry", headers=key)
        assert answer.json()["status"] == ("in_progress" if errored else "completed")
        assert connection.execute(text("SELECT count(*) FROM shards WHERE state = 'waiting'")).scalar() == errored


class TestBatches:
    def test_so_many_at_a_time(self, edge: Edge, connection: Connection):
        """Batches that have not ended count; one that ends makes room for another."""
        key = edge.key()
        file = edge.upload(key, 1)
        made = [edge.batch(key, file) for _ in range(3)]
        assert [each.status_code for each in made] == [200, 200, 429]
        assert refusal(made[2]) == (429, "too_many_batches", 30)
        assert made[2].json()["error"]["type"] == "rate_limit_error"
        connection.execute(text("UPDATE batches SET status = 'completed' WHERE id = (SELECT id FROM batches LIMIT 1)"))
        assert edge.batch(key, file).status_code == 200

    def test_none_slips_past_at_once(self, edge: Edge):
        """Of ten that are made at once exactly as many are let in as may be."""
        key = edge.key()
        file = edge.upload(key, 1)
        with ThreadPoolExecutor(10) as pool:
            answers = [each.status_code for each in pool.map(lambda _: edge.batch(key, file), range(10))]
        assert sorted(answers) == [200] * 2 + [429] * 8

    def test_those_that_wait_for_their_turn_keep_nobody_out(self, edge: Edge, connection: Connection):
        """While one batch of a tenant takes long and twenty more wait for it, another tenant is served."""
        key, other = edge.key(concurrent_batches=100), edge.key(tenant="other")
        file = edge.upload(key, 1)
        connection.execute(text("BEGIN"))
        connection.execute(limits._ONE_AT_A_TIME, {"tenant": "default"})
        with ThreadPoolExecutor(20) as pool:
            made = [pool.submit(edge.batch, key, file) for _ in range(20)]
            wait_until(lambda: connection.execute(_QUEUING).scalar() == 1, within=60, what="one waits for the lock")
            assert [edge.file(other).status_code for _ in range(20)] == [202] * 5 + [429] * 15
            connection.execute(text("COMMIT"))
            statuses = [each.result().status_code for each in made]
        assert sorted(statuses) == [200] * 5 + [429] * 15


class TestStreams:
    def test_neither_a_key_nor_all_together_open_more_than_they_may(
        self, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ):
        """Where a key may have two of three streams, its third is refused, as is the fourth of all."""
        monkeypatch.setattr(app, "_REQUESTS_AT_ONCE", 12)
        monkeypatch.setattr(app, "_STREAMS_OF_A_KEY", 2)
        path = f"/v1/batches/{ids.batch_id(insert_batch(connection, 1))}/events"
        with open_edge(database_url) as http, ExitStack() as streams:
            edge = Edge(http, database_url)
            key, other, third = edge.key(), edge.key(), edge.key()

            def ask(key: dict[str, str]) -> httpx2.Response:
                return streams.enter_context(http.stream("GET", path, headers=key))

            assert [ask(key).status_code, ask(key).status_code] == [200, 200]
            refused = ask(key)
            refused.read()
            assert refusal(refused) == (429, "too_many_streams", 10)
            assert '"event-streams";q=2' in refused.headers["ratelimit-policy"]
            assert ask(other).status_code == 200
            refused = ask(third)
            refused.read()
            assert refusal(refused) == (429, "too_many_streams", 10)
            assert http.get("/v1/comparisons", headers=third).status_code == 200

    def test_the_dashboards_count_and_one_that_is_left_makes_room(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ):
        """A page that keeps up is a stream of its session's key; whoever leaves one may open another."""
        monkeypatch.setattr(app, "_STREAMS_OF_A_KEY", 1)
        with open_edge(database_url) as http:
            assert http.post("/dashboard/login", data={"key": a_key(database_url)}).status_code == 303
            with http.stream("GET", "/dashboard/events") as first:
                assert first.status_code == 200
                refused = http.get("/dashboard/events")
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
                assert "too_many_streams" in refused.text

            def room() -> bool:
                with http.stream("GET", "/dashboard/events") as answer:
                    return answer.status_code == 200

            wait_until(room, within=60, what="there is room")


class TestReports:
    def test_a_tenant_has_one_at_a_time_and_all_together_two(self, database_url: str, connection: Connection):
        """Of four that are asked for at once Postgres is asked for two, of two tenants; all are answered in the end."""
        batches = {tenant: insert_batch(connection, 1, tenant=tenant) for tenant in ("default", "other", "third")}
        connection.execute(
            text("""
                INSERT INTO outcomes (filing_id, line, tenant, attempt, status, error_code, error_message)
                SELECT id, 1, tenant, 1, 'errored', 'engine_failed', 'It failed.' FROM batches
            """)
        )
        with open_edge(database_url) as http, ThreadPoolExecutor(4) as pool:
            edge = Edge(http, database_url)
            asked = ["default", "default", "other", "third"]
            keys = [edge.key(tenant) for tenant in asked]
            connection.execute(text("BEGIN"))
            connection.execute(text("LOCK TABLE comparisons IN ACCESS EXCLUSIVE MODE"))
            reports = [
                pool.submit(http.get, f"/v1/batches/{ids.batch_id(batches[tenant])}/report", headers=key)
                for tenant, key in zip(asked, keys, strict=True)
            ]
            told = re.compile(r"^nightcourt_http_requests_under_way 5\.0$", re.MULTILINE)
            wait_until(lambda: told.search(http.get("/metrics").text), within=60, what="four are under way")
            wait_until(lambda: connection.execute(_READING).scalar() == 2, within=60, what="two are read")
            assert [http.get("/v1/files", headers=keys[0]).status_code for _ in range(20)] == [200] * 20
            assert connection.execute(_READING).scalar() == 2
            connection.execute(text("COMMIT"))
            assert [each.result().status_code for each in reports] == [200] * 4

    @pytest.mark.parametrize(
        "path",
        ["/v1/batches/{}/report", "/dashboard/batches/{}/report", "/dashboard/batches/{}"],
    )
    def test_one_that_nobody_waits_for_takes_no_turn(
        self, database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, path: str
    ):
        """Whoever hung up while the tenant's batch was read whole for somebody else has nothing read any more."""
        monkeypatch.setattr(pages, "_REASONS_MOST", 0)
        batch = insert_batch(connection, 1)
        connection.execute(text("UPDATE shards SET state = 'done', errored = 1"))
        connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now()"))
        with open_edge(database_url) as http, ThreadPoolExecutor(1) as pool:
            key = Edge(http, database_url).key()
            assert http.post("/dashboard/login", data={"key": a_key(database_url)}).status_code == 303
            connection.execute(text("BEGIN"))
            connection.execute(text("LOCK TABLE comparisons, outcomes IN ACCESS EXCLUSIVE MODE"))
            first = pool.submit(http.get, path.format(ids.batch_id(batch)), headers=key)
            wait_until(lambda: connection.execute(_BEHIND).scalar(), within=60, what="the first one is made")
            with pytest.raises(httpx2.ReadTimeout):
                http.get(path.format(ids.batch_id(batch)), headers=key, timeout=1)
            connection.execute(text("COMMIT"))
            assert first.result().status_code == 200

            def given_up() -> bool:
                counted = [line for line in http.get("/metrics").text.splitlines() if path.format("{batch_id}") in line]
                return any('status="499"' in line for line in counted)

            wait_until(given_up, within=60, what="the second is given up")


class TestTokens:
    def test_a_day_has_so_many(self, edge: Edge, connection: Connection):
        """What was judged since midnight UTC counts, what was judged before does not, and the wait is to midnight."""
        key = edge.key(tokens_per_day=1000)
        edge.file(key)
        judged = "UPDATE shards SET state = 'done', prompt_tokens = 1000, ended_at = date_trunc('day', now(), 'UTC')"
        connection.execute(text(judged + " - interval '1 s'"))
        other = edge.key(tenant="other", tokens_per_day=1000)
        edge.file(other)
        connection.execute(text(judged + " WHERE tenant = 'other'"))
        wait_until(lambda: edge.file(other).status_code == 429, within=60, every=0.3, what="the tokens are counted")
        status, code, wait = refusal(edge.file(other))
        assert (status, code) == (429, "tokens_used_up")
        assert 0 < wait <= 86400
        assert edge.file(key).status_code == 202


class TestBodies:
    def test_a_key_may_send_less_or_more(self, edge: Edge):
        """A body beyond the key's own limit is refused before it is understood, and a line of a file is a bad line."""
        key = edge.key(max_body_bytes=200)
        answer = edge.http.post("/v1/comparisons", json={**QUESTION, "prompt": "x" * 300}, headers=key)
        assert answer.status_code == 413
        assert "200 bytes" in answer.json()["detail"]
        assert edge.file(key).status_code == 202


class TestRates:
    def test_a_steady_stream_within_the_rate_is_never_refused(self):
        """Who sends as fast as is allowed goes on for ever, after any burst."""
        now = 0.0
        rates = Rates(clock=lambda: now)
        while rates.take("key", 4.0).wait == 0:
            pass
        for _ in range(1000):
            now += 0.25
            assert rates.take("key", 4.0).wait == 0
            assert 0.2 < rates.take("key", 4.0).wait <= 0.25

    def test_a_pause_gives_back_what_was_used_and_no_more(self):
        """However long nothing came, no more than the window's worth may come at once."""
        now = 0.0
        rates = Rates(clock=lambda: now)
        for moment in (0.0, 1e6):
            now = moment
            taken = [rates.take("key", 2.0) for _ in range(2 * WINDOW + 1)]
            assert [each.wait for each in taken[:-1]] == [0.0] * (2 * WINDOW)
            assert taken[-1].wait == pytest.approx(0.5)
            left = [int(re.search(r"r=(\d+)", each.headers["RateLimit"])[1]) for each in taken]
            assert left == [*range(2 * WINDOW - 1, -1, -1), 0]
