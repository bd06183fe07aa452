"""How many rows of tables a statement reads, by Postgres' own account."""

from collections import Counter
from typing import Any

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
