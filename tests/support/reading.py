"""How many rows of tables a statement reads, by Postgres' own account."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, event, text

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


@contextmanager
def explaining(tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Have the plan told of each statement that comes by until the block ends, as it was carried out."""

    def explain(connection: Connection, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.split(None, 1)[0] not in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            return
        connection.exec_driver_sql("SAVEPOINT explaining")
        [plan] = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT explaining")
        tell(plan["Plan"])

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", explain)


def scans_of(plan: dict[str, Any], table: str) -> int:
    """Count how many times a plan that was carried out looked into a table."""
    own = plan["Actual Loops"] if plan["Node Type"] in _SCANS and plan["Relation Name"] == table else 0
    return own + sum(scans_of(part, table) for part in plan.get("Plans", ()))


def read_by(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> Counter[str]:
    """Carry a statement out, and count the rows that it reads."""
    [plan] = connection.execute(text("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.text), parameters).scalar_one()
    return rows_read(plan["Plan"])
