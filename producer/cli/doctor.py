"""`nightcourt doctor`: look at every part and say what is wrong, in words to act on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from psycopg.errors import InsufficientPrivilege
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rich.markup import escape
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from infra import docket, losses, roles, roster, settings
from infra.database import connect, newest_revision, reason, takes_writes
from infra.engine_folder import describe as describe_engine
from infra.environment import forget_libpq
from infra.local import LocalStackError
from infra.local.folder import running_stack
from infra.local.model import POCKET_CRITIC, adapter_over, embedded_model
from infra.local.postgres import DISCREET
from infra.settings import Settings
from producer.cli.options import Server, no_stack
from producer.cli.output import Exit, console, local_time
from producer.cli.server import Address, find_server
from producer.client import Client, ClientError
from schemas.problems import Problem

_CALLBACKS_LATE = 60
"""Seconds that a callback to a receiver that does well may be due before something must be wrong."""

_UNDONE_SECONDS = 30.0
"""What a dispatcher does within seconds and has not done for this long says that there is none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one part."""

    part: str
    ok: bool
    says: str


def examine(chosen: Settings) -> Iterator[Finding]:
    """Look at one part after the other. None stops the next from being looked at."""
    database_url = chosen.database_url.get_secret_value()
    redis_url = chosen.redis_url.get_secret_value()
    try:
        stack = running_stack(chosen.data_dir)
    except LocalStackError as error:
        yield Finding("embedded stack", ok=False, says=str(error))
        stack = None
    if stack is None and chosen.data_dir is not None:
        yield Finding("embedded stack", ok=False, says=no_stack(chosen.data_dir).detail)
        if "database_url" not in chosen.model_fields_set:
            return
    if stack is not None:
        yield Finding(
            "embedded stack",
            ok=True,
            says=f"running since {local_time(stack.started_at)} (pid {stack.pid})",
        )
        forget_libpq()
        database_url, redis_url = stack.database_url, stack.redis_url
    model = _look("model", lambda: describe_model(chosen))
    # What the workers have is told with them: this shell's settings may be others than those that the stack began with.
    yield model if stack is None else replace(model, says=f"by the settings here: {model.says}")
    yield _look("api", lambda: _api(find_server(chosen)))
    yield from _database(database_url, chosen.worker_seconds)
    yield _look("redis", lambda: _redis(redis_url))


def _look(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part, ok=True, says=look())
    except (ClientError, LocalStackError, Problem, RedisError, typer.BadParameter, OSError, ValueError) as error:
        return Finding(part, ok=False, says=str(error))


def describe_model(chosen: Settings) -> str:
    """Say which model the worker would load, in words.

    Raises:
        LocalStackError, OSError, Problem, ValueError: there is none, or it cannot be used; the message says so.
    """
    if chosen.engine == "openai_server":
        return f"is at {chosen.engine_url}; the worker tries it out when it starts"
    if chosen.engine == "tensorrt_llm" and chosen.engine_folder is not None:
        return describe_engine(chosen.engine_folder)
    if chosen.engine != "llama_cpp":
        return f"engine {chosen.engine} needs none"
    path = chosen.model or embedded_model()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise ValueError(f"{path} is no GGUF file; NIGHTCOURT_MODEL takes the path of one")
    adapter = chosen.adapter or adapter_over(path)
    what = str(path) if adapter is None else f"{path} with {adapter}"
    if chosen.model:
        return f"{what} (NIGHTCOURT_MODEL)"
    if adapter == POCKET_CRITIC:
        return (
            f"{what} (the embedded stand-in: it notices answers off the topic, cut, garbled or empty, and is no judge "
            "of quality; set NIGHTCOURT_MODEL for the real judge)"
        )
    return f"{what} (the embedded stand-in; set NIGHTCOURT_MODEL for the real judge)"


def _api(at: Address) -> str:
    with Client(at.url, api_key=at.key, max_retries=0) as client:
        client.list(limit=1)
    return f"{at.url} answers, and takes the key"


def _redis(url: str) -> str:
    with Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as redis:
        try:
            redis.set(roles.PROBE_KEY, "", ex=60)
        except ResponseError as error:
            raise OSError(
                f"takes no writes ({type(error).__name__}): see whether it became a replica, or is full; comparisons "
                "are taken, and judged once it does"
            ) from None
        except RedisError as error:
            raise OSError(
                f"cannot be reached ({type(error).__name__}): comparisons are taken, and judged once it is back"
            ) from None
    return "answers"


def _database(url: str, within: float) -> Iterator[Finding]:
    database = connect(url, application="doctor", pool_size=1)
    try:
        with database.connect() as connection:
            if takes_writes(connection):
                yield Finding("postgres", ok=True, says="answers")
            else:
                says = "answers, and takes no writes: its disk is full, or default_transaction_read_only was set"
                yield Finding("postgres", ok=False, says=says)
            tables = connection.execute(text("SELECT to_regclass('shards')")).scalar()
            if tables is None:
                yield Finding("tables", ok=False, says="there are none yet: run `nightcourt migrate`")
                return
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if version is None or version < newest_revision():
                says = f"at migration {version}, and this release needs {newest_revision()}: run `nightcourt migrate`"
                yield Finding("tables", ok=False, says=says)
                return
            yield Finding("tables", ok=True, says=f"at migration {version}")
            yield _seen("workers", partial(_workers, within=within), connection)
            yield _seen("docket", _docket, connection, of_all=True)
            yield _seen("dispatcher", _dispatcher, connection, of_all=True)
            yield _seen("callbacks", _callbacks, connection, of_all=True)
            yield _logins(connection)
            yield _what_postgres_logs(connection)
    except SQLAlchemyError as error:
        says = f"cannot be reached: start it, or set NIGHTCOURT_DATABASE_URL ({reason(error)})"
        yield Finding("postgres", ok=False, says=says)
    finally:
        database.dispose()


def _seen(part: str, look: Callable[[Connection], Finding], connection: Connection, *, of_all: bool = False) -> Finding:
    """Look at a part, or tell that this login may not: one of the processes' own is enough to reach Postgres.

    Args:
        part: what is looked at.
        look: looks at it.
        connection: by whatever login.
        of_all: whether what is looked for is all tenants': behind row-level security the API's login finds nothing.
    """
    login = connection.execute(text("SELECT current_user")).scalar_one()
    if not (of_all and login == roles.role_of("api")):
        try:
            return look(connection)
        except ProgrammingError as error:
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            connection.rollback()  # nothing else can be asked before
    says = f"{login} may not look: the owner does, whose NIGHTCOURT_DATABASE_URL is that of `nightcourt migrate`"
    return Finding(part, ok=False, says=says)


def _workers(connection: Connection, *, within: float) -> Finding:
    workers = roster.present(connection, within=within)
    names = ", ".join(f"{worker['id']} ({worker['engine']['model']})" for worker in workers)
    none = "none was heard of lately: start one with `nightcourt worker`, or everything with `nightcourt up`"
    return Finding("workers", ok=bool(workers), says=names or none)


def _docket(connection: Connection) -> Finding:
    """Tell what is due. As in the survey, each part of the condition has an index of its own."""
    due = connection.execute(
        text("""
            SELECT lane, count(*) AS shards, extract(epoch FROM now() - min(due_at)) AS oldest FROM shards
            WHERE (state = 'waiting' OR state = 'released') AND due_at <= now() GROUP BY lane ORDER BY lane
        """)
    ).all()
    says = "; ".join(f"{row.lane}: {row.shards} shards, the oldest due for {row.oldest:.0f} s" for row in due)
    return Finding("docket", ok=True, says=says or "nothing waits")


def _dispatcher(connection: Connection) -> Finding:
    """Tell by what it leaves undone whether a dispatcher is at work."""
    due = docket.oldest_due(connection)
    lapsed = losses.longest_lapsed(connection)
    if max(due, lapsed) <= _UNDONE_SECONDS:
        return Finding("dispatcher", ok=True, says="nothing is left undone")
    undone = f"a comparison has been due for {due:.0f} s" if due >= lapsed else f"a lease ran out {lapsed:.0f} s ago"
    says = f"{undone} and nobody saw to it: start one with `nightcourt dispatcher`, and see that it reaches Redis"
    return Finding("dispatcher", ok=False, says=says)


def _logins(connection: Connection) -> Finding:
    """Tell whether each process logs in by its own role: the walls between tenants stand for that alone."""
    wanted = {f"nightcourt-{process}": roles.role_of(process) for process in roles.PROCESSES}
    rows = connection.execute(
        text("""
            SELECT DISTINCT application_name AS process, usename AS login FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = ANY(:processes) ORDER BY 1, 2
        """),
        {"processes": list(wanted)},
    ).all()
    wrong = [f"{row.process} as {row.login}" for row in rows if row.login != wanted[row.process]]
    if wrong:
        says = (
            f"{', '.join(wrong)}: row-level security holds for the processes' own roles alone. "
            "Give each its own in NIGHTCOURT_DATABASE_URL, see docs/security.md"
        )
        return Finding("logins", ok=False, says=says)
    return Finding("logins", ok=True, says=f"{len(rows)} processes, each by its own role")


def _what_postgres_logs(connection: Connection) -> Finding:
    """Tell whether the server's log would quote contents: the details of an error quote the row."""
    at = {name: str(connection.execute(text(f"SHOW {name}")).scalar()) for name in DISCREET}
    wrong = [f"{name} = {DISCREET[name]}" for name, value in at.items() if value != DISCREET[name]]
    if wrong:
        says = f"quotes contents where a statement fails or is logged, unless it is told: {', '.join(wrong)}"
        return Finding("postgres' log", ok=False, says=says)
    return Finding("postgres' log", ok=True, says="quotes no contents")


def _callbacks(connection: Connection) -> Finding:
    """Tell whether callbacks go out. A few seconds' delay is the ordinary way of things.

    What waits for receivers that fail, or that asked for time, is told of, and no fault of this service.
    """
    row = connection.execute(
        text("""
            SELECT count(*) FILTER (WHERE c.state = 'dead') AS dead,
                   count(*) FILTER (WHERE c.state IN ('waiting', 'released') AND c.due_at <= now() AND e.failures = 0
                                    AND coalesce(e.open_until <= now(), true)) AS late,
                   extract(epoch FROM now() - min(c.due_at) FILTER (
                       WHERE c.state IN ('waiting', 'released') AND e.failures = 0)) AS oldest,
                   count(DISTINCT e.id) FILTER (
                       WHERE c.state <> 'dead' AND (e.failures > 0 OR e.open_until > now())) AS failing,
                   count(DISTINCT e.id) FILTER (WHERE c.state <> 'dead' AND e.open_until > now()) AS held,
                   count(*) FILTER (WHERE c.state <> 'dead' AND (e.failures > 0 OR e.open_until > now())) AS for_them,
                   count(*) FILTER (WHERE c.state = 'waiting' AND c.reason = 'secret_not_opened') AS sealed
            FROM callbacks c JOIN callback_endpoints e ON e.id = c.endpoint_id
            WHERE c.state = 'waiting' OR c.state IN ('released', 'sending') OR c.state = 'dead'
        """)
    ).one()
    more = ""
    if row.for_them:
        those = "receiver that fails" if row.failing == 1 else "receivers that fail"
        more = (
            f"; {row.for_them} wait for {row.failing} {those} or asked for time, {row.held} of them held for now "
            "(`nightcourt callbacks endpoints`)"
        )
    if row.dead:
        more += f"; {row.dead} are dead (`nightcourt callbacks list --status dead`)"
    if row.late and row.oldest > _CALLBACKS_LATE:
        says = (
            f"{row.late} are due, the oldest for {row.oldest:.0f} s: is a `nightcourt callbacks-worker` running?{more}"
        )
        return Finding("callbacks", ok=False, says=says)
    if row.sealed:
        says = f"{row.sealed} wait for a secret that does not open: see `callback_secret_not_opened` in the log{more}"
        return Finding("callbacks", ok=False, says=says)
    return Finding("callbacks", ok=True, says=f"{row.late} are due{more}")


def doctor(
    data_dir: Annotated[Path | None, typer.Option(help="Data folder of the embedded stack to look at.")] = None,
    server: Server = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """Check every part and say what is wrong. Ends with 1 if anything is.

    Example: nightcourt doctor
    """
    chosen = settings.load(data_dir=data_dir, server=server)
    well = True
    for finding in examine(chosen):
        well &= finding.ok
        if as_json:
            console.file.write(json.dumps(asdict(finding)) + "\n")
        else:
            mark = "[green]ok   [/]" if finding.ok else "[red]wrong[/]"
            console.print(f"{mark} {finding.part:<15} {escape(finding.says)}", soft_wrap=True)
    if not well:
        raise typer.Exit(Exit.FAILED)
