"""The HTTP process: composition root of the edge."""

import asyncio
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from infra import logs, traces
from infra.addresses import Allowed
from infra.database import connect_async
from infra.meters import Meters
from infra.settings import Settings
from producer.api import batch_report, batches, callbacks, comparisons, documentation, files, health, problems
from producer.api.connections import Connection
from producer.api.requests import Requests
from producer.dashboard import routes as dashboard
from producer.keyring import Keyring
from producer.limits import Limiter, Streams
from producer.results import Waiter
from schemas.problems import ProblemDocument

_DESCRIPTION = """
File pairs of answers and read which is better, and how sure the judge is. A comparison is answered with `202` once it
is stored, and judged as soon as there is room; `Prefer: wait=30` holds the answer until it is decided. Problems are
RFC 9457 documents; under `/v1/files` and `/v1/batches` they come in the shape of OpenAI's errors, with the same codes.
Each request but those under "health" takes a key, `Authorization: Bearer nck_...`. Answers tell by `RateLimit-Policy`
and `RateLimit` how many requests the key may send; what is too much is a `429` that says by `Retry-After` when to come
again.
"""

_SWITCH_SECONDS = 0.0005
"""How long a thread may keep Python to itself while the loop wants it: a tenth of Python's own. Reports are counted,
and long lines of uploads understood, in threads; each answer of Postgres, and whoever else asks, would wait this long
for its turn."""

_REQUESTS_AT_ONCE = 1000
"""In one process, probes apart. Half of them may be held until a comparison is decided, and a quarter be streams of
events: the rest get answers."""

_REQUESTS_OF_A_KEY = 750
"""So that no key keeps all others out. Beyond the half that may be held there is room for answers that come at once."""
_STREAMS_OF_A_KEY = 50

_KEEP_ALIVE_SECONDS = 620.0
"""How long a connection stays open after an answer if nothing follows. Proxies keep theirs for a minute as a rule, and
load balancers of clouds for up to ten. The side in front has to close first: else it may send a request just as the
connection is closed here, and whoever sent that reads 502."""

_DESCRIPTORS = 65_536
"""Open files at the most, those of idle connections among them: each takes memory, too."""


def create_app(settings: Settings) -> FastAPI:
    """Build the app. Connections are made when it starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.database = connect_async(settings.database_url.get_secret_value(), application="api")
        app.state.keyring = Keyring(app.state.database)
        app.state.redis = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=1, socket_connect_timeout=1
        )
        app.state.looking = None
        app.state.ending = asyncio.Event()
        app.state.waiter = Waiter(app.state.database, every=settings.poll_seconds, most=_REQUESTS_AT_ONCE // 2)
        ticking = asyncio.create_task(app.state.waiter.run())
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            await app.state.redis.aclose()
            await app.state.database.dispose()
            app.state.traces.close()

    app = FastAPI(
        title="nightcourt",
        version=version("nightcourt"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the framework's pages have another host's scripts run beside the dashboard
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.worker_seconds = settings.worker_seconds
    app.state.meters = Meters("api")
    app.state.traces = traces.begin("api", endpoint=settings.traces_endpoint, share=settings.traces_share)
    app.state.limiter = Limiter(settings, at_once=_REQUESTS_OF_A_KEY)
    app.state.streams = Streams(most=_REQUESTS_AT_ONCE // 4, of_a_key=_STREAMS_OF_A_KEY)
    app.state.allowed = Allowed.parse(settings.callback_allow)
    app.state.seals = settings.seals()
    app.include_router(comparisons.router)
    app.include_router(files.router)
    app.include_router(batches.router)
    app.include_router(batch_report.router)
    app.include_router(callbacks.router)
    app.include_router(health.router)
    app.include_router(documentation.router)
    for router in dashboard.ROUTERS:
        app.include_router(router)
    problems.install(app)
    app.add_middleware(
        Requests,
        meters=app.state.meters,
        traces=app.state.traces,
        answer_failed=problems.answer_failed,
        most=_REQUESTS_AT_ONCE,
    )
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the problem document to the OpenAPI components, since no route returns it as its model."""
    describe = app.openapi

    def openapi() -> dict[str, object]:
        document = describe()
        schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(schema.pop("$defs", {}))
        schemas["ProblemDocument"] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def serve(settings: Settings) -> None:
    """Serve HTTP until SIGTERM or SIGINT; who is held is answered then, and requests in flight get five seconds to end.

    Raises:
        Problem: there is no key to seal callback secrets by.
    """
    settings.require_seals()
    logs.configure(process="api", level=settings.log_level, style=settings.log_format)
    sys.setswitchinterval(_SWITCH_SECONDS)
    _allow_descriptors()
    server = Server(uvicorn.Config(create_app(settings), **serving(settings)))
    with suppress(KeyboardInterrupt):  # raised again after it was heeded
        server.run()


def _allow_descriptors() -> None:
    """Raise the soft limit of open files: under the usual one, 1,024, not even a thousand requests would be taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """A server whose app hears at once that it ends: what holds a request goes on until then, and is waited for."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go what is held, and wait until all are answered."""
        state = self.config.app.state  # type: ignore[union-attr]
        state.ending.set()
        state.waiter.close()
        await super().shutdown(sockets)


def serving(settings: Settings) -> dict[str, Any]:
    """How the app is served, as uvicorn takes it."""
    return {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "timeout_graceful_shutdown": 5,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        # Its own limit counts connections, those that ask nothing among them, and would refuse probes over them.
        "http": Connection,
        # A request that waited on its connection for another's answer would begin as that one's tenant.
        "reset_contextvars": True,
    }
