"""The plan of a storm: which faults come when. A pure function of the seed, so that a storm can be seen again."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PROCESSES = ("api", "dispatcher", "worker", "callbacks")
STORES = ("postgres", "redis")

_MENU = {
    **dict.fromkeys(PROCESSES, ("kill", "freeze", "end")),
    "redis": ("kill", "freeze", "flush"),
    "postgres": ("crash", "kill", "end"),
    "link": ("cut", "hole", "slow"),
}
"""What can happen to what. A process is killed (SIGKILL), frozen (SIGSTOP for longer than a lease, then SIGCONT) or
told to end (SIGTERM), and started again. A crash of Postgres is its immediate shutdown (SIGQUIT). A link is a process'
way to a store: its connections are reset, or it is a black hole for a while, or slow."""


class Fault(NamedTuple):
    """One fault. Times are seconds."""

    at: float
    """Since the storm began."""
    kind: str
    target: str
    """A process with its number, a store, or a link, such as `worker-2>postgres`."""
    seconds: float
    """How long it lasts: until what was killed is started again, what was frozen wakes, a link is whole."""

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.kind:<6} {self.target:<22} for {self.seconds:.1f} s"


def make_plan(
    seed: int, *, seconds: float, faults: int, counts: dict[str, int], lease_seconds: float
) -> tuple[Fault, ...]:
    """Plan a storm.

    Args:
        seed: the same seed and sizes are the same plan.
        seconds: how long the storm lasts; faults begin within it, evenly spread with some play, so that they overlap.
        faults: how many there are. Each round of seven meets every kind of process, both stores and a link.
        counts: how many there are of each kind of process.
        lease_seconds: what is frozen is frozen for longer.
    """
    chance = random.Random(seed)
    menu = {group: _endless(chance, kinds) for group, kinds in _MENU.items()}
    groups = _endless(chance, tuple(_MENU))
    plan = []
    for number in range(faults):
        group = next(groups)
        kind = next(menu[group])
        plan.append(
            Fault(
                at=round((number + chance.uniform(0.1, 0.9)) * seconds / faults, 2),
                kind=kind,
                target=_target(chance, group, counts),
                seconds=round(_duration(chance, kind, lease_seconds), 2),
            )
        )
    return tuple(plan)


def _endless(chance: random.Random, choices: Sequence[str]) -> Iterator[str]:
    """All of the choices in some order, then all in another, and so on."""
    while True:
        yield from chance.sample(choices, len(choices))


def _target(chance: random.Random, group: str, counts: dict[str, int]) -> str:
    if group in STORES:
        return group
    process = chance.choice(PROCESSES) if group == "link" else group
    name = f"{process}-{chance.randint(1, counts[process])}"
    # The API speaks to Redis for its health and little else: its link to Postgres is the one that matters.
    return f"{name}>{chance.choice(STORES)}" if group == "link" else name


def _duration(chance: random.Random, kind: str, lease_seconds: float) -> float:
    if kind == "freeze":
        return lease_seconds * chance.uniform(1.3, 1.8)
    if kind in {"cut", "flush"}:
        return 0.0
    if kind in {"hole", "slow"}:
        return chance.uniform(2.0, lease_seconds * 1.5)
    return chance.uniform(0.2, 4.0)
