"""TensorRT-LLM 1.2.1 on one GPU: the engine for production, its build, and the reference that it is held to.

The only package that imports TensorRT-LLM, torch and transformers, and it does so within functions: nothing else of the
project needs them. Where it is written down that what it uses is there is in `tests/contract/test_tensorrt_llm_api.py`.
"""
