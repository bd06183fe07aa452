"""What a batch's verdicts add up to, counted as `nightcourt eval gold` counts them."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncEngine

from producer import outputs
from schemas.batch import Batch
from schemas.comparison import Comparison
from schemas.lines import BadLineError, group_of, subset_of, unwrap
from schemas.problems import INVALID_REQUEST, MISSING_EXTRA, Problem

if TYPE_CHECKING:
    from producer.evals.gold import Gold

_MOST = 100_000
"""Outcomes, over which counting would take the memory and the time of others' requests."""


async def count(database: AsyncEngine, batch: Batch, key: UUID) -> "Gold":
    """Count what has been decided of a batch so far; that the asker may read it was seen to before.

    Raises:
        Problem: there is more than is counted here, or the extra with the statistics is not installed.
    """
    if batch.progress.decided > _MOST:
        raise Problem(
            INVALID_REQUEST,
            f"A report is made of {_MOST} outcomes at most. `nightcourt eval gold` with --verdicts counts more.",
        )
    counted = await asyncio.to_thread(_start)
    async for piece in outputs.stream(database, key, "asked"):
        await asyncio.to_thread(counted.add, piece.removesuffix(b"\n").split(b"\n"))
    return await asyncio.to_thread(counted.end)


def _start() -> "_Counted":
    try:
        return _Counted()
    except ImportError as error:
        raise Problem(
            MISSING_EXTRA, f'Reports need {error.name}, which the extra brings: pip install "nightcourt[evals]".'
        ) from None


class _Counted:
    """Outcomes without their texts, until they are added up."""

    def __init__(self) -> None:
        # The statistics are an extra, and too slow to load for a process that nobody asks for a report.
        from producer.evals import gold, rows  # noqa: PLC0415 - see above

        self._gold, self._rows = gold, rows
        self._judged = rows.Judged([], [])

    def add(self, lines: Iterable[bytes]) -> None:
        """Take in outcomes beside the lines that they came of."""
        for line in lines:
            outcome = from_json(line)
            comparison = Comparison.model_validate(outcome["comparison"])
            pair = self._rows.Pair(**_pair(outcome["line"], outcome["body"] or {}, comparison.custom_id))
            found = self._rows.judged([pair], {pair.id: comparison})
            self._judged.rows.extend(found.rows)
            self._judged.judges.extend(judge for judge in found.judges if judge not in self._judged.judges)

    def end(self) -> "Gold":
        """Count."""
        return self._gold.count(self._judged)


def _pair(line: int, row: dict[str, Any], custom_id: str | None) -> dict[str, Any]:
    """Find what a line says beside its verdict. A bad line says nothing."""
    asked: dict[str, Any] = {}
    label = None
    with suppress(BadLineError):
        known = unwrap(row)
        asked, label = known.request, known.label
    return {
        "id": custom_id or str(line),
        "prompt": None,
        "response_a": asked.get("response_a", ""),
        "response_b": asked.get("response_b", ""),
        "label": label,
        "subset": subset_of(row),
        "group": group_of(asked.get("prompt", line)),
    }
