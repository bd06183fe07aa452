"""The SQL of the docket, one statement a move; `docket.py` says what each is for and calls it.

The pieces that statements share stand first: the fence above all.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from sqlalchemy import text

# The fence. Tokens come from a sequence and leave the row with the lease, so this alone tells the present holder.
_HELD = "shards.id = :shard AND shards.lease_token = :token"

# What leaving the running state means for the row, whichever way it is left.
_UNLEASED = "lease_token = NULL, lease_until = NULL, lease_owner = NULL"

_UNDECIDED = """
    NOT EXISTS (SELECT FROM outcomes o WHERE o.filing_id = c.filing_id AND o.line = c.line)
"""

# Gives every undecided line of the shards in the CTE `ended` the same outcome.
_END_UNDECIDED = f"""
    INSERT INTO outcomes (filing_id, line, tenant, status, error_code, error_message, attempt)
    SELECT c.filing_id, c.line, c.tenant, :status, :code, :message, ended.attempt
    FROM ended
    JOIN comparisons c ON c.filing_id = ended.filing_id AND c.line BETWEEN ended.first_line AND ended.last_line
    WHERE {_UNDECIDED}
    ON CONFLICT (filing_id, line) DO NOTHING
    RETURNING 1
"""

_STORE_OUTCOMES = """
    INSERT INTO outcomes (filing_id, line, tenant, status, tally, judge_id, error_code, error_message,
                          prompt_tokens, cached_tokens, gpu_seconds, attempt)
    SELECT held.filing_id, o.line, held.tenant, o.status, o.tally, o.judge_id, o.error_code, o.error_message,
           o.prompt_tokens, o.cached_tokens, o.gpu_seconds, held.attempt
    FROM held, jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS o(
           line int, status text, tally jsonb, judge_id text, error_code text, error_message text,
           prompt_tokens int, cached_tokens int, gpu_seconds float8)
    ON CONFLICT (filing_id, line) DO NOTHING
    RETURNING 1
"""


FILE = text("""
    WITH filed AS (
        INSERT INTO comparisons (filing_id, line, tenant, custom_id, prompt, response_a, response_b, orders, profile,
                                 tie_margin, metadata, request_id)
        SELECT :filing_id, c.line, :tenant, c.custom_id, c.prompt, c.response_a, c.response_b, c.orders, c.profile,
               c.tie_margin, c.metadata, c.request_id
        FROM jsonb_to_recordset(CAST(:comparisons AS jsonb)) AS c(
               line int, custom_id text, prompt jsonb, response_a jsonb, response_b jsonb, orders text, profile text,
               tie_margin float8, metadata jsonb, request_id text)
        RETURNING line
    )
    INSERT INTO shards (tenant, filing_id, first_line, last_line, lane, priority, state, deadline_at)
    SELECT :tenant, :filing_id, min(line), max(line), :lane, :priority, 'waiting',
           now() + make_interval(secs => :deadline_in)
    FROM filed
    GROUP BY (line - 1) / :shard_lines
    RETURNING id
""")

RELEASE = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM shards
        WHERE lane = :lane AND state = 'waiting' AND due_at <= now()
        ORDER BY priority DESC, due_at, id
        LIMIT least(:limit, greatest(0, :room - (
            SELECT count(*) FROM shards WHERE lane = :lane AND state = ANY(:counted)
        )))
        FOR UPDATE SKIP LOCKED
    )
    UPDATE shards SET state = 'released', released_at = now()
    FROM due WHERE shards.id = due.id
    RETURNING shards.id
""")

WITHDRAW = text("""
    UPDATE shards SET state = 'waiting', released_at = NULL
    WHERE id = ANY(:shards) AND state = 'released'
""")

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

CLAIM = text("""
    UPDATE shards SET state = 'running', attempt = attempt + 1,
        lease_token = nextval('lease_tokens'),
        lease_until = now() + make_interval(secs => :lease_seconds),
        lease_owner = :worker
    WHERE id = :shard AND state = 'released'
    RETURNING id, lease_token, tenant, filing_id, first_line, last_line, lane, attempt
""")

LINES = text(f"""
    SELECT c.line, c.custom_id, c.prompt, c.response_a, c.response_b, c.orders, c.profile, c.tie_margin, c.metadata,
           c.request_id
    FROM comparisons c
    WHERE c.filing_id = :filing_id AND c.line BETWEEN :first_line AND :last_line AND {_UNDECIDED}
    ORDER BY c.line
""")

RENEW = text("""
    UPDATE shards SET lease_until = now() + make_interval(secs => :lease_seconds)
    FROM unnest(CAST(:shards AS bigint[]), CAST(:tokens AS bigint[])) AS mine(id, token)
    WHERE shards.id = mine.id AND shards.lease_token = mine.token
    RETURNING shards.id, shards.lease_token
""")

RECORD = text(f"""
    WITH held AS (
        UPDATE shards SET lease_until = greatest(lease_until, now() + make_interval(secs => :lease_seconds))
        WHERE {_HELD}
        RETURNING filing_id, tenant, attempt
    ), stored AS ({_STORE_OUTCOMES})
    SELECT (SELECT count(*) FROM held) AS held, (SELECT count(*) FROM stored) AS stored
""")

FINISH = text(f"""
    WITH held AS (
        UPDATE shards SET state = 'done', ended_at = now(), {_UNLEASED}
        WHERE {_HELD}
        RETURNING filing_id, tenant, attempt
    ), stored AS ({_STORE_OUTCOMES})
    SELECT (SELECT count(*) FROM held) AS held, (SELECT count(*) FROM stored) AS stored
""")

GIVE_BACK = text(f"""
    UPDATE shards SET state = 'waiting', due_at = now(), attempt = attempt - 1, {_UNLEASED}
    WHERE {_HELD}
    RETURNING id
""")

FAIL = text(f"""
    WITH held AS (
        UPDATE shards SET
            state = CASE WHEN attempt < :max_attempts THEN 'waiting' ELSE 'done' END,
            due_at = now() + make_interval(secs => :retry_in),
            ended_at = CASE WHEN attempt < :max_attempts THEN NULL ELSE now() END,
            {_UNLEASED}
        WHERE {_HELD}
        RETURNING *
    ), ended AS (SELECT * FROM held WHERE state = 'done'), stored AS ({_END_UNDECIDED})
    SELECT state FROM held
""")

SPLIT = text(f"""
    WITH held AS (
        UPDATE shards SET state = 'split', ended_at = now(), {_UNLEASED}
        WHERE {_HELD}
        RETURNING *
    ), halves AS (
        SELECT c.line, ntile(2) OVER (ORDER BY c.line) AS half
        FROM held
        JOIN comparisons c ON c.filing_id = held.filing_id AND c.line BETWEEN held.first_line AND held.last_line
        WHERE {_UNDECIDED}
    ), carriers AS (
        INSERT INTO shards (tenant, filing_id, first_line, last_line, lane, priority, state, attempt, deadline_at)
        SELECT held.tenant, held.filing_id, min(halves.line), max(halves.line), held.lane, held.priority, 'waiting',
               held.attempt - 1, held.deadline_at
        FROM held, halves
        GROUP BY held.tenant, held.filing_id, held.lane, held.priority, held.attempt, held.deadline_at, halves.half
    )
    SELECT id FROM held
""")

RECLAIM = text(f"""
    WITH lapsed AS MATERIALIZED (
        SELECT id FROM shards
        WHERE state = 'running' AND lease_until < now() AND attempt < :max_attempts
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE shards SET state = 'waiting', due_at = now(), {_UNLEASED}
    FROM lapsed WHERE shards.id = lapsed.id
    RETURNING shards.id
""")

LAPSED_FOR_GOOD = text("""
    SELECT id, lease_token, tenant, filing_id, first_line, last_line, lane, attempt FROM shards
    WHERE state = 'running' AND lease_until < now() AND attempt >= :max_attempts
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
""")

EXPIRE = text(f"""
    WITH late AS MATERIALIZED (
        SELECT id FROM shards
        WHERE deadline_at <= now() AND state IN ('waiting', 'released', 'running')
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE shards SET state = 'done', ended_at = now(), {_UNLEASED}
        FROM late WHERE shards.id = late.id
        RETURNING shards.*
    ), stored AS ({_END_UNDECIDED})
    SELECT (SELECT count(*) FROM stored) AS stored
""")

CANCEL = text(f"""
    WITH ended AS (
        UPDATE shards SET state = 'done', ended_at = now(), {_UNLEASED}
        WHERE filing_id = :filing_id AND tenant = :tenant AND state IN ('waiting', 'released', 'running')
        RETURNING *
    ), stored AS ({_END_UNDECIDED})
    SELECT (SELECT count(*) FROM stored) AS stored
""")
