"""A strict stand-in of TensorRT-LLM for tests.

It takes what the real library takes, refuses what that would refuse, answers with logits of the real shape and fails in
the real ways. It runs no model: its opinions are hashes of texts.
"""

from tensorrt_llm._classes import BuildConfig, SamplingParams

__all__ = ["BuildConfig", "SamplingParams"]
__version__ = "1.2.1"
