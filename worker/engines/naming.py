"""Telling the critic from other models: a name is all there is to tell it by."""

import re

_CRITIC = re.compile(r"skywork-critic-llama-?3-?1-(8|70)b(?![0-9a-z])")


def is_critic(*names: str) -> bool:
    """Whether one of the names, a path or a title, is that of a Skywork-Critic."""
    return any(_CRITIC.search(plain(name)) for name in names)


def plain(name: str) -> str:
    """A name in lower case with a dash for everything that is no letter and no digit."""
    return re.sub(r"[^0-9a-z]+", "-", name.lower())
