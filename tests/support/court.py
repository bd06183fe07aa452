"""A court for tests: a worker whose engine says what it is told to, and a look at what came of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from infra import docket
from infra.docket import Filed
from schemas.ids import new_filing_id
from schemas.states import Lane
from support.canaries import canary
from worker import prompts
from worker.bench import Bench
from worker.engines.base import (
    EngineCard,
    Generation,
    Prompt,
    Score,
    VerdictTokens,
)
from worker.judging import judge_shard

LIMIT = 5000
"""The longest prompt that the scripted engine takes, in tokens; a token is a character here."""
MASS = 0.96


@dataclass
class ScriptedEngine:
    """An engine whose every answer a test has written down. Its tokens are characters."""

    log_odds: Callable[[str], float] = lambda _: 1.0
    mass: float = MASS
    writes: Callable[[str], Generation] | None = None
    step_tokens: int = 100_000
    while_working: Callable[[list[str]], None] = lambda _: None
    asked: list[list[str]] = field(default_factory=list)
    """The prompts of every step, in order."""

    @property
    def card(self) -> EngineCard:
        """Who this is."""
        return EngineCard(
            engine="scripted",
            engine_build="1",
            model="none",
            weights="sha256:0",
            quantisation="none",
            verdict_tokens=VerdictTokens(a=65, b=66),
            max_prompt_tokens=LIMIT,
            step_tokens=self.step_tokens,
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Make a token of every character."""
        return [ord(each) for each in "".join(content for _, content in prompt.messages) + prompt.opening]

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Say what the script says of each prompt, at half a second and three cached tokens each."""
        texts = self._work(prompts)
        return [Score(self.log_odds(each), self.mass, cached_tokens=3, seconds=0.5) for each in texts]

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Write what the script says."""
        [asked] = self._work([prompt])
        assert self.writes is not None
        assert max_tokens == min(prompts.MAX_GENERATED_TOKENS, LIMIT - len(prompt))
        return self.writes(asked)

    def _work(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        texts = ["".join(map(chr, ids)) for ids in prompts]
        self.asked.append(texts)
        self.while_working(texts)
        return texts

    def health(self) -> bool:
        """Never ill."""
        return True

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Court:
    """A bench with its database, and what a dispatcher and a producer would do."""

    bench: Bench
    connection: Connection

    def file(self, *comparisons: Filed, lane: Lane = Lane.INTERACTIVE) -> UUID:
        """File comparisons as one shard."""
        filing_id = new_filing_id()
        docket.file(
            self.connection,
            tenant="default",
            filing_id=filing_id,
            lane=lane,
            comparisons=comparisons,
            shard_lines=len(comparisons),
        )
        return filing_id

    def release(self) -> list[int]:
        """Let everything go that is due."""
        return docket.release(self.connection, lane=Lane.INTERACTIVE, room=100, limit=100)

    def sit(self) -> None:
        """Judge everything that is due, once."""
        for shard in self.release():
            judge_shard(self.bench, shard)

    def sit_until_quiet(self) -> None:
        """Judge until nothing is left, without waiting for the pauses between attempts."""
        while shards := self.release():
            for shard in shards:
                judge_shard(self.bench, shard)
            self.end_the_pauses()

    def end_the_pauses(self) -> None:
        """Let the time of every next attempt have come."""
        self.connection.execute(text("UPDATE shards SET due_at = now() WHERE state = 'waiting'"))

    def outcomes(self) -> dict[int, Any]:
        """Read the outcomes by line."""
        return {row.line: row for row in self.connection.execute(text("SELECT * FROM outcomes"))}

    def outcome(self) -> Any:
        """Read the only outcome."""
        return self.connection.execute(text("SELECT * FROM outcomes")).one()

    def shards(self) -> list[tuple[str, int]]:
        """Read where the shards stand, and after how many attempts."""
        rows = self.connection.execute(text("SELECT state, attempt FROM shards ORDER BY id"))
        return [(row.state, row.attempt) for row in rows]


@dataclass
class Moody:
    """A database that cannot be reached now and then."""

    database: Engine
    moods: list[str]
    """What happens each of the next times that a connection is lent."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Lend a connection, or fail at it as the mood is."""
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "away":
            raise OperationalError("BEGIN", {}, Exception("connection refused"))
        if mood == "too late":
            with self.database.begin() as another:
                another.execute(text("UPDATE shards SET lease_token = nextval('lease_tokens')"))
        with self.database.connect() as connection:
            yield connection
        if mood == "hangs up":
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))


def comparison(number: int = 1, **changes: Any) -> Filed:
    """Make a comparison between two answers that are easy to find in a prompt."""
    plain = Filed(
        line=number,
        custom_id=None,
        prompt=f"Which letter comes first? {canary('Prompt')}",
        response_a=f"<alpha> {number} {canary('ResponseA')}",
        response_b=f"<beta> {canary('ResponseB')}",
        orders="both",
        profile="card",
        tie_margin=None,
        metadata={},
    )
    return replace(plain, **changes)


def alpha_is_first(prompt: str) -> bool:
    """Whether response A was shown in the first slot."""
    return prompt.index("<alpha>") < prompt.index("<beta>")
