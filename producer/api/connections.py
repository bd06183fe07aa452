"""Cutting off connections that send no request, or part of one, or do not read their answer. uvicorn keeps them all."""

import asyncio
import fcntl
import struct
import termios

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the connection or from its first byte to its end."""
_HEAD_BYTES = 64 * 1024
"""How many bytes a head may have, or anything else that is not a body: line breaks between requests, or trailers."""
_REST_SECONDS = 60.0
"""How long who sent anything after an answer may take to make a request of it, or to send more of a refused body."""
_REST_BYTES = 64 * 1024
"""How many bytes such a part has: a refused body is read to its end if it comes at about a kilobyte a second."""
_UNREAD_SECONDS = 300.0
"""Between two looks at what a client has not read yet of its answer. Where the second finds no less, it is cut off.

It is this long because kernels make room, and take more, in steps of up to hundreds of kilobytes.
"""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits on how slowly its client may send requests and read answers."""

    _patience: asyncio.TimerHandle | None = None
    _head = 0
    _in_body = False
    _rest = 0
    _look: asyncio.TimerHandle | None = None
    _unread: int | None = None
    _served: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait(_HEAD_SECONDS)
        self._look = self.loop.call_later(_UNREAD_SECONDS, self._look_whether_read)

    def on_message_begin(self) -> None:
        """Wait for the rest of a request's head."""
        super().on_message_begin()
        self._head = 0
        self._in_body = False
        self._wait(_HEAD_SECONDS)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body, of any size: what reads it has limits of its own."""
        self._in_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Have the whole of a request."""
        self._in_body = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is a head without end, or what comes after an answer begins no request."""
        self._in_body = False
        super().data_received(data)
        # Data that held part of a body, or the end of a request, counts as all body: little of it can be anything else.
        self._head = 0 if self._in_body else self._head + len(data)
        if self.transport.is_closing():
            return
        if self._head > _HEAD_BYTES:
            self.send_400_response("The head of the request is too long.")
        elif self._answered():
            self._rest += len(data) * self._in_body
            if self._patience is None or self._rest >= _REST_BYTES:
                self._rest = 0
                self._wait(_REST_SECONDS)  # uvicorn's wait for the next request ended with the first byte

    def on_headers_complete(self) -> None:
        """Have a request, which may take as long as it takes."""
        self._wait_no_more()
        super().on_headers_complete()

    def resume_writing(self) -> None:
        """Write on: enough was read."""
        self._unread = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._wait_no_more()
        if self._look is not None:
            self._look.cancel()
        if self._served is not None:
            # uvicorn tells only the last request of a pipeline; the one being answered may be an earlier one.
            self._served.disconnected = not self._served.response_complete
            self._served.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _answered(self) -> bool:
        asked: RequestResponseCycle | None = self.cycle
        return asked is not None and asked.response_complete

    def _wait(self, seconds: float) -> None:
        self._wait_no_more()
        # `abort`, since `close` would wait until the client has read everything that was answered before.
        self._patience = self.loop.call_later(seconds, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _look_whether_read(self) -> None:
        """Cut the client off if it has read nothing since the last look, and look again later."""
        if not self.flow.write_paused and not self.transport.is_closing():
            unread = None
        else:
            unread = self.transport.get_write_buffer_size() + self._sent_and_unread()
            if self._unread is not None and unread >= self._unread:
                self.transport.abort()
                return
        self._unread = unread
        self._look = self.loop.call_later(_UNREAD_SECONDS, self._look_whether_read)

    def _sent_and_unread(self) -> int:
        """The bytes that the kernel holds for a peer."""
        held = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", held)[0])
