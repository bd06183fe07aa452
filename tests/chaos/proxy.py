"""A small TCP proxy: one way from a process to a store, which can be cut, swallow everything, or take its time."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: a close is a reset."""


class Proxy:
    """Links, all served by one thread. Ended by `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._links: list[Link] = []

    def link(self, port: int, *, listen: socket.socket | None = None, tls: ssl.SSLContext | None = None) -> "Link":
        """Make a way to a port of this machine.

        Args:
            port: the store's.
            listen: a socket that listens already, for instance in another network namespace; a new one on loopback
                when None.
            tls: on what terms it is entered by TLS, which the store itself need not speak.
        """
        link = Link(self, port)
        self.run(link.open(listen, tls))
        self._links.append(link)
        return link

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the thread of the proxy, and wait for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def close(self) -> None:
        """End all links."""
        self.run(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        for link in self._links:
            link.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Link:
    """One way to a store.

    Attributes:
        port: where it is entered.
        passed: bytes that have come through, both ways together.
    """

    def __init__(self, proxy: Proxy, target: int) -> None:
        self.port = 0
        self.passed = 0
        self._proxy = proxy
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._delay = 0.0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset all connections that there are; new ones are let through."""
        self._proxy.run(self._cut())

    def swallow(self) -> None:
        """Let nothing through and say nothing about it: a black hole, for new connections too."""
        self._proxy.run(self._set(whole=False, delay=0.0))

    def slow(self, seconds: float) -> None:
        """Let everything through, each piece so much later."""
        self._proxy.run(self._set(whole=True, delay=seconds))

    def mend(self) -> None:
        """Be a good link again. What was swallowed comes out now, as it would after a cable is plugged in again."""
        self._proxy.run(self._set(whole=True, delay=0.0))

    async def open(self, listen: socket.socket | None, tls: ssl.SSLContext | None) -> None:
        """Listen. Called in the thread of the proxy."""
        if listen is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        else:
            self._server = await asyncio.start_server(self._serve, sock=listen, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Listen no more. Called in the thread of the proxy."""
        if self._server is not None:
            self._server.close()

    async def _set(self, *, whole: bool, delay: float) -> None:
        self._delay = delay
        if whole:
            self._whole.set()
        else:
            self._whole.clear()

    async def _cut(self) -> None:
        for writer in tuple(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = None
        self._writers.add(writer)
        try:
            await self._whole.wait()
            from_store, onward = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(onward)
            await asyncio.gather(self._pump(reader, onward), self._pump(from_store, writer))
            writer.close()
            onward.close()
        except (OSError, asyncio.CancelledError):
            # The store is not there, or somebody hung up: whoever is left learns of it.
            for each in (writer, onward):
                if each is not None:
                    _reset(each)
        finally:
            self._writers -= {writer, onward}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._whole.wait()
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
        # One side has ended: so does the other, after what is under way.
        with suppress(OSError):
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS has one end for both ways
                writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
