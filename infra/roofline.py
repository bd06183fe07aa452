"""What a GPU could do at most: the arithmetic of reading a prompt, against the published peak of the GPU.

Reading a prompt is bound by computing, so the peak of the tensor cores is the roof. Per token it takes two operations
for each weight of the layers (the embedding is a look-up, and the output layer is computed for the last token alone),
and causal attention over half of the prompt on average: 2 * layers * width * prompt length.
"""

from typing import Literal

from schemas.engine import ModelShape, Quantisation

Precision = Literal["fp8", "bf16"]

LLAMA_8B = ModelShape(
    layers=32, hidden=4096, intermediate=14336, heads=32, key_value_heads=8, head_size=128, vocabulary=128_256
)
"""Llama-3.1-8B, of which the judge was made."""

PEAKS: dict[str, dict[Precision, float]] = {
    "h100": {"bf16": 989.4, "fp8": 1978.9},
    "h200": {"bf16": 989.4, "fp8": 1978.9},
}
"""Dense tensor-core peaks of NVIDIA's data sheets for the SXM boards, in TFLOPS."""

_BOARDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
"""Those boards, by the name that the driver gives."""


def matmul_weights(shape: ModelShape) -> int:
    """Count the weights that every token is multiplied with."""
    attention = 2 * shape.hidden * shape.head_size * (shape.heads + shape.key_value_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def operations_per_token(shape: ModelShape, prompt_tokens: float) -> float:
    """Count the floating-point operations that reading one token of a prompt of this length takes on average."""
    return 2.0 * matmul_weights(shape) + 2.0 * shape.layers * shape.heads * shape.head_size * prompt_tokens


def peak_tflops(board: str, quantisation: Quantisation) -> float | None:
    """Look up a board's dense peak for this arithmetic; None where it is not known here.

    Halves of either kind are as fast, and 4-bit weights compute in them.
    """
    gpu = _BOARDS.get(board)
    return None if gpu is None else PEAKS[gpu]["fp8" if quantisation == "fp8" else "bf16"]


def roof_tokens_per_second(shape: ModelShape, prompt_tokens: float, tflops: float) -> float:
    """The most prompt tokens a second that this peak allows."""
    return tflops * 1e12 / operations_per_token(shape, prompt_tokens)
