"""COPY's text form: columns between tabs, rows between line feeds, and what has to be escaped for it."""

_ESCAPES = ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\r", b"\\r"), (b"\n", b"\\n"))


def escape(value: bytes) -> bytes:
    """Escape a column's text."""
    for plain, escaped in _ESCAPES:
        value = value.replace(plain, escaped)
    return value


def column(value: str | None) -> bytes:
    """Give a column's text, or the mark of its absence."""
    return b"\\N" if value is None else escape(value.encode())
