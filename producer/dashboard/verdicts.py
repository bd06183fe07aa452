"""Verdicts to look through: a page of a batch's outcomes by what they are, and the texts behind one."""

# ruff: noqa: S608 - statements are put together from constants of the code alone; values are always bound

from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from pydantic_core import from_json
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from infra.filed import SOURCE, Filed, from_body
from schemas.ids import LAST_LINE, ComparisonKey, comparison_id
from schemas.lines import unwrap
from schemas.verdict import Judge, Tally

Ended = Literal["", "A", "B", "tie", "errored", "cancelled", "expired"]
Orders = Literal["", "agree", "disagree"]

PAGE = 25
_SPAN = 50_000
"""Lines that one page looks through, at most: a filter that fits little must not read a million of them at a time."""

_ROWS = text("""
    SELECT o.line, coalesce(c.custom_id, bad.custom_id) AS custom_id, o.status, o.tally, o.error_code, o.error_message,
           o.reused, o.decided_at, j.card, c.line IS NULL AS bad
    FROM outcomes o
    JOIN batches b ON b.id = o.filing_id
    LEFT JOIN comparisons c ON c.source_id = b.file_id AND c.line = o.line
    LEFT JOIN bad_lines bad ON c.line IS NULL AND bad.file_id = b.file_id AND bad.line = o.line
    LEFT JOIN judges j ON j.id = o.judge_id
    WHERE b.tenant = :tenant AND o.filing_id = :id AND o.line > :after AND o.line <= :until
      AND (:ended = '' OR CASE WHEN :ended IN ('A', 'B', 'tie') THEN o.tally ->> 'winner' ELSE o.status END = :ended)
      AND (:orders = '' OR o.tally ->> 'consistent' = CASE :orders WHEN 'agree' THEN 'true' ELSE 'false' END)
      AND (NOT :unsure OR (o.tally ->> 'probability_a')::float8 BETWEEN 0.4 AND 0.6)
      AND (:reason = '' OR o.error_code = :reason)
      AND (:named = '' OR position(:named IN coalesce(c.custom_id, bad.custom_id)) > 0)
    ORDER BY o.line LIMIT :limit
""")

_LAST = text("SELECT coalesce(max(line), 0) FROM outcomes WHERE filing_id = :id")

_REASONS = text("""
    SELECT error_code AS code, count(*) AS lines, min(line) AS first, min(error_message) AS message
    FROM outcomes WHERE filing_id = :id AND error_code IS NOT NULL GROUP BY error_code ORDER BY 2 DESC, 1
""")

_BODY = text(f"""
    SELECT c.line, c.body, b.options
    FROM comparisons c LEFT JOIN batches b ON b.id = :filing_id AND b.file_id = c.source_id
    WHERE c.tenant = :tenant AND c.line = :line AND c.source_id = {SOURCE}
""")

# Of lines that were a comparison: there is nothing to read of the others. OFFSET keeps the question apart, so that one
# line after the other is looked for until one is found; as a join Postgres would read the whole file for it.
_LINES = """
    SELECT o.line FROM outcomes o
    WHERE o.filing_id = :id
      AND EXISTS (SELECT FROM comparisons c
                  WHERE c.source_id = (SELECT file_id FROM batches WHERE id = :id) AND c.line = o.line OFFSET 0)
"""
_NEIGHBOURS = text(f"""
    SELECT ({_LINES} AND o.line < :line ORDER BY o.line DESC LIMIT 1) AS before,
           ({_LINES} AND o.line > :line ORDER BY o.line LIMIT 1) AS after
""")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which outcomes to look at. Empty fields want all."""

    ended: Ended = ""
    orders: Orders = ""
    unsure: bool = False
    reason: str = ""
    named: str = ""
    """What the caller's own name of the line holds."""

    @property
    def all(self) -> bool:
        """Whether nothing is left out."""
        return self == Wanted()

    def query(self, **more: Any) -> str:
        """Spell it as an address' query, with more behind it."""
        return urlencode({name: value for name, value in {**asdict(self), **more}.items() if value})


@dataclass(frozen=True, slots=True)
class Decided:
    """An outcome among others. A line that was no comparison has no `id`, since there is nothing to read."""

    line: int
    id: str | None
    custom_id: str | None
    status: str
    tally: Tally | None
    error_code: str | None
    error_message: str | None
    reused: bool
    judge: Judge | None


@dataclass(frozen=True, slots=True)
class DecidedPage:
    """Outcomes in the order of their lines. Where `after` is set, there may be more after that line."""

    rows: list[Decided]
    after: int | None
    looked_to: int
    """The last line that was looked at."""

    @property
    def judges(self) -> list[Judge]:
        """Whose verdicts these are."""
        return list({each.judge.model_dump_json(): each.judge for each in self.rows if each.judge}.values())


async def page(connection: AsyncConnection, *, tenant: str, batch_id: UUID, wanted: Wanted, after: int) -> DecidedPage:
    """Look through a batch's outcomes, beginning after a line."""
    until = min(after + _SPAN, LAST_LINE)
    parameters = {**asdict(wanted), "tenant": tenant, "id": batch_id, "after": after, "limit": PAGE + 1, "until": until}
    found = (await connection.execute(_ROWS, parameters)).all()
    rows = [_decided(row, batch_id) for row in found[:PAGE]]
    if len(found) > PAGE:
        return DecidedPage(rows, after=rows[-1].line, looked_to=rows[-1].line)
    last = (await connection.execute(_LAST, {"id": batch_id})).scalar_one()
    looked_to = min(until, last)
    return DecidedPage(rows, after=looked_to if looked_to < last else None, looked_to=looked_to)


def _decided(row: Row[Any], batch_id: UUID) -> Decided:
    return Decided(
        line=row.line,
        id=None if row.bad else comparison_id(ComparisonKey(batch_id, row.line)),
        custom_id=row.custom_id,
        status=row.status,
        tally=None if row.tally is None else Tally.model_validate(row.tally),
        error_code=row.error_code,
        error_message=row.error_message,
        reused=row.reused,
        judge=None if row.tally is None else Judge.model_validate(row.card),
    )


async def reasons(connection: AsyncConnection, *, batch_id: UUID) -> list[Row[Any]]:
    """Count a batch's lines that have no verdict, by reason; whose batch it is was seen to before.

    Reads all of its outcomes: half a second for a million.
    """
    return list(await connection.execute(_REASONS, {"id": batch_id}))


async def texts(connection: AsyncConnection, *, tenant: str, key: ComparisonKey) -> tuple[Filed, str | None] | None:
    """Read what was asked, and the label that stood beside it; None where it is not there."""
    parameters = {"tenant": tenant, "filing_id": key.filing_id, "line": key.line}
    row = (await connection.execute(_BODY, parameters)).one_or_none()
    if row is None:
        return None
    return from_body(row.body, row.options or {}, line=row.line), unwrap(from_json(row.body)).label


async def neighbours(connection: AsyncConnection, *, key: ComparisonKey) -> tuple[str | None, str | None]:
    """Find the outcomes before and after a line of a batch."""
    row = (await connection.execute(_NEIGHBOURS, {"id": key.filing_id, "line": key.line})).one()
    before, after = (
        None if line is None else comparison_id(ComparisonKey(key.filing_id, line)) for line in (row.before, row.after)
    )
    return before, after
