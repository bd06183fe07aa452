"""Compressed uploads, decompressed as they arrive and never more than a bounded piece at a time."""

import zlib
from collections.abc import Iterator
from typing import Protocol

import zstandard

from schemas.problems import BAD_COMPRESSION, Problem

_BYTES_OUT = 1024 * 1024
"""Bytes of gzip's output that are asked for at a time."""
_BYTES_IN = 64
"""Bytes of zstandard that are decompressed at a time, as its output cannot be bounded. Four of them can stand for 128
KiB, so 64 give two MiB at most."""


class Decompressor(Protocol):
    """Turns compressed bytes into plain ones, a bounded piece at a time."""

    @property
    def whole(self) -> bool:
        """Whether the bytes so far may be all: they end where a compressed member or frame does."""
        ...

    def decompress(self, data: bytes) -> Iterator[bytes]:
        """Give what `data` adds.

        Raises:
            Problem: it is not of the format that the file began as.
        """
        ...


class _Plain:
    whole = True

    def decompress(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Gzip:
    """Gzip, members one after the other."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.whole = True

    def decompress(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                yield self._member.decompress(data, _BYTES_OUT)
                data = self._member.unconsumed_tail
                self.whole = self._member.eof
                if self.whole:
                    data = self._member.unused_data
                    self._member = zlib.decompressobj(wbits=31)
        except zlib.error:
            raise Problem(BAD_COMPRESSION, "The file begins as gzip and does not go on as it.") from None


class _Zstandard:
    """Zstandard, frames one after the other."""

    def __init__(self) -> None:
        # The window is what a decompressor must keep in memory: 8 MiB is what zstd itself uses up to level 19.
        self._settings = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024)
        self._frame = self._settings.decompressobj()
        self.whole = True

    def decompress(self, data: bytes) -> Iterator[bytes]:
        try:
            # A call returns everything that its input gives, however much that is.
            for start in range(0, len(data), _BYTES_IN):
                piece = data[start : start + _BYTES_IN]
                while piece:
                    yield self._frame.decompress(piece)
                    piece = b""
                    self.whole = self._frame.eof
                    if self.whole:
                        piece = self._frame.unused_data
                        self._frame = self._settings.decompressobj()
        except zstandard.ZstdError:
            raise Problem(BAD_COMPRESSION, "The file begins as zstd and does not go on as it.") from None


def decompressor(beginning: bytes) -> Decompressor:
    """Choose by a file's first four bytes whether it is compressed, and how."""
    if beginning.startswith(b"\x1f\x8b"):
        return _Gzip()
    if beginning.startswith(b"\x28\xb5\x2f\xfd"):
        return _Zstandard()
    return _Plain()
