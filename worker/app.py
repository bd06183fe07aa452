"""The worker process: composition root of everything that judges. Run as `python -m worker.app`."""

import gc
import math
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from pydantic import ValidationError
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from infra import logs, losses, metrics, presence, pulse, roster, traces
from infra.broker import make_celery, run_worker, worker_name
from infra.calibration import read_calibration
from infra.database import await_tables, connect, persist
from infra.meters import Meters
from infra.settings import Settings, load
from infra.traces import Traces
from schemas.calibration import CalibratedJudge
from schemas.message import JUDGE_TASK, QUEUES, ShardHint
from schemas.problems import Problem
from schemas.verdict import Judge
from worker import prompts
from worker.admission import Gate
from worker.bench import Bench, Rules
from worker.engines.base import Engine, EngineCard, EngineGoneError
from worker.engines.metered import MeteredEngine
from worker.heartbeat import keep_beating
from worker.judging import judge_shard
from worker.opening import open_engine
from worker.watchdog import give_up, keep_watch

log = structlog.get_logger()

_GC_THRESHOLD = 50_000
"""Allocations between two collections: a tenth of a worker's time went into them at Python's 700."""
_DATABASE_CONNECTIONS = 8
"""At the most, and five more under load: nearly all slots wait for the engine, and hold no connection meanwhile."""
_STILL_SECONDS = 120.0
"""Without a turn of the thread that takes hints, which is more than it ever waits for Redis, the pulse stops."""


def open_databases(settings: Settings) -> tuple[Database, Database]:
    """Make the connections of the slots, and one of the heart's own, which no slot can take; and one to leave by."""
    url = settings.database_url.get_secret_value()
    # Not tried before it is lent: what is done on it is tried again where it was dead.
    slots = connect(url, application="worker", pool_size=min(settings.slots, _DATABASE_CONNECTIONS), ping=False)
    return slots, connect(url, application="worker", pool_size=1, overflow=1)


def make_bench(
    settings: Settings,
    engine: Engine,
    database: Database,
    meters: Meters | None = None,
    spans: Traces | None = None,
) -> Bench:
    """Put together what this worker judges with, and enter its judges in the tables, however long Postgres is away.

    Raises:
        ValueError: the calibration cannot be used with this engine, or the engine's profile is unknown; the message
            says which.
    """
    if engine.card.profile not in prompts.PROFILES:
        raise ValueError(f"{engine.card.model} was made for the profile {engine.card.profile}, which is none of ours")
    judges = calibrate(judges_of(engine.card), settings.calibration_file)
    ids = persist(
        database,
        lambda connection: {name: roster.enroll(connection, judge) for name, judge in judges.items()},
        patience_seconds=math.inf,
    )
    meters, spans = meters or make_meters(settings), spans or Traces()
    _meter_statistics(engine, meters)
    return Bench(
        engine=MeteredEngine(engine, meters, spans),
        gate=Gate(
            engine.card.step_tokens * engine.card.steps_ahead,
            on_turn=lambda lane, seconds: meters.observe(metrics.GATE_SECONDS, seconds, lane=lane),
        ),
        database=database,
        rules=Rules(
            worker=worker_name(),
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            mass_threshold=settings.mass_threshold,
            profile=engine.card.profile,
            calibrated={name: judge.temperature for name, judge in judges.items() if judge.calibration},
        ),
        judges=ids,
        meters=meters,
        traces=spans,
    )


def make_meters(settings: Settings) -> Meters:
    """Make the meters of a worker."""
    return Meters("worker", engine=settings.engine, simulated=settings.engine == "simulated")


def _meter_statistics(engine: Engine, meters: Meters) -> None:
    """Have an engine that keeps statistics of itself asked for them whenever the meters are read."""
    statistics = getattr(engine, "statistics", None)
    if statistics is not None:
        for what in metrics.ENGINE_STATE.labels["what"]:
            meters.ask(metrics.ENGINE_STATE, partial(_snapshot, statistics, what), what=what)


def _snapshot(statistics: Any, what: str) -> float:
    return float(statistics.snapshot().get(what, 0))


def judges_of(card: EngineCard) -> dict[str, Judge]:
    """Name the judges that an engine is, by profile, none of them calibrated."""
    return {
        profile.name: Judge(
            model=card.model,
            weights=card.weights,
            quantisation=card.quantisation,
            engine=card.engine,
            engine_build=card.engine_build,
            profile=profile.name,
            prompt=profile.sha256,
            temperature=1.0,
            simulated=card.simulated,
            caveat=card.caveat,
        )
        for profile in prompts.PROFILES.values()
    }


def calibrate(judges: dict[str, Judge], file: Path | None) -> dict[str, Judge]:
    """Give the judge that a calibration file was made for its temperature.

    Raises:
        ValueError: there is no such file, or it was made for a judge that is none of these.
    """
    if file is None:
        return judges
    calibration = read_calibration(file)
    fitting = [name for name, judge in judges.items() if CalibratedJudge.of(judge) == calibration.judge]
    if not fitting:
        made_for = calibration.judge
        raise ValueError(
            f"{file} was made for {made_for.model} ({made_for.quantisation}, {made_for.engine}, profile "
            f"{made_for.profile}, weights {made_for.weights[:19]}), which is not the judge of this worker; calibrate "
            "this one, or unset NIGHTCOURT_CALIBRATION_FILE"
        )
    changes = {"temperature": calibration.temperature, "calibration": calibration.sha256}
    return judges | {name: judges[name].model_copy(update=changes) for name in fitting}


def register(app: Celery, bench: Bench) -> None:
    """Give the Celery app its one task."""

    def judge(**message: Any) -> None:
        try:
            hint = ShardHint.model_validate(message)
        except ValidationError:
            log.warning("message_refused")  # not ours, or of a version to come: the sweep hints whatever it was
            return
        structlog.contextvars.bind_contextvars(process="worker", shard=hint.shard)
        try:
            judge_shard(bench, hint.shard)
        except EngineGoneError:
            log.exception("engine_gone")
            give_up(bench)
        except SQLAlchemyError as error:
            log.warning("shard_left_to_its_lease", error=type(error).__name__)
        finally:
            structlog.contextvars.clear_contextvars()

    app.task(judge, name=JUDGE_TASK)


def main() -> None:
    """Run one worker until told to end; SIGTERM, SIGHUP and SIGINT finish what is begun and give the rest back."""
    try:
        settings = load()
    except Problem as problem:
        sys.exit(f"error: {problem.kind.title}. {problem.detail}")
    logs.configure(process="worker", level=settings.log_level, style=settings.log_format)
    pulse.begin(settings.pulse_file)
    stop, taking = threading.Event(), pulse.Turns()
    database, hearts_own = open_databases(settings)
    meters = make_meters(settings)
    meters.serve(settings.metrics_host, settings.metrics_port)
    spans = traces.begin("worker", endpoint=settings.traces_endpoint, share=settings.traces_share)
    # Before the model is loaded, which takes its time: a predecessor's work can go on elsewhere meanwhile.
    buried = _bury_the_dead(database, settings, meters)
    try:
        engine = open_engine(settings)
    except (ValueError, Problem) as error:
        log.error("engine_refused", reason=str(error))  # noqa: TRY400 - the message is the whole story
        sys.exit(2)
    # A thread of its own: an engine that hangs when it is asked stops the pulse, and no lease lapses over it. From here
    # on, so that a judge that waits for Postgres need not load its model again.
    pulse.keep(
        settings.pulse_file,
        every=settings.heartbeat_seconds,
        stop=stop,
        well=lambda: taking.lately(_STILL_SECONDS) and engine.health(),
    )
    await_tables(database, stop)
    try:
        bench = make_bench(settings, engine, database, meters, spans)
    except ValueError as error:
        log.error("calibration_refused", reason=str(error))  # noqa: TRY400 - the message is the whole story
        sys.exit(2)
    if not buried:
        _bury_the_dead(database, settings, meters)
    _be_present(settings.presence_dir, bench.rules.worker)
    # What is loaded stays; a shard's lines come and go by the thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    app = make_celery(settings.redis_url.get_secret_value(), name="worker")
    register(app, bench)
    heart = _begin_threads(bench, hearts_own, settings, stop)
    log.info("worker_ready", worker=bench.rules.worker, engine=engine.card.engine, model=engine.card.model)
    try:
        status = run_worker(
            app,
            name=bench.rules.worker,
            slots=settings.slots,
            queues=list(QUEUES.values()),
            log_level=settings.log_level,
            on_drain=bench.draining.set,
            on_turn=taking.note,
        )
    finally:
        bench.draining.set()  # what the heart waits for, where it was not the word to end that ended us
        stop.set()
        heart.join(timeout=5)
        _leave(hearts_own, settings.presence_dir, bench.rules.worker)
        engine.close()
        database.dispose()
        hearts_own.dispose()
        spans.close()
    log.info("worker_ended")
    sys.exit(status)


def _begin_threads(bench: Bench, hearts_own: Database, settings: Settings, stop: threading.Event) -> threading.Thread:
    """Begin to renew leases and to watch the engine. Returns the thread that renews."""
    heart = threading.Thread(
        target=keep_beating,
        name="heartbeat",
        daemon=True,
        kwargs={
            "bench": bench,
            "database": hearts_own,
            "slots": settings.slots,
            "bulk_slots": settings.bulk_slots,
            "every": settings.heartbeat_seconds,
            "stop": stop,
        },
    )
    heart.start()
    threading.Thread(
        target=keep_watch,
        name="watchdog",
        daemon=True,
        kwargs={
            "bench": bench,
            "engine_deadline": settings.engine_deadline_seconds,
            "drain": settings.drain_seconds,
            "stop": stop,
        },
    ).start()
    return heart


def _bury_the_dead(database: Database, settings: Settings, meters: Meters) -> bool:
    """Bring back at once what workers held that died on this machine, where that can be proved.

    Returns:
        Whether that is done; not, where Postgres was away.
    """
    if settings.presence_dir is None:
        return True

    def see_to(worker: str) -> None:
        with database.begin() as connection:
            lost = losses.bury(connection, worker, max_attempts=settings.max_attempts)
            roster.leave(connection, worker=worker)
        for fate, shards in lost.items():
            meters.add(metrics.LOSSES, shards, then=fate)
        log.info("dead_worker_buried", dead=worker, shards=lost.total())

    try:
        presence.bury(settings.presence_dir, see_to)
    except SQLAlchemyError as error:
        log.warning("dead_left_to_their_leases", error=type(error).__name__)
        return False
    return True


def _be_present(folder: Path | None, worker: str) -> None:
    if folder is not None:
        try:
            presence.hold(folder, worker)  # open until the process ends
        except OSError as error:
            log.warning("presence_not_held", error=type(error).__name__)


def _leave(database: Database, folder: Path | None, worker: str) -> None:
    try:
        with database.begin() as connection:
            roster.leave(connection, worker=worker)
    except SQLAlchemyError as error:
        log.warning("roster_not_left", error=type(error).__name__)
    if folder is not None:
        presence.leave(folder, worker)


if __name__ == "__main__":
    main()
