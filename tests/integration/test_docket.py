"""The docket, move by move, against a real Postgres."""

import json
import time
from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from infra import docket, losses
from infra.docket import Claim, Lease, LeaseLostError
from infra.filed import Filed
from infra.outcomes import Outcome
from schemas.ids import new_filing_id
from schemas.problems import OutcomeError
from schemas.states import Lane, OutcomeStatus

TALLY = json.dumps({"winner": "A", "probability_a": 0.9, "consistent": True, "position_bias": 0.0, "ballots": []})


def line(number: int) -> Filed:
    """A comparison to be filed as line `number`."""
    return Filed(
        line=number,
        custom_id=f"line-{number}",
        prompt="Which?",
        response_a="this",
        response_b="that",
        orders="both",
        profile="card",
        tie_margin=None,
        metadata={},
    )


def file(connection: Connection, lines: int = 1, *, lane: Lane = Lane.INTERACTIVE, **options):
    """File lines 1 to `lines` as one filing, and give its id."""
    filing_id = new_filing_id()
    docket.file(
        connection,
        tenant="default",
        filing_id=filing_id,
        lane=lane,
        comparisons=[line(number) for number in range(1, lines + 1)],
        shard_lines=options.pop("shard_lines", lines),
        **options,
    )
    return filing_id


def release(connection: Connection, lane: Lane = Lane.INTERACTIVE, room: int = 100) -> list[int]:
    """Release what is due, and say which shards."""
    return docket.release(connection, lane=lane, room=room, limit=100)


def claim(connection: Connection, shard: int | None = None, *, lease_seconds: float = 60) -> Claim:
    """Claim a shard, the only one that is due unless one is named."""
    if shard is None:
        [shard] = release(connection)
    claimed = docket.claim(connection, shard, worker="w1", lease_seconds=lease_seconds)
    assert claimed is not None
    return claimed


def lapse(connection: Connection) -> None:
    """Let every lease run out, by moving its end into the past."""
    connection.execute(text("UPDATE shards SET lease_until = now() - interval '1 s' WHERE state = 'running'"))


def succeeded(number: int) -> Outcome:
    """A verdict for a line."""
    return Outcome(line=number, status=OutcomeStatus.SUCCEEDED, tally=TALLY, judge_id="jdg_test")


def outcomes(connection: Connection) -> dict[int, str]:
    """How each line ended, as far as it did."""
    return {row.line: row.status for row in connection.execute(text("SELECT line, status FROM outcomes"))}


def states(connection: Connection) -> list[str]:
    """Where the shards stand, in the order of their making."""
    return [row.state for row in connection.execute(text("SELECT state FROM shards ORDER BY id"))]


def sweep(connection: Connection, max_attempts: int = 3) -> int:
    """Bring back what has lapsed."""
    return losses.reclaim(connection, max_attempts=max_attempts, limit=100).total()


def fail(connection: Connection, claimed: Claim, max_attempts: int = 3) -> None:
    """Report a failed attempt."""
    docket.fail(
        connection,
        claimed,
        code=OutcomeError.ENGINE_FAILED,
        message="it failed",
        retry_in=0,
        max_attempts=max_attempts,
    )


class TestTheUsualWay:
    def test_filed_released_claimed_finished(self, connection):
        """A comparison is filed, released, claimed and finished, and then has its outcome."""
        file(connection)
        claimed = claim(connection)
        assert [each.custom_id for each in docket.undecided(connection, claimed)] == ["line-1"]
        assert docket.finish(connection, claimed.lease, [succeeded(1)]) == 1
        assert states(connection) == ["done"]
        assert outcomes(connection) == {1: "succeeded"}

    def test_comparisons_survive_the_journey_unchanged(self, connection):
        """What a worker reads is what was filed, with quotes, backslashes and every script in place."""
        filing_id = new_filing_id()
        text_in = 'He said "你好" \\ \n\t\u2028 😀 %s :name {slot}'
        sent = replace(
            line(0),
            prompt=[{"role": "user", "content": text_in}],
            response_a=text_in,
            metadata={"k": text_in},
        )
        docket.file(connection, tenant="default", filing_id=filing_id, lane=Lane.INTERACTIVE, comparisons=[sent])
        assert docket.undecided(connection, claim(connection)) == [sent]

    def test_a_batch_is_cut_into_shards(self, connection):
        """Ten lines in shards of four make three shards that cover each line once."""
        file(connection, 10, shard_lines=4)
        rows = connection.execute(text("SELECT first_line, last_line FROM shards ORDER BY first_line"))
        assert [tuple(row) for row in rows] == [(1, 4), (5, 8), (9, 10)]

    @pytest.mark.parametrize("stored", [(1,), (1, 2), (4,)])
    def test_outcomes_recorded_on_the_way_are_not_done_again(self, connection, stored):
        """A worker that stores as it goes and is lost leaves only the rest to be judged."""
        file(connection, 4)
        first = claim(connection)
        docket.record(connection, first.lease, [succeeded(each) for each in stored], lease_seconds=60)
        lapse(connection)
        sweep(connection)
        second = claim(connection)
        assert [each.line for each in docket.undecided(connection, second)] == sorted({1, 2, 3, 4} - {*stored})

    def test_what_is_more_urgent_goes_first(self, connection):
        """Within a lane the higher priority is released first, then what has waited longer."""
        late = file(connection, lane=Lane.BULK, priority=0)
        urgent = file(connection, lane=Lane.BULK, priority=5)
        later = file(connection, lane=Lane.BULK, priority=0)
        order = []
        for room in (1, 2, 3):
            [shard] = docket.release(connection, lane=Lane.BULK, room=room, limit=1)
            order.append(claim(connection, shard).filing_id)
        assert order == [urgent, late, later]


class TestReleasing:
    def test_the_bulk_lane_keeps_few_out(self, connection):
        """Bulk shards are released only into free room, where running ones count too."""
        file(connection, 6, lane=Lane.BULK, shard_lines=1)
        first = release(connection, Lane.BULK, room=2)
        assert len(first) == 2
        claim(connection, first[0])
        assert release(connection, Lane.BULK, room=2) == []
        assert len(release(connection, Lane.BULK, room=3)) == 1

    def test_a_release_without_a_hint_is_withdrawn(self, connection):
        """When Redis takes no hints, what was released waits again; what was claimed meanwhile stays claimed."""
        file(connection)
        file(connection)
        shards = release(connection)
        claim(connection, shards[0])
        docket.withdraw(connection, shards)
        assert states(connection) == ["running", "waiting"]

    def test_a_lost_hint_is_sent_again(self, connection):
        """A released shard that nobody claims is named again after a while, and not before."""
        file(connection)
        [shard] = release(connection)
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=30, limit=10) == []
        connection.execute(text("UPDATE shards SET released_at = now() - interval '31 s'"))
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=30, limit=10) == [shard]
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=30, limit=10) == []

    def test_lost_hints_are_named_lane_by_lane_and_the_oldest_first(self, connection):
        """A hint goes to the queue of its lane, where people wait behind people alone; of many a few go at a time."""
        file(connection, 3, shard_lines=1)
        file(connection, lane=Lane.BULK)
        *others, oldest = sorted(release(connection))
        [batched] = release(connection, Lane.BULK)
        long_ago = (
            "UPDATE shards SET released_at = now() - make_interval(hours => CASE id WHEN :oldest THEN 2 ELSE 1 END)"
        )
        connection.execute(text(long_ago), {"oldest": oldest})
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=30, limit=1) == [oldest]
        assert sorted(docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=30, limit=10)) == others
        assert docket.hint_again(connection, lane=Lane.BULK, older_than=30, limit=10) == [batched]

    def test_batches_take_no_room_of_people(self, connection):
        """However much of batches is out, what somebody waits for goes at once."""
        file(connection, 3, lane=Lane.BULK, shard_lines=1)
        assert len(release(connection, Lane.BULK)) == 3
        file(connection)
        assert len(release(connection, room=1)) == 1

    def test_two_dispatchers_never_release_the_same_shard(self, database, connection):
        """What one dispatcher has locked, the other passes over."""
        file(connection, 4, shard_lines=1)
        with database.begin() as one, database.begin() as other:
            mine = docket.release(one, lane=Lane.INTERACTIVE, room=100, limit=2)
            theirs = docket.release(other, lane=Lane.INTERACTIVE, room=100, limit=100)
        assert len(mine) == 2
        assert len(theirs) == 2
        assert not set(mine) & set(theirs)


class TestClaiming:
    def test_a_doubled_hint_finds_nothing(self, connection):
        """Of two messages for one shard the second finds nothing to claim."""
        file(connection)
        [shard] = release(connection)
        claim(connection, shard)
        assert docket.claim(connection, shard, worker="w2", lease_seconds=60) is None

    def test_a_hint_for_what_was_not_released_finds_nothing(self, connection):
        """A late hint cannot start a shard that is waiting again, or one that never was."""
        file(connection)
        [shard] = release(connection)
        docket.withdraw(connection, [shard])
        assert docket.claim(connection, shard, worker="w2", lease_seconds=60) is None
        assert docket.claim(connection, 10**12, worker="w2", lease_seconds=60) is None

    def test_the_attempt_is_counted_before_the_work(self, connection):
        """Each claim counts an attempt, so that a crash cannot escape being counted."""
        file(connection)
        assert claim(connection).attempt == 1
        lapse(connection)
        sweep(connection)
        second = claim(connection)
        assert second.attempt == 2
        docket.finish(connection, second.lease, [succeeded(1)])
        assert connection.execute(text("SELECT attempt FROM outcomes")).scalar_one() == 2

    def test_tokens_never_repeat(self, connection):
        """Every claim has a token greater than all before it."""
        file(connection)
        tokens = []
        for _ in range(3):
            tokens.append(claim(connection).lease.token)
            lapse(connection)
            sweep(connection, max_attempts=9)
        assert tokens == sorted(set(tokens))


class TestTheFence:
    """A worker that lost its lease can change nothing, whatever it tries to write."""

    @pytest.fixture
    def zombie(self, connection) -> Claim:
        """A claim whose lease ran out, after which another worker claimed the shard."""
        file(connection, 2)
        stale = claim(connection)
        lapse(connection)
        sweep(connection)
        claim(connection)
        return stale

    @pytest.fixture
    def before(self, connection, zombie):
        """All rows as they stand, to be compared with afterwards."""
        return self.rows(connection)

    @staticmethod
    def rows(connection: Connection) -> list[str]:
        """Read every row of both tables."""
        found = connection.execute(
            text("SELECT to_jsonb(s) AS row FROM shards s UNION ALL SELECT to_jsonb(o) FROM outcomes o")
        )
        return sorted(json.dumps(row.row, sort_keys=True) for row in found)

    def test_it_cannot_record(self, connection, zombie, before):
        """Partial outcomes of a lost lease are refused."""
        with pytest.raises(LeaseLostError):
            docket.record(connection, zombie.lease, [succeeded(1)], lease_seconds=60)
        assert self.rows(connection) == before

    def test_it_cannot_finish(self, connection, zombie, before):
        """Final outcomes of a lost lease are refused, and the shard stays with its present holder."""
        with pytest.raises(LeaseLostError):
            docket.finish(connection, zombie.lease, [succeeded(1), succeeded(2)])
        assert self.rows(connection) == before

    def test_it_cannot_fail(self, connection, zombie, before):
        """A lost lease cannot report a failure, neither to split the shard nor to end it."""
        with pytest.raises(LeaseLostError):
            fail(connection, zombie)
        assert self.rows(connection) == before

    def test_it_cannot_fail_a_single_line(self, connection):
        """A lost lease cannot end a shard of one line as errored."""
        file(connection)
        stale = claim(connection)
        lapse(connection)
        sweep(connection)
        claim(connection)
        before = self.rows(connection)
        with pytest.raises(LeaseLostError):
            fail(connection, stale, max_attempts=1)
        assert self.rows(connection) == before

    def test_it_cannot_split(self, connection, zombie, before):
        """A lost lease cannot split the shard under its present holder."""
        with pytest.raises(LeaseLostError):
            docket.split(connection, zombie.lease)
        assert self.rows(connection) == before

    def test_it_cannot_give_back(self, connection, zombie, before):
        """A lost lease cannot put the shard back."""
        with pytest.raises(LeaseLostError):
            docket.give_back(connection, zombie.lease)
        assert self.rows(connection) == before

    def test_it_cannot_renew(self, connection, zombie, before):
        """A lost lease is not prolonged, and the answer says that it does not hold."""
        assert docket.renew(connection, [zombie.lease], lease_seconds=999) == set()
        assert self.rows(connection) == before

    def test_a_token_opens_no_other_shard(self, connection):
        """A good token does nothing for a shard that it was not given for."""
        file(connection)
        file(connection)
        one, other = release(connection)
        mine, theirs = claim(connection, one), claim(connection, other)
        before = self.rows(connection)
        mixed = Lease(shard=theirs.lease.shard, token=mine.lease.token)
        assert docket.renew(connection, [mixed], lease_seconds=999) == set()
        for write in (
            lambda: docket.finish(connection, mixed, [succeeded(1)]),
            lambda: docket.give_back(connection, mixed),
            lambda: docket.split(connection, mixed),
        ):
            with pytest.raises(LeaseLostError):
                write()
        assert self.rows(connection) == before

    @pytest.mark.parametrize("end", ["cancel", "expire"])
    def test_what_was_called_off_stays_called_off(self, connection, end):
        """A worker that finishes after a cancellation, or after the deadline, changes nothing."""
        filing_id = file(connection, deadline_in=3600)
        claimed = claim(connection)
        if end == "cancel":
            assert docket.cancel(connection, tenant="default", filing_id=filing_id) == 1
        else:
            connection.execute(text("UPDATE shards SET deadline_at = now() - interval '1 s'"))
            assert docket.expire(connection, limit=10) == 1
        with pytest.raises(LeaseLostError):
            docket.finish(connection, claimed.lease, [succeeded(1)])
        assert outcomes(connection) == {1: "cancelled" if end == "cancel" else "expired"}

    @pytest.mark.parametrize("leave", ["finish", "give_back", "split", "fail", "reclaim", "cancel"])
    def test_whoever_ends_a_run_takes_the_token_away(self, connection, leave):
        """After a shard has left the running state in any way, its row holds no lease."""
        filing_id = file(connection, 2)
        claimed = claim(connection)
        {
            "finish": lambda: docket.finish(connection, claimed.lease, [succeeded(1), succeeded(2)]),
            "give_back": lambda: docket.give_back(connection, claimed.lease),
            "split": lambda: docket.split(connection, claimed.lease),
            "fail": lambda: fail(connection, claimed),
            "reclaim": lambda: (lapse(connection), sweep(connection)),
            "cancel": lambda: docket.cancel(connection, tenant="default", filing_id=filing_id),
        }[leave]()
        rows = connection.execute(
            text("SELECT lease_token, lease_until, lease_owner FROM shards WHERE id = :id"),
            {"id": claimed.lease.shard},
        )
        assert tuple(rows.one()) == (None, None, None)


class TestLeases:
    def test_a_renewed_lease_is_not_reclaimed(self, connection):
        """As long as the heartbeat comes, the sweep leaves the shard alone."""
        file(connection)
        claimed = claim(connection, lease_seconds=0.05)
        time.sleep(0.1)  # the lease has run out, nobody has looked yet
        assert docket.renew(connection, [claimed.lease], lease_seconds=60) == {claimed.lease}
        assert sweep(connection) == 0
        assert docket.finish(connection, claimed.lease, [succeeded(1)]) == 1

    def test_a_lapsed_lease_is_reclaimed(self, connection):
        """When the lease has run out the shard waits again, due at once."""
        file(connection)
        claim(connection)
        assert sweep(connection) == 0
        lapse(connection)
        assert sweep(connection) == 1
        assert states(connection) == ["waiting"]
        assert len(release(connection)) == 1

    def test_giving_back_burns_no_attempt(self, connection):
        """A worker that is told to end gives its shard back as if it had never claimed it."""
        file(connection)
        docket.give_back(connection, claim(connection).lease)
        assert claim(connection).attempt == 1


class TestFailing:
    def test_a_shard_of_many_is_split_in_halves(self, connection):
        """A failure among many lines divides them, and no line is lost or doubled by it."""
        file(connection, 5)
        fail(connection, claim(connection))
        covered = []
        for shard in release(connection):
            covered += [each.line for each in docket.undecided(connection, claim(connection, shard))]
        assert sorted(covered) == [1, 2, 3, 4, 5]
        assert states(connection) == ["split", "running", "running"]

    def test_halves_are_what_their_shard_was(self, connection):
        """They stand in its lane with its urgency and its deadline, are told of as it was, and are of its trace."""
        file(connection, 2, lane=Lane.BULK, priority=7, deadline_in=3600, notify=True, traceparent="00-trace")
        [shard] = release(connection, Lane.BULK)
        kept = text("""
            SELECT DISTINCT tenant, filing_id, source_id, lane, priority, deadline_at, notify, traceparent FROM shards
        """)
        before = connection.execute(kept).one()
        assert before.deadline_at is not None
        docket.split(connection, claim(connection, shard).lease)
        assert states(connection) == ["split", "waiting", "waiting"]
        assert connection.execute(kept).one() == before

    def test_lines_already_decided_do_not_travel_on(self, connection):
        """Only what is undecided goes into the halves."""
        file(connection, 4)
        claimed = claim(connection)
        docket.record(connection, claimed.lease, [succeeded(2), succeeded(3)], lease_seconds=60)
        fail(connection, claimed)
        left = [docket.undecided(connection, claim(connection, shard)) for shard in release(connection)]
        assert [[each.line for each in half] for half in left] == [[1], [4]]

    def test_one_line_is_tried_to_the_last_attempt(self, connection):
        """A single comparison waits and is tried again, and is errored with the reason after its last attempt."""
        file(connection)
        for _ in range(2):
            fail(connection, claim(connection))
            assert outcomes(connection) == {}
        fail(connection, claim(connection))
        row = connection.execute(text("SELECT status, error_code, error_message, attempt FROM outcomes")).one()
        assert tuple(row) == ("errored", "engine_failed", "it failed", 3)
        assert states(connection) == ["done"]

    def test_a_failure_waits_before_the_next_attempt(self, connection):
        """A failed attempt is not due again before its pause is over."""
        file(connection)
        docket.fail(
            connection,
            claim(connection),
            code=OutcomeError.ENGINE_FAILED,
            message="-",
            retry_in=60,
            max_attempts=3,
        )
        assert release(connection) == []
        connection.execute(text("UPDATE shards SET due_at = now()"))
        assert len(release(connection)) == 1

    def test_one_bad_line_among_many_is_found(self, connection):
        """Halving leads to the one line at fault; the others succeed."""
        file(connection, 8)
        for _ in range(40):
            for shard in release(connection):
                claimed = claim(connection, shard)
                todo = [each.line for each in docket.undecided(connection, claimed)]
                if 6 in todo:
                    fail(connection, claimed)
                else:
                    docket.finish(connection, claimed.lease, [succeeded(number) for number in todo])
        assert outcomes(connection) == {number: "errored" if number == 6 else "succeeded" for number in range(1, 9)}


class TestEnding:
    def test_cancelling_ends_what_is_undecided_alone(self, connection):
        """Outcomes that were stored before a cancellation stay."""
        filing_id = file(connection, 3)
        claimed = claim(connection)
        docket.record(connection, claimed.lease, [succeeded(1)], lease_seconds=60)
        assert docket.cancel(connection, tenant="default", filing_id=filing_id) == 2
        assert outcomes(connection) == {1: "succeeded", 2: "cancelled", 3: "cancelled"}
        assert docket.cancel(connection, tenant="default", filing_id=filing_id) == 0

    def test_another_tenant_cannot_cancel(self, connection):
        """Cancelling another tenant's filing does nothing."""
        filing_id = file(connection)
        assert docket.cancel(connection, tenant="other", filing_id=filing_id) == 0
        assert states(connection) == ["waiting"]

    def test_the_deadline_expires_what_is_left(self, connection):
        """After the deadline undecided lines are expired, whether waiting or being worked on."""
        file(connection, 4, shard_lines=2, deadline_in=3600)
        one, _other = release(connection)
        docket.record(connection, claim(connection, one).lease, [succeeded(1)], lease_seconds=60)
        assert docket.expire(connection, limit=10) == 0
        connection.execute(text("UPDATE shards SET deadline_at = now() - interval '1 s'"))
        assert docket.expire(connection, limit=10) == 3
        assert outcomes(connection) == {1: "succeeded", 2: "expired", 3: "expired", 4: "expired"}
        assert states(connection) == ["done", "done"]

    @pytest.mark.parametrize("way", ["finish", "split", "fail", "cancel", "expire"])
    def test_each_way_to_end_tells_when(self, connection, way):
        """What a shard took counts for the day on which it ended, however it did; what goes on has not ended."""
        filing_id = file(connection, 2 if way == "split" else 1, deadline_in=0 if way == "expire" else None)
        claimed = claim(connection)
        ended = text("SELECT ended_at > now() - interval '1 h' FROM shards WHERE id = :shard")
        assert connection.execute(ended, {"shard": claimed.lease.shard}).scalar_one() is None
        {
            "finish": lambda: docket.finish(connection, claimed.lease, [succeeded(1)]),
            "split": lambda: docket.split(connection, claimed.lease),
            "fail": lambda: fail(connection, claimed, max_attempts=1),
            "cancel": lambda: docket.cancel(connection, tenant="default", filing_id=filing_id),
            "expire": lambda: docket.expire(connection, limit=10),
        }[way]()
        assert connection.execute(ended, {"shard": claimed.lease.shard}).scalar_one() is True

    def test_an_outcome_is_written_once(self, connection):
        """A second outcome for the same comparison is not stored, and the first one stands."""
        file(connection, 2)
        claimed = claim(connection)
        docket.record(connection, claimed.lease, [succeeded(1)], lease_seconds=60)
        again = Outcome(line=1, status=OutcomeStatus.ERRORED, error_code=OutcomeError.UNPARSEABLE, error_message="-")
        assert docket.finish(connection, claimed.lease, [again, succeeded(2)]) == 1
        assert outcomes(connection) == {1: "succeeded", 2: "succeeded"}
