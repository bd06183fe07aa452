"""What becomes of shards whose workers are lost: the one line at fault is found, and nobody beside it pays."""

import re
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from support.dockets import LONG, a_line, an_outcome

from infra import docket, losses
from infra.docket import Claim, LeaseLostError
from schemas.ids import new_filing_id
from schemas.states import Lane

ATTEMPTS = 3


def file(connection: Connection, lines: int) -> UUID:
    """File some lines as one shard."""
    filing = new_filing_id()
    docket.file(
        connection,
        tenant="default",
        filing_id=filing,
        lane=Lane.INTERACTIVE,
        comparisons=[a_line(number) for number in range(1, lines + 1)],
        shard_lines=lines,
    )
    return filing


def claim_all(connection: Connection, *, worker: str = "w1") -> list[Claim]:
    """Release what is due and claim it, in the order of lines."""
    claims = [
        docket.claim(connection, shard, worker=worker, lease_seconds=LONG)
        for shard in docket.release(connection, lane=Lane.INTERACTIVE, room=100, limit=100)
    ]
    return sorted(filter(None, claims), key=lambda claim: claim.first_line)


def claim_one(connection: Connection) -> Claim:
    """Claim the only shard that is due."""
    [claimed] = claim_all(connection)
    return claimed


def lapse_and_sweep(connection: Connection) -> int:
    """Let every lease run out and look for those that did."""
    connection.execute(text("UPDATE shards SET lease_until = now() - interval '1 s' WHERE state = 'running'"))
    return losses.reclaim(connection, max_attempts=ATTEMPTS, limit=100).total()


def lose(connection: Connection, claimed: Claim, *, at: int | None = None, max_attempts: int = ATTEMPTS) -> None:
    """Lose the worker of a claim, while a line is alone in the engine or while none is."""
    if at is not None:
        docket.note(connection, claimed.lease, at)
    losses.lose(connection, claimed.lease, max_attempts=max_attempts)


def ends(connection: Connection) -> dict[int, str]:
    """How each line ended that did: by its status, or by its error."""
    rows = connection.execute(text("SELECT line, coalesce(error_code, status) AS how FROM outcomes"))
    return {row.line: row.how for row in rows}


def waiting(connection: Connection) -> list[tuple[int, int, int]]:
    """What waits, as first line, last line and attempts made."""
    rows = connection.execute(
        text("SELECT first_line, last_line, attempt FROM shards WHERE state = 'waiting' ORDER BY first_line")
    )
    return [tuple(row) for row in rows]


class TestTheFirstLoss:
    def test_it_names_nobody_and_keeps_the_shard_whole(self, connection: Connection):
        """Whatever was in the process may have ended it, so the lines stay together and are worked carefully next."""
        file(connection, 4)
        first = claim_one(connection)
        assert not first.careful
        assert lapse_and_sweep(connection) == 1
        assert waiting(connection) == [(1, 4, 1)]
        assert claim_one(connection).careful

    @pytest.mark.parametrize("lines", [1, 4])
    def test_it_is_never_the_end(self, connection: Connection, lines: int):
        """Even where one attempt is all there is, a line that only was there is not errored for it."""
        file(connection, lines)
        lose(connection, claim_one(connection), max_attempts=1)
        assert ends(connection) == {}
        assert waiting(connection) == [(1, lines, 0)]


class TestASuspect:
    def test_it_is_set_apart_and_the_others_carry_on(self, connection: Connection):
        """The attempt counts against the line that was noted, and not against those before and after it."""
        file(connection, 5)
        lose(connection, claim_one(connection))
        second = claim_one(connection)
        docket.record(connection, second.lease, [an_outcome(1, good=True)], lease_seconds=LONG)
        lose(connection, second, at=3)
        assert waiting(connection) == [(2, 2, 1), (3, 3, 2), (4, 5, 1)]
        assert all(each.careful for each in claim_all(connection))

    def test_it_alone_is_errored_after_its_last_attempt(self, connection: Connection):
        """Of five lines the third ends its worker each time: three losses in all, and four successes."""
        file(connection, 5)
        lost = 0
        while claims := claim_all(connection):
            for claimed in claims:
                todo = [each.line for each in docket.undecided(connection, claimed)]
                if 3 in todo:
                    lost += 1
                    lose(connection, claimed, at=3 if claimed.careful else None)
                else:
                    docket.finish(connection, claimed.lease, [an_outcome(each, good=True) for each in todo])
        assert lost == ATTEMPTS
        assert ends(connection) == {3: "engine_crashed"} | dict.fromkeys((1, 2, 4, 5), "succeeded")

    def test_the_message_lists_the_attempts(self, connection: Connection):
        """Whoever reads the outcome learns when each attempt ended and at which of them the line was alone."""
        file(connection, 1)
        lose(connection, claim_one(connection))
        lose(connection, claim_one(connection), at=1)
        lose(connection, claim_one(connection), at=1)
        message = connection.execute(text("SELECT error_message FROM outcomes")).scalar_one()
        moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        assert re.fullmatch(
            rf"the worker's process ended at each attempt: attempt 1 until {moment}; "
            rf"attempt 2 until {moment}, alone in the engine; attempt 3 until {moment}, alone in the engine",
            message,
        )

    @pytest.mark.parametrize("others", [[1], [1, 3]])
    def test_at_the_last_attempt_it_is_errored_within_its_shard(self, connection: Connection, others: list[int]):
        """With a single attempt a line that is noted when its worker is lost is errored, and the others wait again."""
        lines = 1 + len(others)
        file(connection, lines)
        lose(connection, claim_one(connection), max_attempts=1)
        lose(connection, claim_one(connection), at=2, max_attempts=1)
        assert ends(connection) == {2: "engine_crashed"}
        assert waiting(connection) == [(1, lines, 0)]
        assert [each.line for each in docket.undecided(connection, claim_one(connection))] == others
        counted = connection.execute(text("SELECT sum(errored) FROM shards")).scalar_one()
        assert counted == 1

    def test_its_outcome_takes_the_note_away(self, connection: Connection):
        """A line that was decided is suspected of nothing that happens afterwards."""
        file(connection, 2)
        lose(connection, claim_one(connection))
        claimed = claim_one(connection)
        docket.note(connection, claimed.lease, 1)
        docket.record(connection, claimed.lease, [an_outcome(1, good=True)], lease_seconds=LONG)
        lose(connection, claimed)
        assert waiting(connection) == [(1, 2, 1)]

    @pytest.mark.parametrize("leave", ["give_back", "recall", "cancel"])
    def test_whoever_takes_the_shard_takes_the_note(self, connection: Connection, leave: str):
        """A pause, a cancellation or a worker that is told to end is no loss, and leaves no suspect behind."""
        filing = file(connection, 2)
        claimed = claim_one(connection)
        docket.note(connection, claimed.lease, 1)
        if leave == "give_back":
            docket.give_back(connection, claimed.lease)
        elif leave == "recall":
            docket.recall(connection, filing)
        else:
            docket.cancel(connection, tenant="default", filing_id=filing)
        assert connection.execute(text("SELECT at_work, losses FROM shards")).one() == (None, [])


class TestABystander:
    def test_it_is_not_counted_against(self, connection: Connection):
        """A comparison that waits its turn while another ends the worker time and again is judged in the end."""
        file(connection, 1)
        for _ in range(2 * ATTEMPTS):
            lose(connection, claim_one(connection))
        claimed = claim_one(connection)
        assert claimed.attempt <= 2
        docket.finish(connection, claimed.lease, [an_outcome(1, good=True)])
        assert ends(connection) == {1: "succeeded"}

    def test_what_is_lost_without_end_ends(self, connection: Connection):
        """Lines at which workers are lost before any comes to the engine are halved at last; then it ends the one."""
        file(connection, 2)
        for _ in range(100):
            claims = claim_all(connection)
            if not claims:
                break
            lose(connection, claims[0])
            for spared in claims[1:]:
                docket.finish(connection, spared.lease, [an_outcome(spared.first_line, good=True)])
        assert ends(connection) == {1: "worker_lost", 2: "succeeded"}


class TestADeadWorker:
    def test_what_it_held_is_back_at_once(self, connection: Connection):
        """Where a worker is known to be dead nobody waits for its leases, and those of others stay."""
        file(connection, 1)
        [dead] = claim_all(connection, worker="dead")
        file(connection, 1)
        [alive] = claim_all(connection, worker="alive")
        assert losses.bury(connection, "dead", max_attempts=ATTEMPTS).total() == 1
        assert losses.bury(connection, "dead", max_attempts=ATTEMPTS).total() == 0
        with pytest.raises(LeaseLostError):
            docket.finish(connection, dead.lease, [an_outcome(1, good=True)])
        assert docket.finish(connection, alive.lease, [an_outcome(1, good=True)]) == 1

    def test_the_hints_that_it_took_are_sent_again(self, connection: Connection):
        """Shards that were hinted and not claimed are hinted again by the next sweep, however young their hints."""
        file(connection, 1)
        shards = docket.release(connection, lane=Lane.INTERACTIVE, room=9, limit=9)
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=LONG, limit=9) == []
        losses.bury(connection, "dead", max_attempts=ATTEMPTS)
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=LONG, limit=9) == shards
        assert docket.hint_again(connection, lane=Lane.INTERACTIVE, older_than=LONG, limit=9) == []

    @pytest.mark.parametrize("move", ["note", "lose"])
    def test_it_can_write_nothing_of_this(self, connection: Connection, move: str):
        """A worker whose lease is lost can neither note a line nor lose the shard once more."""
        file(connection, 2)
        claimed = claim_one(connection)
        lapse_and_sweep(connection)
        before = connection.execute(text("SELECT * FROM shards")).all()
        late = {
            "note": lambda: docket.note(connection, claimed.lease, 1),
            "lose": lambda: losses.lose(connection, claimed.lease, max_attempts=ATTEMPTS),
        }
        with pytest.raises(LeaseLostError):
            late[move]()
        assert connection.execute(text("SELECT * FROM shards")).all() == before
