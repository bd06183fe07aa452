"""Ports that nobody uses."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.program import ROOT

from infra.local import ports
from infra.local.ports import choose_port, free_port, is_free


def test_a_free_port_is_none_that_a_client_may_be_given() -> None:
    """What the kernel gives to outgoing connections could be given away before the server is there."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first <= ports._FIRST_PORT:
        pytest.skip(f"this kernel gives clients all ports from {first} to {last}")
    assert all(port < first for port in (free_port() for _ in range(50)))


def test_where_clients_may_be_given_every_port_there_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are tuned to give clients every port from 1024 on; a server still finds a place there."""
    monkeypatch.setattr(ports, "_first_of_clients", lambda: 1024)
    assert is_free("127.0.0.1", free_port())


def test_a_port_that_another_process_has_chosen_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is still to come, and can listen there then, more than once."""
    choose = "import sys; from infra.local.ports import free_port; print(free_port(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", choose], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        chosen = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_FIRST_PORT", chosen)
        monkeypatch.setattr(ports, "_first_of_clients", lambda: chosen + 1)
        assert free_port() != chosen
        for _ in range(2):
            with socket.create_server(("127.0.0.1", chosen)) as server:
                socket.create_connection(server.getsockname()).close()
                server.accept()[0].close()
        other.stdin.close()


def test_a_free_port_is_not_one_where_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate is tried; with none left the kernel chooses."""
    with socket.create_server(("127.0.0.1", free_port())) as other:
        busy = other.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST_PORT", busy)
        monkeypatch.setattr(ports, "_first_of_clients", lambda: busy + 1)
        assert not is_free("127.0.0.1", busy)
        assert choose_port("127.0.0.1", busy, None) != busy
