"""Precedents: verdicts that a judge has given before, found again by what was asked."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

_KNOWN = text("""
    SELECT DISTINCT ON (o.digest) encode(o.digest, 'hex') AS digest, o.judge_id, o.tally, o.prompt_tokens
    FROM outcomes o
    WHERE o.digest = ANY(:digests) AND o.judge_id = ANY(:judges) AND o.tenant = :tenant
""")


def find(
    connection: Connection, *, tenant: str, digests: Sequence[str], judges: Sequence[str]
) -> dict[tuple[str, str], Row[Any]]:
    """Find verdicts that these judges have given a tenant before, by what was asked.

    Returns:
        Rows with `tally` and `prompt_tokens`, by (digest, judge id).
    """
    if not digests:
        return {}
    raw = [bytes.fromhex(digest) for digest in digests]
    result = connection.execute(_KNOWN, {"tenant": tenant, "digests": raw, "judges": list(judges)})
    return {(row.digest, row.judge_id): row for row in result}
