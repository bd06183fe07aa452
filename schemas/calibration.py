"""A calibration: the temperature that a judge's log-odds are divided by, and which judge it is good for."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from schemas.verdict import Judge


class CalibratedJudge(BaseModel):
    """What a temperature is good for: a model as it is stored and asked. Another build of the engine may run it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str
    quantisation: str
    engine: str
    profile: str
    prompt: str

    @classmethod
    def of(cls, judge: Judge) -> "CalibratedJudge":
        """Leave out of a judge what does not matter to its temperature."""
        return cls.model_validate(judge.model_dump(include=set(cls.model_fields)))


class Calibration(BaseModel):
    """The file that `nightcourt eval calibrate` writes and workers read (`NIGHTCOURT_CALIBRATION_FILE`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: Literal["calibration"] = "calibration"
    version: Literal[1] = 1
    temperature: PositiveFloat = Field(allow_inf_nan=False, description="T in P = sigmoid(d / T)")
    low: float | None = Field(description="Of its 95 % interval")
    high: float | None
    pairs: int = Field(description="Gold pairs that it was fitted on")
    log_loss_before: float = Field(description="Held out, at temperature 1")
    log_loss_after: float = Field(description="Held out, at temperatures fitted on the other pairs")
    judge: CalibratedJudge

    @property
    def sha256(self) -> str:
        """Name the calibration in the provenance of verdicts, 'sha256:...'."""
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()
