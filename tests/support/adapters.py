"""Low-rank adapters in GGUF, written byte by byte: one map of the embedded model's last layer, changed by one row."""

import struct
from array import array
from pathlib import Path

_STRING, _FLOAT = 8, 6
_F32 = 0
_ALIGNMENT = 32
ROWS, COLUMNS = 576, 1536
"""Of the map that is changed."""


def write_adapter(path: Path, *, strength: float, **texts: str) -> Path:
    """Write an adapter of rank 1.

    Args:
        path: the file.
        strength: every number of its second factor; 0 changes nothing.
        texts: metadata, with `__` for a dot.
    """
    metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    metadata |= {key.replace("__", "."): value for key, value in texts.items()}
    entries = [_text(key) + struct.pack("<I", _STRING) + _text(value) for key, value in metadata.items() if value]
    entries.append(_text("adapter.lora.alpha") + struct.pack("<If", _FLOAT, 1.0))
    # Rows of the first factor alternate in sign, so that what they add up to depends on the input.
    factors = {
        "lora_a": ((COLUMNS, 1), array("f", [(-1) ** place for place in range(COLUMNS)])),
        "lora_b": ((1, ROWS), array("f", [strength * (-1) ** place for place in range(ROWS)])),
    }
    infos, data = b"", b""
    for name, (shape, numbers) in factors.items():
        infos += _text(f"blk.29.ffn_down.weight.{name}") + struct.pack("<IQQIQ", 2, *shape, _F32, len(data))
        data += _aligned(numbers.tobytes())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(factors), len(entries)) + b"".join(entries) + infos
    path.write_bytes(_aligned(head) + data)
    return path


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
