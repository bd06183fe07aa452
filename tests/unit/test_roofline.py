"""What a GPU could do at most, for whoever plans with it and whoever measures against it."""

import pytest

from infra.roofline import LLAMA_8B, matmul_weights, operations_per_token, peak_tflops, roof_tokens_per_second


def test_the_weights_of_llama_3_1_8b():
    """32 layers of 218.1 million weights take part in every token, and so do 13.96 billion operations."""
    assert matmul_weights(LLAMA_8B) == 32 * 218_103_808
    assert operations_per_token(LLAMA_8B, 0) == pytest.approx(13.96e9, rel=0.001)


@pytest.mark.parametrize("board", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
@pytest.mark.parametrize(
    ("tokens", "fp8", "half"),
    [(1024, 139e3, 69.5e3), (2048, 137e3, 68.3e3), (4096, 132e3, 65.8e3), (8192, 123e3, 61.4e3)],
)
def test_the_roof_of_a_board(board: str, tokens: int, fp8: float, half: float):
    """The published peaks give the token rates of docs/gpu.md at most, by prompt length and arithmetic."""
    for quantisation, roof in (("fp8", fp8), ("bf16", half), ("fp16", half), ("int4_awq", half)):
        peak = peak_tflops(board, quantisation)
        assert roof_tokens_per_second(LLAMA_8B, tokens, peak) == pytest.approx(roof, rel=0.005)


def test_an_unknown_board_has_no_roof():
    """Nothing is made up for it."""
    assert peak_tflops("NVIDIA L4", "fp8") is None
