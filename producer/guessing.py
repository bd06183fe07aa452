"""Guessing of keys, slowed down: each client address that sends wrong ones has to wait, longer each time."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE, FREE_UNDER_ATTACK = 10, 1
"""Wrong keys of one address that cost it nothing, and so many while the whole process is being guessed at."""
ATTACK = 1_000
"""Wrong keys of all addresses, within `FORGET_SECONDS`, that make an attack."""
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
FORGET_SECONDS = 600.0
"""After this long without a wrong key an address is as good as new."""
MOST = 10_000
"""Addresses that are kept; beyond, whoever guessed longest ago is forgotten first."""


@dataclass(slots=True)
class _Guesser:
    wrong: int = 0
    last: float = 0.0
    wait_until: float = 0.0


class Guesses:
    """The wrong keys of late, by client address, in the memory of one process: no store that is down locks people out.

    An address waits for its own wrong keys alone. Those of all together make no address wait that sends none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()
        self._all = 0.0
        self._all_at = clock()

    def wait(self, client: str) -> float:
        """Tell how many seconds an address has to wait before another key of it is looked at; 0 is none."""
        guesser = self._guessers.get(_source(client))
        return 0.0 if guesser is None else max(0.0, guesser.wait_until - self._clock())

    def wrong(self, client: str) -> float:
        """Count a wrong key. Returns how many seconds the address has to wait now."""
        now = self._clock()
        self._all = self._all * 0.5 ** ((now - self._all_at) / FORGET_SECONDS) + 1
        self._all_at = now
        source = _source(client)
        guesser = self._guessers.setdefault(source, _Guesser())
        self._guessers.move_to_end(source)
        if now - guesser.last > FORGET_SECONDS:
            guesser.wrong = 0
        guesser.wrong += 1
        guesser.last = now
        if len(self._guessers) > MOST:
            self._guessers.popitem(last=False)
        beyond = guesser.wrong - (FREE_UNDER_ATTACK if self._all > ATTACK else FREE)
        if beyond <= 0:
            return 0.0
        pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(beyond - 1, 10))
        guesser.wait_until = now + pause
        return pause


def _source(client: str) -> str:
    """What one sender can choose an address from: a network of 64 bits, as a customer of a provider has, in IPv6."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
