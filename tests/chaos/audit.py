"""The audit: every write to a shard, noted by triggers that the test adds to the storm's own database."""

AUDIT = """
    CREATE TABLE chaos_moves (
        id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(), shard bigint,
        was text, became text, had_token bigint, has_token bigint, had_attempt int, has_attempt int,
        counted int
    );
    CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO chaos_moves (shard, was, became, had_token, has_token, had_attempt, has_attempt, counted)
        VALUES (NEW.id, OLD.state, NEW.state, OLD.lease_token, NEW.lease_token, OLD.attempt, NEW.attempt,
                NEW.succeeded + NEW.errored - OLD.succeeded - OLD.errored);
        RETURN NEW;
    END $$;
    CREATE TRIGGER chaos_note AFTER UPDATE ON shards FOR EACH ROW EXECUTE FUNCTION chaos_note();
"""

MOVES = """
    SELECT shard, was, became, had_token, has_token, had_attempt, has_attempt, counted FROM chaos_moves ORDER BY id
"""
