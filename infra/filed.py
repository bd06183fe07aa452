"""A comparison as it was filed, and the row that keeps it: the line it came as, or could have come as."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from schemas.lines import BadLineError, unwrap

# Most lines have no metadata, and looking for the word costs a fraction of parsing the line. JSON may spell any letter
# of it by its number (U+0061 to U+0074), which hardly anything else does with letters.
METADATA = r"""
    CASE WHEN position('"metadata"' IN c.body) > 0
        OR position('\u006' IN c.body) > 0 OR position('\u007' IN c.body) > 0 THEN (
        SELECT json_object_agg(last.key, last.value ORDER BY last.place)
        FROM json_to_record(c.body::json) AS line(url json, body json, metadata json)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN line.url IS NULL OR line.body IS NULL THEN line.metadata
                        ELSE line.body -> 'metadata' END AS pairs) said
        CROSS JOIN LATERAL (
            SELECT DISTINCT ON (pair.key) pair.* FROM json_each(
                CASE WHEN json_typeof(said.pairs) = 'object' THEN said.pairs END
            ) WITH ORDINALITY AS pair(key, value, place) ORDER BY pair.key, pair.place DESC) last
    ) END
"""
"""SQL for the metadata of a row `c` of `comparisons`, as JSON.

It looks where `schemas.lines.unwrap` does: inside `body` in a line of OpenAI's form, at the top in any other. Only
there was it validated. The object is built anew, with the last of the values that a key has, because neither white
space nor earlier values of a repeated key were validated, and they may be megabytes.
"""

SOURCE = """
    (SELECT coalesce((SELECT file_id FROM batches WHERE id = :filing_id), CAST(:filing_id AS uuid)))
"""
"""SQL for the source of what was filed as `:filing_id`: a batch's is its file, a single comparison's is itself.

It is a subquery so that Postgres computes it once, before it looks for rows. Where row-level security applies, a bare
`coalesce` beside the column would be computed row by row instead of being looked up in the index, since Postgres
does not know `coalesce` as leakproof.
"""


# There are many of these a second: a frozen one would take longer to make, and the fields of a tuple longer to read.
@dataclass(slots=True)
class Filed:
    """A comparison as it was filed, its fields JSON-ready and what it left open filled in."""

    line: int
    custom_id: str | None
    prompt: Any
    response_a: Any
    response_b: Any
    orders: str
    profile: str
    """"own" for the one that the judge was made for, which the worker knows."""
    tie_margin: float | None
    metadata: dict[str, str]
    request_id: str | None = None


def to_row(comparison: Filed) -> dict[str, Any]:
    """Give a comparison the form in which its row keeps it: the line that it could have been in a file."""
    body = {
        "prompt": comparison.prompt,
        "response_a": comparison.response_a,
        "response_b": comparison.response_b,
        "order": comparison.orders,
        "profile": comparison.profile,
        "tie_margin": comparison.tie_margin,
        "metadata": comparison.metadata,
    }
    return {
        "line": comparison.line,
        "custom_id": comparison.custom_id,
        "body": json.dumps(body, ensure_ascii=False),
        "request_id": comparison.request_id,
    }


def from_body(
    body: str,
    options: dict[str, Any],
    own_profile: str = "own",
    *,
    line: int,
    custom_id: str | None = None,
    request_id: str | None = None,
) -> Filed:
    """Understand a row of `comparisons` again.

    Args:
        body: the line that it was filed as.
        options: what the batch says for lines that do not.
        own_profile: what a comparison that asks for the judge's own profile is to have.
        line: its number.
        custom_id: what its producer calls it.
        request_id: the request that filed it.
    """
    given = options | unwrap(from_json(body, cache_strings="keys")).request
    if given.get("profile", "own") == "own":
        given["profile"] = own_profile
    return from_request(given, line=line, custom_id=custom_id, request_id=request_id)


def label_of(body: str) -> Literal["A", "B"] | None:
    """Tell which response is the better, where the line that a comparison was filed as says it.

    Of a preference row only this tells which of the two its `chosen` response is.
    """
    with suppress(BadLineError):  # an earlier release may have taken in what is no line any more
        return unwrap(from_json(body, cache_strings="keys")).label
    return None


def from_rows(rows: Iterable[Any], options: dict[str, Any], own_profile: str = "own") -> list[Filed]:
    """Understand rows of `comparisons`: line, custom_id, body and request_id of each. See `from_body`."""
    # Unpacked by position: reading four columns by name takes longer than parsing the body.
    return [
        from_body(body, options, own_profile, line=line, custom_id=custom_id, request_id=request_id)
        for line, custom_id, body, request_id in rows
    ]


def from_request(
    given: dict[str, Any], *, line: int, custom_id: str | None = None, request_id: str | None = None
) -> Filed:
    """Fill in what the fields of a comparison leave open. Other fields are left alone."""
    return Filed(
        line,
        custom_id,
        given["prompt"],
        given["response_a"],
        given["response_b"],
        given.get("order", "both"),
        given.get("profile", "own"),
        given.get("tie_margin"),
        given.get("metadata") or {},
        request_id,
    )
