"""The SQL of callbacks, one statement a move; `callbacks.py` says what each is for and calls it."""

# ruff: noqa: S608 - statements are put together from constants of this module alone; values are always bound

from sqlalchemy import text

# A UUID of version 7 (RFC 9562, 5.7): a random one of version 4, its first 48 bits the milliseconds, its version set.
NEW_ID = """
    encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING substring(
        int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
    ), 52, 1), 53, 1), 'hex')::uuid
"""

# The clock that schedules go by.
_NOW = "(now() + make_interval(secs => :shift))"

_UNLEASED = "lease_token = NULL, lease_until = NULL"

# Whether a tenant has an endpoint that wants to hear of comparisons. A disabled one counts, as it may be replayed to.
WANTED = """EXISTS (
    SELECT FROM callback_endpoints e WHERE e.tenant = {tenant} AND e.registered
      AND (e.types = '{{}}' OR EXISTS (SELECT FROM unnest(e.types) AS type WHERE type LIKE 'comparison.%'))
)"""

# A move is repeated when it is not known whether its commit arrived; the unique key keeps the event from being doubled.
_ONCE = "ON CONFLICT (subject_id, line, at) DO NOTHING"

# Events of the outcomes in the CTE `stored`, of those shards in the CTE `ended` that are to notify.
TELL_ENDED = f"""
    INSERT INTO callback_events (id, tenant, type, subject_id, line, at)
    SELECT {NEW_ID}, stored.tenant, 'comparison.' || stored.status, stored.filing_id, stored.line, stored.decided_at
    FROM stored JOIN ended ON ended.notify AND ended.filing_id = stored.filing_id
        AND stored.line BETWEEN ended.first_line AND ended.last_line
    {_ONCE}
"""

TELL_COMPARISONS = text(f"""
    INSERT INTO callback_events (id, tenant, type, subject_id, line, at)
    SELECT {NEW_ID}, o.tenant, 'comparison.' || o.status, o.filing_id, o.line, o.decided_at
    FROM outcomes o WHERE o.filing_id = :filing_id AND o.line = ANY(:lines)
    {_ONCE}
""")

TELL_BATCHES = text(f"""
    INSERT INTO callback_events (id, tenant, type, subject_id, line, at)
    SELECT {NEW_ID}, b.tenant, 'batch.' || b.status, b.id, 0, b.ended_at
    FROM batches b WHERE b.id = ANY(:batches) AND b.ended_at IS NOT NULL AND (
        EXISTS (SELECT FROM callback_requests r WHERE r.filing_id = b.id)
        OR EXISTS (SELECT FROM callback_endpoints e WHERE e.tenant = b.tenant AND e.registered))
    {_ONCE}
""")

# Each tenant has its turn, its oldest events first. As at the release of shards, tenants are found by skipping through
# the index, and an array of ids keeps Postgres from a join that reads all. An event counts for what it may have at most
# (every endpoint of its tenant, and the request's own URL): many of them must not make one statement too long.
FAN_OUT = text(f"""
    WITH RECURSIVE telling (tenant) AS (
        (SELECT tenant FROM callback_events WHERE NOT fanned_out ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT e.tenant FROM callback_events e WHERE NOT e.fanned_out AND e.tenant > telling.tenant
                ORDER BY e.tenant LIMIT 1)
        FROM telling WHERE telling.tenant IS NOT NULL
    ), heads AS MATERIALIZED (
        SELECT head.id, 1 + registered.endpoints AS receivers,
               row_number() OVER (PARTITION BY telling.tenant ORDER BY head.id) AS place
        FROM telling CROSS JOIN LATERAL (
            SELECT count(*) AS endpoints FROM callback_endpoints e WHERE e.tenant = telling.tenant AND e.registered
        ) registered CROSS JOIN LATERAL (
            SELECT id FROM callback_events WHERE NOT fanned_out AND tenant = telling.tenant ORDER BY id LIMIT :limit
        ) head
    ), turns AS (
        SELECT id, place, sum(receivers) OVER (ORDER BY place, id) - receivers AS before FROM heads
    ), fresh AS MATERIALIZED (
        SELECT id, tenant, type, subject_id, created_at FROM callback_events
        WHERE id = ANY(ARRAY(SELECT id FROM turns WHERE before < :most ORDER BY place, id LIMIT :limit))
            AND NOT fanned_out
        FOR UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE callback_events SET fanned_out = true FROM fresh WHERE callback_events.id = fresh.id
    ), receivers AS (
        SELECT f.id AS event_id, f.tenant, e.id AS endpoint_id, e.url, e.state = 'disabled' AS disabled
        FROM fresh f JOIN callback_endpoints e ON e.tenant = f.tenant AND e.registered
            AND e.created_at <= f.created_at AND (e.types = '{{}}' OR f.type = ANY(e.types))
        UNION ALL
        SELECT f.id, f.tenant, r.endpoint_id, r.url, false
        FROM fresh f JOIN callback_requests r ON r.filing_id = f.subject_id
    ), made AS (
        INSERT INTO callbacks (id, tenant, event_id, endpoint_id, url, state, due_at, reason, ended_at)
        SELECT {NEW_ID}, tenant, event_id, endpoint_id, url,
               CASE WHEN disabled THEN 'dead' ELSE 'waiting' END, {_NOW},
               CASE WHEN disabled THEN 'endpoint_disabled' END, CASE WHEN disabled THEN {_NOW} END
        FROM receivers ORDER BY event_id
        ON CONFLICT (event_id, endpoint_id) DO NOTHING
    )
    SELECT count(*) FROM fresh
""")

ALONE = text("SELECT pg_try_advisory_xact_lock(:lock)")

# Endpoints are ranked: 0 did well at their last attempt, 1 were never tried, 2 fail. The latter two have their shares
# of the room and no more, so that receivers that hang never fill it; and an endpoint may have under way what the cap
# is, or one, or nothing while its circuit is open. Those that are owed something are found by skipping through the
# index, which tells when the first of it is due; of those that have time yet nothing else is read. In each rank, and
# then in all, the tenant that has least out goes first: nobody's receivers, however many, keep another's waiting.
RELEASE = text(f"""
    WITH RECURSIVE owed AS (
        (SELECT endpoint_id, due_at FROM callbacks WHERE state = 'waiting' ORDER BY endpoint_id, due_at LIMIT 1)
        UNION ALL
        SELECT next.endpoint_id, next.due_at FROM owed CROSS JOIN LATERAL (
            SELECT endpoint_id, due_at FROM callbacks WHERE state = 'waiting' AND endpoint_id > owed.endpoint_id
            ORDER BY endpoint_id, due_at LIMIT 1
        ) AS next
    ), out AS MATERIALIZED (
        SELECT endpoint_id, count(*) AS callbacks FROM callbacks
        WHERE state IN ('released', 'sending') GROUP BY endpoint_id
    ), ranked AS MATERIALIZED (
        SELECT e.id, e.tenant, CASE WHEN e.failures > 0 THEN 2 WHEN e.succeeded_at IS NULL THEN 1 ELSE 0 END AS rank,
               CASE WHEN e.state = 'disabled' OR e.open_until > {_NOW} THEN 0
                    WHEN e.failures > 0 OR e.succeeded_at IS NULL THEN 1 ELSE :cap END AS slots,
               coalesce(out.callbacks, 0) AS out
        FROM callback_endpoints e LEFT JOIN out ON out.endpoint_id = e.id
        WHERE e.id = ANY(ARRAY(
            SELECT endpoint_id FROM owed WHERE due_at <= {_NOW} UNION ALL SELECT endpoint_id FROM out))
    ), room AS MATERIALIZED (
        SELECT r.rank, greatest(0, floor(:room * (CAST(:shares AS float8[]))[r.rank + 1])::bigint - coalesce(
                   (SELECT sum(out) FROM ranked WHERE r.rank IN (0, ranked.rank)), 0)::bigint) AS free
        FROM generate_series(0, 2) AS r(rank)
    ), ready AS (
        SELECT c.id, c.due_at, e.rank, e.tenant, e.of_rank, e.of_all,
               row_number() OVER (PARTITION BY e.rank, e.tenant ORDER BY c.turn, c.due_at, c.id) AS place
        FROM (
            SELECT *, sum(out) OVER (PARTITION BY tenant) AS of_all,
                   sum(out) OVER (PARTITION BY tenant, rank) AS of_rank
            FROM ranked
        ) AS e CROSS JOIN LATERAL (
            SELECT id, due_at, row_number() OVER (ORDER BY due_at, id) AS turn FROM (
                SELECT id, due_at FROM callbacks
                WHERE endpoint_id = e.id AND state = 'waiting' AND due_at <= {_NOW}
                ORDER BY due_at, id LIMIT greatest(0, e.slots - e.out)
            ) AS first
        ) c
    ), placed AS MATERIALIZED (
        SELECT id, due_at, rank, tenant, of_all,
               row_number() OVER (PARTITION BY rank ORDER BY of_rank + place, due_at, id) AS place
        FROM ready WHERE place <= :room  -- as a tenant with a backlog has many more, to be sorted for nothing
    ), turns AS MATERIALIZED (
        SELECT id, due_at, of_all + row_number() OVER (PARTITION BY tenant ORDER BY rank, place) AS turn
        FROM placed JOIN room USING (rank) WHERE place <= free
    ), due AS MATERIALIZED (
        SELECT id FROM callbacks
        WHERE id = ANY(ARRAY(
                SELECT id FROM turns ORDER BY turn, due_at
                LIMIT least(CAST(:limit AS bigint), (SELECT free FROM room WHERE rank = 0))
            )) AND state = 'waiting'
        FOR UPDATE SKIP LOCKED
    )
    UPDATE callbacks SET state = 'released', released_at = now()
    FROM due WHERE callbacks.id = due.id
    RETURNING callbacks.id
""")

WITHDRAW = text("""
    UPDATE callbacks SET state = 'waiting', released_at = NULL WHERE id = ANY(:callbacks) AND state = 'released'
""")

HINT_AGAIN = text("""
    WITH lost AS MATERIALIZED (
        SELECT id FROM callbacks
        WHERE state = 'released' AND released_at < now() - make_interval(secs => :older_than)
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE callbacks SET released_at = now() FROM lost WHERE callbacks.id = lost.id
    RETURNING callbacks.id
""")

CLAIM = text("""
    UPDATE callbacks c SET state = 'sending', attempt = c.attempt + 1, lease_token = nextval('lease_tokens'),
        lease_until = now() + make_interval(secs => :lease_seconds)
    FROM callback_events e, callback_endpoints p
    WHERE c.id = :callback AND c.state = 'released' AND e.id = c.event_id AND p.id = c.endpoint_id
      AND p.state = 'enabled'
    RETURNING c.id AS callback, c.lease_token AS token, c.tenant, c.url, c.attempt, c.endpoint_id, p.registered,
              e.id AS event_id, e.type, e.subject_id, e.line, e.at, clock_timestamp() AS now,
              -- Of the first try of all, how long it was in coming: whatever was tried before has a reason.
              CASE WHEN c.reason IS NULL THEN extract(epoch FROM now() - e.at)::float8 END AS waited
""")

_WAS_LAST = "attempt > cardinality(CAST(:schedule AS float8[]))"
# Seconds from an attempt to the next as the schedule has it, a tenth more at most.
_PAUSE = "coalesce((CAST(:schedule AS float8[]))[attempt], 0) * (1 + 0.1 * random())"

# What an attempt means for the callback: its end, or its next attempt after the pause, or later as the receiver asked.
_AFTER_ATTEMPT = f"""
    state = CASE WHEN :delivered THEN 'delivered'
                 WHEN :gone OR {_WAS_LAST} THEN 'dead' ELSE 'waiting' END,
    due_at = {_NOW} + make_interval(secs => greatest(
        {_PAUSE}, CAST(:retry_after AS float8))),
    ended_at = CASE WHEN :delivered OR :gone OR {_WAS_LAST} THEN {_NOW} END,
    status = CAST(:status AS int), reason = :reason, {_UNLEASED}
"""

# Whether this failure disables the endpoint. Its row is locked before it is read: a success may be about to change it.
_VERDICT = f"""
    SELECT p.id, CASE
        WHEN NOT p.registered OR p.state = 'disabled' THEN NULL
        WHEN :gone THEN 'gone'
        WHEN p.failures + 1 >= :disable_after
             AND p.failing_since < {_NOW} - make_interval(secs => :disable_seconds) THEN 'failing'
        END AS disable
    FROM held JOIN callback_endpoints p ON p.id = held.endpoint_id
    WHERE NOT :delivered
    FOR UPDATE OF p
"""

# What an attempt means for the endpoint. After several failures in a row its circuit opens, for longer each time, and
# for as long as the receiver asked for. While a circuit is open nothing is sent, so an attempt that ends then began
# before, and does not shorten it. Successes in a row are written once a minute at most, to spare the row.
_HEALTH = f"""
    UPDATE callback_endpoints e SET
        succeeded_at = CASE WHEN :delivered THEN {_NOW} ELSE e.succeeded_at END,
        failures = CASE WHEN :delivered THEN 0 ELSE e.failures + 1 END,
        failing_since = CASE WHEN :delivered THEN NULL ELSE coalesce(e.failing_since, {_NOW}) END,
        open_until = greatest(
            CASE WHEN e.open_until > {_NOW} THEN e.open_until END,
            CASE WHEN NOT :delivered AND e.failures + 1 >= :open_after THEN {_NOW} + make_interval(secs =>
                least(:open_most, :open_first * 2 ^ least(e.failures + 1 - :open_after, 20)) * (1 + 0.1 * random()))
                END,
            CASE WHEN CAST(:retry_after AS float8) > 0
                THEN {_NOW} + make_interval(secs => CAST(:retry_after AS float8)) END),
        state = CASE WHEN judged.disable IS NULL THEN e.state ELSE 'disabled' END,
        disabled_reason = coalesce(judged.disable, e.disabled_reason)
    FROM held LEFT JOIN judged ON judged.id = held.endpoint_id
    WHERE e.id = held.endpoint_id AND (
        :delivered AND e.failures = 0 AND e.succeeded_at > {_NOW} - interval '60 s' AND e.open_until IS NULL
    ) IS NOT TRUE
    RETURNING judged.disable
"""

RECORD = text(f"""
    WITH held AS (
        UPDATE callbacks SET {_AFTER_ATTEMPT} WHERE id = :callback AND lease_token = :token
        RETURNING id, endpoint_id, attempt, state
    ), noted AS (
        INSERT INTO callback_attempts (callback_id, number, at, seconds, status, reason)
        SELECT id, attempt, {_NOW} - make_interval(secs => :seconds), :seconds, CAST(:status AS int), :reason FROM held
    ), judged AS ({_VERDICT}), health AS ({_HEALTH})
    SELECT held.state, (SELECT disable FROM health) AS disabled FROM held
""")

PUT_BACK = text(f"""
    UPDATE callbacks SET state = 'waiting', attempt = attempt - 1, due_at = {_NOW} + make_interval(secs => :seconds),
        reason = :reason, status = NULL, {_UNLEASED}
    WHERE id = :callback AND lease_token = :token
""")

RECLAIM = text(f"""
    WITH lapsed AS MATERIALIZED (
        SELECT id FROM callbacks WHERE state = 'sending' AND lease_until < now() LIMIT :limit FOR UPDATE SKIP LOCKED
    ), back AS (
        UPDATE callbacks SET
            state = CASE WHEN {_WAS_LAST} THEN 'dead' ELSE 'waiting' END,
            ended_at = CASE WHEN {_WAS_LAST} THEN {_NOW} END,
            due_at = {_NOW} + make_interval(secs => {_PAUSE}),
            reason = 'worker_lost', status = NULL, {_UNLEASED}
        FROM lapsed WHERE callbacks.id = lapsed.id
        RETURNING callbacks.id, attempt, state
    ), noted AS (
        INSERT INTO callback_attempts (callback_id, number, at, seconds, reason)
        SELECT id, attempt, {_NOW}, 0, 'worker_lost' FROM back
    )
    SELECT count(*) AS lost, count(*) FILTER (WHERE state = 'dead') AS dead FROM back
""")

# Each part has an index of its own; one condition over all of them would have none, and read all that an endpoint ever
# got. Endpoint by endpoint, for the same reason: joined, all callbacks would be read where many endpoints are disabled
# and nothing waits for them. Such a union cannot lock, so the next step does, and passes over what has moved meanwhile.
BURY = text(f"""
    WITH hopeless AS MATERIALIZED (
        SELECT c.id, c.state, c.due_at, 'endpoint_disabled' AS reason
        FROM callback_endpoints e CROSS JOIN LATERAL (
            SELECT id, state, due_at FROM callbacks WHERE endpoint_id = e.id AND state = 'waiting'
            ORDER BY due_at, id LIMIT :limit) c
        WHERE e.state = 'disabled'
        UNION ALL
        SELECT c.id, c.state, c.due_at, 'endpoint_disabled'
        FROM callbacks c JOIN callback_endpoints e ON e.id = c.endpoint_id
        WHERE e.state = 'disabled' AND c.state = 'released'
        UNION ALL
        SELECT c.id, c.state, c.due_at, 'circuit_open'
        FROM callback_endpoints e CROSS JOIN LATERAL (
            SELECT id, state, due_at FROM callbacks
            WHERE endpoint_id = e.id AND state = 'waiting'
                AND due_at < {_NOW} - make_interval(secs => :give_up_seconds)
            ORDER BY due_at, id LIMIT :limit) c
        WHERE e.state = 'enabled' AND e.failures >= :open_after AND e.open_until > {_NOW}
            AND e.failing_since < {_NOW} - make_interval(secs => :give_up_seconds)
        LIMIT :limit
    ), locked AS MATERIALIZED (
        SELECT c.id, hopeless.reason FROM callbacks c JOIN hopeless USING (id, state, due_at)
        WHERE c.id = ANY(ARRAY(SELECT id FROM hopeless))
        FOR UPDATE OF c SKIP LOCKED
    )
    UPDATE callbacks SET state = 'dead', ended_at = {_NOW}, reason = locked.reason
    FROM locked WHERE callbacks.id = locked.id
""")
