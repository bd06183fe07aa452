"""What an engine is: the six functions that the judge asks of anything that runs a model.

An engine is thread-safe and batches inside. It deals in token ids: text goes in through `encode` alone, so that there
is one place where candidate text could turn into a control token, and it is told not to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

VERDICT_OPENING = "[["
"""What the assistant's turn is opened with, so that the next token is the verdict."""
LEAST_LOGPROB = -104.0
"""Below the smallest probability that a 32-bit float can hold."""


class Prompt(NamedTuple):
    """A conversation to be put to the model, and the beginning of the assistant's turn.

    Every `content` is plain text: no part of it may become a control token, whatever it spells.
    """

    messages: tuple[tuple[Literal["system", "user"], str], ...]
    opening: str = ""
    """Text that the assistant's turn starts with; `VERDICT_OPENING` where one forward pass is to decide."""


@dataclass(frozen=True, slots=True)
class VerdictTokens:
    """The ids of "A" and "B" as they stand right after `VERDICT_OPENING`, derived from the engine's own tokenizer."""

    a: int
    b: int


@dataclass(frozen=True, slots=True)
class EngineCard:
    """Who the engine is, and what it can take."""

    engine: str
    engine_build: str
    model: str
    weights: str
    """'sha256:...' of the weights, or of what determines the answers where there are none; 'unverified:sha256:...' of
    what a server says of itself, where nobody here can see the weights."""
    quantisation: str
    verdict_tokens: VerdictTokens
    max_prompt_tokens: int
    """The longest prompt that `score` takes, in tokens, opening included."""
    step_tokens: int
    """How many prompt tokens one engine step should hold. Admission lets in about this much at a time."""
    steps_ahead: int = 1
    """How many steps' worth admission lets in: 2 where the engine batches by itself and would idle between steps."""
    profile: str = "card"
    """The prompt profile that the model was made for: comparisons that ask for the judge's own are put in it."""
    simulated: bool = False
    caveat: str | None = None
    """What a reader must know before believing this engine's verdicts; None for the judge itself."""


@dataclass(slots=True)  # as `infra.filed.Filed` is
class Score:
    """The model's opinion at the token after a prompt."""

    log_odds: float
    """logit("A") - logit("B"). Infinite, with its sign, where the engine knows which of the two is likelier and not by
    how much; not a number where it knows neither."""
    mass: float
    """P("A") + P("B") over the whole vocabulary, 0 to 1; at least this much where the odds are not known."""
    cached_tokens: int
    """How many of the prompt's tokens were reused from an earlier prompt."""
    seconds: float
    """Engine time spent on this prompt."""


def is_number(score: Score) -> bool:
    """Whether both odds and mass are numbers that JSON has a word for."""
    return math.isfinite(score.log_odds) and math.isfinite(score.mass)


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedy text that the model wrote after a prompt."""

    text: str
    """What the model wrote, control tokens left out."""
    verdict: Score | None
    """The opinion right after the last `VERDICT_OPENING` that the model wrote itself, where the engine can tell."""
    generated_tokens: int
    cached_tokens: int
    seconds: float


class EngineError(Exception):
    """The engine failed at the work in hand. The work may be tried again, in smaller pieces.

    The message is stored and logged: it holds nothing of a prompt.
    """


class PromptTooLongError(EngineError):
    """The prompt is so long that its text alone proves that the engine does not take it."""


class TemplateRefusesError(EngineError):
    """The model's chat template does not take a conversation of this form, and never will."""


class EngineOutOfMemoryError(EngineError):
    """The engine had too little memory for the prompts that it was given together; fewer may fit."""


class EngineAwayError(EngineError):
    """What the engine asks answers nobody now. The work in hand was not asked, and nothing is said against it."""


class EngineGoneError(EngineError):
    """The engine cannot go on; the process must end, so that the lease brings the work back."""


def check_length(prompt: Sequence[int], card: EngineCard) -> None:
    """See that an engine takes a prompt of this length.

    Raises:
        EngineError: it does not.
    """
    if not 0 < len(prompt) <= card.max_prompt_tokens:
        raise EngineError(f"the prompt has {len(prompt)} tokens; this engine takes 1 to {card.max_prompt_tokens}")


class Engine(Protocol):
    """What the judge asks of an engine. All functions may be called from several threads at once."""

    @property
    def card(self) -> EngineCard:
        """Who this is and what it can take. Constant for the life of the engine."""
        ...

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """Apply the model's chat template and tokenise.

        Control tokens come from the template alone; the contents are tokenised with special-token parsing off.
        The length may exceed `card.max_prompt_tokens`: the caller decides what to do with a prompt too long.

        Raises:
            PromptTooLongError: it exceeds that by so much that it was not tokenised.
            TemplateRefusesError: the model has no form for this conversation; some take no system message.
        """
        ...

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Run one forward pass for each prompt and read the verdict token's odds.

        Args:
            prompts: token ids, each at most `card.max_prompt_tokens` long; neighbours that share a beginning are
                cheaper.
            salt: whose prompts these are. An engine that keeps what it computed, and can tell callers apart, uses
                it again for prompts of the same salt alone: how fast an answer comes is to tell nobody what
                somebody else asked.

        Returns:
            One score for each prompt, in the same order.

        Raises:
            EngineOutOfMemoryError: there was too little memory for so many prompts at once.
            EngineAwayError: nothing was asked, as nobody would be answered.
            EngineError: the step failed and may be tried again.
            EngineGoneError: the engine is of no more use.
        """
        ...

    def generate(self, prompt: Sequence[int], max_tokens: int, *, salt: str = "") -> Generation:
        """Let the model write greedily, at most `max_tokens` tokens, until it ends its turn. `salt` is as in `score`.

        Raises:
            EngineError: the step failed and may be tried again.
            EngineGoneError: the engine is of no more use.
        """
        ...

    def health(self) -> bool:
        """Whether the engine itself would take a prompt now. Where not, a restart of this process is what helps."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Nothing else may be called afterwards."""
        ...
