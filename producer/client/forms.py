"""A file as the form that carries it: read a piece at a time, from the beginning at each attempt."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias
from uuid import uuid4

import httpx2

_PIECE = 256 * 1024

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Told the bytes of the file that were sent, and of how many where that is known. At another attempt it begins anew."""
FileLike: TypeAlias = str | Path | bytes | BinaryIO


class FileForm(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A multipart form of a purpose and a file, as the body of a request of either client.

    Args:
        file: what to read, from where it stands now.
        filename: the name that it gets there.
        on_progress: told after each piece.
    """

    def __init__(self, file: BinaryIO, filename: str, on_progress: OnProgress | None) -> None:
        self._file, self._on_progress = file, on_progress
        self._seekable = file.seekable()
        self.whole = True
        """Whether all of it can be sent, another time too. What was read of a pipe is gone, wherever it went."""
        self._start = file.tell() if self._seekable else 0
        self._size = file.seek(0, io.SEEK_END) - self._start if self._seekable else None
        boundary = uuid4().hex
        quoted = "".join(f"%{ord(c):02X}" if c in '"\r\n' else c for c in filename)
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode("utf-8", "replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        length = None if self._size is None else len(self._head) + self._size + len(self._tail)
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            **({"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}),
        }

    def __iter__(self) -> Iterator[bytes]:
        sent = self._begin()
        yield self._head
        while piece := self._piece(sent):
            yield piece
            sent = self._tell(sent + len(piece))
        yield self._tail

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = self._begin()
        yield self._head
        while piece := await asyncio.to_thread(self._piece, sent):
            yield piece
            sent = self._tell(sent + len(piece))
        yield self._tail

    def _begin(self) -> int:
        if self._seekable:
            self._file.seek(self._start)
        return self._tell(0)

    def _piece(self, sent: int) -> bytes:
        """Read on. No more is sent of a file that grows meanwhile than was announced."""
        self.whole = self._seekable
        if self._size is None:
            return self._file.read(_PIECE)
        piece = self._file.read(min(_PIECE, self._size - sent))
        if not piece and sent < self._size:
            raise OSError("the file became shorter while it was sent")
        return piece

    def _tell(self, sent: int) -> int:
        if self._on_progress is not None:
            self._on_progress(sent, self._size)
        return sent


def open_file(file: FileLike) -> tuple[BinaryIO, str]:
    """Open what is to be sent, and name it. Whoever opened a file object closes it."""
    if isinstance(file, bytes):
        return io.BytesIO(file), "upload.jsonl"
    if isinstance(file, str | Path):
        path = Path(file)
        return path.open("rb"), path.name
    name = getattr(file, "name", None)
    return file, Path(name).name if isinstance(name, str) else "upload.jsonl"
