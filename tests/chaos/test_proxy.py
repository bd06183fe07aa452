"""The proxy lets through what it should, and hurts connections as networks do."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from chaos.proxy import Link, Proxy

from infra.local.ports import free_port


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that says everything back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def say_back(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=say_back, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        proxy = Proxy()
        yield proxy.link(server.getsockname()[1])
        proxy.close()
        server.shutdown(socket.SHUT_RDWR)


def connect(link: Link) -> socket.socket:
    """Come in at a link."""
    return socket.create_connection(("127.0.0.1", link.port), timeout=60)


def test_all_of_it_comes_through(link: Link):
    """A megabyte there and back is the same megabyte."""
    data = bytes(range(256)) * 4096
    with connect(link) as connection:
        threading.Thread(target=connection.sendall, args=(data,)).start()
        back = b""
        while len(back) < len(data):
            back += connection.recv(1 << 16)
    assert back == data
    assert link.passed >= 2 * len(data)


def test_a_cut_is_a_reset_and_the_next_connection_is_well(link: Link):
    """Who was connected is told so at once."""
    with connect(link) as connection:
        connection.sendall(b"one")
        assert connection.recv(3) == b"one"
        link.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(link) as connection:
        connection.sendall(b"two")
        assert connection.recv(3) == b"two"


def test_a_black_hole_says_nothing_until_it_is_mended(link: Link):
    """Neither old nor new connections hear a word, and then everything that was said."""
    with connect(link) as old:
        old.sendall(b"one")
        assert old.recv(3) == b"one"
        link.swallow()
        with connect(link) as new:
            for connection in (old, new):
                connection.sendall(b"two")
                connection.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    connection.recv(3)
            link.mend()
            for connection in (old, new):
                connection.settimeout(60)
                assert connection.recv(3) == b"two"


def test_a_slow_link_is_slow(link: Link):
    """What is slow by 0.2 s is there after twice that: there and back."""
    with connect(link) as connection:
        link.slow(0.2)
        began = time.monotonic()
        connection.sendall(b"one")
        assert connection.recv(3) == b"one"
        assert time.monotonic() - began >= 0.4


def test_a_store_that_is_not_there_is_a_reset(link: Link):
    """Whoever comes in while nobody listens behind is sent away."""
    proxy = Proxy()
    link = proxy.link(free_port())
    with pytest.raises(ConnectionResetError), connect(link) as connection:
        connection.recv(1)
    proxy.close()
