"""Trains the pocket critic: a low-rank adapter over the packaged SmolLM2-135M-Instruct, on a CPU.

    python infra/pocket-critic/train.py BASE.gguf pool.npz ADAPTER.gguf --seed 1

The base's weights are read from the very file that the service loads and kept in that file's own layout, so that the
adapter fits it as it is: no tensor is renamed, permuted or merged. The lower half of the layers is frozen and has
nothing to learn, so what it makes of a prompt is computed once and kept beside the pool, for every seed.
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RANK = 16
ALPHA = 32.0
RATE = 1e-3
WARMUP = 20  # steps
PAIRS_A_STEP = 3  # six prompts
SMOOTHING = 0.05
POSITION_WEIGHT = 0.01  # of (s1 + s2)^2, which is nought where the order makes no difference
PROBE_WEIGHT = 0.2
REAL_FROM, REAL_TO = 0.15, 0.5  # share of pairs that people judged, at the beginning and at the end
SAVE_SECONDS = 120
STEPS_A_LINE = 10
TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
VERDICT_A, VERDICT_B = 49, 50


class Base:
    """The packaged model, dequantised, in the layout of its file."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)

        def value(key: str) -> Any:
            return reader.fields[key].contents()

        self.fingerprint = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        self.layers = int(value("llama.block_count"))
        self.heads = int(value("llama.attention.head_count"))
        self.kv_heads = int(value("llama.attention.head_count_kv"))
        self.width = int(value("llama.embedding_length"))
        self.size = self.width // self.heads
        self.epsilon = float(value("llama.attention.layer_norm_rms_epsilon"))
        self.theta = float(value("llama.rope.freq_base"))
        self.weights = {
            tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
            for tensor in reader.tensors
        }

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions, each with one more dimension of size/2."""
        rates = self.theta ** (-torch.arange(0, self.size, 2, dtype=torch.float32) / self.size)
        angles = positions[..., None] * rates
        return angles.cos(), angles.sin()

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Root-mean-square norm."""
        return functional.rms_norm(x, (self.width,), self.weights[name], self.epsilon)


class Adapter:
    """Low-rank changes to the linear maps of the layers from `first` on."""

    def __init__(self, base: Base, first: int, seed: int) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.first = first
        self.tensors: dict[str, Tensor] = {}
        for layer in range(first, base.layers):
            for target in TARGETS:
                name = f"blk.{layer}.{target}.weight"
                rows, columns = base.weights[name].shape
                down = torch.randn(RANK, columns, generator=chance) / math.sqrt(columns)
                self.tensors[f"{name}.lora_a"] = down.requires_grad_()
                self.tensors[f"{name}.lora_b"] = torch.zeros(rows, RANK, requires_grad=True)

    def write(self, path: Path, base: Base, name: str) -> None:
        """Write the adapter as llama.cpp wants it, in 16 bits, with what it belongs to."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_license("apache-2.0")
        writer.add_string("adapter.type", "lora")
        writer.add_string("nightcourt.base", base.fingerprint)
        writer.add_string("nightcourt.profile", "pocket")
        writer.add_float32("adapter.lora.alpha", ALPHA)
        for key, tensor in self.tensors.items():
            writer.add_tensor(key, tensor.detach().to(torch.float16).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions over neighbouring pairs, as llama.cpp turns this architecture's queries and keys."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1).flatten(-2)


class Packed(NamedTuple):
    """Pairs, one a row: what both orders share (instruction and question) stands once, then the rest of each order."""

    positions: Tensor  # batch x length
    sees: Tensor  # batch x 1 x length x length: which place looks at which
    picked: Tensor  # batch x 6: the last place, the end of answer A and the end of answer B, in either order


def pack(shared: list[int], lengths: list[tuple[int, int]], ends: Tensor) -> Packed:
    """Lay out pairs.

    Args:
        shared: for each pair, how many tokens both orders begin with.
        lengths: for each pair, the tokens of either order.
        ends: pairs x 2 x 2, the last places of answers A and B in either order.
    """
    longest = max(one + other - both for both, (one, other) in zip(shared, lengths, strict=True))
    places = torch.arange(longest)
    positions, sees, picked = [], [], []
    for both, (one, other), end in zip(shared, lengths, ends, strict=True):
        second = places >= one
        positions.append(torch.where(second, places - one + both, places))
        # The second order sees what is shared and itself, never the first one's answers.
        apart = second[:, None] & (places >= both) & ~second
        sees.append((places[:, None] >= places) & ~apart)
        moved = torch.cat((torch.tensor([other - 1]), end[1]))
        moved = torch.where(moved >= both, moved - both + one, moved)
        picked.append(torch.cat((torch.tensor([one - 1]), end[0], moved)))
    return Packed(torch.stack(positions), torch.stack(sees)[:, None], torch.stack(picked))


def run_layer(
    base: Base, adapter: Adapter | None, layer: int, x: Tensor, packed: Packed, *, only_picked: bool = False
) -> Tensor:
    """One layer over batch x length x width; with `only_picked`, no other place goes on from the attention."""

    def linear(x: Tensor, target: str) -> Tensor:
        name = f"blk.{layer}.{target}.weight"
        y = functional.linear(x, base.weights[name])
        if adapter is not None:
            low = functional.linear(x, adapter.tensors[f"{name}.lora_a"])
            y = y + functional.linear(low, adapter.tensors[f"{name}.lora_b"]) * (ALPHA / RANK)
        return y

    batch, length, _ = x.shape
    cosines, sines = (table[:, None] for table in base.rotations(packed.positions))

    def heads(y: Tensor, count: int) -> Tensor:
        return y.view(batch, length, count, base.size).transpose(1, 2)

    h = base.norm(x, f"blk.{layer}.attn_norm.weight")
    q = rotate(heads(linear(h, "attn_q"), base.heads), cosines, sines)
    k = rotate(heads(linear(h, "attn_k"), base.kv_heads), cosines, sines)
    v = heads(linear(h, "attn_v"), base.kv_heads)
    group = base.heads // base.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=packed.sees).transpose(1, 2).reshape(x.shape)
    if only_picked:
        places = packed.picked[:, :, None].expand(-1, -1, base.width)
        x, mixed = x.gather(1, places), mixed.gather(1, places)
    x = x + linear(mixed, "attn_output")
    h = base.norm(x, f"blk.{layer}.ffn_norm.weight")
    return x + linear(functional.silu(linear(h, "ffn_gate")) * linear(h, "ffn_up"), "ffn_down")


class Pool:
    """The pairs, and what the frozen lower layers make of them, computed when first wanted."""

    def __init__(self, path: Path, base: Base, first: int) -> None:
        held = np.load(path)
        self._base, self._first = base, first
        self.kinds = held["kinds"]
        self._ends = torch.from_numpy(held["ends"].astype(np.int64)).view(-1, 2, 2)
        prompts = np.split(held["tokens"].astype(np.int64), np.cumsum(held["lengths"])[:-1])
        self._lengths = [(len(one), len(other)) for one, other in zip(prompts[0::2], prompts[1::2], strict=True)]
        self._shared = [_shared(one, other) for one, other in zip(prompts[0::2], prompts[1::2], strict=True)]
        self._rows = [
            np.concatenate((one, other[both:]))
            for both, one, other in zip(self._shared, prompts[0::2], prompts[1::2], strict=True)
        ]
        self.sizes = np.array([len(row) for row in self._rows])
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        kept = path.with_suffix(f".layer{first}.f16")
        mode = "r+" if kept.exists() else "w+"
        self._states = np.memmap(kept, np.float16, mode, shape=(int(self._starts[-1]), base.width))

    def packed(self, pairs: list[int]) -> Packed:
        """Where everything stands in the rows of these pairs."""
        return pack([self._shared[i] for i in pairs], [self._lengths[i] for i in pairs], self._ends[pairs])

    def states(self, pairs: list[int]) -> Tensor:
        """Hidden states before the first layer that learns: batch x longest length x width."""
        missing = [i for i in pairs if not self._states[self._starts[i + 1] - 1].any()]
        if missing:
            self._compute(missing)
        x = torch.zeros(len(pairs), int(self.sizes[pairs].max()), self._base.width)
        for row, i in enumerate(pairs):
            piece = np.asarray(self._states[self._starts[i] : self._starts[i + 1]], np.float32)
            x[row, : len(piece)] = torch.from_numpy(piece)
        return x

    def _compute(self, pairs: list[int]) -> None:
        ids = torch.zeros(len(pairs), int(self.sizes[pairs].max()), dtype=torch.long)
        for row, i in enumerate(pairs):
            ids[row, : self.sizes[i]] = torch.from_numpy(self._rows[i])
        packed = self.packed(pairs)
        with torch.no_grad():
            x = self._base.weights["token_embd.weight"][ids]
            for layer in range(self._first):
                x = run_layer(self._base, None, layer, x, packed)
        for row, i in enumerate(pairs):
            self._states[self._starts[i] : self._starts[i + 1]] = x[row, : self.sizes[i]].numpy().astype(np.float16)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two prompts begin with together."""
    shorter = min(len(one), len(other))
    differing = np.nonzero(one[:shorter] != other[:shorter])[0]
    return int(differing[0]) if len(differing) else shorter


def read_verdicts(base: Base, adapter: Adapter, pool: Pool, pairs: list[int]) -> tuple[Tensor, Tensor]:
    """Logits after each prompt (pairs x 2 orders x vocabulary), states at answers' ends (pairs x 2 x 2 x width)."""
    x, packed = pool.states(pairs), pool.packed(pairs)
    for layer in range(adapter.first, base.layers):
        x = run_layer(base, adapter, layer, x, packed, only_picked=layer == base.layers - 1)
    x = base.norm(x, "output_norm.weight").view(len(pairs), 2, 3, base.width)
    return functional.linear(x[:, :, 0], base.weights["token_embd.weight"]), x[:, :, 1:]


def choose(pool: Pool, count: int) -> np.ndarray:
    """The pairs that are trained on, the same for every seed."""
    return np.random.default_rng(0).permutation(len(pool.kinds))[:count]


def curriculum(pool: Pool, count: int, seed: int) -> list[int]:
    """The order of pairs: from short to long, and from mostly made to half judged by people."""
    chance = np.random.default_rng(seed)
    chosen = choose(pool, count)
    in_order = chosen[np.argsort(pool.sizes[chosen] * np.exp(chance.normal(0, 0.3, len(chosen))))]
    real = np.char.startswith(pool.kinds.astype(str), "real:")
    judged, made = [int(i) for i in in_order if real[i]], [int(i) for i in in_order if not real[i]]
    order: list[int] = []
    while judged and made:
        wanted = REAL_FROM + (REAL_TO - REAL_FROM) * len(order) / len(chosen)
        order.append((judged if chance.random() < wanted else made).pop(0))
    return order + judged + made


class Losses(NamedTuple):
    """What one step is told, and how it did."""

    loss: Tensor
    right: Tensor  # orders x pairs: whether the better answer was likelier
    odds: Tensor  # pairs x orders: of A over B


def judge(base: Base, adapter: Adapter, probe: Tensor, pool: Pool, pairs: list[int]) -> Losses:
    """Put pairs to the model in both orders. The better answer is A in the first order and B in the second."""
    logits, answers = read_verdicts(base, adapter, pool, pairs)
    logprobs = functional.log_softmax(logits, -1)
    for_a, for_b = logprobs[..., VERDICT_A], logprobs[..., VERDICT_B]
    right = torch.stack((for_a[:, 0], for_b[:, 1]))
    wrong = torch.stack((for_b[:, 0], for_a[:, 1]))
    verdict = -((1 - SMOOTHING) * right + SMOOTHING * wrong).mean()
    odds = for_a - for_b
    position = odds.sum(1).square().mean()
    worth = answers @ probe  # pairs x orders x answers
    margin = torch.stack((worth[:, 0, 0] - worth[:, 0, 1], worth[:, 1, 1] - worth[:, 1, 0]))
    loss = verdict + POSITION_WEIGHT * position - PROBE_WEIGHT * functional.logsigmoid(margin).mean()
    return Losses(loss, (right > wrong).detach(), odds.detach())


def rate(step: int, steps: int) -> float:
    """The learning rate: a short warm-up, then a cosine down to a fiftieth."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return RATE * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * cosine)


@dataclass
class Progress:
    """What a run needs besides the weights to go on where it was cut."""

    step: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0


def train(base: Base, pool: Pool, adapter: Adapter, order: list[int], checkpoint: Path) -> Progress:
    """Train to the end of the order, from the checkpoint if there is one."""
    probe = torch.zeros(base.width, requires_grad=True)
    learning = [*adapter.tensors.values(), probe]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    progress = Progress()
    if checkpoint.exists():
        kept = torch.load(checkpoint)
        with torch.no_grad():
            for tensor, value in zip(learning, kept["learning"], strict=True):
                tensor.copy_(value)
        optimizer.load_state_dict(kept["optimizer"])
        progress = Progress(**kept["progress"])
    steps = len(order) // PAIRS_A_STEP
    clock, saved = time.process_time() - progress.cpu_seconds, time.monotonic()
    lately: list[Losses] = []
    while progress.step < steps:
        pairs = order[progress.step * PAIRS_A_STEP : (progress.step + 1) * PAIRS_A_STEP]
        optimizer.param_groups[0]["lr"] = rate(progress.step, steps)
        losses = judge(base, adapter, probe, pool, pairs)
        optimizer.zero_grad()
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        progress.step += 1
        progress.tokens += int(pool.sizes[pairs].sum())
        progress.cpu_seconds = time.process_time() - clock
        lately.append(losses._replace(loss=losses.loss.detach()))
        if len(lately) == STEPS_A_LINE or progress.step == steps:
            report(lately, progress, steps)
            lately.clear()
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            part = checkpoint.with_suffix(".part")
            held = [tensor.detach() for tensor in learning]
            torch.save({"learning": held, "optimizer": optimizer.state_dict(), "progress": asdict(progress)}, part)
            part.replace(checkpoint)
    return progress


def report(lately: list[Losses], progress: Progress, steps: int) -> None:
    """Print how the last steps went."""
    odds = torch.cat([losses.odds for losses in lately])
    figures = {
        "loss": torch.stack([losses.loss for losses in lately]).mean(),
        "right": torch.cat([losses.right for losses in lately], 1).float().mean(),
        "right over both orders": (odds[:, 0] > odds[:, 1]).float().mean(),
        "consistent": (odds[:, 0] * odds[:, 1] < 0).float().mean(),
        "picks A": (odds > 0).float().mean(),
    }
    text = ", ".join(f"{name} {figure.item():.3f}" for name, figure in figures.items())
    speed = progress.tokens / progress.cpu_seconds
    print(f"step {progress.step}/{steps}: {text}; {progress.tokens} tokens, {speed:.0f} a CPU second", flush=True)


def main() -> None:
    """Train one seed; go on where an earlier run was cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pairs", type=int, default=560)
    parser.add_argument("--first", type=int, default=18, help="the first layer that learns")
    parser.add_argument("--prepare", action="store_true", help="only run the frozen layers, from short to long")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    base = Base(arguments.base)
    pool = Pool(arguments.pool, base, arguments.first)
    if arguments.prepare:
        chosen = choose(pool, arguments.pairs)
        in_order = [int(i) for i in chosen[np.argsort(pool.sizes[chosen])]]
        for at in range(0, len(in_order), PAIRS_A_STEP):
            pool.states(in_order[at : at + PAIRS_A_STEP])
        return
    adapter = Adapter(base, arguments.first, arguments.seed)
    order = curriculum(pool, arguments.pairs, arguments.seed)
    progress = train(base, pool, adapter, order, arguments.adapter.with_suffix(".checkpoint"))
    adapter.write(arguments.adapter, base, f"pocket critic, seed {arguments.seed}")
    summary = {"seed": arguments.seed, "pairs": progress.step * PAIRS_A_STEP, **asdict(progress)}
    arguments.adapter.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
