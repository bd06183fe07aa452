"""Pages of the dashboard as tests read them."""

import re
from html import unescape


def words(page: str) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
