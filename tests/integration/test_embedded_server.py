"""How servers from wheels are started, whichever they are."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import processes_of

from infra.local import server
from infra.local.ports import free_port
from infra.local.postgres import Postgres, start_postgres
from infra.local.redis import Redis, start_redis


@pytest.mark.parametrize("start", [start_postgres, start_redis])
def test_a_port_that_somebody_took_first_gives_way_to_another(
    start: Callable[[Path], Postgres | Redis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took it between our looking and the server's start."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        free = free_port()
        ports = iter([stranger.getsockname()[1], free])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        running = start(tmp_path / "server")
        running.stop()
    assert running.port == free
    assert running.child.poll() == 0
    assert not processes_of(tmp_path)
