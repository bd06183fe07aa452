"""The HTTP edge on a port of this machine, served by a thread of the test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from support.waiting import wait_until


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an app until the block ends, and give its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, name="edge")
    thread.start()
    try:
        wait_until(lambda: server.started, within=60, what="the server listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
