"""Reading an uploaded form as it arrives: fields are kept, the file's bytes are handed on."""

from collections.abc import AsyncIterator

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from producer.deadlines import in_time
from schemas.problems import MALFORMED_UPLOAD, Problem

_FIELD_BYTES = 1024
"""The longest that a plain field of an upload may be."""
_PARTS = 16
"""More than any client sends: the fields are kept in memory until the file has come."""

_PIECE_SECONDS = 60.0
"""How long the next piece of an upload may take to come. All of it may take as long as a large file does."""


class Upload:
    """One form with one file in it. Iterate over `chunks` first; the fields are whole after that."""

    def __init__(self, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise Problem(MALFORMED_UPLOAD, "Send the file as multipart/form-data, with the fields purpose and file.")
        self._request = request
        self._name = b""
        self._value = bytearray()
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._pending: list[bytes] = []
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._in_file = False
        self._ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise Problem(MALFORMED_UPLOAD, "The boundary of the form is too long.") from None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the file's bytes as they arrive.

        Raises:
            Problem: the body is no such form, ends in the middle, or stops there.
        """
        async for data in _pieces(self._request):
            try:
                self._parser.write(data)
            except FormParserError:
                raise Problem(MALFORMED_UPLOAD, "The multipart body is not well formed.") from None
            pending, self._pending = self._pending, []
            for chunk in pending:
                yield chunk
        if not self._ended:
            raise Problem(MALFORMED_UPLOAD, "The upload ends in the middle; send it again.")
        if self.filename is None:
            raise Problem(MALFORMED_UPLOAD, "The form has no part called file.")

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise Problem(
                MALFORMED_UPLOAD, f"The form has more than {_PARTS} parts; purpose and file are all it needs."
            )
        self._headers = {}
        self._value = bytearray()
        self._in_file = False

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"")
        if self._name == b"file":
            if self.filename is not None:
                raise Problem(MALFORMED_UPLOAD, "The form has more than one file; send them one by one.")
            self.filename = options.get(b"filename", b"upload.jsonl").decode(errors="replace")[:255].replace("\x00", "")
            self._in_file = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pending.append(bytes(data[start:end]))
        elif len(self._value) + end - start > _FIELD_BYTES:
            raise Problem(MALFORMED_UPLOAD, f"A field of the form is longer than {_FIELD_BYTES} bytes.")
        else:
            self._value += data[start:end]

    def _part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name.decode(errors="replace")] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        async with in_time(_PIECE_SECONDS, "More of the upload"):
            piece = await anext(stream, None)
        if piece is None:
            return
        yield piece
