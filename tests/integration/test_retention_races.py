"""Deleting at the moments where somebody else is at the same rows."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, event, text
from support.desk import LOOPBACK
from support.dockets import LONG, a_line, an_outcome, batch, claim_one
from support.edge import open_edge
from support.keys import a_key, bearer

from infra import callbacks, docket
from infra.database import connect_async
from producer import callback_endpoints, idempotency, retention
from schemas import ids
from schemas.batch import Window
from schemas.ids import new_filing_id, parse_prefixed
from schemas.states import Lane


def left(connection: Connection, *tables: str) -> list[int]:
    """How many rows tables have."""
    return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]  # noqa: S608


HOOK = "http://127.0.0.1:1/nobody"


def remember(connection: Connection) -> None:
    """Name the receiver in a request."""
    callback_endpoints.remember(connection, tenant="default", filing_id=new_filing_id(), url=HOOK, allowed=LOOPBACK)


class TestTenant:
    """A tenant's rows go, whoever is writing to them."""

    def test_a_shard_that_is_being_written_to_goes(self, database, connection, monkeypatch, meanwhile):
        """A worker's record is under way as the shards go: its shard goes too, and its next write is refused."""
        docket.file(
            connection, tenant="other", filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)]
        )
        [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=1, limit=1)
        claim = docket.claim(connection, shard, worker="w", lease_seconds=LONG)
        assert claim is not None
        # The record begins after the purge has waited for what was there before.
        monkeypatch.setattr(retention, "_await_all_before", lambda *_: None)
        with database.begin() as worker:
            docket.renew(worker, (claim.lease,), lease_seconds=LONG)
            purge = meanwhile(retention.delete_tenant, database, "other")
        purge.result(30)
        with database.begin() as worker, pytest.raises(docket.LeaseLostError):
            docket.finish(worker, claim.lease, [an_outcome(0, good=True)])
        assert left(connection, "shards", "outcomes", "comparisons") == [0, 0, 0]

    def test_a_receiver_that_is_being_written_to_goes(self, desk, monkeypatch, meanwhile):
        """So does what a callback process is writing to."""
        desk.add_endpoint("http://127.0.0.1:1/nobody")
        desk.tell()
        desk.fan_out()
        monkeypatch.setattr(retention, "_await_all_before", lambda *_: None)
        with desk.database.begin() as courier:
            courier.execute(text("UPDATE callback_endpoints SET url = url"))
            purge = meanwhile(retention.delete_tenant, desk.database, "default")
        purge.result(30)
        assert desk.one("SELECT count(*) FROM callback_endpoints") == 0


MAKE_RETRY = "UPDATE batches SET status = 'in_progress', ended_at = NULL"
MAKE_BATCH = """
    INSERT INTO batches (id, tenant, file_id, endpoint, status, options, completion_window, on_bad_line, total,
                         expires_at)
    SELECT :batch, tenant, id, '', 'in_progress', '{}', '24h', 'fail', lines, now() FROM files
    WHERE id = :file AND state = 'processed' FOR SHARE
"""


def an_ended_batch(connection: Connection) -> UUID:
    """Make a batch that ended two days ago with an errored line."""
    made = batch(connection, 1)
    docket.finish(connection, claim_one(connection).lease, [an_outcome(1, good=False)])
    connection.execute(text("UPDATE batches SET status = 'failed', open = false, ended_at = now() - interval '2 days'"))
    return made


def a_file(connection: Connection) -> UUID:
    """Make a file of three lines, uploaded two days ago, that no batch was made of."""
    batch(connection, 3)
    for table in ("shards", "batches"):
        connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
    return connection.execute(text("UPDATE files SET created_at = now() - interval '2 days' RETURNING id")).scalar_one()


class TestBatch:
    """What is retried is not deleted, and what is deleted is not retried."""

    @pytest.mark.parametrize("by_age", [True, False])
    def test_one_that_is_being_retried_stays(self, database, connection, meanwhile, by_age):
        """A retry is under way as the batch is to go: nothing of the batch goes, by its age or by its name."""
        ended = an_ended_batch(connection)
        with database.begin() as retry:
            retry.execute(text(MAKE_RETRY))
            if by_age:
                deleting = meanwhile(retention.delete_old, database, older_than=86400)
            else:
                deleting = meanwhile(retention.delete_batch, database, ended)
        assert deleting.result(30) == 0
        assert left(connection, "batches", "shards", "outcomes") == [1, 1, 1]

    def test_one_that_was_retried_and_ended_again_stays(self, database, connection, meanwhile):
        """Its age is looked at again too."""
        an_ended_batch(connection)
        with database.begin() as retry:
            retry.execute(text("UPDATE batches SET ended_at = now()"))
            deleting = meanwhile(retention.delete_old, database, older_than=86400)
        assert deleting.result(30) == 0
        assert left(connection, "batches", "shards", "outcomes") == [1, 1, 1]

    def test_one_that_is_being_deleted_is_not_there(self, database, database_url, connection, monkeypatch):
        """It is neither read nor retried, even where its deletion was broken off; which the next one ends."""
        made = an_ended_batch(connection)
        connection.execute(text("UPDATE batches SET ended_at = now()"))
        with monkeypatch.context() as broken:
            broken.setattr(retention, "_in_steps", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                retention.delete_batch(database, made)
        path = f"/v1/batches/{ids.batch_id(made)}"
        with open_edge(database_url) as http:
            http.headers.update(bearer(a_key(database_url)))
            assert [http.get(path).status_code, http.post(f"{path}/retry").status_code] == [404, 404]
            assert http.get("/v1/batches").json()["data"] == []
        retention.delete_old(database, older_than=86400)
        assert left(connection, "batches", "shards", "outcomes") == [0, 0, 0]

    def test_its_key_makes_another(self, database, database_url, connection):
        """A request that is sent again under its key after its batch was deleted makes a batch, and no 404."""
        file = ids.file_id(a_file(connection))
        request = {"input_file_id": file, "endpoint": "/v1/comparisons", "completion_window": "24h"}
        with open_edge(database_url) as http:
            http.headers.update({**bearer(a_key(database_url)), "Idempotency-Key": "nightly"})
            first = http.post("/v1/batches", json=request).json()["id"]
            connection.execute(text("UPDATE batches SET status = 'cancelled', ended_at = now()"))
            retention.delete_batch(database, parse_prefixed(first, "batch_"))
            again = http.post("/v1/batches", json=request)
        assert again.status_code == 200
        assert again.json()["id"] != first

    def test_a_key_that_goes_as_it_is_looked_at_is_free(self, database_url, connection):
        """A request finds its key taken, and then finds it deleted: it takes it."""

        async def take() -> UUID | None:
            edge = connect_async(database_url, application="test")

            @event.listens_for(edge.sync_engine, "before_cursor_execute")
            def retain(_: Any, __: Any, statement: str, *___: Any) -> None:
                if statement.startswith("SELECT fingerprint"):
                    connection.execute(text("DELETE FROM idempotency_keys"))

            async with edge.begin() as requests:
                taken = await idempotency.take(requests, "default", "k", Window(start="22:00", end="06:00"), uuid4())
            await edge.dispose()
            return taken

        connection.execute(text("INSERT INTO idempotency_keys VALUES ('default', 'k', '', gen_random_uuid())"))
        assert asyncio.run(take()) is None
        assert left(connection, "idempotency_keys") == [1]


class TestFile:
    """No batch is made of half a file."""

    @pytest.fixture
    def file(self, connection: Connection) -> UUID:
        """The file."""
        return a_file(connection)

    def test_one_that_a_batch_is_being_made_of_stays(self, database, connection, meanwhile, file):
        """Retention waits for the batch, finds it, and deletes nothing."""
        with database.begin() as creating:
            creating.execute(text(MAKE_BATCH), {"batch": new_filing_id(), "file": file})
            deleting = meanwhile(retention.delete_old, database, older_than=86400)
        assert deleting.result(30) == 0
        assert left(connection, "comparisons", "file_runs", "files") == [3, 3, 1]

    @pytest.mark.usefixtures("file")
    def test_one_that_is_still_arriving_stays(self, database, connection):
        """However long its upload takes, and however little time what is old is given."""
        connection.execute(text("UPDATE files SET state = 'uploading'"))
        assert retention.delete_old(database, older_than=0) == 0
        assert left(connection, "comparisons", "file_runs", "files") == [3, 3, 1]

    def test_one_that_two_delete_at_once_goes_as_a_whole(self, database, connection, monkeypatch, meanwhile, file):
        """Who finds that another has deleted the lines of a step goes on with the next."""
        monkeypatch.setattr(retention, "STEP", 1)
        with database.begin() as other:
            assert other.execute(retention.OF_FILE[0], {"id": file, "step": 1}).one().gone == 1
            deleting = meanwhile(retention.delete_file, database, file)
        deleting.result(30)
        assert left(connection, "comparisons", "file_runs", "files") == [0, 0, 0]

    def test_nor_does_the_api_delete_it(self, database, database_url, connection, meanwhile, file):
        """Whoever asks for it at that moment is told that there is a batch."""
        with open_edge(database_url) as http:
            http.headers.update(bearer(a_key(database_url)))
            with database.begin() as creating:
                creating.execute(text(MAKE_BATCH), {"batch": new_filing_id(), "file": file})
                deleting = meanwhile(http.delete, f"/v1/files/{ids.file_id(file)}")
            assert deleting.result(30).status_code == 422
        assert left(connection, "comparisons", "file_runs", "files") == [3, 3, 1]

    def test_none_is_made_of_one_that_is_being_deleted(self, database, database_url, monkeypatch, file):
        """From the moment that deleting begins, a batch of it is refused."""
        request = {"input_file_id": ids.file_id(file), "endpoint": "/v1/comparisons", "completion_window": "24h"}
        with monkeypatch.context() as broken:
            broken.setattr(retention, "_in_steps", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                retention.delete_file(database, file)
        with open_edge(database_url) as http:
            answer = http.post("/v1/batches", json=request, headers=bearer(a_key(database_url)))
        assert answer.status_code == 422


class TestNamed:
    """No request loses the receiver that it names."""

    @pytest.fixture
    def named(self, desk):
        """Two days old, and nothing refers to it."""
        desk.file(callback_url=HOOK)
        desk.do("DELETE FROM callback_requests")
        desk.do("UPDATE callback_endpoints SET created_at = created_at - interval '2 days'")

    @pytest.mark.usefixtures("named")
    def test_one_that_is_being_named_stays(self, desk):
        """Retention waits for nobody, and passes it over."""
        with desk.database.begin() as filing:
            remember(filing)
            assert retention.delete_old(desk.database, older_than=86400) == 0
        assert desk.one("SELECT count(*) FROM callback_requests JOIN callback_endpoints e ON e.id = endpoint_id") == 1

    @pytest.mark.usefixtures("named")
    def test_one_that_is_being_deleted_is_made_anew(self, desk, meanwhile):
        """Who names it waits for the end of that."""

        def file() -> None:
            with desk.database.begin() as filing:
                remember(filing)

        with desk.database.begin() as deleting:
            old = deleting.execute(retention._OLD_ENDPOINTS, {"older_than": 86400, "step": 10}).scalars().all()
            assert deleting.execute(retention._OLD_ENDPOINTS_GONE, {"ids": old}).rowcount == 1
            filing = meanwhile(file)
        filing.result(30)
        assert desk.one("SELECT count(*) FROM callback_requests JOIN callback_endpoints e ON e.id = endpoint_id") == 1


class TestEndpoint:
    """A receiver goes, whatever is on its way to it."""

    def test_one_that_an_attempt_is_being_recorded_of(self, desk, meanwhile):
        """Who records locks the callback, and the endpoint next: a removal that waits for the one has not the other."""
        endpoint = desk.add_endpoint("http://127.0.0.1:1/nobody")
        desk.tell()
        desk.fan_out()
        [callback] = desk.release()
        claimed = desk.claim_callback(callback)
        failed = callbacks.Attempt(delivered=False, reason="bad_status", status=500, seconds=0.1)
        with desk.database.begin() as courier:
            courier.execute(text("SELECT FROM callbacks FOR UPDATE"))
            removal = meanwhile(desk.run, callback_endpoints.remove, tenant="default", endpoint=endpoint)
            callbacks.record(courier, claimed, failed)
        removal.result(30)
        assert desk.states() == []
        assert desk.one("SELECT count(*) FROM callback_endpoints") == 0

    def test_one_that_two_remove_at_once(self, desk, monkeypatch, meanwhile):
        """Who finds that another has deleted the callbacks of a step goes on with the next, not with all the others."""
        monkeypatch.setattr(retention, "STEP", 2)
        endpoint = desk.add_endpoint("http://127.0.0.1:1/nobody")
        desk.tell(5)
        desk.fan_out()
        desk.do("""
            CREATE FUNCTION no_cascade() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF pg_trigger_depth() > 1 THEN RAISE 'with its endpoint'; END IF; RETURN OLD; END $$;
            CREATE TRIGGER no_cascade BEFORE DELETE ON callbacks FOR EACH ROW EXECUTE FUNCTION no_cascade();
        """)
        with desk.database.begin() as other:
            step = {"tenant": "default", "id": endpoint, "step": 2}
            assert other.execute(callback_endpoints._CLEAR, step).one().gone == 2
            removal = meanwhile(desk.run, callback_endpoints.remove, tenant="default", endpoint=endpoint)
        removal.result(30)
        assert desk.states() == []
        assert desk.one("SELECT count(*) FROM callback_endpoints") == 0
