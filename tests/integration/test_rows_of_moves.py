"""What a move reads does not grow with what there is beside it: many that wait, were judged, or were told of."""

# ruff: noqa: S608 - statements are put together from constants of this module alone

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text
from support.reading import read_by

from infra import callbacks_sql, docket_sql
from producer import retention

MANY = 30_000
BATCH = "00000000-0000-7000-8000-0000000000bb"

# Comparisons of which a third wait, a batch that came last, and callbacks of which a seventh wait; of 500 receivers 150
# are disabled, and nothing is on its way to these.
FILL = [
    """INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state)
       SELECT 'default', gen_random_uuid(), gen_random_uuid(), 0, 0, 'interactive',
              CASE WHEN n % 3 = 0 THEN 'waiting' ELSE 'done' END
       FROM generate_series(1, :many) AS n""",
    f"""INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, state)
        SELECT 'default', '{BATCH}', '{BATCH}', n * 1000, n * 1000 + 999, 'bulk', 'waiting'
        FROM generate_series(1, :many / 200) AS n""",
    """INSERT INTO comparisons (source_id, line, tenant, body)
       SELECT filing_id, 0, tenant, '' FROM shards WHERE lane = 'interactive'""",
    """INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message)
       SELECT filing_id, 0, tenant, 'errored', 'engine_failed', '' FROM shards WHERE state = 'done'""",
    """INSERT INTO callback_endpoints (id, tenant, url, registered, state)
       SELECT gen_random_uuid(), 'default', '', true, CASE WHEN n <= 150 THEN 'disabled' ELSE 'enabled' END
       FROM generate_series(1, 500) AS n""",
    """INSERT INTO callback_events (id, tenant, type, subject_id, line, at, fanned_out)
       SELECT gen_random_uuid(), tenant, 'comparison.succeeded', filing_id, 0, now(), true
       FROM shards WHERE lane = 'interactive'""",
    """INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at, ended_at)
       SELECT gen_random_uuid(), 'default', e.id, p.id, '', CASE WHEN e.n % 7 = 0 THEN 'waiting' ELSE 'delivered' END,
              now(), CASE WHEN e.n % 7 <> 0 THEN now() END
       FROM (SELECT id, row_number() OVER () AS n FROM callback_events) e
       JOIN (SELECT id, row_number() OVER () AS n FROM callback_endpoints WHERE state = 'enabled') p
         ON p.n = e.n % 350 + 1""",
]

_YOUNG = {"older_than": 86400.0, "step": 1000}
MOVES: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "a batch is called off": (
        docket_sql.CALLED_OFF_UNLOCKED,
        {"filing_id": UUID(BATCH), "tenant": "default", "limit": 5},
    ),
    "what is hopeless is buried": (
        callbacks_sql.BURY,
        {"open_after": 5, "give_up_seconds": 1e6, "limit": 1000, "shift": 0.0},
    ),
    "old comparisons are looked for": (retention._OLD_SINGLES, _YOUNG),
    "the oldest that is due is looked for": (docket_sql.OLDEST_DUE, {}),
}


def test_no_move_reads_all_there_is(connection: Connection) -> None:
    """Each finds the few that it is about by an index, of tables with thirty thousand others."""
    for statement in FILL:
        connection.execute(text(statement), {"many": MANY})
    connection.execute(text("VACUUM ANALYZE"))
    read = {name: read_by(connection, *move) for name, move in MOVES.items()}
    assert {name: rows for name, rows in read.items() if rows.total() > MANY // 20} == {}
