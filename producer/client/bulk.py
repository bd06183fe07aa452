"""The clients' methods for files and batches: plans as the others, and results read as a stream."""

import random
import re
import time
from contextlib import ExitStack
from typing import Any, Literal, TypedDict, Unpack

import httpx2
from pydantic import ValidationError

from producer.client.errors import BatchNotEnded, ClientError
from producer.client.forms import FileForm, FileLike, OnProgress, open_file
from producer.client.plans import (
    PATIENCE,
    Outcome,
    Plan,
    Plans,
    end_of,
    invalid,
    key_header,
    refused,
    retry_delay,
    surely_undone,
)
from schemas import comparison as words
from schemas.batch import Batch, BatchPage, BatchRequest, File, Window
from schemas.comparison import Comparison
from schemas.ids import parse_prefixed
from schemas.lines import ENDPOINT

_FILES, _BATCHES = "/v1/files", "/v1/batches"
_SOON, _OFTEN = 0.1, 1.0
_LINE = re.compile(rb'"cmp_[0-9a-f]{32}_([0-9]+)"')
_MEDIA_TYPE = "application/jsonl"


class BatchOptions(TypedDict, total=False):
    """How to run a batch: the optional fields of `schemas.batch.BatchRequest`."""

    metadata: dict[str, str] | None
    order: words.Orders | None
    profile: words.Profile | None
    tie_margin: float | None
    priority: int
    on_bad_line: Literal["fail", "skip"]
    reuse: bool
    not_before: int | None
    window: Window | dict[str, str] | None
    callback_url: str | None
    callback_comparisons: bool


def batch_request(input_file_id: str, completion_window: str, options: Any) -> BatchRequest:
    """Make the request for a batch.

    Raises:
        InvalidRequest: an option has a value that it cannot have.
    """
    fields = {"input_file_id": input_file_id, "endpoint": ENDPOINT, "completion_window": completion_window, **options}
    try:
        return BatchRequest.model_validate(fields)
    except ValidationError as error:
        raise refused(error) from None


def _one(batch_id: str) -> str:
    if parse_prefixed(batch_id, "batch_") is None:
        raise invalid("batch_id", "looks like batch_ and 32 hexadecimal digits; this is none")
    return f"{_BATCHES}/{batch_id}"


class BulkPlans(Plans):
    """The plans for files and batches, beside those for single comparisons."""

    def upload(
        self, file: FileLike, *, filename: str | None = None, on_progress: OnProgress | None = None
    ) -> Plan[File]:
        """Upload a file of comparisons, one JSON object a line; gzip and zstd too. It is never whole in memory.

        Parquet is refused: `nightcourt batch run` reads it.

        A file of which no batch is made does no harm, so an upload that failed in passing is sent again, whole, where
        the file can be read again or nothing of it was read yet.

        Args:
            file: a path, an open binary file, or the bytes.
            filename: the name to give it, by default its own.
            on_progress: told the bytes that were sent, and of how many where that is known.
        """
        with ExitStack() as ends:
            opened, name = open_file(file)
            if opened is not file:
                ends.enter_context(opened)
            form = FileForm(opened, filename or name, on_progress)
            return (
                yield from self.call(
                    File, "POST", _FILES, form.headers, patience=PATIENCE, again=lambda _: form.whole, stream=form
                )
            )

    def create_batch(
        self,
        input_file_id: str,
        completion_window: str = "24h",
        *,
        idempotency_key: str | None = None,
        **options: Unpack[BatchOptions],
    ) -> Plan[Batch]:
        """Make a batch of an uploaded file.

        Args:
            input_file_id: the `id` that `upload` gave.
            completion_window: how long until what is undecided expires: 90m, 24h, 7d.
            idempotency_key: the same key with the same file and options makes no second batch; by default new with each
                call, over whose retries it is kept.
            options: any of `BatchOptions`.
        """
        body = batch_request(input_file_id, completion_window, options).model_dump_json(exclude_unset=True)
        headers = {"Idempotency-Key": key_header(idempotency_key)}
        return self.call(Batch, "POST", _BATCHES, headers, patience=PATIENCE, content=body)

    def batch(self, batch_id: str) -> Plan[Batch]:
        """Read a batch as it stands: counts, rate, time left, cost, and why it waits if it does."""
        return self.call(Batch, "GET", _one(batch_id))

    def batches(self, *, limit: int = 20, after: str | None = None) -> Plan[BatchPage]:
        """Read a page of 1 to 100 batches, newest first; `after` is the `last_id` of the page before."""
        params = {"limit": str(limit)} | ({} if after is None else {"after": after})
        return self.call(BatchPage, "GET", _BATCHES, params=params)

    def pause_batch(self, batch_id: str) -> Plan[Batch]:
        """Hold a batch. Nothing decided is lost."""
        return self.call(Batch, "POST", f"{_one(batch_id)}/pause")

    def resume_batch(self, batch_id: str) -> Plan[Batch]:
        """Let a paused batch go on."""
        return self.call(Batch, "POST", f"{_one(batch_id)}/resume")

    def cancel_batch(self, batch_id: str) -> Plan[Batch]:
        """Call a batch off. What was decided stays and can be read."""
        return self.call(Batch, "POST", f"{_one(batch_id)}/cancel")

    def retry_batch(self, batch_id: str) -> Plan[Batch]:
        """Judge the errored lines of an ended batch again, and those alone.

        Two calls may judge them twice, so this one is not repeated by itself where it may have been carried out.
        """
        return self.call(Batch, "POST", f"{_one(batch_id)}/retry", patience=PATIENCE, again=surely_undone)

    def wait_batch(self, batch_id: str, timeout: float | None) -> Plan[Batch]:
        """Wait up to `timeout` seconds for a batch to end, well or not: read its `status`. None waits for ever.

        A service that is away meanwhile is waited for too.

        Raises:
            BatchNotEnded: it has not ended by then. This is a `TimeoutError` too.
        """
        path, give_up_at = _one(batch_id), end_of(timeout)
        now: Batch | None = None
        pause, every = 0.0, _SOON
        while True:
            try:
                now = yield from self.call(Batch, "GET", path, give_up_at=give_up_at, pause=pause, lasting=True)
            except ClientError as error:
                if now is None or not error.passing:
                    raise
                raise BatchNotEnded(now) from error
            if now.status.final:
                return now
            pause, every = min(every, give_up_at - time.monotonic()), min(2 * every, _OFTEN)
            if pause <= 0:
                raise BatchNotEnded(now)


class ResultLines:
    """The results of a batch while they are read, without a socket: cuts lines, and goes on where a connection broke.

    Args:
        plans: makes the requests and words what is the matter.
        batch_id: the batch.
    """

    def __init__(self, plans: Plans, batch_id: str) -> None:
        self._plans, self._path = plans, f"{_one(batch_id)}/results"
        self._rest = b""
        self._given = self._attempt = 0

    def request(self) -> httpx2.Request:
        """Make the request for all lines."""
        self._rest = b""
        return self._plans.request("GET", self._path, {"Accept": _MEDIA_TYPE})

    def begin(self, response: httpx2.Response) -> bool:
        """Tell whether lines will follow; where not, read the body and hand it to `failed`.

        Raises:
            UnexpectedAnswer: what follows is something else.
        """
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if response.is_success and media_type != _MEDIA_TYPE:
            raise self._plans.unexpected(self._path, response, f"it is not {_MEDIA_TYPE}")
        return response.is_success

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes in and give the lines that are whole by them, and were not given before the connection broke."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line for line in whole if line and self._new(line)]

    def failed(self, outcome: Outcome) -> float:
        """Tell how long to sleep before the next attempt.

        Raises:
            ClientError: trying is of no use.
        """
        delay = retry_delay(self._attempt, outcome, self._plans.max_retries, random.random)
        if delay is None:
            self._plans.read(Batch, self._path, outcome)
        self._attempt += 1
        return delay or 0.0

    def comparison(self, line: bytes) -> Comparison:
        """Understand a line."""
        return self._plans.read(Comparison, self._path, httpx2.Response(200, content=line))

    def _new(self, line: bytes) -> bool:
        """Tell by its number whether a line is new. Lines come in order, so one number tells what was given."""
        found = _LINE.search(line)
        number = int(found[1]) if found else self._given + 1
        if number <= self._given:
            return False
        self._given, self._attempt = number, 0
        return True
