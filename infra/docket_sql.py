"""The SQL of the docket; `docket.py` says what each statement is for and calls it.

A statement that waits for a row's lock sees that row as it is then, and all else as it was before the wait. So what a
move reads of other tables, it reads in a later statement than the one that locks (docs/decisions/0024).

The pieces that statements share stand first: the fence above all.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from sqlalchemy import TextClause, text

from infra.callbacks_sql import TELL_ENDED, WANTED

# The fence: true for the present holder of a lease alone. Each lease has a new token from a sequence, and the row loses
# the token with the lease.
_HELD = "shards.id = :shard AND shards.lease_token = :token"

# Every move out of the running state clears these.
_UNLEASED = "lease_token = NULL, lease_until = NULL, lease_owner = NULL, at_work = NULL"

# Lines `c` of shard `{shard}` that have no outcome yet.
_UNDECIDED = """
    c.source_id = {shard}.source_id AND c.line BETWEEN {shard}.first_line AND {shard}.last_line
    AND NOT EXISTS (SELECT FROM outcomes o WHERE o.filing_id = {shard}.filing_id AND o.line = c.line)
"""

_COUNT_UNDECIDED = f"(SELECT count(*) FROM comparisons c WHERE {_UNDECIDED.format(shard='shards')})"

# Gives every undecided line of the shards in the CTE `ended` the same outcome.
_END_UNDECIDED = f"""
    INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message, attempt)
    SELECT ended.filing_id, c.line, c.tenant, :status, :code, :message, ended.attempt
    FROM ended JOIN comparisons c ON {_UNDECIDED.format(shard="ended")}
    ON CONFLICT (filing_id, line) DO NOTHING
    RETURNING *
"""

# A shard keeps count of how its lines ended and what they cost; a batch's counts are sums over its shards.
_ADD_COUNTS = """
            succeeded = succeeded + :succeeded, errored = errored + :errored,
            reused = reused + :reused,
            prompt_tokens = prompt_tokens + :prompt_tokens, cached_tokens = cached_tokens + :cached_tokens,
            gpu_seconds = gpu_seconds + :gpu_seconds
"""


def _change_in_order(which: str, change: str, lock: str = "") -> TextClause:
    """Change shards after locking them in the order of their ids, so that two such statements never deadlock.

    `lock` may be SKIP LOCKED, for not waiting at all.
    """
    return text(f"""
        WITH locked AS MATERIALIZED (
            SELECT shards.id FROM shards {which} ORDER BY shards.id FOR UPDATE OF shards {lock}
        )
        UPDATE shards SET {change} FROM locked WHERE shards.id = locked.id
        RETURNING shards.id, shards.lease_token
    """)


FILE = text(f"""
    WITH filed AS (
        INSERT INTO comparisons (source_id, line, tenant, custom_id, body, request_id)
        SELECT :filing_id, c.line, :tenant, c.custom_id, c.body, c.request_id
        FROM jsonb_to_recordset(CAST(:comparisons AS jsonb)) AS c(
               line int, custom_id text, body text, request_id text)
        RETURNING line
    )
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, priority, state, deadline_at, notify,
                        traceparent)
    SELECT :tenant, :filing_id, :filing_id, min(line), max(line), :lane, :priority, 'waiting',
           now() + make_interval(secs => :deadline_in), :notify OR {WANTED.format(tenant=":tenant")}, :traceparent
    FROM filed
    GROUP BY (line - 1) / :shard_lines
    RETURNING id
""")

FILE_BATCH = text("""
    INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, priority, state, deadline_at, bytes,
                        notify, traceparent)
    SELECT b.tenant, b.id, b.file_id, r.first_line, r.last_line, 'bulk', b.priority, 'waiting', b.expires_at, r.bytes,
           :notify, :traceparent
    FROM batches b JOIN file_runs r ON r.file_id = b.file_id AND r.lines > 0
    WHERE b.id = :batch
    ORDER BY r.first_line
    RETURNING id
""")

# Shards go out tenant by tenant: the one with the fewest out goes first, and each may have an equal share of the room
# out even where others have filled it. How long the statement takes does not depend on how much a tenant has waiting:
# `queue` finds the tenants by skipping through the index (a loose index scan), and `heads` reads of each no more
# shards than may go now. A tenant's k-th head has its turn as if k - 1 more were out already. (Passing the chosen ids
# as an array keeps Postgres from a join that reads all waiting shards.)
RELEASE = text("""
    WITH RECURSIVE queue (tenant) AS (
        (SELECT tenant FROM shards WHERE lane = :lane AND state = 'waiting' ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT s.tenant FROM shards s
                WHERE lane = :lane AND state = 'waiting' AND s.tenant > queue.tenant ORDER BY s.tenant LIMIT 1)
        FROM queue WHERE queue.tenant IS NOT NULL
    ), out AS MATERIALIZED (
        SELECT tenant, count(*) AS shards, count(*) FILTER (WHERE state = ANY(:counted)) AS counted FROM shards
        WHERE lane = :lane AND state IN ('released', 'running') GROUP BY tenant
    ), standing AS MATERIALIZED (
        SELECT tenant, coalesce(out.shards, 0) AS shards, ceil(CAST(:room AS numeric) / count(*) OVER ()) AS share,
               :room - coalesce(sum(out.counted) OVER (), 0) AS free
        FROM queue FULL JOIN out USING (tenant) WHERE tenant IS NOT NULL
    ), heads AS MATERIALIZED (
        SELECT head.id, standing.*,
               row_number() OVER (PARTITION BY tenant ORDER BY head.priority DESC, head.due_at, head.id) AS place
        FROM standing CROSS JOIN LATERAL (
            SELECT id, priority, due_at FROM shards
            WHERE lane = :lane AND state = 'waiting' AND tenant = standing.tenant AND due_at <= now()
            ORDER BY priority DESC, due_at, id
            LIMIT greatest(0, least(:limit, greatest(free, share - shards)))
        ) head
    ), turns AS MATERIALIZED (
        SELECT heads.*, row_number() OVER (ORDER BY place + shards, id) AS turn FROM heads
    ), due AS MATERIALIZED (
        SELECT id FROM shards
        WHERE id = ANY(ARRAY(
                SELECT id FROM turns WHERE turn <= free OR place + shards <= share ORDER BY turn LIMIT :limit
            )) AND state = 'waiting'
        FOR UPDATE SKIP LOCKED
    )
    UPDATE shards SET state = 'released', released_at = now()
    FROM due WHERE shards.id = due.id
    RETURNING shards.id
""")

# How long the oldest due shard has waited. It is long only where too many hints are out, or no dispatcher runs.
OLDEST_DUE = text("""
    SELECT coalesce((
        SELECT extract(epoch FROM now() - due_at) FROM queue
        WHERE lane = 'interactive' AND state = 'waiting' AND due_at <= now() ORDER BY due_at LIMIT 1
    ), 0) AS seconds
""")

WITHDRAW = _change_in_order("WHERE id = ANY(:shards) AND state = 'released'", "state = 'waiting', released_at = NULL")

HINT_AGAIN = text("""
    WITH lost AS MATERIALIZED (
        SELECT id FROM shards
        WHERE lane = :lane AND state = 'released' AND released_at < now() - make_interval(secs => :older_than)
        ORDER BY released_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE shards SET released_at = now()
    FROM lost WHERE shards.id = lost.id
    RETURNING shards.id
""")

TRACED = text("""
    SELECT id, traceparent FROM shards WHERE id = ANY(:shards) AND traceparent IS NOT NULL
""")

# All shards of a filing have the same traceparent, except those that a retry added: they have the retry's.
TRACEPARENT = text("""
    SELECT traceparent FROM shards WHERE filing_id = :filing_id AND first_line <= :line
    ORDER BY first_line DESC, id DESC LIMIT 1
""")

# `begun` tells whether any line has an outcome, by one look into an index. Were it wrong, lines would be judged twice
# and their second outcomes left out.
CLAIM = text("""
    UPDATE shards SET state = 'running', attempt = attempt + 1,
        lease_token = nextval('lease_tokens'),
        lease_until = now() + make_interval(secs => :lease_seconds),
        lease_owner = :worker
    WHERE id = :shard AND state = 'released'
    RETURNING id, lease_token, tenant, filing_id, source_id, first_line, last_line, lane, attempt, traceparent,
              (SELECT options FROM batches b WHERE b.id = shards.filing_id) AS options,
              EXISTS (SELECT FROM outcomes o WHERE o.filing_id = shards.filing_id
                      AND o.line BETWEEN shards.first_line AND shards.last_line) AS begun,
              cardinality(losses) > 0 AS careful
""")

LINES = text(f"""
    SELECT line, custom_id, body, request_id FROM comparisons
    WHERE source_id = :source_id AND line BETWEEN :first_line AND :last_line
        AND EXISTS (SELECT FROM shards WHERE {_HELD})
    ORDER BY line
""")

LINES_LEFT = text(f"""
    SELECT c.line, c.custom_id, c.body, c.request_id
    FROM shards JOIN comparisons c ON {_UNDECIDED.format(shard="shards")}
    WHERE {_HELD}
    ORDER BY c.line
""")

COUNT_LEFT = text(f"SELECT {_COUNT_UNDECIDED} AS left_over FROM shards WHERE {_HELD}")

RENEW = _change_in_order(
    """
    JOIN unnest(CAST(:shards AS bigint[]), CAST(:tokens AS bigint[])) AS mine(id, token)
        ON shards.id = mine.id AND shards.lease_token = mine.token
    """,
    "lease_until = now() + make_interval(secs => :lease_seconds)",
)

# Locks a shard for its holder: what follows in the transaction, nobody else can do meanwhile.
HOLD = text(f"""
    SELECT filing_id, tenant, attempt, notify FROM shards WHERE {_HELD} FOR UPDATE
""")

NOTE = text(f"UPDATE shards SET at_work = :line WHERE {_HELD} RETURNING id")

RECORD = text(f"""
    UPDATE shards SET at_work = NULL,
        lease_until = greatest(lease_until, now() + make_interval(secs => :lease_seconds)),
        {_ADD_COUNTS}
    WHERE {_HELD}
""")

FINISH = text(f"""
    UPDATE shards SET state = 'done', ended_at = now(), {_UNLEASED},
        {_ADD_COUNTS}
    WHERE {_HELD}
""")

GIVE_BACK = text(f"""
    UPDATE shards SET state = 'waiting', due_at = now(), attempt = attempt - 1, {_UNLEASED}
    WHERE {_HELD}
    RETURNING id
""")

# The callers of FAIL and SPLIT have locked the shard with HOLD: both read which of its lines are decided (see above).
FAIL = text(f"""
    WITH held AS (
        UPDATE shards SET
            state = CASE WHEN attempt < :max_attempts THEN 'waiting' ELSE 'done' END,
            due_at = now() + make_interval(secs => :retry_in),
            ended_at = CASE WHEN attempt < :max_attempts THEN NULL ELSE now() END,
            errored = CASE WHEN attempt < :max_attempts THEN errored ELSE errored + {_COUNT_UNDECIDED} END,
            {_UNLEASED}
        WHERE {_HELD}
        RETURNING *
    ), ended AS (SELECT * FROM held WHERE state = 'done'), stored AS ({_END_UNDECIDED}), told AS ({TELL_ENDED})
    SELECT state FROM held
""")

SPLIT = text(f"""
    WITH held AS (
        UPDATE shards SET state = 'split', ended_at = now(), {_UNLEASED}
        WHERE {_HELD}
        RETURNING *
    ), parts AS (
        SELECT c.line, CASE WHEN CAST(:suspect AS int) IS NULL THEN ntile(2) OVER (ORDER BY c.line)
                            ELSE sign(c.line - CAST(:suspect AS int)) END AS part
        FROM held JOIN comparisons c ON {_UNDECIDED.format(shard="held")}
    ), carriers AS (
        INSERT INTO shards (tenant, filing_id, source_id, first_line, last_line, lane, priority, state, attempt,
                            deadline_at, bytes, losses, notify, traceparent)
        SELECT held.tenant, held.filing_id, held.source_id, min(parts.line), max(parts.line), held.lane,
               held.priority, 'waiting', held.attempt - CASE WHEN parts.part = 0 THEN 0 ELSE 1 END,
               held.deadline_at, held.bytes * count(*) / (held.last_line - held.first_line + 1), held.losses,
               held.notify, held.traceparent
        FROM held, parts
        GROUP BY held.tenant, held.filing_id, held.source_id, held.first_line, held.last_line, held.lane, held.priority,
                 held.attempt, held.deadline_at, held.bytes, held.losses, held.notify, held.traceparent, parts.part
    )
    SELECT id FROM held
""")

LAPSED = text("""
    SELECT id, lease_token FROM shards
    WHERE state = 'running' AND lease_until < now()
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
""")

LONGEST_LAPSED = text("""
    SELECT coalesce(extract(epoch FROM now() - min(lease_until)), 0) AS seconds FROM shards
    WHERE state = 'running' AND lease_until < now()
""")

HELD_BY = text("""
    SELECT id, lease_token FROM shards WHERE state = 'running' AND lease_owner = :worker FOR UPDATE SKIP LOCKED
""")

# The hints that a dead worker had taken are lost, and nobody knows which they were: the next sweep repeats all.
DOUBT_HINTS = _change_in_order("WHERE state = 'released'", "released_at = '-infinity'")

LOSE = text(f"""
    UPDATE shards SET losses = losses || (
        'attempt ' || attempt || ' until ' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
        || CASE WHEN at_work IS NULL THEN '' ELSE ', alone in the engine' END)
    WHERE {_HELD}
    RETURNING attempt, at_work, losses
""")

PUT_BACK = text(f"""
    UPDATE shards SET state = 'waiting', due_at = now(), attempt = :attempt, {_UNLEASED}
    WHERE {_HELD}
""")

LATE = text("""
    SELECT id FROM shards
    WHERE deadline_at <= now() AND state IN ('waiting', 'released', 'running')
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
""")

# Ordered by the index that finds the shards of a filing. Ordered by id, Postgres would walk the primary key instead, in
# which a new filing's shards come last, after all others.
_CALLED_OFF = """
    SELECT id FROM shards
    WHERE filing_id = :filing_id AND tenant = :tenant AND state IN ('waiting', 'released', 'running')
    ORDER BY filing_id, first_line
    LIMIT :limit
    FOR UPDATE
"""

CALLED_OFF = text(_CALLED_OFF)

CALLED_OFF_UNLOCKED = text(f"{_CALLED_OFF} SKIP LOCKED")

# Ends shards that are locked already, and gives their undecided lines one outcome, which a count of the shard's keeps.
_END = f"""
    WITH ended AS (
        UPDATE shards SET state = 'done', ended_at = now(), {{count}} = {{count}} + {_COUNT_UNDECIDED}, {_UNLEASED}
        WHERE id = ANY(:shards)
        RETURNING *
    ), stored AS ({_END_UNDECIDED}), told AS ({TELL_ENDED})
    SELECT count(*) FROM stored
"""

EXPIRE = text(_END.format(count="expired"))

CANCEL = text(_END.format(count="cancelled"))

_CALLED_BACK = f"""
    state = 'waiting', released_at = NULL,
    attempt = CASE WHEN state = 'running' THEN attempt - 1 ELSE attempt END, {_UNLEASED}
"""

RECALL = _change_in_order("WHERE filing_id = :filing_id AND state IN ('released', 'running')", _CALLED_BACK)

# Reads the shards that are out, which are few, and not those that wait, which may be all of many batches. A locked row
# is left for the next turn: its worker may have vanished, and every release would wait for it.
RECALL_CLOSED = _change_in_order(
    """
    WHERE lane = 'bulk' AND state IN ('released', 'running')
        AND EXISTS (SELECT FROM batches b WHERE b.id = shards.filing_id AND b.status = 'in_progress' AND NOT b.open)
    """,
    _CALLED_BACK,
    "SKIP LOCKED",
)

# As RELEASE, by batches in place of tenants' queues. Open batches are all in progress, and saying so lets Postgres use
# the index of live batches. Of each no more shards are read than may go: as many as there is room for, or the one
# shard that may go into the spare room.
RELEASE_BULK = text("""
    WITH out AS MATERIALIZED (
        SELECT tenant, count(*) AS shards FROM shards
        WHERE lane = 'bulk' AND state IN ('released', 'running') GROUP BY tenant
    ), waiting AS MATERIALIZED (
        SELECT s.id, row_number() OVER (PARTITION BY b.tenant ORDER BY b.priority DESC, b.id, s.due_at, s.id)
                     + coalesce(out.shards, 0) AS place
        FROM batches b
        CROSS JOIN LATERAL (
            SELECT id, due_at FROM shards
            WHERE filing_id = b.id AND state = 'waiting' AND due_at <= now()
            ORDER BY due_at, id
            LIMIT least(:limit, greatest(least(CAST(:spare AS bigint), 1),
                                         CAST(:room AS bigint) - coalesce((SELECT sum(shards) FROM out), 0)))
        ) s
        LEFT JOIN out ON out.tenant = b.tenant
        WHERE b.open AND b.status = 'in_progress'
    ), turns AS MATERIALIZED (
        SELECT id, place, row_number() OVER (ORDER BY place, id) + coalesce((SELECT sum(shards) FROM out), 0) AS turn
        FROM waiting
    ), due AS MATERIALIZED (
        SELECT id FROM shards
        WHERE id = ANY(ARRAY(
                SELECT id FROM turns
                WHERE turn <= :room + CASE WHEN place = 1 THEN CAST(:spare AS int) ELSE 0 END
                ORDER BY turn LIMIT :limit
            )) AND state = 'waiting'
        FOR UPDATE SKIP LOCKED
    )
    UPDATE shards SET state = 'released', released_at = now()
    FROM due WHERE shards.id = due.id
    RETURNING shards.id
""")
