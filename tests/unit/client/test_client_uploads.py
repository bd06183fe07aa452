"""The Python client's uploads, against a service on loopback that answers by a script."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.scripted import DROP, Answer, Asked, Caller, ScriptedService, openai_error, says

from producer.client import ServerProblem, ServerUnreachable


def file() -> Answer:
    """Give the answer with a file."""
    body = {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "x.jsonl", "purpose": "batch", "lines": 1}
    return says(body)


def form(asked: Asked) -> tuple[dict[str, bytes], str]:
    """Take an uploaded form apart: its fields, and the name of its file."""
    boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
    _, *parts, last = asked.body.split(b"--" + boundary)
    assert last == b"--\r\n"
    fields, filename = {}, ""
    for part in parts:
        head, _, value = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        fields[re.search(rb' name="(\w+)"', head)[1].decode()] = value  # type: ignore[index]
        named = re.search(rb'filename="([^"]*)"', head)
        filename = named[1].decode() if named else filename
    return fields, filename


class Pipe(io.RawIOBase):
    """Two lines that can be read once."""

    def __init__(self) -> None:
        self.rest = [b"[1]\n", b"[2]\n"]

    def read(self, size: int = -1) -> bytes:
        """Read what comes next."""
        return self.rest.pop(0) if self.rest else b""


class TestUpload:
    def test_a_file_is_sent_in_pieces(self, court: ScriptedService, call: Caller, tmp_path: Path) -> None:
        """It arrives whole as OpenAI's form, and progress is told on the way, of a known size."""
        court.script = [file()]
        data = bytes(range(256)) * 4096
        (path := tmp_path / "pairs.jsonl").write_bytes(data)
        told: list[tuple[int, int | None]] = []
        uploaded = call(court.url, "upload", path, on_progress=lambda *now: told.append(now))
        assert (uploaded.id, uploaded.lines) == ("file-1", 1)
        assert form(court.asked[0]) == ({"purpose": b"batch", "file": data}, "pairs.jsonl")
        assert (court.asked[0].method, court.asked[0].path) == ("POST", "/v1/files")
        assert [sent for sent, _ in told] == [262144 * n for n in range(5)]
        assert {of for _, of in told} == {1048576}

    @pytest.mark.parametrize(
        ("make", "filename", "named"),
        [
            (lambda: b"{}\n", None, "upload.jsonl"),
            (lambda: io.BytesIO(b"{}\n"), 'a "b"\r\n.jsonl', "a %22b%22%0D%0A.jsonl"),
        ],
        ids=["bytes", "file object"],
    )
    def test_what_else_may_be_sent(
        self, court: ScriptedService, call: Caller, make: Callable[[], Any], filename: str | None, named: str
    ) -> None:
        """Bytes and open files do, under any name, which cannot break out of its header."""
        court.script = [file()]
        call(court.url, "upload", make(), filename=filename)
        assert form(court.asked[0]) == ({"purpose": b"batch", "file": b"{}\n"}, named)

    def test_what_can_be_read_once_is_sent_once(self, court: ScriptedService, call: Caller) -> None:
        """A pipe has no size and no second reading: it is sent as it comes, and not again after a failure."""
        court.script = [file()]
        told: list[tuple[int, int | None]] = []
        call(court.url, "upload", Pipe(), on_progress=lambda *now: told.append(now))
        assert form(court.asked[0])[0]["file"] == b"[1]\n[2]\n"
        assert told == [(0, None), (4, None), (8, None)]
        court.script = [DROP, file()]
        with pytest.raises(ServerUnreachable):
            call(court.url, "upload", Pipe())
        court.script = [openai_error(429, "busy"), file()]
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "upload", Pipe())
        assert raised.value.code == "busy"
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"[1]\n[2]\n"] * 3

    def test_a_pipe_that_was_not_begun_is_sent_later(self, call: Caller) -> None:
        """An attempt that found no server took nothing from it."""
        court = ScriptedService(away=True)
        court.script, call.meanwhile = [file()], court.arrive
        try:
            call(court.url, "upload", Pipe())
        finally:
            court.close()
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"[1]\n[2]\n"]

    def test_a_failed_upload_is_sent_again_from_where_it_began(self, court: ScriptedService, call: Caller) -> None:
        """Each attempt carries all of the file, from where the caller had read to, and progress begins anew."""
        court.script = [DROP, openai_error(503, "unavailable"), file()]
        opened = io.BytesIO(b"skip{}\n")
        opened.seek(4)
        told: list[tuple[int, int | None]] = []
        call(court.url, "upload", opened, on_progress=lambda *now: told.append(now))
        assert [form(asked)[0]["file"] for asked in court.asked] == [b"{}\n"] * 3
        assert told == [(0, 3), (3, 3)] * 3
        assert not opened.closed

    def test_a_refusal_in_the_middle_is_heard(self, court: ScriptedService, call: Caller, tmp_path: Path) -> None:
        """A server that says no before it has read everything is understood, not taken for a broken connection."""
        refusal = openai_error(413, "body_too_large")
        court.script = [replace(refusal, headers={**refusal.headers, "Connection": "close"}, unread=True)]
        (path := tmp_path / "large.jsonl").write_bytes(b"x" * 300_000)
        with pytest.raises(ServerProblem) as raised:
            call(court.url, "upload", path, client={"max_retries": 0})
        assert raised.value.code == "body_too_large"

    def test_a_file_that_is_not_there(self, court: ScriptedService, call: Caller, tmp_path: Path) -> None:
        """Python's own error comes out, and nothing is asked."""
        with pytest.raises(FileNotFoundError):
            call(court.url, "upload", str(tmp_path / "none.jsonl"))
        assert court.asked == []
