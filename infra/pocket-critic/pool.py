"""Makes the training pool: every pair in both orders, as token ids.

    python infra/pocket-critic/pool.py FOLDER written.jsonl pool.npz

Run with nightcourt's own environment, for what is trained on must be what the service asks: the prompt comes from
`worker.prompts`, the token ids from the very engine. FOLDER holds the sets that DATA.md names, `written.jsonl` what
`write.py` made of them. Written beside the pool: `pool.json`, what went in and what was left out.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import data
import numpy as np

from infra.filed import Filed
from infra.local.model import embedded_model
from worker import prompts
from worker.engines.base import Prompt
from worker.engines.llama_cpp import LlamaCppEngine

LONGEST_CHARACTERS = 1400
LONGEST_SOURCE_CHARACTERS = 700
LONGEST_TOKENS = 160  # of a made pair's prompt, the mean of both orders
LONGEST_JUDGED_TOKENS = 200  # of a pair that people judged: there are few of these
LONGEST_WRITTEN_TOKENS = 230  # of a pair that the model wrote: these are as long as what it will be asked
SYNTHETIC = 4800  # before the long ones are left out
EVEN = 600  # likewise
KEPT_OUT = 0.07  # share of the questions that no seed is trained on, to choose the seed that ships


CLOSING_TOKENS = 5  # what the template puts after the user's message: end, newline, start, "assistant", newline


def ends(engine: LlamaCppEngine, prompt: Prompt) -> list[int]:
    """The places of the last tokens of answers A and B."""
    (system, user) = prompt.messages
    found = []
    for mark in ("\n\nAnswer B: ", "\n\nWhich answer is better?"):
        head = Prompt(messages=(system, ("user", user[1][: user[1].rindex(mark)])))
        found.append(len(engine.encode(head)) - CLOSING_TOKENS - 1)
    return found


def gather_pairs(folder: Path, written: Path) -> tuple[list[data.Pair], dict[str, Any]]:
    """All pairs, made, even, judged and written, before the long ones are left out; and an account of the sets."""
    chance = random.Random(data.SEED)
    rows, _, account = data.gather(folder)
    judged = data.judged(rows, chance)
    answers = data.good_answers(rows, Path(__file__).with_name("own.tsv"))
    sources = [(question, answer) for question, answer in answers if len(question + answer) < LONGEST_SOURCE_CHARACTERS]
    pairs = data.synthetic(sources, SYNTHETIC, chance)
    pairs += data.even(sources, EVEN, chance)
    taken = Counter[str]()
    for pair in judged:
        set_name = pair.kind.removeprefix("real:")
        roomy = len(pair.question + pair.better + pair.worse) < LONGEST_CHARACTERS
        if roomy and taken[set_name] < data.MOST_JUDGED.get(set_name, data.OTHERWISE_JUDGED):
            taken[set_name] += 1
            pairs.append(pair)
    return pairs + data.written(data.read(written), answers, chance), account


def main() -> None:
    """Make the pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("written", type=Path)
    parser.add_argument("pool", type=Path)
    arguments = parser.parse_args()
    pairs, account = gather_pairs(arguments.folder, arguments.written)
    engine = LlamaCppEngine(embedded_model(), threads=1, context_tokens=4096)
    questions = sorted({pair.question for pair in pairs if pair.kind != "written"})
    kept_out = set(random.Random(data.SEED).sample(questions, round(KEPT_OUT * len(questions))))
    outside: list[bool] = []
    kinds: list[str] = []
    tokens: list[np.ndarray] = []
    places: list[list[int]] = []
    for pair in pairs:
        comparison = Filed(0, None, pair.question, pair.better, pair.worse, "both", "pocket", None, {})
        both = [prompts.build(comparison, "ab"), prompts.build(comparison, "ba")]
        ids = [np.array(engine.encode(prompt), np.int32) for prompt in both]
        longest = {"real": LONGEST_JUDGED_TOKENS, "written": LONGEST_WRITTEN_TOKENS}
        if sum(map(len, ids)) <= 2 * longest.get(pair.kind.partition(":")[0], LONGEST_TOKENS):
            kinds.append(pair.kind)
            outside.append(pair.question in kept_out)
            tokens += ids
            places += [ends(engine, prompt) for prompt in both]
    engine.close()
    np.savez_compressed(
        arguments.pool,
        tokens=np.concatenate(tokens),
        lengths=np.array([len(ids) for ids in tokens], np.int32),
        ends=np.array(places, np.int32),
        kinds=np.array(kinds),
        kept_out=np.array(outside),
    )
    account["pool"] = {
        "pairs": len(kinds),
        "kept out of training": sum(outside),
        "prompt tokens, both orders": sum(map(len, tokens)),
        "kinds": dict(Counter(kinds)),
    }
    arguments.pool.with_suffix(".json").write_text(json.dumps(account, indent=2) + "\n")
    print(json.dumps(account, indent=2))


if __name__ == "__main__":
    main()
