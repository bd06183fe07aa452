"""Ballots, verdicts and what they were made with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Order = Literal["ab", "ba"]
Winner = Literal["A", "B", "tie"]


class Ballot(BaseModel):
    """What the model said of one comparison in one order.

    `log_odds` is as the model said it *in that order*: positive means that the answer shown first is better.
    In order "ab" response A was shown first, in order "ba" response B was.
    """

    model_config = ConfigDict(frozen=True)

    order: Order
    log_odds: float | None = Field(
        description="logit('A') - logit('B') at the verdict token; null where the engine gave a vote without odds"
    )
    mass: float | None = Field(
        description="Probability that the model put on 'A' and 'B' together at the verdict token, 0 to 1"
    )
    vote: Literal["A", "B"] = Field(
        description="The slot that the model preferred in this order; A where it found both exactly as likely"
    )

    @property
    def choice(self) -> Literal["A", "B"]:
        """The response that stood in that slot."""
        if self.order == "ab":
            return self.vote
        return "B" if self.vote == "A" else "A"


class Judge(BaseModel):
    """What a verdict was made with: enough to tell two judges apart and to make the verdict again."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model's own name")
    weights: str = Field(
        description="Hash of the weights, 'sha256:...'; 'unverified:sha256:...' for what a server says of its model"
    )
    quantisation: str = Field(description="How the weights are stored, for instance 'Q4_K_M' or 'FP8'")
    engine: str = Field(description="The engine that ran the model, for instance 'llama_cpp'")
    engine_build: str = Field(description="The engine's version")
    profile: str = Field(description="The prompt profile")
    prompt: str = Field(description="Hash of the profile's prompt text, 'sha256:...'")
    temperature: float = Field(description="T in P = sigmoid(d / T); 1 unless calibrated")
    calibration: str | None = Field(
        default=None, description="Hash of the calibration that T comes from, 'sha256:...'; null where there is none"
    )
    simulated: bool = Field(description="True where no model was asked at all")
    caveat: str | None = Field(description="What a reader must know before believing the verdict")


class Tally(BaseModel):
    """What the ballots of one comparison add up to.

    With s1 the log-odds in order "ab" and s2 in order "ba": d = (s1 - s2) / 2, b = (s1 + s2) / 2,
    probability_a = sigmoid(d / T), consistent iff s1 * s2 < 0. With one ballot only, d is that ballot's s (or -s).
    """

    model_config = ConfigDict(frozen=True)

    winner: Winner
    probability_a: float | None = Field(description="P(response A is better); null where the engine gave votes only")
    consistent: bool | None = Field(description="Whether both orders agreed; null with a single order")
    position_bias: float | None = Field(
        description="b, in log-odds: how far the model leaned to the first slot; null with a single order"
    )
    ballots: list[Ballot]


class Usage(BaseModel):
    """What a verdict cost."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt tokens, how many were reused from an earlier prompt")
    gpu_seconds: float = Field(description="Seconds of engine time, on a GPU or on what stands in for one")
    reused: bool = Field(
        default=False,
        description="Answered from the stored verdict of the same comparison by the same judge, at no cost",
    )


class Verdict(Tally):
    """A tally, who made it, and what it cost."""

    judge: Judge
    usage: Usage
