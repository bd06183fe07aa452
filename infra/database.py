"""How Postgres is reached: psycopg 3 everywhere, asynchronous at the HTTP edge and synchronous elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TypeVar

import structlog
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

log = structlog.get_logger()

T = TypeVar("T")

Begin = Callable[[Engine], AbstractContextManager[Connection]]
"""A way of lending a connection: `Engine.begin` for a transaction, or `at_once`."""

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
"""Whose rows the transactions of this task may see, where row-level security decides; None for nobody's."""

UNREACHABLE = (OperationalError, InterfaceError, PoolTimeoutError)
"""What is raised where Postgres cannot be reached for now, or went away in the middle."""

MIGRATIONS = Path(__file__).parent / "migrations"
_REVISION = text("SELECT max(version_num) FROM alembic_version")
_READ_ONLY = text("SELECT current_setting('transaction_read_only')::boolean")
_LOOK_SECONDS = 1.0
STATEMENT_SECONDS = 30
"""How long a statement may take, where nothing else is said."""

# A peer that vanished is noticed after 10 s of silence and 3 probes 5 s apart; one that vanished while something was on
# its way to it, after 15,000 ms.
_IDLE, _INTERVAL, _COUNT, _UNHEARD = 10, 5, 3, 15_000
# The same settings for Postgres's end of the connection. While Postgres reads a COPY none of its timeouts end the
# transaction: a worker that vanished in the middle of one would leave its locks behind for the two hours that the
# server's own keepalives take. Over a Unix socket these do nothing.
_SERVER_KEEPALIVES = (
    f"-c tcp_keepalives_idle={_IDLE} -c tcp_keepalives_interval={_INTERVAL} -c tcp_keepalives_count={_COUNT} "
    f"-c tcp_user_timeout={_UNHEARD}"
)


def with_psycopg(url: str) -> URL:
    """Give libpq's URL in the form that names our driver.

    Raises:
        ValueError: it is none. The message does not repeat it: there may be a password in it.
    """
    wanted = "takes the URL of a Postgres: postgresql://USER:PASSWORD@HOST:5432/DATABASE"
    if not url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        raise ValueError(wanted)
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except ValueError:  # of a port that is no number
        raise ValueError(wanted) from None


def _connect_args(url: URL, application: str, *, statement_seconds: int = STATEMENT_SECONDS) -> dict[str, object]:
    ours = {
        "application_name": f"nightcourt-{application}",
        "connect_timeout": 3,
        # A standby is nowhere to work, and is still there for a while under the name of what it was before.
        "target_session_attrs": "primary",
        "keepalives_idle": _IDLE,
        "keepalives_interval": _INTERVAL,
        "keepalives_count": _COUNT,
        "tcp_user_timeout": _UNHEARD,  # the kernel's own is a quarter of an hour
        "options": (
            f"-c statement_timeout={statement_seconds}s -c idle_in_transaction_session_timeout=30000 "
            f"{_SERVER_KEEPALIVES} {url.query.get('options', '')}"  # of two that set the same, the later holds
        ),
    }
    # What the URL says is somebody's choice; the process's name is not one, as `doctor` goes by it.
    named = ("application_name", "options")
    return {name: value for name, value in ours.items() if name in named or name not in url.query}


def connect(
    url: str,
    *,
    application: str,
    pool_size: int = 5,
    overflow: int = 5,
    ping: bool = True,
    statement_seconds: int = STATEMENT_SECONDS,
) -> Engine:
    """Make a pool of synchronous connections. None is opened before it is needed.

    Args:
        url: libpq's URL form, `postgresql://user:password@host:port/database`. What its query says holds before ours.
        application: which process this is, as Postgres will show it.
        pool_size: connections kept.
        overflow: how many more are opened under load, and closed after.
        ping: whether a connection is tried before it is lent. Who polls and tries again anyway may go without.
        statement_seconds: how long a statement may take; 0 for as long as it takes.
    """
    where = with_psycopg(url)
    engine = create_engine(
        where,
        pool_size=pool_size,
        max_overflow=overflow,
        pool_timeout=5,
        hide_parameters=True,  # an error message quotes no row
        pool_pre_ping=ping,  # a restart of Postgres costs a reconnect, not an error
        connect_args=_connect_args(where, application, statement_seconds=statement_seconds),
    )
    event.listen(engine, "handle_error", _be_away)
    return engine


@contextmanager
def at_once(database: Engine) -> Iterator[Connection]:
    """Lend a connection on which each statement is a transaction of its own, and so one round trip instead of three."""
    with database.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def connect_async(url: str, *, application: str, pool_size: int = 8) -> AsyncEngine:
    """Make a pool of asynchronous connections, whose transactions are each of the `tenant` at hand; see `connect`."""
    where = with_psycopg(url)
    engine = create_async_engine(
        where,
        pool_size=pool_size,
        max_overflow=8,
        pool_timeout=5,
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args=_connect_args(where, application),
    )
    event.listen(engine.sync_engine, "begin", _be_of_tenant)
    event.listen(engine.sync_engine, "handle_error", _be_away)
    return engine


def _be_away(context: ExceptionContext) -> None:
    """Take a server that takes no writes for one that is away: a full disk makes many so, or somebody did.

    Raises:
        sqlalchemy.exc.OperationalError: in place of the error, where it is that.
    """
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        # Who connects anew may find one that does; a session goes by what held when it began.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        raise OperationalError(context.statement, None, context.original_exception, hide_parameters=True)


def _be_of_tenant(connection: Connection) -> None:
    """Say, for one transaction, whose rows it is about: what row-level security goes by."""
    if (whose := tenant.get()) is not None:
        connection.exec_driver_sql("SELECT set_config('nightcourt.tenant', %s, true)", (whose,))


@cache
def newest_revision() -> str:
    """Name the migration that this release needs the tables to be at: the one of the highest number."""
    return max(file.name.partition("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*_*.py"))


def is_migrated(connection: Connection) -> bool:
    """Tell whether the tables are those of this release, or of a later one, beside which this one may go on."""
    try:
        revision = connection.execute(_REVISION).scalar()
    except ProgrammingError:  # there are none, or whoever migrated them last did not let us look
        return False
    return revision is not None and revision >= newest_revision()


def reason(error: SQLAlchemyError) -> str:
    """Tell what libpq or Postgres said, in one line. Only of what was done with nothing that anybody sent."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def reason_or_kind(error: SQLAlchemyError) -> str:
    """Tell why Postgres cannot be reached; of any other error only its kind, as what it says may quote a row."""
    # libpq's own errors have no SQLSTATE: they come of connecting, or of a connection that is lost.
    away = isinstance(error, OperationalError) and error.statement is None and not getattr(error.orig, "sqlstate", None)
    return reason(error) if away else type(error).__name__


def takes_writes(connection: Connection) -> bool:
    """Tell whether the server takes writes."""
    return not connection.execute(_READ_ONLY).scalar_one()


def await_tables(database: Engine, stop: threading.Event, *, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until the tables are those of this release, however long Postgres is away or not migrated.

    Args:
        database: where they are.
        stop: ends the wait.
        meanwhile: called after each look.
    """
    while True:
        try:
            with database.connect() as connection:
                if is_migrated(connection):
                    return
            log.warning("tables_not_migrated", needed=newest_revision())
        except SQLAlchemyError as error:
            log.warning(
                "database_unreachable", error=type(error).__name__, reason=reason(error), retry_in=_LOOK_SECONDS
            )
        meanwhile()
        if stop.wait(_LOOK_SECONDS):
            return


def persist(
    database: Engine,
    write: Callable[[Connection], T],
    *,
    patience_seconds: float,
    begin: Begin = Engine.begin,
) -> T:
    """Run one transaction, again and again while Postgres cannot be reached: work in hand is worth waiting for.

    It has to be safe to repeat after a commit whose answer was lost; without a transaction, after any part of it.

    Args:
        database: where.
        write: what to do in it.
        patience_seconds: for how long to try.
        begin: how a connection is lent; `at_once` where what is done needs no transaction around all of it.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: it could not be reached for all that time, or refused the transaction.
    """
    give_up_at = time.monotonic() + patience_seconds
    pause = 0.1
    while True:
        try:
            with begin(database) as connection:
                return write(connection)
        except UNREACHABLE as error:
            if time.monotonic() + pause > give_up_at:
                raise
            log.warning("database_unreachable", error=type(error).__name__, retry_in=pause)
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
