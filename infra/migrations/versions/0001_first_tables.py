"""The first tables: comparisons, shards, outcomes, judges, idempotency keys, workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("lease_tokens")))
    op.create_table('comparisons',
    sa.Column('filing_id', sa.Uuid(), nullable=False),
    sa.Column('line', sa.Integer(), nullable=False),
    sa.Column('tenant', sa.Text(), nullable=False),
    sa.Column('custom_id', sa.Text(), nullable=True),
    sa.Column('prompt', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('response_a', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('response_b', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('orders', sa.Text(), nullable=False),
    sa.Column('profile', sa.Text(), nullable=False),
    sa.Column('tie_margin', sa.Float(precision=53), nullable=True),
    sa.Column('metadata', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('filing_id', 'line', name=op.f('pk_comparisons'))
    )
    op.create_index('ix_comparisons_single', 'comparisons', ['tenant', 'filing_id'], unique=False, postgresql_where=sa.text('line = 0'))
    op.create_table('idempotency_keys',
    sa.Column('tenant', sa.Text(), nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('fingerprint', sa.LargeBinary(), nullable=False),
    sa.Column('filing_id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('tenant', 'key', name=op.f('pk_idempotency_keys'))
    )
    op.create_table('judges',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('card', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('first_seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_judges'))
    )
    op.create_table('shards',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant', sa.Text(), nullable=False),
    sa.Column('filing_id', sa.Uuid(), nullable=False),
    sa.Column('first_line', sa.Integer(), nullable=False),
    sa.Column('last_line', sa.Integer(), nullable=False),
    sa.Column('lane', sa.Text(), nullable=False),
    sa.Column('priority', sa.SmallInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('due_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('deadline_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('released_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attempt', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('lease_token', sa.BigInteger(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_owner', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name=op.f('ck_shards_lease_token')),
    sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f('ck_shards_lease_until')),
    sa.CheckConstraint("lane IN ('interactive', 'bulk')", name=op.f('ck_shards_lane')),
    sa.CheckConstraint("state IN ('waiting', 'released', 'running', 'split', 'done')", name=op.f('ck_shards_state')),
    sa.CheckConstraint('attempt >= 0', name=op.f('ck_shards_attempt')),
    sa.CheckConstraint('first_line <= last_line', name=op.f('ck_shards_lines')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_shards'))
    )
    op.create_index('ix_shards_deadline', 'shards', ['deadline_at'], unique=False, postgresql_where=sa.text("deadline_at IS NOT NULL AND state IN ('waiting', 'released', 'running')"))
    op.create_index('ix_shards_filing', 'shards', ['filing_id', 'first_line'], unique=False)
    op.create_index('ix_shards_lease', 'shards', ['lease_until'], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_index('ix_shards_out', 'shards', ['lane', 'state'], unique=False, postgresql_where=sa.text("state IN ('released', 'running')"))
    op.create_index('ix_shards_waiting', 'shards', ['lane', sa.literal_column('priority DESC'), 'due_at', 'id'], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_table('workers',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('slots', sa.Integer(), nullable=False),
    sa.Column('bulk_slots', sa.Integer(), nullable=False),
    sa.Column('engine', postgresql.JSONB(astext_type=Text()), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_workers'))
    )
    op.create_table('outcomes',
    sa.Column('filing_id', sa.Uuid(), nullable=False),
    sa.Column('line', sa.Integer(), nullable=False),
    sa.Column('tenant', sa.Text(), nullable=False),
    sa.Column('status', sa.Text(), nullable=False),
    sa.Column('tally', postgresql.JSONB(astext_type=Text()), nullable=True),
    sa.Column('judge_id', sa.Text(), nullable=True),
    sa.Column('error_code', sa.Text(), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('prompt_tokens', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('cached_tokens', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('gpu_seconds', sa.Float(precision=53), server_default=sa.text('0'), nullable=False),
    sa.Column('attempt', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('decided_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("(status = 'succeeded') = (tally IS NOT NULL)", name=op.f('ck_outcomes_tally')),
    sa.CheckConstraint("status IN ('succeeded', 'errored', 'cancelled', 'expired')", name=op.f('ck_outcomes_status')),
    sa.CheckConstraint('(tally IS NULL) = (error_code IS NOT NULL)', name=op.f('ck_outcomes_error')),
    sa.CheckConstraint('tally IS NULL OR judge_id IS NOT NULL', name=op.f('ck_outcomes_judge')),
    sa.ForeignKeyConstraint(['filing_id', 'line'], ['comparisons.filing_id', 'comparisons.line'], name=op.f('fk_outcomes_filing_id_line')),
    sa.ForeignKeyConstraint(['judge_id'], ['judges.id'], name=op.f('fk_outcomes_judge_id')),
    sa.PrimaryKeyConstraint('filing_id', 'line', name=op.f('pk_outcomes'))
    )


def downgrade() -> None:
    op.drop_table('outcomes')
    op.drop_table('workers')
    op.drop_index('ix_shards_waiting', table_name='shards', postgresql_where=sa.text("state = 'waiting'"))
    op.drop_index('ix_shards_out', table_name='shards', postgresql_where=sa.text("state IN ('released', 'running')"))
    op.drop_index('ix_shards_lease', table_name='shards', postgresql_where=sa.text("state = 'running'"))
    op.drop_index('ix_shards_filing', table_name='shards')
    op.drop_index('ix_shards_deadline', table_name='shards', postgresql_where=sa.text("deadline_at IS NOT NULL AND state IN ('waiting', 'released', 'running')"))
    op.drop_table('shards')
    op.drop_table('judges')
    op.drop_table('idempotency_keys')
    op.drop_index('ix_comparisons_single', table_name='comparisons', postgresql_where=sa.text('line = 0'))
    op.drop_table('comparisons')
    op.execute(sa.schema.DropSequence(sa.Sequence("lease_tokens")))
