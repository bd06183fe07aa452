"""Precedents: verdicts that a judge has given before, found again by what was asked."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

_KNOWN = text("""
    SELECT DISTINCT ON (o.digest) o.digest, o.judge_id, o.tally::text AS tally
    FROM outcomes o
    WHERE o.digest = ANY(:digests) AND o.judge_id = ANY(:judges) AND o.tenant = :tenant
""")


def find(
    connection: Connection, *, tenant: str, digests: Sequence[bytes], judges: Sequence[str]
) -> dict[tuple[bytes, str], str]:
    """Find verdicts that these judges have given a tenant before, by what was asked.

    Returns:
        Tallies as JSON text, by (digest, judge id).
    """
    if not digests:
        return {}
    result = connection.execute(_KNOWN, {"tenant": tenant, "digests": list(digests), "judges": list(judges)})
    return {(row.digest, row.judge_id): row.tally for row in result}
