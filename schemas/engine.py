"""A built engine and the orders to build, verify and measure one.

The orders travel from the command line to the worker's commands as JSON: producers never import the worker.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Quantisation = Literal["fp8", "bf16", "fp16", "int4_awq"]

LEAST_ARCHITECTURE: dict[Quantisation, int] = {"fp8": 89, "bf16": 80, "int4_awq": 75, "fp16": 70}
"""The GPU architecture (compute capability times ten) from which on each is there: FP8 since Ada, BF16 since Ampere."""

NOT_FROM_ARCHITECTURE: dict[Quantisation, int] = {"int4_awq": 100}
"""TensorRT-LLM's own tests of 4-bit AWQ leave Blackwell out."""


def best_quantisation(architecture: int) -> Quantisation:
    """Choose for a GPU: FP8 where it has it, else BF16, else FP16."""
    if architecture >= LEAST_ARCHITECTURE["fp8"]:
        return "fp8"
    return "bf16" if architecture >= LEAST_ARCHITECTURE["bf16"] else "fp16"


class Limits(BaseModel):
    """What an engine is built to take. A longer context than 8,192 tokens has not been proven for the judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: PositiveInt = 64
    """Prompts in one step."""
    max_num_tokens: PositiveInt = 16384
    """Prompt tokens in one step."""
    max_seq_len: Annotated[int, Field(ge=256)] = 8192
    """The longest prompt with what is written after it, in tokens."""

    @property
    def max_input_len(self) -> int:
        """The longest prompt: one place is for the token after it."""
        return self.max_seq_len - 1


class ModelShape(BaseModel):
    """The sizes of a Llama, from its `config.json`: what its arithmetic is counted from."""

    model_config = ConfigDict(frozen=True)

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int


class FileMark(BaseModel):
    """A file of an engine folder, to the byte."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What an engine was built from, with what, and for which GPU. Stands in the folder as `nightcourt-engine.json`."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    model: str
    weights: str
    """'sha256:...' over the names and contents of the checkpoint's weight files and its `config.json`."""
    tokenizer: str
    """'sha256:...' over tokenizer and chat template."""
    prompt: str
    """Hash of the prompt profile that it was calibrated and is to be asked with, 'sha256:...'."""
    quantisation: Quantisation
    kv_cache: Literal["fp8", "as the weights"]
    calibration: str | None
    """'sha256:...' over the texts it was calibrated with; None where nothing was calibrated."""
    gpu_architecture: int
    """Compute capability times ten, for instance 90 for Hopper: engines do not run on another."""
    tensorrt_llm: str
    limits: Limits
    shape: ModelShape
    gpu: str
    """The name of the GPU that it was built on."""
    built_at: str
    files: dict[str, FileMark]

    def identity(self) -> dict[str, object]:
        """What has to agree for two engines to be the same: all but where, when and what came of it."""
        return self.model_dump(mode="json", exclude={"gpu", "built_at", "files", "shape"})


class BuildOrder(BaseModel):
    """Build an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    """A folder with a Hugging Face checkpoint, or the name of one on a hub, `owner/name`."""
    folder: Path
    """The engine folder to make."""
    name: str | None = None
    """What the model is called in verdicts; None takes the last part of `checkpoint`."""
    quantisation: Quantisation | None = None
    """None chooses by the GPU."""
    pairs: Path | None = None
    """Comparisons to calibrate with; needed for fp8 and int4_awq."""
    samples: PositiveInt = 512
    """Prompts of them to calibrate with, at most."""
    limits: Limits = Limits()
    as_json: bool = False


class BenchOrder(BaseModel):
    """Measure the engine that the settings name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: Path
    lengths: tuple[PositiveInt, ...] = ()
    """Prompt lengths in tokens; none takes the pairs as they are."""
    seconds: PositiveFloat = 30.0
    """How long to measure at each length."""
    in_flight: PositiveInt = 64
    """Threads that put comparisons to the engine at a time."""
    as_json: bool = False


class VerifyOrder(BaseModel):
    """Prove an engine against the checkpoint it was built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    checkpoint: str | None = None
    """For the reference in bf16: the folder or hub name that the engine was built from."""
    reference: Path | None = None
    """A reference computed before, instead of a checkpoint."""
    pairs: Path
    per_length: PositiveInt = 16
    """Prompts at each of the lengths of the parity check."""
    lengths: tuple[PositiveInt, ...] = (1024, 4096, 8192)
    """Lengths of the parity check, in tokens; the engine's own limit caps them."""
    soak: Annotated[int, Field(ge=0)] = 50_000
    """Prompts of the soak; 0 leaves it out. With fewer than by default the engine is not marked as verified."""
    seconds: PositiveFloat = 30.0
    """How long to measure throughput at each length."""
    in_flight: PositiveInt = 64
    peak_tflops: PositiveFloat | None = None
    """The GPU's dense peak, where it is not known here."""
    report: Path = Path("nightcourt-verify.json")
    as_json: bool = False

    @model_validator(mode="after")
    def _one_reference(self) -> "VerifyOrder":
        if (self.checkpoint is None) == (self.reference is None):
            raise ValueError("give either a checkpoint, for the reference to be computed, or a reference")
        return self
