"""The packaged model in torch, with a low-rank adapter over it: what train.py trains.

Weights stay in the layout of the model's own file, so that no tensor of the adapter is renamed, permuted or merged.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RANK = 16
ALPHA = 32.0
JOINED = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
TARGETS = tuple(target for targets in JOINED for target in targets)


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
        # Maps of the same input are multiplied as one, which is faster; the key is the first one's name.
        self.joined = {
            f"blk.{layer}.{targets[0]}.weight": torch.cat(
                [self.weights[f"blk.{layer}.{target}.weight"] for target in targets]
            )
            for layer in range(self.layers)
            for targets in JOINED
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

    def copy(self) -> "Adapter":
        """The same changes, which learn no more."""
        copied = object.__new__(Adapter)
        copied.first = self.first
        copied.tensors = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        return copied

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
    """Pairs, one after another without gaps, behind the instruction that all of them begin with.

    Of each pair, what both orders share (the question) stands once, then the rest of each order.
    """

    positions: Tensor  # of all places
    pieces: list[tuple[int, int, Tensor]]  # from, to, and which of the instruction's and its own places each looks at
    picked: Tensor  # six a pair: the last place, the end of answer A and the end of answer B, in either order


def pack(head: int, shared: list[int], lengths: list[tuple[int, int]], ends: Tensor) -> Packed:
    """Lay out pairs.

    Args:
        head: how many tokens all prompts begin with.
        shared: for each pair, how many tokens both orders begin with.
        lengths: for each pair, the tokens of either order.
        ends: pairs x 2 x 2, the last places of answers A and B in either order.
    """
    whole = torch.arange(head)
    positions, pieces, picked = [whole], [(0, head, whole[:, None] >= whole)], []
    start = head
    for both, (one, other), end in zip(shared, lengths, ends, strict=True):
        places = torch.arange(one + other - both)
        second = places >= one
        # The second order sees what is shared and itself, never the first one's answers.
        apart = second[:, None] & (places >= both) & ~second
        sees = (places[:, None] >= places) & ~apart
        stop = start + len(places) - head
        positions.append(torch.where(second, places - one + both, places)[head:])
        pieces.append((start, stop, sees[head:]))
        moved = torch.cat((torch.tensor([other - 1]), end[1]))
        moved = torch.where(moved >= both, moved - both + one, moved)
        picked.append(torch.cat((torch.tensor([one - 1]), end[0], moved)) + start - head)
        start = stop
    return Packed(torch.cat(positions), pieces, torch.cat(picked))


def run_layer(
    base: Base, adapter: Adapter | None, layer: int, x: Tensor, packed: Packed, *, only_picked: bool = False
) -> Tensor:
    """One layer over places x width; with `only_picked`, no other place goes on from the attention."""

    def linear(x: Tensor, *targets: str) -> list[Tensor]:
        names = [f"blk.{layer}.{target}.weight" for target in targets]
        ys = functional.linear(x, base.joined[names[0]]).split([len(base.weights[name]) for name in names], -1)
        if adapter is None:
            return list(ys)
        low = functional.linear(x, torch.cat([adapter.tensors[f"{name}.lora_a"] for name in names]))
        ups = [adapter.tensors[f"{name}.lora_b"].T for name in names]
        lows = low.split(RANK, -1)
        return [torch.addmm(y, low, up, alpha=ALPHA / RANK) for y, low, up in zip(ys, lows, ups, strict=True)]

    cosines, sines = base.rotations(packed.positions)

    def heads(y: Tensor, count: int) -> Tensor:
        return y.view(1, -1, count, base.size).transpose(1, 2)

    h = base.norm(x, f"blk.{layer}.attn_norm.weight")
    q, k, v = linear(h, "attn_q", "attn_k", "attn_v")
    q, k = rotate(heads(q, base.heads), cosines, sines), rotate(heads(k, base.kv_heads), cosines, sines)
    group = base.heads // base.kv_heads
    k, v = k.repeat_interleave(group, 1), heads(v, base.kv_heads).repeat_interleave(group, 1)
    head = packed.pieces[0][1]
    mixed = []
    for start, stop, sees in packed.pieces:
        seen_k, seen_v = k[:, :, start:stop], v[:, :, start:stop]
        if start:
            seen_k, seen_v = torch.cat((k[:, :, :head], seen_k), 2), torch.cat((v[:, :, :head], seen_v), 2)
        mixed.append(
            functional.scaled_dot_product_attention(q[:, :, start:stop], seen_k, seen_v, attn_mask=sees[None, None])
        )
    y = torch.cat(mixed, 2).transpose(1, 2).reshape(x.shape)
    if only_picked:
        x, y = x[packed.picked], y[packed.picked]
    x = x + linear(y, "attn_output")[0]
    gate, up = linear(base.norm(x, f"blk.{layer}.ffn_norm.weight"), "ffn_gate", "ffn_up")
    return x + linear(functional.silu(gate) * up, "ffn_down")[0]
