"""The two clients: they carry out the plans, one waiting and one awaiting."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, closing
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, get_args

import httpx2

from producer.client.bulk import BulkPlans, ResultLines
from producer.client.plans import LOCAL, Outcome, Plan
from schemas.comparison import Comparison

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _publish(plan: Callable[..., object], method: Callable[..., object]) -> None:
    """Give a client's method the name, documentation and signature of its plan, and the type of what comes of it."""
    signature = inspect.signature(plan)
    result = get_args(signature.return_annotation)[-1]
    vars(wraps(plan)(method))["__signature__"] = signature.replace(return_annotation=result)


def _sync(plan: Callable[Concatenate[BulkPlans, _P], Plan[_T]]) -> Callable[Concatenate["Client", _P], _T]:
    def method(self: "Client", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(plan(self._plans, *args, **kwargs))

    _publish(plan, method)
    return method


def _async(
    plan: Callable[Concatenate[BulkPlans, _P], Plan[_T]],
) -> Callable[Concatenate["AsyncClient", _P], Coroutine[Any, Any, _T]]:
    async def method(self: "AsyncClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(plan(self._plans, *args, **kwargs))

    _publish(plan, method)
    return method


class Client:
    """A connection to a service. May be shared by threads; close it, or use it in a `with` statement.

    Args:
        base_url: where the service is, with whatever path a proxy puts before `/v1`.
        api_key: sent as `Authorization: Bearer`.
        timeout: seconds to connect in, and for an answer to come in beyond the time that the server was asked to wait.
        max_retries: how often a call is made again after a passing failure; 0 is never.
        transport: for tests.

    Every method raises `ServerUnreachable` when nothing answers, `UnexpectedAnswer` when another program does,
    `ServerProblem` when the server says no, and `InvalidRequest`, a `ServerProblem` too, when it would and was not
    asked. All of them are a `ClientError`.
    """

    def __init__(
        self,
        base_url: str = LOCAL,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._plans = BulkPlans(base_url, api_key, timeout, max_retries)
        self._http = httpx2.Client(transport=transport, **self._plans.connecting)
        self._sleep = time.sleep

    submit = _sync(BulkPlans.submit)
    get = _sync(BulkPlans.get)
    list = _sync(BulkPlans.list)
    cancel = _sync(BulkPlans.cancel)
    wait = _sync(BulkPlans.wait)
    judge = _sync(BulkPlans.judge)

    upload = _sync(BulkPlans.upload)
    create_batch = _sync(BulkPlans.create_batch)
    batch = _sync(BulkPlans.batch)
    batches = _sync(BulkPlans.batches)
    pause_batch = _sync(BulkPlans.pause_batch)
    resume_batch = _sync(BulkPlans.resume_batch)
    cancel_batch = _sync(BulkPlans.cancel_batch)
    retry_batch = _sync(BulkPlans.retry_batch)
    wait_batch = _sync(BulkPlans.wait_batch)

    def iterate(self) -> Iterator[Comparison]:
        """Read all comparisons that were filed singly, newest first, a page at a time."""
        after, more = None, True
        while more:
            page = self.list(limit=100, after=after)
            yield from page.data
            after, more = page.last_id, page.has_more and bool(page.data)

    def batch_results(self, batch_id: str) -> Iterator[Comparison]:
        """Read what has been decided of a batch so far, in the order of its file, as it arrives.

        A connection that breaks is made again, and nothing is given twice.
        """
        reading = ResultLines(self._plans, batch_id)
        for line in self._lines(reading):
            yield reading.comparison(line)

    def batch_result_lines(self, batch_id: str) -> Iterator[bytes]:
        """As `batch_results`, each comparison as the JSON that the server wrote, without a line break."""
        return self._lines(ResultLines(self._plans, batch_id))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self, reading: ResultLines) -> Iterator[bytes]:
        while True:
            outcome: Outcome
            try:
                with closing(self._http.send(reading.request(), stream=True)) as response:
                    if reading.begin(response):
                        for chunk in response.iter_bytes():
                            yield from reading.feed(chunk)
                        return
                    response.read()
                    outcome = response
            except httpx2.RequestError as error:
                outcome = error
            self._sleep(reading.failed(outcome))

    def _run(self, plan: Plan[_T]) -> _T:
        try:
            pause, request = next(plan)
            while True:
                self._sleep(pause)
                try:
                    outcome: Outcome = self._http.send(request)
                except httpx2.RequestError as error:
                    outcome = error
                pause, request = plan.send(outcome)
        except StopIteration as end:
            return cast("_T", end.value)


class AsyncClient:
    """`Client` for asyncio: the same arguments, results and errors. Close it, or use it in an `async with` statement.

    At most 100 calls are under way at a time; more wait for their turn.
    """

    def __init__(
        self,
        base_url: str = LOCAL,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._plans = BulkPlans(base_url, api_key, timeout, max_retries)
        self._http = httpx2.AsyncClient(transport=transport, **self._plans.connecting)
        self._sleep = asyncio.sleep

    submit = _async(BulkPlans.submit)
    get = _async(BulkPlans.get)
    list = _async(BulkPlans.list)
    cancel = _async(BulkPlans.cancel)
    wait = _async(BulkPlans.wait)
    judge = _async(BulkPlans.judge)

    upload = _async(BulkPlans.upload)
    create_batch = _async(BulkPlans.create_batch)
    batch = _async(BulkPlans.batch)
    batches = _async(BulkPlans.batches)
    pause_batch = _async(BulkPlans.pause_batch)
    resume_batch = _async(BulkPlans.resume_batch)
    cancel_batch = _async(BulkPlans.cancel_batch)
    retry_batch = _async(BulkPlans.retry_batch)
    wait_batch = _async(BulkPlans.wait_batch)

    async def iterate(self) -> AsyncIterator[Comparison]:
        """Read all comparisons that were filed singly, newest first, a page at a time."""
        after, more = None, True
        while more:
            page = await self.list(limit=100, after=after)
            for comparison in page.data:
                yield comparison
            after, more = page.last_id, page.has_more and bool(page.data)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Comparison]:
        """Read what has been decided of a batch so far, in the order of its file, as it arrives.

        A connection that breaks is made again, and nothing is given twice.
        """
        reading = ResultLines(self._plans, batch_id)
        async for line in self._lines(reading):
            yield reading.comparison(line)

    def batch_result_lines(self, batch_id: str) -> AsyncIterator[bytes]:
        """As `batch_results`, each comparison as the JSON that the server wrote, without a line break."""
        return self._lines(ResultLines(self._plans, batch_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _lines(self, reading: ResultLines) -> AsyncIterator[bytes]:
        while True:
            outcome: Outcome
            try:
                async with aclosing(await self._http.send(reading.request(), stream=True)) as response:
                    if reading.begin(response):
                        async for chunk in response.aiter_bytes():
                            for line in reading.feed(chunk):
                                yield line
                        return
                    await response.aread()
                    outcome = response
            except httpx2.RequestError as error:
                outcome = error
            await self._sleep(reading.failed(outcome))

    async def _run(self, plan: Plan[_T]) -> _T:
        try:
            pause, request = next(plan)
            while True:
                await self._sleep(pause)
                try:
                    outcome: Outcome = await self._http.send(request)
                except httpx2.RequestError as error:
                    outcome = error
                pause, request = plan.send(outcome)
        except StopIteration as end:
            return cast("_T", end.value)
