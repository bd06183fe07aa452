"""Precedents: verdicts that a judge has given before, found again by what was asked."""

from collections.abc import Sequence

from sqlalchemy import Connection, text

# The digests travel as one value: the driver takes longer to spell a list of them than Postgres to look them up.
_KNOWN = text("""
    SELECT known.digest, known.judge_id, known.tally
    FROM generate_series(1, length(CAST(:digests AS bytea)), :size) AS start
    CROSS JOIN LATERAL (
        SELECT o.digest, o.judge_id, o.tally::text AS tally FROM outcomes o
        WHERE o.digest = substr(CAST(:digests AS bytea), start, :size)
            AND o.judge_id = ANY(:judges) AND o.tenant = :tenant
        LIMIT 1
    ) known
""")
_SIZE = 16


def find(
    connection: Connection, *, tenant: str, digests: Sequence[bytes], judges: Sequence[str]
) -> dict[tuple[bytes, str], str]:
    """Find verdicts that these judges have given a tenant before, by what was asked.

    Args:
        connection: in or out of a transaction.
        tenant: whose verdicts.
        digests: what is asked, 16 bytes each.
        judges: ids of judges.

    Returns:
        Tallies as JSON text, by (digest, judge id).
    """
    if not digests:
        return {}
    parameters = {"tenant": tenant, "digests": b"".join(digests), "size": _SIZE, "judges": list(judges)}
    result = connection.execute(_KNOWN, parameters)
    return {(row.digest, row.judge_id): row.tally for row in result}
