"""The keys that one process has lately seen to be good, and the addresses that it has seen guess."""

import hashlib
import math
import time
from typing import NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from producer import keys
from producer.access import Caller
from producer.guessing import Guesses
from schemas.problems import TOO_MANY_WRONG_KEYS, Problem

log = structlog.get_logger()

SECONDS = 5.0
"""How long a key is taken for good without being looked up again: how long a revoked one may still be used."""
_MOST = 10_000


class _Seen(NamedTuple):
    caller: Caller
    until: float


class Keyring:
    """Tells whose key was sent.

    Only whole keys that were good are remembered, by their hash: a wrong secret is looked up each time, at the same
    cost whether its id is known or not.
    """

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._seen: dict[bytes, _Seen] = {}
        self._guesses = Guesses()

    async def caller(self, sent: str, *, client: str) -> Caller | None:
        """Tell whose key this is; None where it is nobody's.

        Args:
            sent: what was sent as a key.
            client: the address that it came from. One that sent many wrong keys has to wait, except with a key that
                was good here before: whoever shares an address with a guesser goes on.

        Raises:
            Problem: the address has to wait.
            sqlalchemy.exc.SQLAlchemyError: Postgres cannot be asked.
        """
        digest = hashlib.sha256(sent.encode()).digest()
        seen = self._seen.get(digest)
        if seen is not None and seen.until > time.monotonic():
            return seen.caller
        if seen is None and (pause := self._guesses.wait(client)) > 0:
            raise _wait(pause)
        async with self._database.connect() as connection:
            caller = await connection.run_sync(keys.find, sent)
        if caller is None:
            self._seen.pop(digest, None)
            if self._guesses.wrong(client):
                log.warning("wrong_keys_slowed_down", client=client)
            return None
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[digest] = _Seen(caller, time.monotonic() + SECONDS)
        return caller


def _wait(pause: float) -> Problem:
    seconds = math.ceil(pause)
    return Problem(
        TOO_MANY_WRONG_KEYS,
        f"Too many wrong keys came from your address; the next is looked at in {seconds} s. Keys that were good here "
        "before go on.",
        headers={"Retry-After": str(seconds)},
    )
