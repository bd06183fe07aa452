"""Secrets at rest: AES-256-GCM under keys that are in no database.

What is sealed names its key, so that keys can be rotated: a new one is put first, `nightcourt migrate` seals anew what
is sealed by the others, and then those may go. It is sealed for its place, and opens in no other row.
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY = re.compile(r"[0-9a-fA-F]{64}")
_DIGITS_LEAST = 8
"""Different digits that a random key has at the very least: one with fewer in ten million million."""
_NONCE_BYTES = 12
_FORM = re.compile(r"sealed:([0-9a-f]{8}):([A-Za-z0-9+/=]+)")


class NotOpenedError(Exception):
    """A secret cannot be opened: it is not sealed, its key is not here, or it was sealed for another place."""


class Seals:
    """The keys that secrets are sealed by. The first seals; each opens what it sealed."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take keys of 64 hexadecimal digits each.

        Raises:
            ValueError: one is too short, or not random.
        """
        for number, key in enumerate(keys, start=1):
            if not _KEY.fullmatch(key):
                raise ValueError(f"key {number} is not 64 hexadecimal digits; `openssl rand -hex 32` makes one")
            if len(set(key.lower())) < _DIGITS_LEAST:
                raise ValueError(f"key {number} is not random; `openssl rand -hex 32` makes one that is")
        made = [bytes.fromhex(key) for key in keys]
        self._ciphers = {hashlib.sha256(key).hexdigest()[:8]: AESGCM(key) for key in made}
        self._first = next(iter(self._ciphers), None)

    def __bool__(self) -> bool:
        return self._first is not None

    def seal(self, secret: str, place: str) -> str:
        """Seal a secret.

        Args:
            secret: the secret.
            place: where it will be kept, such as `table:row`; it opens there alone.
        """
        if self._first is None:
            raise RuntimeError("there is no key to seal by: whoever starts this has to see to it")
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._ciphers[self._first].encrypt(nonce, secret.encode(), place.encode())
        return f"sealed:{self._first}:{base64.b64encode(sealed).decode()}"

    def open(self, sealed: str, place: str) -> str:
        """Open what was sealed for a place.

        Raises:
            NotOpenedError: it cannot be opened; the message names the key that it takes, if any.
        """
        form = _FORM.fullmatch(sealed)
        if form is None:
            raise NotOpenedError("it is not sealed; `nightcourt migrate` seals it")
        cipher = self._ciphers.get(form[1])
        if cipher is None:
            raise NotOpenedError(f"the key {form[1]} is not among NIGHTCOURT_SECRET_KEYS")
        data = base64.b64decode(form[2])
        try:
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], place.encode()).decode()
        except InvalidTag:
            raise NotOpenedError("it was changed, or sealed for another place") from None

    def is_current(self, stored: str) -> bool:
        """Whether something is sealed by the first key."""
        return self._first is not None and stored.startswith(f"sealed:{self._first}:")
