"""Trains the pocket critic: a low-rank adapter over the packaged SmolLM2-135M-Instruct, on a CPU.

    python infra/pocket-critic/train.py BASE.gguf pool.npz ADAPTER.gguf --seed 1

The base's weights are read from the very file that the service loads and kept in that file's own layout, so that the
adapter fits it as it is: no tensor is renamed, permuted or merged. The lower 18 of 30 layers are frozen and have
nothing to learn, so what they make of a prompt is computed once and kept beside the pool, for every seed.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from model import Adapter, Base, Packed, pack, run_layer
from torch import Tensor
from torch.nn import functional

RATE = 1e-3
WARMUP = 20  # steps
PAIRS_A_STEP = 4  # eight prompts
SMOOTHING = 0.05
POSITION_WEIGHT = 0.3  # of (s1 + s2)^2, which is nought where the order makes no difference
PROBE_WEIGHT = 0.2
REAL_FROM, REAL_TO = 0.05, 0.35  # share of pairs that people judged, at the beginning and at the end
SAVE_SECONDS = 120
STEPS_A_LINE = 10
VERDICT_A, VERDICT_B = 49, 50
SETTLING_STEPS = 300  # after the curriculum: what is unsure once more, to lean to no slot
SETTLING_RATE = 3e-4
SETTLING_WARMUP = 10  # steps
SETTLING_SHARES = {"written": 0.45, "real": 0.3, "even": 0.15, "made": 0.1}
LEANING_WEIGHT = 0.5
SHARPNESS = 3.0  # of a vote for A, from none to one, as a function of the odds
UNJUDGED = ("even", "written")  # origins of pairs of which neither answer is known to be better


class Pool:
    """The pairs, and what the frozen lower layers make of them, computed when first wanted."""

    def __init__(self, path: Path, base: Base, first: int) -> None:
        held = np.load(path)
        self._base, self._first = base, first
        kinds = np.char.partition(held["kinds"].astype(str), ":")[:, 0]
        self.origins = np.where(np.isin(kinds, ("real", *UNJUDGED)), kinds, "made")
        self._ends = torch.from_numpy(held["ends"].astype(np.int64)).view(-1, 2, 2)
        self.kept_out = np.nonzero(held["kept_out"])[0]
        prompts = np.split(held["tokens"].astype(np.int64), np.cumsum(held["lengths"])[:-1])
        pairs = list(zip(prompts[0::2], prompts[1::2], strict=True))
        self._head = min(_shared(prompts[0], prompt) for prompt in prompts[1:])
        self._lengths = [(len(one), len(other)) for one, other in pairs]
        self._shared = [_shared(one, other) for one, other in pairs]
        rows = [np.concatenate((one, other[both:])) for both, (one, other) in zip(self._shared, pairs, strict=True)]
        # Row 0 is what all prompts begin with.
        self._rows = [rows[0][: self._head], *(row[self._head :] for row in rows)]
        self.sizes = np.array([len(row) for row in self._rows[1:]])
        self._starts = np.cumsum([0, *map(len, self._rows)])
        kept = path.with_suffix(f".layer{first}.f16")
        mode = "r+" if kept.exists() else "w+"
        self._states = np.memmap(kept, np.float16, mode, shape=(int(self._starts[-1]), base.width))

    def packed(self, pairs: list[int]) -> Packed:
        """Where everything stands when these pairs are run together."""
        lengths = [self._lengths[i] for i in pairs]
        return pack(self._head, [self._shared[i] for i in pairs], lengths, self._ends[pairs])

    def states(self, pairs: list[int]) -> Tensor:
        """Hidden states before the first layer that learns: places x width."""
        missing = [i for i in pairs if not self._states[self._starts[i + 2] - 1].any()]
        if missing:
            self._compute(missing)
        return torch.from_numpy(np.concatenate([self._piece(row) for row in self._taken(pairs)]).astype(np.float32))

    def _taken(self, pairs: list[int]) -> list[int]:
        return [0, *(i + 1 for i in pairs)]

    def _piece(self, row: int) -> np.ndarray:
        return self._states[self._starts[row] : self._starts[row + 1]]

    def _compute(self, pairs: list[int]) -> None:
        taken = self._taken(pairs)
        packed = self.packed(pairs)
        with torch.no_grad():
            x = self._base.weights["token_embd.weight"][
                torch.from_numpy(np.concatenate([self._rows[r] for r in taken]))
            ]
            for layer in range(self._first):
                x = run_layer(self._base, None, layer, x, packed)
        at = 0
        for row in taken:
            piece = self._piece(row)
            piece[:] = x[at : at + len(piece)].numpy().astype(np.float16)
            at += len(piece)


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


def read_odds(base: Base, adapter: Adapter, pool: Pool, pairs: list[int]) -> Tensor:
    """Odds of A over B: pairs x orders."""
    logits, _ = read_verdicts(base, adapter, pool, pairs)
    return logits[..., VERDICT_A] - logits[..., VERDICT_B]


def choose(pool: Pool, count: int | None) -> np.ndarray:
    """The pairs that are trained on, the same for every seed."""
    mixed = np.random.default_rng(0).permutation(np.nonzero(pool.origins != "written")[0])
    return mixed[~np.isin(mixed, pool.kept_out)][:count]


def curriculum(pool: Pool, count: int | None, seed: int) -> list[int]:
    """The order of pairs: from short to long, and from nearly all made to a third judged by people."""
    chance = np.random.default_rng(seed)
    chosen = choose(pool, count)
    in_order = chosen[np.argsort(pool.sizes[chosen] * np.exp(chance.normal(0, 0.3, len(chosen))))]
    real = pool.origins == "real"
    judged, made = [int(i) for i in in_order if real[i]], [int(i) for i in in_order if not real[i]]
    order: list[int] = []
    while judged and made:
        wanted = REAL_FROM + (REAL_TO - REAL_FROM) * len(order) / len(chosen)
        order.append((judged if chance.random() < wanted else made).pop(0))
    return order + judged + made


def settling(pool: Pool, seed: int) -> list[int]:
    """The pairs of the last steps, mixed: mostly such as leave the model unsure."""
    chance = np.random.default_rng(seed)
    taken: list[int] = []
    for origin, share in SETTLING_SHARES.items():
        there = np.setdiff1d(np.nonzero(pool.origins == origin)[0], pool.kept_out)
        taken += [int(i) for i in chance.permutation(there)[: round(share * SETTLING_STEPS * PAIRS_A_STEP)]]
    return [int(i) for i in chance.permutation(taken)]


class Losses(NamedTuple):
    """What one step is told, and how it did; in settling, `right` is what both orders together said before."""

    loss: Tensor
    right: Tensor  # orders x pairs of which one answer is better: whether it was likelier
    odds: Tensor  # pairs x orders: of A over B


def judge(base: Base, adapter: Adapter, probe: Tensor, pool: Pool, pairs: list[int]) -> Losses:
    """Put pairs to the model in both orders. The better answer is A in the first order and B in the second.

    A pair of which neither answer is known to be better teaches only that the order makes no difference.
    """
    known = torch.from_numpy(~np.isin(pool.origins[pairs], UNJUDGED))
    logits, answers = read_verdicts(base, adapter, pool, pairs)
    logprobs = functional.log_softmax(logits, -1)
    for_a, for_b = logprobs[..., VERDICT_A], logprobs[..., VERDICT_B]
    right = torch.stack((for_a[:, 0], for_b[:, 1]))
    wrong = torch.stack((for_b[:, 0], for_a[:, 1]))
    verdict = -(((1 - SMOOTHING) * right + SMOOTHING * wrong) * known).mean()
    odds = for_a - for_b
    position = odds.sum(1).square().mean()
    worth = answers @ probe  # pairs x orders x answers
    margin = torch.stack((worth[:, 0, 0] - worth[:, 0, 1], worth[:, 1, 1] - worth[:, 1, 0]))
    loss = verdict + POSITION_WEIGHT * position - PROBE_WEIGHT * (functional.logsigmoid(margin) * known).mean()
    return Losses(loss, (right > wrong)[:, known], odds.detach())


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
        learn(optimizer, losses.loss)
        progress.step += 1
        progress.tokens += int(pool.sizes[pairs].sum())
        progress.cpu_seconds = time.process_time() - clock
        lately.append(losses._replace(loss=losses.loss.detach()))
        if len(lately) == STEPS_A_LINE or progress.step == steps:
            report(lately, progress, steps)
            lately.clear()
        if time.monotonic() - saved > SAVE_SECONDS or progress.step == steps:
            saved = time.monotonic()
            part = checkpoint.with_suffix(".part")
            held = [tensor.detach() for tensor in learning]
            torch.save({"learning": held, "optimizer": optimizer.state_dict(), "progress": asdict(progress)}, part)
            part.replace(checkpoint)
    return progress


def learn(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the loss, with gradients clipped to a norm of one."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def settle(base: Base, pool: Pool, adapter: Adapter, pairs: list[int]) -> Progress:
    """Take the leaning away, and that alone: each order is to say what both orders together said before.

    With s1 and s2 the odds of A over B in either order, and d = (s1 - s2) / 2 before the first step, the loss is the
    smooth L1 distance of s1 from d and of s2 from -d, plus half of (v(s1) + v(s2) - 1)^2. There v is a vote for A, the
    logistic function of three times the odds, so that what is unsure weighs most. Nobody's judgement is asked again.
    """
    before = adapter.copy()
    optimizer = torch.optim.AdamW(adapter.tensors.values(), lr=SETTLING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    progress, steps, started = Progress(), len(pairs) // PAIRS_A_STEP, time.process_time()
    lately: list[Losses] = []
    while progress.step < steps:
        some = pairs[progress.step * PAIRS_A_STEP : (progress.step + 1) * PAIRS_A_STEP]
        with torch.no_grad():
            odds = read_odds(base, before, pool, some)
            apart = (odds[:, 0] - odds[:, 1]) / 2
        odds = read_odds(base, adapter, pool, some)
        votes = torch.sigmoid(SHARPNESS * odds)
        loss = functional.smooth_l1_loss(odds, torch.stack((apart, -apart), 1))
        loss = loss + LEANING_WEIGHT * (votes.sum(1) - 1).square().mean()
        optimizer.param_groups[0]["lr"] = (
            SETTLING_RATE * min(1.0, (progress.step + 1) / SETTLING_WARMUP) * (1 - progress.step / steps)
        )
        learn(optimizer, loss)
        progress.step += 1
        progress.tokens += int(pool.sizes[some].sum())
        progress.cpu_seconds = time.process_time() - started
        same = torch.stack((odds[:, 0] * apart > 0, odds[:, 1] * apart < 0))
        lately.append(Losses(loss.detach(), same, odds.detach()))
        if len(lately) == STEPS_A_LINE or progress.step == steps:
            report(lately, progress, steps)
            lately.clear()
    return progress


def quality(base: Base, adapter: Adapter, pool: Pool) -> dict[str, dict[str, float]]:
    """How the adapter does on the pairs that no seed is trained on, by where they come from."""
    in_order = [int(i) for i in pool.kept_out[np.argsort(pool.sizes[pool.kept_out])]]
    with torch.no_grad():
        steps = [in_order[at : at + PAIRS_A_STEP] for at in range(0, len(in_order), PAIRS_A_STEP)]
        odds = torch.cat([read_odds(base, adapter, pool, pairs) for pairs in steps])
    origins = pool.origins[in_order]
    groups = {name: origins == name for name in ("real", *UNJUDGED, "made")}
    groups["all"] = np.ones(len(origins), bool)
    found = {}
    for name, there in groups.items():
        first, second = odds[torch.from_numpy(there)].T
        found[name] = {
            "pairs": len(first),
            "right": ((first > 0).float() + (second < 0).float()).mean().item() / 2,
            "consistent": (first * second < 0).float().mean().item(),
            "picks A": ((first > 0).float() + (second > 0).float()).mean().item() / 2,
            "leaning": (first + second).mean().item() / 2,
            "apart": (first - second).abs().mean().item() / 2,
        }
    for name in (*UNJUDGED, "all"):
        del found[name]["right"]
    return found


def report(lately: list[Losses], progress: Progress, steps: int) -> None:
    """Print how the last steps went."""
    odds = torch.cat([losses.odds for losses in lately])
    figures = {
        "loss": torch.stack([losses.loss for losses in lately]).mean(),
        "right": torch.cat([losses.right for losses in lately], 1).float().mean(),
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
    parser.add_argument("--pairs", type=int, help="how many to train on; all that are not kept out unless given")
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
    settled = settle(base, pool, adapter, settling(pool, arguments.seed))
    adapter.write(arguments.adapter, base, f"pocket critic, seed {arguments.seed}")
    summary = {
        "seed": arguments.seed,
        "curriculum": asdict(progress),
        "settling": asdict(settled),
        "kept out": quality(base, adapter, pool),
    }
    arguments.adapter.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
