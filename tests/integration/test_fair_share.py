"""Each tenant has its turn at release, in both lanes, however much another has filed."""

from collections import Counter

from sqlalchemy import Connection, text
from support.dockets import a_line, batch, reads

from infra import docket
from schemas.ids import new_filing_id
from schemas.states import Lane

FLOOD = text("""
    WITH filed AS (
        INSERT INTO comparisons (source_id, line, tenant, body)
        SELECT gen_random_uuid(), 0, 'flood', '{}' FROM generate_series(1, :count) RETURNING source_id
    )
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state)
    SELECT 'flood', source_id, source_id, 0, 0, 'interactive', 'waiting' FROM filed
""")


def file(connection: Connection, tenant: str, count: int = 1) -> None:
    """File so many single comparisons."""
    for _ in range(count):
        docket.file(
            connection, tenant=tenant, filing_id=new_filing_id(), lane=Lane.INTERACTIVE, comparisons=[a_line(0)]
        )


def released(connection: Connection, room: int, limit: int = 100) -> Counter[str]:
    """Release singles, and say whose they are."""
    return _whose(connection, docket.release(connection, lane=Lane.INTERACTIVE, room=room, limit=limit))


def _whose(connection: Connection, shards: list[int]) -> Counter[str]:
    rows = connection.execute(text("SELECT tenant FROM shards WHERE id = ANY(:ids)"), {"ids": shards})
    return Counter(row.tenant for row in rows)


class TestSingles:
    def test_a_tenant_alone_has_all_the_room(self, connection):
        """Nothing is kept free for tenants that have no work."""
        file(connection, "one", 12)
        assert released(connection, 10) == {"one": 10}
        assert released(connection, 10) == {}

    def test_whoever_has_least_out_goes_first(self, connection):
        """Of two with much to do each has half the room, and whoever has some out already waits for the other."""
        file(connection, "one", 9)
        assert released(connection, 3) == {"one": 3}
        file(connection, "other", 9)
        assert released(connection, 8) == {"other": 4, "one": 1}

    def test_a_newcomer_has_its_share_where_the_room_is_full(self, connection):
        """A tenant that comes while another has filled the room waits for none of it; the other gets no more."""
        file(connection, "one", 20)
        assert released(connection, 8) == {"one": 8}
        file(connection, "other", 10)
        assert released(connection, 8) == {"other": 4}
        assert released(connection, 8) == {}

    def test_what_runs_counts_for_who_is_next(self, connection):
        """In the interactive lane running shards take no room, but whoever has more running waits for the other."""
        file(connection, "one", 6)
        for shard in docket.release(connection, lane=Lane.INTERACTIVE, room=4, limit=4):
            docket.claim(connection, shard, worker="w", lease_seconds=60)
        file(connection, "other", 6)
        assert released(connection, 4) == {"other": 4}

    def test_more_tenants_than_room_have_one_each(self, connection):
        """However many tenants share it, each has one out."""
        for number in range(5):
            file(connection, f"tenant {number}", 2)
        assert released(connection, 3) == {f"tenant {number}": 1 for number in range(5)}
        assert len(released(connection, 3)) == 0

    def test_what_is_not_due_takes_no_turn(self, connection):
        """A tenant whose work is put off leaves its share to who has work now."""
        file(connection, "one", 2)
        connection.execute(text("UPDATE shards SET due_at = now() + interval '1 h'"))
        file(connection, "other", 8)
        assert released(connection, 8)["other"] == 8

    def test_a_turn_reads_the_head_of_each_tenant_alone(self, connection):
        """Beside 20,000 comparisons of one tenant, another's are found without reading those."""
        connection.execute(FLOOD, {"count": 20_000})
        file(connection, "small", 10)
        connection.execute(text("VACUUM ANALYZE shards"))
        before = reads(connection, "shards")
        assert released(connection, 16) == {"flood": 8, "small": 8}
        assert reads(connection, "shards") - before < 1000

    def test_a_turn_without_room_reads_no_heads(self, connection):
        """Where a tenant has its share out, nothing of what it has waiting is looked at."""
        connection.execute(FLOOD, {"count": 20_000})
        assert released(connection, 50, limit=500) == {"flood": 50}
        connection.execute(text("VACUUM ANALYZE shards"))
        before = reads(connection, "shards")
        assert released(connection, 50, limit=500) == {}
        assert reads(connection, "shards") - before < 200


class TestBatches:
    def test_a_newcomer_need_not_wait_for_a_whole_shard(self, connection):
        """Where others fill the room, the first shard of a tenant with none out goes into the spare."""
        batch(connection, 20, tenant="large")
        assert self.released(connection) == {"large": 4}
        batch(connection, 3, tenant="small")
        assert self.released(connection) == {"small": 1}
        assert self.released(connection) == {}

    def test_the_spare_is_no_ones_for_long(self, connection):
        """It is for tenants with none out, and for no more of them than there is."""
        for number in range(4):
            batch(connection, 9, tenant=f"early {number}")
        assert self.released(connection).total() == 4
        for number in range(3):
            batch(connection, 9, tenant=f"late {number}")
        assert self.released(connection).total() == 2

    def test_a_turn_reads_no_more_of_a_batch_than_may_go(self, connection):
        """However much room there is, and however much of a batch waits."""
        batch(connection, 2_000, tenant="large")
        connection.execute(text("VACUUM ANALYZE shards"))
        before = reads(connection, "shards")
        assert len(docket.release_bulk(connection, room=2_000, limit=10)) == 10
        assert reads(connection, "shards") - before < 200

    def test_a_turn_without_room_reads_no_batch(self, connection):
        """Where the room is full, nothing of what waits is looked at, or the one shard that the spare is for."""
        for number in range(3):
            batch(connection, 2_000, tenant=f"tenant {number}")
        assert len(docket.release_bulk(connection, room=100, limit=100)) == 100
        connection.execute(text("VACUUM ANALYZE shards"))
        for spare in (0, 1):
            before = reads(connection, "shards")
            assert docket.release_bulk(connection, room=100, limit=100, spare=spare) == []
            assert reads(connection, "shards") - before < 200

    @staticmethod
    def released(connection: Connection) -> Counter[str]:
        """Release shards of batches into a room of four, with two to spare."""
        return _whose(connection, docket.release_bulk(connection, room=4, spare=2, limit=100))
