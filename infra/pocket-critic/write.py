"""Has the packaged model write two answers to each of many questions, of which nobody says which is better.

    python infra/pocket-critic/write.py FOLDER written.jsonl

Run with nightcourt's own environment. FOLDER holds the sets that DATA.md names; of their questions only those that may
be trained on are put. What is written already stays, so that a run that was cut goes on.
"""

import argparse
import json
import random
from pathlib import Path

import data
import xllamacpp

from infra.local.model import embedded_model

QUESTIONS = 640
LONGEST_QUESTION = 400  # characters
TOKENS = (24, 110)  # of an answer, where the model does not end it before
TEMPERATURES = (0.7, 1.0)  # of the two answers


def main() -> None:
    """Write what is not written yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("written", type=Path)
    arguments = parser.parse_args()
    rows, _, _ = data.gather(arguments.folder)
    answers = data.good_answers(rows, Path(__file__).with_name("own.tsv"))
    questions = sorted({question for question, _ in answers if len(question) < LONGEST_QUESTION})
    chance = random.Random(data.SEED)
    chance.shuffle(questions)
    done = {line["question"] for line in data.read(arguments.written)} if arguments.written.exists() else set()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(embedded_model())
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 1024, 1, 1
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    with arguments.written.open("a") as file:
        for question in questions[:QUESTIONS]:
            request = {"messages": [{"role": "user", "content": question}], "max_tokens": chance.randint(*TOKENS)}
            seed = chance.randrange(1 << 31)
            if question in done:
                continue
            replies = [
                server.handle_chat_completions(request | {"temperature": temperature, "top_p": 0.95, "seed": seed})
                for temperature in TEMPERATURES
            ]
            texts = [reply["choices"][0]["message"]["content"].strip() for reply in replies]
            file.write(json.dumps({"question": question, "answers": texts}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
