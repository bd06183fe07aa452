"""Checkpoints for tests: the files of a small Llama whose weights are noise, with a tokenizer and chat template."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from worker.prompts import CARD

NAME = "Skywork-Critic-Llama-3.1-8B"
CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 512 pieces, trained on the judge's own prompt; control tokens come last, as Llama's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([CARD, "[[A]] [[B]]"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in CONTROL])
    return tokenizer


def make_checkpoint(folder: Path, *, name: str = NAME, weights: bytes = b"noise", **config: object) -> Path:
    """Write a checkpoint as Hugging Face lays it out: small files, two weight files and their index."""
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    write_tokenizer(checkpoint, make_tokenizer())
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": make_tokenizer().get_vocab_size(),
    }
    (checkpoint / "config.json").write_text(json.dumps({**shape, **config}))
    parts = {f"model-0000{number}-of-00002.safetensors": weights + bytes([number]) for number in (1, 2)}
    for part, content in parts.items():
        (checkpoint / part).write_bytes(content)
    index = {"weight_map": {f"layer.{number}": part for number, part in enumerate(parts)}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return checkpoint


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer's files, with Llama's names for what begins and ends a text."""
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {"bos_token": CONTROL[0], "eos_token": {"content": CONTROL[4]}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))


def write_pairs(file: Path, count: int, *, words: int = 12) -> Path:
    """Write comparisons of our own making; every other one is labelled."""
    with file.open("w") as out:
        for number in range(count):
            row = {
                "prompt": f"Name the river number {number} of the list.",
                "response_a": f"River {number} is the " + "long and winding " * words + f"one {number * 7 % 13}.",
                "response_b": f"It is called {number}, I think. " + "Nobody knows. " * words,
            }
            if number % 2:
                row["label"] = "A" if number % 4 == 1 else "B"
            out.write(json.dumps(row) + "\n")
    return file
