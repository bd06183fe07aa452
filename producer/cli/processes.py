"""Commands that are one process of the service: what containers and the embedded stack run."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated

import structlog
import typer
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import logs, pulse, settings, traces
from infra.broker import make_celery
from infra.database import await_tables, connect
from infra.meters import Meters
from infra.signals import threaded_handler
from producer import dispatcher as dispatching
from producer import retention, survey

log = structlog.get_logger()

_FIRST_RETENTION_SECONDS = 60.0
_RETENTION_SECONDS = 3600.0


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.")] = None,
) -> None:
    """Serve HTTP.

    Example: NIGHTCOURT_DATABASE_URL=postgresql://... nightcourt api --port 8300
    """
    # Imported here: the web framework takes most of a second to load, and every other command goes without.
    from producer.api.app import serve  # noqa: PLC0415

    serve(settings.load(host=host, port=port))


def open_dispatchers(chosen: settings.Settings) -> Database:
    """Make the dispatcher's connections: its loop's, and those of what surveys and what deletes."""
    return connect(chosen.database_url.get_secret_value(), application="dispatcher", pool_size=3, ping=False)


def dispatcher() -> None:
    """Release due work from Postgres into Redis. Several may run.

    Example: NIGHTCOURT_DATABASE_URL=... NIGHTCOURT_REDIS_URL=... nightcourt dispatcher
    """
    chosen = settings.load()
    logs.configure(process="dispatcher", level=chosen.log_level, style=chosen.log_format)
    pulse.begin(chosen.pulse_file)
    stop = told_to_end()
    database = open_dispatchers(chosen)
    app = make_celery(chosen.redis_url.get_secret_value(), name="dispatcher", patient=False)  # its loop is the retry
    pace = dispatching.Pace(
        poll_seconds=chosen.poll_seconds,
        sweep_seconds=chosen.sweep_seconds,
        hint_seconds=chosen.hint_seconds,
        worker_seconds=chosen.worker_seconds,
        max_attempts=chosen.max_attempts,
        clock_shift_seconds=chosen.clock_shift_seconds,
        callback_room=chosen.callback_slots,
        callback_cap=chosen.callback_concurrency,
    )
    meters = Meters("dispatcher")
    meters.serve(chosen.metrics_host, chosen.metrics_port)
    await_tables(database, stop, meanwhile=partial(pulse.beat, chosen.pulse_file))
    threading.Thread(
        target=_delete_what_is_old, args=(database, chosen.retention_days, stop), name="retention", daemon=True
    ).start()
    threading.Thread(
        target=survey.keep_taking,
        args=(database, meters, stop),
        kwargs={"worker_seconds": pace.worker_seconds, "data_dir": chosen.data_dir},
        name="survey",
        daemon=True,
    ).start()
    spans = traces.begin("dispatcher", endpoint=chosen.traces_endpoint, share=chosen.traces_share)
    log.info("dispatcher_ready")
    try:
        dispatching.run(dispatching.Desk(database, app, pace, meters, spans), stop, pulse_file=chosen.pulse_file)
    finally:
        app.close()
        database.dispose()
        spans.close()
    log.info("dispatcher_ended")


def told_to_end() -> threading.Event:
    """Make what SIGTERM and SIGINT set."""
    stop = threading.Event()
    told = threaded_handler(stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    return stop


def _delete_what_is_old(database: Database, days: float, stop: threading.Event) -> None:
    """Soon and then once an hour, beside the dispatcher's loop: to delete must keep no shard, and no kind, waiting."""
    kinds: dict[str, Callable[[Database], int]] = {"uploads": retention.delete_abandoned}
    if days:
        kinds |= {kind: partial(delete, older_than=days * 86400) for kind, delete in retention.OLD.items()}
    wait = _FIRST_RETENTION_SECONDS  # sooner than the rest: a dispatcher may be started oftener than once an hour
    while not stop.wait(wait):
        wait = _RETENTION_SECONDS
        gone = 0
        for kind, delete in kinds.items():
            try:
                gone += delete(database)
            except SQLAlchemyError as error:
                log.warning("retention_failed", of=kind, error=type(error).__name__)
        log.info("retention", rows=gone)


def worker() -> None:
    """Judge: claim shards, ask the engine, store outcomes. SIGTERM finishes what is begun.

    Example: NIGHTCOURT_MODEL=skywork-critic.Q4_K_M.gguf nightcourt worker
    """
    settings.load()  # a wrong setting is told here, before the process changes
    _become("worker.app")


def callbacks_worker() -> None:
    """Deliver callbacks: claim them, send each signed, record what came of it. SIGTERM finishes what is being sent.

    Example: NIGHTCOURT_DATABASE_URL=... NIGHTCOURT_REDIS_URL=... nightcourt callbacks-worker
    """
    settings.load()
    _become("worker.callbacks_app")


def _become(module: str) -> None:
    # The worker is a program of its own, which producers never import. Ours, whatever stands in the current folder.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606 - a program of ours, no shell
