"""The docket at the moments where two connections meet, and at its edges."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from support.dockets import LONG, MAX_ATTEMPTS, a_line, an_outcome, batch

from infra import docket, docket_sql, losses
from infra.docket import Claim, Lease, LeaseLostError
from schemas.ids import new_filing_id
from schemas.problems import OutcomeError
from schemas.states import Fate, Lane


@pytest.fixture
def claimed(connection: Connection) -> Claim:
    """A shard of three lines, at work."""
    return start(connection, 3)


def start(connection: Connection, lines: int) -> Claim:
    """File some lines as one shard, and claim it."""
    docket.file(
        connection,
        tenant="default",
        filing_id=new_filing_id(),
        lane=Lane.INTERACTIVE,
        comparisons=[a_line(number) for number in range(1, lines + 1)],
        shard_lines=lines,
    )
    [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=100, limit=1)
    claim = docket.claim(connection, shard, worker="w1", lease_seconds=LONG)
    assert claim is not None
    return claim


def lapse(connection: Connection) -> None:
    """Let every lease run out."""
    connection.execute(text("UPDATE shards SET lease_until = now() - interval '1 s' WHERE state = 'running'"))


def statuses(connection: Connection) -> dict[int, str]:
    """How each line ended."""
    return {row.line: row.status for row in connection.execute(text("SELECT line, status FROM outcomes"))}


def counted(connection: Connection) -> Counter[str]:
    """How many lines ended in each way, by the counts that the shards keep."""
    count = text("""
        SELECT sum(succeeded) AS succeeded, sum(errored) AS errored,
               sum(cancelled) AS cancelled, sum(expired) AS expired FROM shards
    """)
    row = connection.execute(count).one()
    return +Counter({status: int(count) for status, count in row._mapping.items()})


class TestWhereTwoMeet:
    """One connection has moved a shard and has not committed yet; another wants to move it too."""

    @pytest.fixture
    def meanwhile(self, database: Engine, meanwhile: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """Start a move on a connection of its own, and come back when it waits for the first one."""

        def run(move: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            with database.begin() as second:
                return move(second, *arguments, **options)

        return partial(meanwhile, run)

    def test_one_of_two_claims_wins(self, database, connection, claimed, meanwhile):
        """Two workers follow the same hint at the same moment: one gets the shard, the other nothing."""
        docket.give_back(connection, claimed.lease)
        [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=9, limit=9)
        with database.begin() as first:
            won = docket.claim(first, shard, worker="w1", lease_seconds=LONG)
            other = meanwhile(docket.claim, shard, worker="w2", lease_seconds=LONG)
        assert won is not None
        assert other.result() is None
        assert docket.renew(connection, [won.lease], lease_seconds=LONG) == {won.lease}

    def test_a_cancellation_leaves_what_was_being_stored(self, database, connection, claimed, meanwhile):
        """A cancellation that waited for a worker's commit ends the other lines, and no line twice."""
        with database.begin() as first:
            docket.record(first, claimed.lease, [an_outcome(2, good=True)], lease_seconds=LONG)
            cancelling = meanwhile(docket.cancel, tenant="default", filing_id=claimed.filing_id)
        assert cancelling.result() == 2
        assert statuses(connection) == {1: "cancelled", 2: "succeeded", 3: "cancelled"}
        assert counted(connection) == {"cancelled": 2, "succeeded": 1}

    def test_a_deadline_leaves_what_was_being_stored(self, database, connection, claimed, meanwhile, monkeypatch):
        """What a worker stores between the sweep's look at a late shard and its lock is not counted expired."""
        # The sweep waits for no lock, so that moment is too short to be met. Waiting makes the same moment long.
        monkeypatch.setattr(docket_sql, "LATE", text(docket_sql.LATE.text.replace("SKIP LOCKED", "")))
        connection.execute(text("UPDATE shards SET deadline_at = now()"))
        with database.begin() as first:
            docket.record(first, claimed.lease, [an_outcome(2, good=True)], lease_seconds=LONG)
            expiring = meanwhile(docket.expire, limit=9)
        assert expiring.result() == 2
        assert statuses(connection) == {1: "expired", 2: "succeeded", 3: "expired"}
        assert counted(connection) == {"expired": 2, "succeeded": 1}

    def test_a_result_that_waited_for_a_cancellation_is_refused(self, database, connection, claimed, meanwhile):
        """A worker whose finish waited for the cancellation's commit finds its lease gone."""
        with database.begin() as first:
            assert docket.cancel(first, tenant="default", filing_id=claimed.filing_id) == 3
            finishing = meanwhile(docket.finish, claimed.lease, [an_outcome(1, good=True)])
        assert isinstance(finishing.exception(), LeaseLostError)
        assert set(statuses(connection).values()) == {"cancelled"}

    def test_a_failure_that_waited_for_its_own_result_is_refused(self, database, connection, meanwhile):
        """Two threads with one lease: where one has finished the shard, the other cannot fail it any more."""
        claimed = start(connection, 1)
        with database.begin() as first:
            docket.finish(first, claimed.lease, [an_outcome(1, good=True)])
            failing = meanwhile(
                docket.fail, claimed, code=OutcomeError.ENGINE_FAILED, message="-", retry_in=0, max_attempts=1
            )
        assert isinstance(failing.exception(), LeaseLostError)
        assert statuses(connection) == {1: "succeeded"}

    def test_a_result_stored_again_while_it_is_committed_is_stored_once(self, database, connection, claimed, meanwhile):
        """A worker that lost its connection stores its outcome again, and finds that its first commit came through."""
        decided = [an_outcome(2, good=True)]
        with database.begin() as first:
            docket.record(first, claimed.lease, decided, lease_seconds=LONG)
            again = meanwhile(docket.record, claimed.lease, decided, lease_seconds=LONG)
        assert again.result() == 0
        assert counted(connection) == {"succeeded": 1}

    def test_a_failure_that_waited_for_a_result_errors_nothing(self, database, connection, meanwhile):
        """What a failure's transaction waited for is decided, and is not counted among its errors."""
        claimed = start(connection, 1)
        with database.begin() as first:
            docket.record(first, claimed.lease, [an_outcome(1, good=True)], lease_seconds=LONG)
            failing = meanwhile(
                docket.fail, claimed, code=OutcomeError.ENGINE_FAILED, message="-", retry_in=0, max_attempts=1
            )
        failing.result()
        assert statuses(connection) == {1: "succeeded"}
        assert counted(connection) == {"succeeded": 1}

    def test_a_loss_that_waited_for_a_result_is_of_the_others(self, database, connection, meanwhile):
        """Of two lines one is stored while the loss waits: with one left there is nothing to split."""
        claimed = start(connection, 2)
        connection.execute(text("UPDATE shards SET losses = array_fill('-'::text, ARRAY[1000])"))
        with database.begin() as first:
            docket.record(first, claimed.lease, [an_outcome(1, good=True)], lease_seconds=LONG)
            losing = meanwhile(losses.lose, claimed.lease, max_attempts=MAX_ATTEMPTS)
        assert losing.result() == "errored"
        assert counted(connection) == {"succeeded": 1, "errored": 1}

    def test_a_renewal_in_flight_keeps_the_lease(self, database, connection, claimed):
        """The sweep passes over a shard whose heartbeat is about to commit, without waiting for it."""
        lapse(connection)
        with database.begin() as first, database.begin() as second:
            docket.renew(first, [claimed.lease], lease_seconds=LONG)
            second.execute(text("SET LOCAL lock_timeout = '1 s'"))
            assert losses.reclaim(second, max_attempts=MAX_ATTEMPTS, limit=9).total() == 0
        assert losses.reclaim(connection, max_attempts=MAX_ATTEMPTS, limit=9).total() == 0
        assert docket.finish(connection, claimed.lease, []) == 0

    def test_a_renewal_that_waited_for_the_sweep_comes_too_late(self, database, connection, claimed, meanwhile):
        """A heartbeat that waited for the sweep's commit is told that its lease is lost."""
        lapse(connection)
        with database.begin() as first:
            assert losses.reclaim(first, max_attempts=MAX_ATTEMPTS, limit=9).total() == 1
            renewing = meanwhile(docket.renew, [claimed.lease], lease_seconds=LONG)
        assert renewing.result() == set()

    def test_a_renewal_that_waited_for_a_result_renews(self, database, connection, claimed, meanwhile):
        """A heartbeat that waited for its own worker's commit prolongs the lease from where that left it."""
        with database.begin() as first:
            docket.record(first, claimed.lease, [an_outcome(2, good=True)], lease_seconds=LONG)
            renewing = meanwhile(docket.renew, [claimed.lease], lease_seconds=2 * LONG)
        assert renewing.result() == {claimed.lease}
        left = text("SELECT extract(epoch FROM lease_until - now()) FROM shards")
        assert connection.execute(left).scalar_one() > LONG

    @pytest.mark.parametrize("attempts", [1, MAX_ATTEMPTS])
    def test_two_sweeps_share_the_work(self, database, connection, claimed, attempts):
        """What one sweep has taken up, the other passes over without waiting."""
        lapse(connection)
        connection.execute(text("UPDATE shards SET deadline_at = now(), attempt = :attempts"), {"attempts": attempts})
        with database.begin() as first, database.begin() as second:
            second.execute(text("SET LOCAL lock_timeout = '1 s'"))
            assert losses.reclaim(first, max_attempts=MAX_ATTEMPTS, limit=9).total() == 1
            assert losses.reclaim(second, max_attempts=MAX_ATTEMPTS, limit=9).total() == 0
            assert docket.expire(second, limit=9) == 0

    def test_two_dispatchers_hint_again_once(self, database, connection, claimed):
        """A lost hint that one dispatcher sends again is not sent by the other too."""
        docket.give_back(connection, claimed.lease)
        [shard] = docket.release(connection, lane=Lane.INTERACTIVE, room=9, limit=9)
        with database.begin() as first, database.begin() as second:
            second.execute(text("SET LOCAL lock_timeout = '1 s'"))
            assert docket.hint_again(first, lane=Lane.INTERACTIVE, older_than=0, limit=9) == [shard]
            assert docket.hint_again(second, lane=Lane.INTERACTIVE, older_than=0, limit=9) == []

    @pytest.mark.parametrize("move", ["renew", "recall", "withdraw", "bury"])
    def test_many_shards_are_locked_by_id(self, database, connection, meanwhile, move):
        """What waits for the lowest of its shards holds none of the others, so that whoever holds it may take those."""
        filing_id = batch(connection, 3)
        shards = sorted(docket.release_bulk(connection, room=3, limit=3))
        leases = []
        if move == "renew":
            claims = [docket.claim(connection, shard, worker="w1", lease_seconds=LONG) for shard in reversed(shards)]
            leases = [claim.lease for claim in claims if claim]
        lowest = {"lowest": shards[0]}
        # Its row comes last in the table from here on, and in the indexes too.
        connection.execute(text("UPDATE shards SET first_line = 9, last_line = 9 WHERE id = :lowest"), lowest)
        moves = {
            "renew": (docket.renew, leases, {"lease_seconds": LONG}),
            "recall": (docket.recall, filing_id, {}),
            "withdraw": (docket.withdraw, shards, {}),
            "bury": (losses.bury, "w1", {"max_attempts": MAX_ATTEMPTS}),
        }
        do, what, options = moves[move]
        with database.begin() as first:
            first.execute(text("SELECT FROM shards WHERE id = :lowest FOR UPDATE"), lowest)
            moving = meanwhile(do, what, **options)
            free = connection.execute(text("SELECT id FROM shards FOR UPDATE SKIP LOCKED")).scalars()
            assert sorted(free) == shards[1:]
        moving.result()

    def test_no_renewal_comes_between_the_two_steps_of_a_sweep(self, database, connection, claimed, monkeypatch):
        """While the sweep ends a shard in its holder's place, the holder cannot renew the lease under it."""
        lapse(connection)
        lose, lost = losses.lose, []

        def lose_after_a_heartbeat(first: Connection, lapsed: Lease, **options: Any) -> Fate:
            with database.connect() as second, second.begin():
                second.execute(text("SET LOCAL lock_timeout = '100 ms'"))
                with pytest.raises(OperationalError, match="lock timeout"):
                    docket.renew(second, [claimed.lease], lease_seconds=LONG)
            lost.append(lapsed)
            return lose(first, lapsed, **options)

        monkeypatch.setattr(losses, "lose", lose_after_a_heartbeat)
        with database.begin() as first:
            assert losses.reclaim(first, max_attempts=1, limit=9).total() == 1
        assert lost == [claimed.lease]


def test_halves_begin_and_end_where_something_is_undecided(connection):
    """Decided lines at the ends of a shard do not come along when it is split, not even as part of its range."""
    claim = start(connection, 6)
    docket.record(connection, claim.lease, [an_outcome(n, good=True) for n in (1, 2, 6)], lease_seconds=LONG)
    docket.split(connection, claim.lease)
    halves = connection.execute(text("SELECT first_line, last_line FROM shards WHERE state = 'waiting' ORDER BY id"))
    assert sorted(map(tuple, halves)) == [(3, 4), (5, 5)]


@pytest.mark.parametrize("attempts", [1, MAX_ATTEMPTS])
def test_a_lease_that_runs_is_left_alone_at_every_attempt(connection, claimed, attempts):
    """The sweep takes nothing from a worker that is alive, not even at its last attempt."""
    connection.execute(text("UPDATE shards SET attempt = :attempts"), {"attempts": attempts})
    assert losses.reclaim(connection, max_attempts=MAX_ATTEMPTS, limit=9).total() == 0
    assert docket.renew(connection, [claimed.lease], lease_seconds=LONG) == {claimed.lease}


@pytest.mark.parametrize("end", ["claimed", "withdrawn", "cancelled"])
def test_only_what_is_still_released_is_hinted_again(connection, claimed, end):
    """However old its hint, a shard that somebody took, or took back, needs no other one."""
    if end != "claimed":
        docket.give_back(connection, claimed.lease)
        docket.release(connection, lane=Lane.INTERACTIVE, room=9, limit=9)
    if end == "withdrawn":
        docket.withdraw(connection, [claimed.lease.shard])
    if end == "cancelled":
        docket.cancel(connection, tenant="default", filing_id=claimed.filing_id)
    connection.execute(text("UPDATE shards SET released_at = now() - interval '2 h'"))
    assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=LONG, limit=9) == []


def test_a_sweep_takes_no_more_than_its_limit(connection):
    """Shards that have attempts left are brought back a few at a time, and none of them is split for it."""
    start(connection, 2)
    start(connection, 2)
    lapse(connection)
    assert losses.reclaim(connection, max_attempts=MAX_ATTEMPTS, limit=1).total() == 1
    assert losses.reclaim(connection, max_attempts=MAX_ATTEMPTS, limit=1).total() == 1
    assert losses.reclaim(connection, max_attempts=MAX_ATTEMPTS, limit=1).total() == 0
    states = connection.execute(text("SELECT state FROM shards")).scalars()
    assert list(states) == ["waiting", "waiting"]


def test_storing_never_shortens_a_lease(connection, claimed):
    """A worker that stores with a short lease to come keeps the longer one that it has."""
    end = text("SELECT lease_until FROM shards")
    before = connection.execute(end).scalar_one()
    docket.record(connection, claimed.lease, [an_outcome(1, good=True)], lease_seconds=1)
    assert connection.execute(end).scalar_one() == before
    docket.record(connection, claimed.lease, [an_outcome(2, good=True)], lease_seconds=2 * LONG)
    assert connection.execute(end).scalar_one() > before


def test_a_lease_that_holds_is_never_called_lost(database, connection):
    """Splitting a shard of which everything is decided is no matter of leases, since the lease holds."""
    claimed = start(connection, 1)
    docket.record(connection, claimed.lease, [an_outcome(1, good=True)], lease_seconds=LONG)
    with database.begin() as transaction:
        docket.split(transaction, claimed.lease)
