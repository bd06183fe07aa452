"""What a connection may cost: whoever sends no request, half of one, or reads no answer is cut off.

By itself uvicorn would wait for all of them.
"""

import asyncio
import fcntl
import struct
import termios

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the connection or from its first byte to its end."""
_HEAD_BYTES = 64 * 1024
"""How long it may be, as may whatever else is no piece of a body: line breaks between requests, trailers after one."""
_REST_SECONDS = 60.0
"""How long something may come after an answer that begins no request, or the next piece of a body that was refused."""
_REST_BYTES = 64 * 1024
"""How much such a piece is: a body that comes at a kilobyte a second is read past to its end."""
_UNREAD_SECONDS = 300.0
"""Whoever is not seen to take anything of an answer for this long is waited for no more than twice as long.

It cannot be seen at once: kernels free room, and take more, by up to hundreds of kilobytes.
"""


class Connection(HttpToolsProtocol):
    """A connection, as uvicorn serves it, whose peer has to ask in time and in few words, and to read the answers."""

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
        # What came with a piece of a body, or with a whole request, is nearly all that.
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
            # uvicorn tells the last one that was asked alone, and this may be answered with others behind it.
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
        # To close would be to wait until everything is read that was answered before.
        self._patience = self.loop.call_later(seconds, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _look_whether_read(self) -> None:
        """Give up on whoever has read nothing since the last look, while nothing more was written."""
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
