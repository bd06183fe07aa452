"""Reads the header of a GGUF file: what the model is called, how it is stored, what it was trained for.

A model file comes from anywhere, so every length in it is checked before it is believed: the work done here
is bounded by fixed limits and by the size of the file, and no text of it is longer in memory than
`MAX_TEXT`.
"""

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

Scalar = str | int | float | bool

MAX_ENTRIES = 65_536
MAX_KEY = 65_535
MAX_TEXT = 1 << 24
MAX_ITEMS = 1 << 23

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_LETTER_BYTES = 2
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
}


class GgufError(ValueError):
    """The file is not a GGUF file that can be read."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata of one GGUF file."""

    values: dict[str, Scalar] = field(default_factory=dict)
    array_lengths: dict[str, int] = field(default_factory=dict)
    """Arrays (a vocabulary, its merges) are skipped; how long they are is kept, and of arrays of texts a little."""
    longest_texts: dict[str, int] = field(default_factory=dict)
    """How many bytes the longest text of an array has."""
    letters: dict[str, frozenset[str]] = field(default_factory=dict)
    """The texts of an array that have one or two bytes."""

    @property
    def name(self) -> str | None:
        """The model's name, where the file gives one."""
        return self._text("general.name")

    @property
    def architecture(self) -> str | None:
        """The family of the model, such as "llama"."""
        return self._text("general.architecture")

    @property
    def chat_template(self) -> str | None:
        """The chat template, in Jinja."""
        return self._text("tokenizer.chat_template")

    @property
    def quantisation(self) -> str:
        """How the weights are stored, such as "Q4_K_M"."""
        number = self._count("general.file_type")
        return "unknown" if number is None else _FILE_TYPES.get(number, f"file type {number}")

    @property
    def context_length(self) -> int | None:
        """How many tokens the model was trained to see at once."""
        return self._count(f"{self.architecture}.context_length")

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model knows."""
        return self.array_lengths.get("tokenizer.ggml.tokens")

    @property
    def parts(self) -> int:
        """How many files the model was split into."""
        return self._count("split.count") or 1

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    def _count(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_gguf(path: Path) -> GgufHeader:
    """Read the metadata of a GGUF file.

    Raises:
        GgufError: the file is missing, is no GGUF file, is truncated, or claims what no honest file claims.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            if start != _MAGIC:
                raise GgufError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(view, path).header()
    except OSError as error:
        raise GgufError(f"the model file {path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """A cursor over the bytes of one file."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self._view = view
        self._path = path
        self._at = len(_MAGIC)

    def header(self) -> GgufHeader:
        version = self._number("<I")
        if version not in _VERSIONS:
            raise self._fault(f"has GGUF version {version}; versions 2 and 3, little-endian, are understood")
        self._number("<Q")  # how many tensors there are
        entries = self._length("metadata entries", MAX_ENTRIES)
        header = GgufHeader()
        for _ in range(entries):
            key = self._text(MAX_KEY)
            kind = int(self._number("<I"))
            if kind == _ARRAY:
                self._skip_array(header, key)
            elif kind == _STRING:
                header.values[key] = self._text(MAX_TEXT)
            else:
                header.values[key] = self._number(self._layout(kind))
        return header

    def _skip_array(self, header: GgufHeader, key: str) -> None:
        kind = int(self._number("<I"))
        length = self._length("items in an array", MAX_ITEMS)
        if kind == _STRING:
            longest, letters = 0, set()
            for _ in range(length):
                size = self._length("bytes in a text", MAX_TEXT)
                at = self._take(size)
                longest = max(longest, size)
                if size <= _LETTER_BYTES:
                    letters.add(self._view[at : at + size].decode("utf-8", "replace"))
            header.longest_texts[key], header.letters[key] = longest, frozenset(letters)
        elif kind == _ARRAY:
            raise self._fault("holds arrays within arrays, which no model needs")
        else:
            self._take(length * struct.calcsize(self._layout(kind)))
        header.array_lengths[key] = length

    def _text(self, limit: int) -> str:
        size = self._length("bytes in a text", limit)
        at = self._take(size)
        return self._view[at : at + size].decode("utf-8", "replace")

    def _length(self, of_what: str, limit: int) -> int:
        length = int(self._number("<Q"))
        if length > limit:
            raise self._fault(f"claims {length} {of_what}; at most {limit} are believed")
        return length

    def _layout(self, kind: int) -> str:
        layout = _NUMBERS.get(kind)
        if layout is None:
            raise self._fault(f"holds a value of unknown type {kind}")
        return layout

    def _number(self, layout: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(layout, self._view, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, size: int) -> int:
        """Step over `size` bytes and say where they begin."""
        at = self._at
        if at + size > len(self._view):
            raise self._fault("is truncated: it ends within its own metadata")
        self._at = at + size
        return at

    def _fault(self, what: str) -> GgufError:
        return GgufError(f"the model file {self._path} {what}")
