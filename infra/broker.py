"""The one Celery app factory. Celery over Redis is a hint channel; the settings below make it a prompt and tame one."""

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
from redis.exceptions import RedisError

from infra.ending import passed_on
from infra.roles import KEY_PREFIX
from schemas.message import CALLBACK_QUEUE, QUEUES, VISIBILITY_SECONDS

log = structlog.get_logger()

_TURN_SECONDS = 1.0


class _QoS(redis.QoS):
    """What is in hand of what was taken. A hint that cannot be acknowledged is out of hand all the same.

    Kombu would count it as in hand for as long as the connection lives. Where as many are so as there are slots, it
    asks Redis for nothing more, and so never sees that the connection is dead: a worker that idles for ever. Redis may
    give the hint to somebody again, which does no harm.
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


class Transport(redis.Transport):
    """Kombu's way to Redis, found by its name in the settings of the app below.

    It tells of each second that a worker's loop goes round, and of each attempt to reach Redis while there is no loop.
    """

    Channel = _Channel

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
    """Be told of a turn by who does not ask for it."""


def _where(redis_url: str) -> tuple[str, dict[str, object]]:
    """Tell where Redis is, and how TLS is spoken with it, as redis-py reads the URL that the API gives to it.

    Kombu speaks TLS where its transport is named `rediss`, and ours is not, and would then ask for no certificate.
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
        patient: try to connect until that holds, as who takes messages does; else one try fails, as a send does later.
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
    """Celery's worker, which hears SIGHUP as SIGTERM, or not at all where it is ignored.

    Celery's own ends by it without a word to whoever works, and starts itself once more: as a script, out of the folder
    that it stands in, even where SIGTERM came after.
    """

    def __init__(self, *, on_drain: Callable[[], None], **options: Any) -> None:
        # Not by Celery's own signal, which takes a lock when it is sent.
        self._drain = passed_on(on_drain)
        super().__init__(**options)

    def install_platform_tweaks(self, worker: celerys.Worker) -> None:
        """Hear signals."""
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
