"""A strict stand-in of TensorRT-LLM for tests.

It takes what the real library takes, refuses what that would refuse, answers with logits of the real shape and fails in
the real ways. It runs no model: its opinions are hashes of texts.
"""

import os
import sys
import warnings

from standin_model import behaviour

from tensorrt_llm._classes import BuildConfig, SamplingParams

__all__ = ["BuildConfig", "SamplingParams"]
__version__ = "1.2.1"

sys.stdout.write(f"[TensorRT-LLM] TensorRT LLM version: {__version__}\n")
os.write(1, b"[TensorRT-LLM][INFO] said by what is written in C++\n")

if behaviour().get("warns"):
    warnings.warn("a library that the library stands on is deprecated", FutureWarning, stacklevel=2)
