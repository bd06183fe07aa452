"""Compressed uploads are decompressed a bounded piece at a time, whatever they were made of."""

import zlib
from itertools import pairwise

import pytest
import zstandard

from producer.decompression import decompressor
from schemas.problems import BAD_COMPRESSION, Problem

MOST = 4 * 1024 * 1024
"""Bytes that no piece may have."""


def frame(*blocks: tuple[int, int, bytes]) -> bytes:
    """Spell a frame of zstandard (RFC 8878) with a window of 8 MiB, of blocks by type, size and content."""
    last = len(blocks) - 1
    heads = [(size << 3 | kind << 1 | (at == last)).to_bytes(3, "little") for at, (kind, size, _) in enumerate(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x68" + b"".join(head + block[2] for head, block in zip(heads, blocks, strict=True))


def test_a_block_of_four_bytes_stands_for_a_hundred_thousand() -> None:
    """However many come at once, they are decompressed one after the other."""
    repeated = (1, 128 * 1024, b"\n")
    pieces = [len(piece) for piece in decompressor(b"\x28\xb5\x2f\xfd").decompress(frame(*[repeated] * 1000))]
    assert sum(pieces) == 1000 * 128 * 1024
    assert max(pieces) <= MOST


def test_a_bomb_of_gzip() -> None:
    """What comes of it comes in pieces, too."""
    made = zlib.compressobj(wbits=31)
    bomb = made.compress(bytes(100_000_000)) + made.flush()
    pieces = [len(piece) for piece in decompressor(bomb[:4]).decompress(bomb)]
    assert sum(pieces) == 100_000_000
    assert max(pieces) <= MOST


@pytest.mark.parametrize("size", [1, 7, 64, 65, 4096])
def test_frames_and_pieces_end_anywhere(size: int) -> None:
    """Two frames come out whole, cut wherever the network did."""
    text = b"".join(b"%d\n" % number for number in range(30_000))
    data = zstandard.ZstdCompressor().compress(text) + zstandard.ZstdCompressor().compress(b"the end")
    plain = decompressor(data[:4])
    cuts = [*range(0, len(data), size), len(data)]
    assert b"".join(b"".join(plain.decompress(data[one:other])) for one, other in pairwise(cuts)) == text + b"the end"
    assert plain.whole


def test_what_is_no_block() -> None:
    """A block of a type that there is not ends the upload."""
    with pytest.raises(Problem) as refused:
        list(decompressor(b"\x28\xb5\x2f\xfd").decompress(frame((3, 1, b"x"))))
    assert refused.value.kind is BAD_COMPRESSION
