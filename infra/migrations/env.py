"""Alembic's way in: it runs on the connection that `infra.migrating.migrate` hands over."""

from alembic import context
from sqlalchemy import text

import schemas.tables  # noqa: F401 - all tables stand in the metadata by this
from schemas.base import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
# A migration that cannot get its lock soon gives up, rather than queue everyone else behind it.
connection.execute(text("SET LOCAL lock_timeout = '5s'"))
with context.begin_transaction():
    context.run_migrations()
