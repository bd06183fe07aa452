"""A stand-in of transformers for tests: a model that has the stand-in's opinions."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from standin_model import StandInModel


class _Output(NamedTuple):
    logits: torch.Tensor


class _Model:
    def __init__(self, folder: Path) -> None:
        self._model = StandInModel(folder)
        self._on = "cpu"

    def to(self, device: str) -> "_Model":
        self._on = device
        return self

    def eval(self) -> "_Model":
        return self

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> _Output:
        assert self._on == "cuda"
        assert (use_cache, logits_to_keep) == (False, 1)
        [ids] = input_ids.tolist()
        return _Output(torch.Tensor([[self._model.row(self._model.log_odds(ids))]], torch.bfloat16))


class AutoModelForCausalLM:
    """Loads the model of a folder."""

    @classmethod
    def from_pretrained(cls, folder: str, *, dtype: str, local_files_only: bool) -> Any:
        """Load it in bf16, from the disk alone."""
        assert dtype == torch.bfloat16
        assert local_files_only
        return _Model(Path(folder))
