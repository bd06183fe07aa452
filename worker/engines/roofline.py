"""What a GPU could do at most: the arithmetic of reading a prompt, against the published peak of the GPU.

Reading a prompt is bound by computing, so the peak of the tensor cores is the roof. Per token it takes two operations
for each weight of the layers (the embedding is a look-up, and the output layer is computed for the last token alone),
and causal attention over half of the prompt on average: 2 * layers * width * prompt length.
"""

from schemas.engine import ModelShape, Quantisation

# Dense tensor-core peaks of NVIDIA's data sheets, in TFLOPS, by the name that the driver gives.
_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H100 80GB HBM3": {"16 bit": 989.4, "fp8": 1978.9},
    "NVIDIA H200": {"16 bit": 989.4, "fp8": 1978.9},
}


def matmul_weights(shape: ModelShape) -> int:
    """Count the weights that every token is multiplied with."""
    attention = 2 * shape.hidden * shape.head_size * (shape.heads + shape.key_value_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def operations_per_token(shape: ModelShape, prompt_tokens: float) -> float:
    """Count the floating-point operations that reading one token of a prompt of this length takes on average."""
    return 2.0 * matmul_weights(shape) + 2.0 * shape.layers * shape.heads * shape.head_size * prompt_tokens


def peak_tflops(gpu: str, quantisation: Quantisation) -> float | None:
    """Look up a GPU's dense peak for this arithmetic; None where it is not known here. 4-bit weights compute in 16."""
    return _PEAKS.get(gpu, {}).get("fp8" if quantisation == "fp8" else "16 bit")


def roof_tokens_per_second(shape: ModelShape, prompt_tokens: float, tflops: float) -> float:
    """The most prompt tokens a second that this peak allows."""
    return tflops * 1e12 / operations_per_token(shape, prompt_tokens)
