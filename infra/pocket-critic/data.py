"""What the pocket critic learns from: pairs that people judged, and good answers beside worsened ones.

Nothing here needs more than Python; `pool.py` turns the pairs into token ids.
"""

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SEED = 20261128
"""Of the data. The seeds of training are others: all of them see the same pool."""

KINDS = {
    "other": 0.22,
    "long": 0.10,
    "near": 0.22,
    "cut": 0.11,
    "shuffled": 0.07,
    "appended": 0.06,
    "refusal": 0.05,
    "echo": 0.05,
    "repetition": 0.04,
    "blend": 0.05,
    "empty": 0.03,
}
"""Ways to make an answer worse, with their shares."""

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question.",
    "As a language model, I am not able to do that.",
    "Sorry, I don't know.",
    "I'm unable to assist with this request.",
    "Please ask me something else.",
)

LEAST_WORDS = 8
"""An answer of fewer words is not cut, shuffled, repeated, appended to or blended."""

MOST_ANSWERS = 3
"""Good answers taken of one question."""

MOST_JUDGED = {"rm-bench": 100}
"""Pairs taken of one set that people judged, where not `OTHERWISE_JUDGED`."""

OTHERWISE_JUDGED = 700

KEPT_OUT = {"pandalm": 0.3, "hhh-alignment": 0.5}
"""Shares of a set's prompts that are for evaluation alone."""

NEAR = 0.5
"""Two prompts are near when this share of the smaller one's word trigrams stands in the other."""


class Pair(NamedTuple):
    """Two answers to one question, the better one first."""

    question: str
    better: str
    worse: str
    kind: str
    """A key of `KINDS`, "real:" and the set's name; or "even" or "written", where nobody says which is better."""


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text: str, length: int = 3) -> frozenset[tuple[str, ...]]:
    """The word trigrams of a text; of a shorter text, all its words as one."""
    found = words(text)
    if len(found) <= length:
        return frozenset([tuple(found)])
    return frozenset(tuple(found[i : i + length]) for i in range(len(found) - length + 1))


def is_near(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    """Whether two prompts, given as their grams, are nearly the same."""
    return len(one & other) >= NEAR * min(len(one), len(other))


def without_near(rows: Iterable[dict[str, Any]], prompts: Iterable[str]) -> tuple[list[dict[str, Any]], int]:
    """Leave out rows whose prompt is near one of the prompts; also say how many were."""
    avoided = [grams(prompt) for prompt in prompts]
    kept, dropped = [], 0
    verdicts: dict[str, bool] = {}
    for row in rows:
        prompt = row["prompt"]
        if prompt not in verdicts:
            own = grams(prompt)
            verdicts[prompt] = any(is_near(own, other) for other in avoided)
        if verdicts[prompt]:
            dropped += 1
        else:
            kept.append(row)
    return kept, dropped


def split(
    rows: Sequence[dict[str, Any]], share: float, seed: int = SEED
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part rows by prompt into those to train on and those kept out; prompts near each other stay together."""
    groups: list[tuple[list[frozenset[tuple[str, ...]]], list[dict[str, Any]]]] = []
    for row in rows:
        own = grams(row["prompt"])
        for members, group in groups:
            if any(is_near(own, member) for member in members):
                members.append(own)
                group.append(row)
                break
        else:
            groups.append(([own], [row]))
    random.Random(seed).shuffle(groups)
    train: list[dict[str, Any]] = []
    kept_out: list[dict[str, Any]] = []
    for _, group in groups:
        (kept_out if len(kept_out) < share * len(rows) else train).extend(group)
    return train, kept_out


def worsen(kind: str, question: str, answer: str, other: str, chance: random.Random) -> str | None:
    """Make a worse answer of one kind; None where this answer is too short for it.

    Args:
        kind: a key of `KINDS`.
        question: what was asked.
        answer: a good answer.
        other: a good answer to another question (to a near one for the kind "near", a long one for "long").
        chance: where randomness comes from.
    """
    whole = {"other": other, "long": other, "near": other, "empty": "", "echo": question}
    if kind in whole:
        return whole[kind]
    if kind == "refusal":
        return chance.choice(REFUSALS)
    own, alien = answer.split(), other.split()
    half = len(own) // 2
    if len(own) < LEAST_WORDS:
        return None
    if kind == "cut":
        own = own[: max(2, int(len(own) * chance.uniform(0.15, 0.6)))]
    elif kind == "shuffled":
        chance.shuffle(own)
    elif kind == "repetition":
        part = own[: chance.randint(3, 8)]
        own = part * max(2, min(5, round(len(own) / len(part))))
    elif kind == "appended":
        own += alien[: max(6, half)]
    else:
        own = own[:half] + alien[len(alien) // 2 :]
    return " ".join(own)


def synthetic(sources: Sequence[tuple[str, str]], count: int, chance: random.Random) -> list[Pair]:
    """Make pairs of a good answer and a worsened one.

    Args:
        sources: questions with a good answer each.
        count: how many pairs.
        chance: where randomness comes from.
    """
    bags = [set(words(question)) for question, _ in sources]
    order = list(range(len(sources)))
    kinds, weights = list(KINDS), list(KINDS.values())
    pairs: list[Pair] = []
    while len(pairs) < count:
        chance.shuffle(order)
        for at in order:
            question, answer = sources[at]
            kind = chance.choices(kinds, weights)[0]
            rivals = [i for i in order if i != at and sources[i][0] != question and sources[i][1] != answer]
            if kind == "near":
                sample = chance.sample(rivals, min(150, len(rivals)))
                rivals = sorted(sample, key=lambda i: -len(bags[i] & bags[at]) / (1 + len(bags[i] | bags[at])))[:3]
            elif kind == "long":
                rivals = [max(chance.sample(rivals, min(12, len(rivals))), key=lambda i: len(sources[i][1]))]
            worse = worsen(kind, question, answer, sources[chance.choice(rivals)][1], chance)
            if worse is not None and worse != answer:
                pairs.append(Pair(question, answer, worse, kind))
            if len(pairs) == count:
                break
    return pairs


def even(sources: Sequence[tuple[str, str]], count: int, chance: random.Random) -> list[Pair]:
    """Pair answers of which neither is known to be better: two good ones, or two to other questions.

    They teach nothing but that the order of two answers makes no difference, and that where it is hardest to learn.

    Args:
        sources: questions with a good answer each, those of one question side by side.
        count: how many pairs.
        chance: where randomness comes from.
    """
    neighbours = itertools.pairwise(sources)
    pairs = [Pair(one[0], one[1], other[1], "even") for one, other in neighbours if one[0] == other[0]]
    chance.shuffle(pairs)
    pairs = pairs[: count // 2]
    while len(pairs) < count:
        (question, answer), (_, one), (_, other) = chance.sample(sources, 3)
        if len({answer, one, other}) == 3:  # noqa: PLR2004 - all three differ
            pairs.append(Pair(question, one, other, "even"))
    return pairs


def written(lines: Iterable[dict[str, Any]], answers: Iterable[tuple[str, str]], chance: random.Random) -> list[Pair]:
    """Pair what the packaged model wrote to a question: its two answers, and each of them with a good one.

    They are what a judge is asked in earnest, and teach, as even ones do, that the order makes no difference.

    Args:
        lines: what `write.py` wrote.
        answers: questions with a good answer each.
        chance: where randomness comes from.
    """
    good: dict[str, list[str]] = defaultdict(list)
    for question, answer in answers:
        good[question].append(answer)
    pairs = []
    for line in lines:
        question, (first, second) = line["question"], line["answers"]
        both = [(first, second), *((chance.choice(good[question]), own) for own in (first, second))]
        pairs += [Pair(question, one, other, "written") for one, other in both if one and other and one != other]
    return pairs


def read(path: Path) -> list[dict[str, Any]]:
    """Read a file of rows, JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def gather(folder: Path) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Read every set: rows to train on, rows kept out by set, and an account of both."""
    avoided = [row["prompt"] for row in read(folder / "llmbar.jsonl")]
    train: list[dict[str, Any]] = []
    kept_out: dict[str, list[dict[str, Any]]] = {}
    account: dict[str, Any] = {}
    for name in ("train/pandalm", "train/rmbench_short", "evalbiasbench", "hhh_alignment", "mtbench_human_llmbar200"):
        rows = read(folder / f"{name}.jsonl")
        free = [row for row in rows if row.get("source") != "alpacaeval"]
        far, near = without_near(free, avoided)
        dataset = rows[0]["dataset"]
        rest = far
        if dataset in KEPT_OUT:
            rest, kept_out[dataset] = split(far, KEPT_OUT[dataset])
            rest, crossing = without_near(rest, [row["prompt"] for row in kept_out[dataset]])
            near += crossing
        train += rest
        account[dataset] = {
            "rows": len(rows),
            "of alpacaeval": len(rows) - len(free),
            "near LLMBar's or kept-out prompts": near,
            "kept out": len(kept_out.get(dataset, ())),
            "left to train on": len(rest),
        }
    return train, kept_out, account


def good_answers(rows: Iterable[dict[str, Any]], own: Path) -> list[tuple[str, str]]:
    """Questions with an answer that people preferred, and our own: at most three answers a question."""
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        better = row["response_a"] if row["label"] == "A" else row["response_b"]
        harmful = row["subset"].startswith(("safety-refuse", "harmless"))
        if better.strip() and not harmful and len(answers[row["prompt"]]) < MOST_ANSWERS:
            answers[row["prompt"]].add(better.strip())
    found = [(question, answer) for question, many in answers.items() for answer in sorted(many)]
    lines = [line.split("\t") for line in own.read_text().splitlines()]
    return found + [(question, answer.replace("\\n", "\n")) for question, answer in lines]


def judged(rows: Iterable[dict[str, Any]], chance: random.Random) -> list[Pair]:
    """The pairs of rows that people judged, shuffled; no more of one set than its share."""
    pairs = []
    for row in rows:
        first, second = row["response_a"], row["response_b"]
        better, worse = (first, second) if row["label"] == "A" else (second, first)
        pairs.append(Pair(row["prompt"], better, worse, f"real:{row['dataset']}"))
    chance.shuffle(pairs)
    return pairs
