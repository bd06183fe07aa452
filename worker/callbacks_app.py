"""The callback process: composition root of everything that delivers. Run as `python -m worker.callbacks_app`."""

import sys
import threading
from functools import partial
from typing import Any

import structlog
from celery import Celery
from pydantic import ValidationError
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import logs, pulse, traces
from infra.addresses import Allowed
from infra.broker import make_celery, run_worker, worker_name
from infra.database import await_tables, connect
from infra.meters import Meters
from infra.settings import Settings, load
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK, CallbackHint
from schemas.problems import Problem
from worker.callbacks import Courier, deliver
from worker.egress import send, tls_context

log = structlog.get_logger()

_DATABASE_CONNECTIONS = 8
"""Fewer than threads: nearly all of these wait for receivers, and hold no connection meanwhile."""


def open_database(settings: Settings) -> Database:
    """Make the connections of all threads."""
    return connect(settings.database_url.get_secret_value(), application="callbacks", pool_size=_DATABASE_CONNECTIONS)


def register(app: Celery, courier: Courier) -> None:
    """Give the Celery app its one task."""

    def call_back(**message: Any) -> None:
        try:
            hint = CallbackHint.model_validate(message)
        except ValidationError:
            log.warning("message_refused")  # not ours, or of a version to come: the sweep hints whatever it was
            return
        try:
            deliver(courier, hint.id)
        except SQLAlchemyError as error:
            log.warning("callback_left_to_its_lease", callback=hint.callback, error=type(error).__name__)

    app.task(call_back, name=CALLBACK_TASK)


def main() -> None:
    """Deliver callbacks until told to end; SIGTERM, SIGHUP and SIGINT finish what is being sent."""
    try:
        settings = load()
        settings.require_seals()
    except Problem as problem:
        sys.exit(f"error: {problem.kind.title}. {problem.detail}")
    logs.configure(process="callbacks", level=settings.log_level, style=settings.log_format)
    pulse.begin(settings.pulse_file)
    stop = threading.Event()
    database = open_database(settings)
    meters = Meters("callbacks")
    meters.serve(settings.metrics_host, settings.metrics_port)
    spans = traces.begin("callbacks", endpoint=settings.traces_endpoint, share=settings.traces_share)
    courier = Courier(
        database=database,
        send=partial(send, allowed=Allowed.parse(settings.callback_allow), tls=tls_context()),
        deadline_seconds=settings.callback_deadline_seconds,
        seals=settings.seals(),
        clock_shift_seconds=settings.clock_shift_seconds,
        meters=meters,
        traces=spans,
    )
    app = make_celery(settings.redis_url.get_secret_value(), name="callbacks")
    register(app, courier)
    beat = partial(pulse.beat, settings.pulse_file)
    await_tables(database, stop, meanwhile=beat)
    log.info("callbacks_ready")
    try:
        status = run_worker(
            app,
            name=worker_name(),
            slots=settings.callback_slots,
            queues=[CALLBACK_QUEUE],
            log_level=settings.log_level,
            on_drain=courier.draining.set,
            on_turn=beat,
        )
    finally:
        stop.set()
        database.dispose()
        spans.close()
    log.info("callbacks_ended")
    sys.exit(status)


if __name__ == "__main__":
    main()
