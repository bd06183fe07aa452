"""Measures the pocket critic as it ships: the adapter over the packaged model, run by nightcourt's own engine.

    python infra/pocket-critic/evaluate.py FOLDER OUT untrained OUT/seed-1.gguf OUT/seed-2.gguf ...

Run with nightcourt's own environment. Every judge is asked the very same rows in both orders; so are two judges that
read nothing: `overlap` takes the answer that shares more words with the question, `longer` the longer one. What was
answered is kept in OUT, a file a judge, so that a run that was cut goes on; `evaluation.json` and `evaluation.md` there
have the figures.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import data
import numpy as np

from infra.filed import Filed
from infra.local.model import embedded_model
from producer.evals.numbers import wilson
from worker import prompts
from worker.engines.llama_cpp import LlamaCppEngine

SEED = 7
LONGEST_TOKENS = 512
"""Rows with a longer prompt are left out, for time: the same ones for every judge."""
MOST_ROWS = {"mismatched": 100, "pandalm, kept out": 60, "hhh-alignment, kept out": 40}
"""Rows asked of a set, drawn by `SEED`, for time; of the others all."""


class Row(NamedTuple):
    """One question with two answers, the better one first."""

    key: str
    question: str
    better: str
    worse: str


class Figures(NamedTuple):
    """How a judge did on a set."""

    rows: int
    accuracy: float
    """Share of right ballots, both orders averaged."""
    low: float
    high: float
    """Wilson's 95 % interval of the accuracy, with as many trials as rows."""
    verdicts: float
    """Share of right verdicts, the two orders' odds taken together; a tie counts half."""
    consistent: float
    """Share of rows on which both orders prefer the same answer."""
    picks_a: float
    """Share of ballots for the slot A."""


def figures(odds: Sequence[tuple[float, float]]) -> Figures:
    """Add up ballots.

    Args:
        odds: of A over B, with the better answer as A and then as B, for each row; 0 is a vote for neither.
    """
    right = np.array([(_half_step(first) + _half_step(-second)) / 2 for first, second in odds])
    low, high = wilson([str(row) for row in range(len(odds))], right)
    return Figures(
        rows=len(odds),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        verdicts=sum(_half_step(first - second) for first, second in odds) / len(odds),
        consistent=sum(first * second < 0 for first, second in odds) / len(odds),
        picks_a=sum(_half_step(first) + _half_step(second) for first, second in odds) / (2 * len(odds)),
    )


def _half_step(odds: float) -> float:
    return 0.5 if odds == 0 else float(odds > 0)


def rows_of(folder: Path) -> dict[str, list[Row]]:
    """All rows by set: LLMBar's subsets, mismatched pairs made of its prompts, and what was kept out of training."""
    sets: dict[str, list[Row]] = {"mismatched": []}
    llmbar = data.read(folder / "llmbar.jsonl")
    answers = [row["response_a"] if row["label"] == "A" else row["response_b"] for row in llmbar]
    # Everyone gets the answer of the next in a shuffled round, so that nobody gets his own.
    order = list(range(len(llmbar)))
    random.Random(SEED).shuffle(order)
    for at, after in zip(order, order[1:] + order[:1], strict=True):
        key = f"mismatched {llmbar[at]['id']} {llmbar[after]['id']}"
        sets["mismatched"].append(Row(key, llmbar[at]["prompt"], answers[at], answers[after]))
    for row in llmbar:
        sets.setdefault(row["subset"], []).append(_row(row))
    _, kept_out, _ = data.gather(folder)
    for name, rows in kept_out.items():
        sets[f"{name}, kept out"] = [_row(row) for row in rows]
    return sets


def _row(row: dict[str, Any]) -> Row:
    better, worse = ("response_a", "response_b") if row["label"] == "A" else ("response_b", "response_a")
    return Row(row["id"], row["prompt"], row[better], row[worse])


def overlap(row: Row) -> tuple[float, float]:
    """Prefer the answer with more of the question's words."""
    asked = set(data.words(row.question))
    odds = float(len(asked & set(data.words(row.better))) - len(asked & set(data.words(row.worse))))
    return odds, -odds


def longer(row: Row) -> tuple[float, float]:
    """Prefer the longer answer."""
    odds = float(len(row.better) - len(row.worse))
    return odds, -odds


def encoded(engine: LlamaCppEngine, row: Row) -> tuple[list[int], list[int]]:
    """Put a row to the engine with the better answer as A, and as B."""
    comparison = Filed(0, None, row.question, row.better, row.worse, "both", "pocket", None, {})
    return engine.encode(prompts.build(comparison, "ab")), engine.encode(prompts.build(comparison, "ba"))


def choose(sets: dict[str, list[Row]], engine: LlamaCppEngine) -> dict[str, list[Row]]:
    """The rows that every judge is asked."""
    chosen = {}
    for name, rows in sets.items():
        short = [row for row in rows if max(map(len, encoded(engine, row))) <= LONGEST_TOKENS]
        random.Random(SEED).shuffle(short)
        chosen[name] = short[: MOST_ROWS.get(name)]
    return chosen


def ask(engine: LlamaCppEngine, rows: Sequence[Row], kept: Path) -> dict[str, tuple[float, float]]:
    """Ask what was not asked yet, and keep each answer."""
    answers: dict[str, tuple[float, float]] = {}
    if kept.exists():
        answers = {line["row"]: tuple(line["odds"]) for line in data.read(kept)}
    with kept.open("a") as file:
        for row in rows:
            if row.key not in answers:
                first, second = engine.score(encoded(engine, row))
                answers[row.key] = (first.log_odds, second.log_odds)
                file.write(json.dumps({"row": row.key, "odds": answers[row.key]}) + "\n")
                file.flush()
    return answers


def table(found: dict[str, dict[str, Figures]]) -> str:
    """The figures as Markdown, a set a block."""
    lines = ["| set (rows) | judge | accuracy (95 %) | verdicts | consistent | picks A |", "|---|---|---|---|---|---|"]
    for name in next(iter(found.values())):
        for judge, by_set in found.items():
            f = by_set[name]
            lines.append(
                f"| {name} ({f.rows}) | {judge} | {f.accuracy:.3f} ({f.low:.2f}-{f.high:.2f}) | {f.verdicts:.3f} | "
                f"{f.consistent:.3f} | {f.picks_a:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("judges", nargs="+", help="adapters, or `untrained`")
    parser.add_argument("--sets", nargs="*", help="only these sets; all unless given")
    arguments = parser.parse_args()
    sets = {k: v for k, v in rows_of(arguments.folder).items() if not arguments.sets or k in arguments.sets}
    readers: dict[str, Callable[[Row], tuple[float, float]]] = {"word overlap": overlap, "longer": longer}
    chosen: dict[str, list[Row]] = {}
    found: dict[str, dict[str, Figures]] = {}
    for judge in arguments.judges:
        adapter = None if judge == "untrained" else Path(judge)
        engine = LlamaCppEngine(embedded_model(), adapter=adapter, threads=1, context_tokens=4096)
        chosen = chosen or choose(sets, engine)
        name = judge if adapter is None else adapter.stem
        answers = ask(
            engine, [row for rows in chosen.values() for row in rows], arguments.out / f"{name}.answers.jsonl"
        )
        engine.close()
        found[name] = {key: figures([answers[row.key] for row in rows]) for key, rows in chosen.items()}
    for name, read in readers.items():
        found[name] = {key: figures([read(row) for row in rows]) for key, rows in chosen.items()}
    written = {judge: {key: each._asdict() for key, each in by_set.items()} for judge, by_set in found.items()}
    (arguments.out / "evaluation.json").write_text(json.dumps(written, indent=2) + "\n")
    (arguments.out / "evaluation.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
