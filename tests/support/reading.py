"""How many rows of tables a statement reads, by Postgres' own account."""

from collections import Counter
from typing import Any

from sqlalchemy import Connection, TextClause, text

_SCANS = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan")


def rows_read(plan: dict[str, Any]) -> Counter[str]:
    """Count rows by table, those that were read and left out among them.

    Args:
        plan: a plan that was carried out, as EXPLAIN (ANALYZE, FORMAT JSON) tells of it.
    """
    read: Counter[str] = Counter()
    if plan["Node Type"] in _SCANS:
        left_out = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        read[plan["Relation Name"]] += round((plan["Actual Rows"] + left_out) * plan["Actual Loops"])
    for part in plan.get("Plans", ()):
        read.update(rows_read(part))
    return read


def read_by(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> Counter[str]:
    """Carry a statement out, and count the rows that it reads."""
    [plan] = connection.execute(text("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.text), parameters).scalar_one()
    return rows_read(plan["Plan"])
