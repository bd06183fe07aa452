"""What a connection may cost: one that sends no request, or half of one, is closed, as uvicorn itself would not."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the connection or from its first byte to its end."""
_HEAD_BYTES = 64 * 1024
"""How long it may be."""


class Connection(HttpToolsProtocol):
    """A connection, as uvicorn serves it, whose next request has to be asked for in time and in few words."""

    _patience: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """Wait for the rest of a request's head."""
        super().on_message_begin()
        self._head = 0
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is a head without end."""
        super().data_received(data)
        if self._patience is None:
            return  # no head is under way: what came may be one with the beginning of a large body, or all of that
        self._head += len(data)
        if self._head > _HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """Have a request, which may take as long as it takes."""
        self._wait_no_more()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._wait_no_more()
        self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
