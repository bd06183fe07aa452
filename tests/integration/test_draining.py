"""A worker that is told to end: it begins nothing more, and gives the rest back at no attempt's cost."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from support.court import comparison
from support.waiting import wait_until

from schemas.states import Lane


class TestAWorkerThatIsToEnd:
    def test_it_claims_nothing_more(self, court, engine):
        """A hint that arrives after the word to end is left to others."""
        court.bench.draining.set()
        court.file(comparison())
        court.sit()
        assert engine.asked == []
        assert court.shards() == [("released", 0)]

    def test_it_finishes_the_step_in_hand_and_gives_the_rest_back(self, court, engine):
        """What was judged is stored, the rest waits again, and no attempt is burnt."""
        engine.step_tokens = 1
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(*(comparison(number, prompt=f"Which of {number}?") for number in (1, 2, 3)))
        court.sit()
        assert sorted(court.outcomes()) == [1]
        assert court.shards() == [("waiting", 0)]
        court.bench.draining.clear()
        engine.while_working = lambda _: None
        court.sit()
        assert sorted(court.outcomes()) == [1, 2, 3]
        assert len(engine.asked) == 3

    def test_a_shard_in_its_last_step_is_finished(self, court, engine):
        """There is nothing to give back of a shard whose last step is being judged."""
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(comparison())
        court.sit()
        assert court.outcome().status == "succeeded"
        assert court.shards() == [("done", 1)]

    def test_a_careful_one_gives_the_rest_back(self, court, engine):
        """A drain between two lines burns no attempt and leaves no note."""
        engine.while_working = lambda _: court.bench.draining.set()
        court.file(*(comparison(number, prompt=f"Question {number}?") for number in (1, 2, 3)))
        work_carefully(court)
        court.sit()
        assert sorted(court.outcomes()) == [1]
        assert state(court) == ("waiting", 0, None)

    @pytest.mark.parametrize("careful", [False, True])
    def test_whoever_stands_in_line_for_the_engine_begins_nothing(self, court, engine, careful):
        """A turn at the engine that comes after the word to end is not taken, so that a drain is one step long."""
        gate = court.bench.gate
        court.file(comparison())
        if careful:
            work_carefully(court)
        with ThreadPoolExecutor(1) as pool:
            with gate.alone(Lane.INTERACTIVE):
                sitting = pool.submit(court.sit)
                wait_until(lambda: any(gate._lines.values()), within=10, every=0.005, what="it stands in line")
                court.bench.draining.set()
            sitting.result(10)
        assert engine.asked == []
        assert state(court) == ("waiting", 0, None)


def work_carefully(court) -> None:
    """Have what is filed worked line by line, as after the loss of a worker."""
    court.connection.execute(text("UPDATE shards SET losses = ARRAY['attempt 1']"))


def state(court) -> tuple[str, int, int | None]:
    """Read where the only shard stands, after how many attempts, and which line is noted."""
    return tuple(court.connection.execute(text("SELECT state, attempt, at_work FROM shards")).one())
