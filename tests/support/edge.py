"""The HTTP edge on a port of this machine, served by a thread of the test's own process; nothing is behind it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from sqlalchemy import event

from infra.settings import Settings
from producer.api.app import Server, create_app, serving
from support.canaries import watch_answer
from support.waiting import wait_until


@contextmanager
def served(app: FastAPI, **how: Any) -> Iterator[str]:
    """Serve an app until the block ends, and give its address."""
    chosen = {"host": "127.0.0.1", "log_config": None, "timeout_graceful_shutdown": 1, **how, "port": 0}
    server = Server(uvicorn.Config(app, **chosen))
    thread = threading.Thread(target=server.run, name="edge")
    thread.start()
    try:
        wait_until(lambda: server.started, within=60, what="the server listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def unfilter(app: FastAPI) -> None:
    """Take the tenant out of every condition of an app's queries: what is kept from a tenant then, Postgres keeps."""

    def rewrite(_connection, _cursor, statement: str, parameters, _context, _many):
        return re.sub(r"(\w+\.)?\btenant = %\(tenant\)s(::\w+)?", "%(tenant)s::text IS NOT NULL", statement), parameters

    event.listen(app.state.database.sync_engine, "before_cursor_execute", rewrite, retval=True)


@contextmanager
def open_edge(database_url: str, *, unfiltered: bool = False, **settings: Any) -> Iterator[httpx2.Client]:
    """Serve the API on a database until the block ends; lends a client of it that sends no key."""
    stores = {"database_url": database_url, "redis_url": "redis://127.0.0.1:1"}
    chosen = Settings(**stores, secret_keys="0123456789abcdef" * 4, **settings)
    app = create_app(chosen)
    with (
        served(app, **serving(chosen)) as url,
        httpx2.Client(base_url=url, timeout=30, trust_env=False, event_hooks={"response": [watch_answer]}) as http,
    ):
        if unfiltered:
            unfilter(app)
        yield http
