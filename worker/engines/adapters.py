"""Low-rank adapters: small files that make another model of one, without a copy of it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from infra.engine_folder import hash_file
from worker.engines.gguf import read_gguf


class AdapterError(ValueError):
    """The file is no adapter, or not one over this model."""


class Adapter(NamedTuple):
    """An adapter over a model."""

    name: str
    profile: str
    """The prompt profile that it was trained with."""
    weights: str
    """The fingerprint of model and adapter together."""


def fingerprint(file: Path) -> str:
    """Hash a file, 'sha256:...'."""
    return f"sha256:{hash_file(file)}"


def read_adapter(file: Path, *, over: str) -> Adapter:
    """Understand an adapter in GGUF.

    Args:
        file: the adapter.
        over: the fingerprint of the model that it is to be put over. An adapter of nightcourt's own making names its
            model, and any other is taken at its user's word.

    Raises:
        GgufError: it is no GGUF file.
        AdapterError: it is no adapter, or was made over another model.
    """
    header = read_gguf(file)
    if header.values.get("adapter.type") != "lora":
        raise AdapterError(f"{file.name} is no LoRA adapter; NIGHTCOURT_ADAPTER takes the path of one in GGUF")
    base = str(header.values.get("nightcourt.base", over))
    if base != over:
        raise AdapterError(
            f"{file.name} was made over the model {base[:19]} and would only spoil this one, {over[:19]}: set "
            "NIGHTCOURT_MODEL to the model that it was made over, or unset NIGHTCOURT_ADAPTER"
        )
    both = hashlib.sha256(f"{over} {fingerprint(file)}".encode()).hexdigest()
    profile = str(header.values.get("nightcourt.profile", "card"))
    return Adapter(name=header.name or file.stem, profile=profile, weights=f"sha256:{both}")
