"""Which systems meet next, on which prompts. Pure: what to do follows from what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import special

from producer.evals.numbers import Floats
from producer.evals.ratings import strengths
from producer.evals.rows import Pair

Schedule: TypeAlias = Literal["full", "baseline", "adaptive"]

_LEAST_INFORMATION = 0.01
"""Of a match that looks decided beforehand: early strengths are guesses."""
_REACH = 1.96
"""Standard errors from an estimate to the end of its 95 % interval."""
_PRIOR = 1e-3
"""Information that every system starts with, so that the covariance exists."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What all systems answered."""

    group: str
    """Of a prompt that is answered several times, the same: its rows are drawn together."""
    prompt: Any
    subset: str | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """The systems, the prompts, and every system's answer to every prompt."""

    systems: Sequence[str]
    prompts: Sequence[Prompt]
    answers: dict[str, list[Any]]
    """By system, in the order of the prompts."""
    seed: int = 0
    """Draws the order in which prompts are taken; the same for all pairs of systems."""
    order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        drawn = np.random.default_rng(self.seed).permutation(len(self.prompts))
        object.__setattr__(self, "order", [int(index) for index in drawn])

    def meetings(self, baseline: str | None = None) -> list[tuple[int, int]]:
        """List the pairs of systems, all of them or those with the baseline, by their indices."""
        pairs = list(combinations(range(len(self.systems)), 2))
        return [pair for pair in pairs if baseline is None or baseline in {self.systems[each] for each in pair}]

    def pair(self, meeting: tuple[int, int], nth: int) -> Pair:
        """Make the nth match of two systems."""
        index = self.order[nth]
        prompt = self.prompts[index]
        first, second = (self.systems[each] for each in meeting)
        return Pair(
            id=f"{index}:{meeting[0]}-{meeting[1]}",
            prompt=prompt.prompt,
            response_a=self.answers[first][index],
            response_b=self.answers[second][index],
            subset=prompt.subset,
            group=prompt.group,
            system_a=first,
            system_b=second,
        )


def spread_evenly(room: dict[tuple[int, int], int], size: int) -> dict[tuple[int, int], int]:
    """Give every pair of systems the same number of matches, as far as it has prompts left.

    Args:
        room: how many more matches each pair of systems can have.
        size: how many matches to give.
    """
    given = dict.fromkeys(room, 0)
    while size > 0:
        open_ = [meeting for meeting in room if given[meeting] < room[meeting]]
        if not open_:
            break
        for meeting in open_[:size]:
            given[meeting] += 1
        size -= len(open_[:size])
    return given


def seek(wins: Floats, room: dict[tuple[int, int], int], size: int) -> dict[tuple[int, int], int]:
    """Give matches to the pairs of systems that tell most of the order that is least sure.

    The least sure order is that of the neighbours in the ranking the interval of whose difference reaches lowest. A
    match of i and j adds p (1 - p) to the Fisher information of s_i - s_j; the next match is the one that
    takes most of the variance of that difference (c-optimal design, greedily, one match at a time).

    Args:
        wins: winner by loser, so far.
        room: how many more matches each pair of systems can have.
        size: how many matches to give.
    """
    meetings = list(room)
    strength = strengths(wins)
    design = np.zeros((len(meetings), len(wins)))
    for number, (first, second) in enumerate(meetings):
        design[number, first], design[number, second] = 1.0, -1.0
    chance = special.expit(design @ strength)
    information = np.maximum(chance * (1.0 - chance), _LEAST_INFORMATION)
    played = np.array([wins[first, second] + wins[second, first] for first, second in meetings])
    covariance = np.linalg.inv(_PRIOR * np.eye(len(wins)) + (design.T * (played * information)) @ design)
    ranking = np.argsort(-strength, kind="stable")
    neighbours = np.eye(len(wins))[ranking[:-1]] - np.eye(len(wins))[ranking[1:]]
    apart = neighbours @ strength
    given = dict.fromkeys(meetings, 0)
    for _ in range(min(size, sum(room.values()))):
        variances = np.einsum("ki,ij,kj->k", neighbours, covariance, neighbours)
        doubt = neighbours[np.argmin(apart - _REACH * np.sqrt(variances))]
        reach = design @ covariance
        gain = information * (reach @ doubt) ** 2 / (1.0 + information * np.einsum("ki,ki->k", reach, design))
        gain[[given[meeting] >= room[meeting] for meeting in meetings]] = -1.0
        best = int(np.argmax(gain))
        given[meetings[best]] += 1
        step = covariance @ design[best]
        covariance -= information[best] * np.outer(step, step) / (1.0 + information[best] * design[best] @ step)
    return given
