"""What is read from a model file's header, and what is refused. The files are written here byte by byte."""

import struct
from pathlib import Path

import pytest

from worker.engines.gguf import GgufError, GgufHeader, read_gguf

U8, I32, F32, BOOL, STRING, ARRAY, U32, U64 = 0, 5, 6, 7, 8, 9, 4, 10


def text(value: str) -> bytes:
    """A text as GGUF writes it: its length, then its bytes."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    """One key with its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes) -> bytes:
    """An array's value."""
    return struct.pack("<IQ", kind, length) + items


def gguf(*entries: bytes, version: int = 3, claimed: int | None = None) -> bytes:
    """A file of nothing but metadata."""
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries) if claimed is None else claimed) + b"".join(entries)


MODEL = gguf(
    entry("general.architecture", STRING, text("llama")),
    entry("general.name", STRING, text("Skywork Critic Llama 3.1 8B")),
    entry("general.file_type", U32, struct.pack("<I", 15)),
    entry("llama.context_length", U32, struct.pack("<I", 131072)),
    entry("llama.rope.freq_base", F32, struct.pack("<f", 500000.0)),
    entry("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
    entry("tokenizer.ggml.tokens", ARRAY, array(STRING, 3, text("a") + text("") + text("[["))),
    entry("tokenizer.ggml.token_type", ARRAY, array(I32, 3, struct.pack("<3i", 1, 1, 1))),
    entry("tokenizer.chat_template", STRING, text("{{ messages }} é")),
)


def read(folder: Path, data: bytes) -> GgufHeader:
    """Put the bytes in a file and read it."""
    path = folder / "model.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def test_a_model_file_tells_what_it_is(tmp_path: Path) -> None:
    """Name, family, storage, context, vocabulary and chat template all come from the file itself."""
    header = read(tmp_path, MODEL + b"tensors follow")
    assert header.name == "Skywork Critic Llama 3.1 8B"
    assert header.architecture == "llama"
    assert header.quantisation == "Q4_K_M"
    assert header.context_length == 131072
    assert header.vocabulary == 3
    assert header.chat_template == "{{ messages }} é"
    assert header.parts == 1
    assert header.values["tokenizer.ggml.add_bos_token"] is True
    assert header.values["llama.rope.freq_base"] == 500000.0
    assert header.array_lengths["tokenizer.ggml.token_type"] == 3
    assert header.longest_texts == {"tokenizer.ggml.tokens": 2}
    assert header.letters == {"tokenizer.ggml.tokens": {"a", "", "[["}}


def test_a_file_that_tells_nothing_is_still_a_file(tmp_path: Path) -> None:
    """What the metadata leaves out is None, and its storage is unknown."""
    header = read(tmp_path, gguf())
    assert (header.name, header.architecture, header.context_length, header.chat_template) == (None,) * 4
    assert header.quantisation == "unknown"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "F32"),
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (7, "Q8_0"),
        (18, "Q6_K"),
        (25, "IQ4_NL"),
        (30, "IQ4_XS"),
        (32, "BF16"),
        (999, "file type 999"),
    ],
)
def test_storage_types_have_names(tmp_path: Path, number: int, name: str) -> None:
    """The file's number for how weights are stored becomes the name in use; a new one stays a number."""
    header = read(tmp_path, gguf(entry("general.file_type", U32, struct.pack("<I", number))))
    assert header.quantisation == name


def test_values_of_the_wrong_kind_are_not_believed(tmp_path: Path) -> None:
    """A name that is a number and a file type that is a text are the same as none."""
    header = read(
        tmp_path,
        gguf(
            entry("general.name", U8, b"\x07"),
            entry("general.file_type", STRING, text("seven")),
            entry("general.architecture", STRING, text("")),
            entry("split.count", I32, struct.pack("<i", -3)),
        ),
    )
    assert (header.name, header.architecture, header.quantisation, header.parts) == (None, None, "unknown", 1)


def test_a_split_model_says_how_many_parts_it_has(tmp_path: Path) -> None:
    """A model in several files is recognised from the first."""
    assert read(tmp_path, gguf(entry("split.count", U8, b"\x04"))).parts == 4


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """Wherever a download stopped within the metadata, the error says so instead of a guess being made."""
    for length in range(len(MODEL)):
        with pytest.raises(GgufError, match=r"is truncated|not a GGUF file"):
            read(tmp_path, MODEL[:length])


@pytest.mark.parametrize("data", [b"", b"GG", b"<!DOCTYPE html>", b"\x89PNG\r\n", b"FUGG" + MODEL[4:]])
def test_another_kind_of_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """An empty file, a web page saved as a model and the like are named for what they are not."""
    with pytest.raises(GgufError, match="not a GGUF file"):
        read(tmp_path, data)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_an_unknown_version_is_refused(tmp_path: Path, version: int) -> None:
    """Versions from the past, from the future and of the other byte order are not guessed at."""
    with pytest.raises(GgufError, match="has GGUF version"):
        read(tmp_path, gguf(version=version))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A wrong path and a folder in the place of a file give an error with the path in it."""
    with pytest.raises(GgufError, match=r"nowhere\.gguf cannot be read: No such file"):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(GgufError, match="cannot be read"):
        read_gguf(tmp_path)


HUGE = struct.pack("<Q", 2**64 - 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf(claimed=2**40), "claims .* metadata entries"),
        (gguf(HUGE), "claims .* bytes in a text"),
        (gguf(entry("x", STRING, HUGE)), "claims .* bytes in a text"),
        (gguf(entry("x", STRING, struct.pack("<Q", 1 << 20))), "is truncated"),
        (gguf(entry("x", ARRAY, array(U8, 2**63, b""))), "claims .* items in an array"),
        (gguf(entry("x", ARRAY, array(U64, 1 << 20, b""))), "is truncated"),
        (gguf(entry("x", ARRAY, array(STRING, 2, text("a") + HUGE))), "claims .* bytes in a text"),
        (gguf(entry("x", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0")))), "arrays within arrays"),
        (gguf(entry("x", ARRAY, array(77, 1, b"\0"))), "unknown type 77"),
        (gguf(entry("x", 13, b"\0" * 8)), "unknown type 13"),
    ],
)
def test_hostile_claims_cost_nothing(tmp_path: Path, data: bytes, reason: str) -> None:
    """Claims of endless texts, nested arrays or unknown kinds are refused before memory is taken."""
    with pytest.raises(GgufError, match=reason):
        read(tmp_path, data)


def test_names_that_are_not_unicode_are_read_with_marks(tmp_path: Path) -> None:
    """Bytes that are no text do not stop a model from being loaded."""
    assert read(tmp_path, gguf(entry("general.name", STRING, struct.pack("<Q", 2) + b"a\xff"))).name == "a\ufffd"
