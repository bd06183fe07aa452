"""The one Celery app factory. Celery over Redis is a hint channel: all of it that is more than that is switched off."""

import os
import signal
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery, signals
from celery.apps import worker as celerys
from celery.exceptions import SecurityWarning
from kombu.entity import Queue
from kombu.transport import redis, virtual
from redis.connection import parse_url
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from infra.roles import KEY_PREFIX
from infra.signals import threaded_handler
from schemas.message import CALLBACK_QUEUE, QUEUES, VISIBILITY_SECONDS

log = structlog.get_logger()

_TURN_SECONDS = 1.0


class _QoS(redis.QoS):
    """Counts the hints that were taken and not acknowledged yet. One whose acknowledgement fails counts no more.

    Kombu would go on counting it for as long as the connection lives. Once as many are counted as the worker has slots,
    kombu asks Redis for nothing more, so it never finds out that the connection is dead, and the worker idles for ever.
    Redis may deliver a hint that was not acknowledged again, which does no harm.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            log.warning("hint_not_acknowledged", error=type(error).__name__)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


class _Channel(redis.Channel):
    QoS = _QoS
    _ours: tuple[Any, Any] = (None, None)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Lend one client for as long as its pool lives: kombu makes some for each message, at 60 microseconds each."""
        if client is None:
            pool, client = self._ours
            if pool is None or pool is not self._pool:
                client = self._create_client()  # type: ignore[no-untyped-call]
                self._ours = self._pool, client
        yield client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if not str(error).startswith("UNBLOCKED"):
                raise
            # A server that becomes a replica answers so those that wait for its lists, and closes their connections.
            raise ReadOnlyError(str(error)) from error


class Transport(redis.Transport):
    """Kombu's transport for Redis; the app below names it in its settings.

    It calls `on_turn`, one of its options, each second that a worker's event loop runs, and at each attempt to reach
    Redis, since no loop runs while Redis is away.

    A Redis that takes no writes, as it became a replica or is full, counts as one that is away: a worker connects until
    it reaches one that takes them, and `/readyz` tells of it. Kombu takes that answer for an error of the channel, for
    which Celery would end the worker, and a model would be loaded for nothing. Other answers (no permission, another
    type) do end it: waiting mends none.
    """

    Channel = _Channel
    connection_errors = (*redis.Transport.connection_errors, ReadOnlyError, OutOfMemoryError)

    def establish_connection(self) -> Any:
        """Reach Redis."""
        self._tell()
        return super().establish_connection()  # type: ignore[no-untyped-call]

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the worker's loop look after a connection."""
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
        loop.call_repeatedly(_TURN_SECONDS, self._tell)  # Celery takes it back with the connection

    def _tell(self) -> None:
        connection: Any = self.client
        connection.transport_options.get("on_turn", _nothing)()


def _nothing() -> None:
    """Stand in for `on_turn` in processes that do not set it."""


def _where(redis_url: str) -> tuple[str, dict[str, object]]:
    """Take a URL apart for kombu: the part that it understands, and the options of TLS.

    The API gives the same URL to redis-py, so it is read here as redis-py reads it. Kombu by itself speaks TLS only
    over a transport named `rediss`, which ours is not, and even then checks no certificate.
    """
    options: dict[str, object] = dict(parse_url(redis_url))  # type: ignore[no-untyped-call]
    parts = urlsplit(redis_url)
    path = f"/{options['db']}" if "db" in options else parts.path
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        tls.setdefault("ssl_cert_reqs", "required")  # kombu takes no options for no TLS
    return parts._replace(path=path, query="").geturl(), tls


def make_celery(redis_url: str, *, name: str, patient: bool = True) -> Celery:
    """Make a Celery app for one process. No connection is opened before it is used.

    Messages carry ids only and are JSON; there is no result backend, no remote control, no retry and no ETA: all
    of that is Postgres's. Timeouts are short, because a broker that does not answer is a broker that is down.

    Args:
        redis_url: where Redis is, and in its query which database, and what redis-py knows of TLS (`ssl_ca_certs` and
            so on).
        name: which process this is, as Redis will show it.
        patient: whether to try again until Redis is there, as those that take messages do. Those that send fail at
            once.
    """
    url, tls = _where(redis_url)
    app = Celery("nightcourt", broker=url, set_as_current=False, fixups=[])
    app.conf.update(
        broker_use_ssl=tls,
        broker_transport=f"{__name__}:{Transport.__name__}",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_queues=[Queue(queue) for queue in (*QUEUES.values(), CALLBACK_QUEUE)],  # type: ignore[no-untyped-call]
        task_default_queue=next(iter(QUEUES.values())),
        task_create_missing_queues=False,
        # A hint is acknowledged after its shard's turn. Were it lost before, the sweep would send another.
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=0,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=5,
        task_publish_retry=False,  # the dispatcher's loop is the retry
        broker_transport_options={
            # Redelivery of unacknowledged hints is a bonus: leases bring work back sooner.
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "queue_order_strategy": "priority",
            "global_keyprefix": KEY_PREFIX,
            "client_name": f"nightcourt-{name}",
            **({} if patient else {"max_retries": 0}),
        },
        timezone="UTC",
    )
    # Celery imports these when they are first asked for: better now than while the first hint is waited for.
    _ = app.backend, app.amqp.send_task_message
    return app


def worker_name() -> str:
    """Make a name that no other worker has: the host, the process, and chance."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class _Worker(celerys.Worker):  # type: ignore[misc]
    """Celery's worker, for which SIGHUP means what SIGTERM does, or nothing where it is ignored.

    At SIGHUP Celery's own worker would end without calling `on_drain`, and run its script once more in the folder
    that it was started in, even where SIGTERM came after.
    """

    def __init__(self, *, on_drain: Callable[[], None], **options: Any) -> None:
        # Celery has a signal of its own for this, but takes a lock to send it, which a handler must not.
        self._drain = threaded_handler(on_drain)
        super().__init__(**options)

    def install_platform_tweaks(self, worker: celerys.Worker) -> None:
        """Install the handlers of signals."""
        heard = {
            signal.SIGTERM: celerys.install_worker_term_handler,
            signal.SIGHUP: celerys.install_worker_term_handler,
            signal.SIGINT: celerys.install_worker_int_handler,
            signal.SIGQUIT: celerys.install_worker_term_hard_handler,
        }
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
            del heard[signal.SIGHUP]
        for number, install in heard.items():
            install(worker, sig=number.name)
            signal.signal(number, partial(self._hear, signal.getsignal(number)))
        celerys.install_cry_handler()

    def _hear(self, end: Any, *what: Any) -> None:
        self._drain()
        end(*what)


def run_worker(
    app: Celery,
    *,
    name: str,
    slots: int,
    queues: Sequence[str],
    log_level: str,
    on_drain: Callable[[], None],
    on_turn: Callable[[], None],
) -> int:
    """Take messages until SIGTERM, SIGHUP or SIGINT, and finish what is begun.

    Args:
        app: with its tasks.
        name: the worker's.
        slots: threads that messages are worked on by.
        queues: where they come from.
        log_level: what Celery logs too.
        on_drain: called when the worker is told to end, before it waits for what is begun.
        on_turn: called by the thread that takes messages, every second, or, where Redis is away, as often as it looks.

    Returns:
        The exit status.
    """

    def leave_logging_alone(**_: Any) -> None:
        """Answer Celery's signal: it would set up logging of its own unless somebody does."""

    signals.setup_logging.connect(leave_logging_alone, weak=False)
    # Celery warns of running as root because of pickled messages; ours are JSON, and nothing else is taken.
    warnings.simplefilter("ignore", SecurityWarning)
    app.conf.broker_transport_options["on_turn"] = on_turn
    worker = _Worker(
        app=app,
        on_drain=on_drain,
        pool="threads",
        concurrency=slots,
        queues=list(queues),
        hostname=f"{name}@nightcourt",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel=log_level,
    )
    worker.start()
    return int(worker.exitcode or 0)
