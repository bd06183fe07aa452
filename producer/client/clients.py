"""The two clients: they carry out the plans, one waiting and one awaiting."""

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, closing, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, get_args

import httpx2

from producer.client.bulk import ResultLines
from producer.client.callbacks import CallbackPlans
from producer.client.errors import ClientError
from producer.client.plans import CONNECTIONS, LOCAL, Outcome, Plan, Step, no_room, room_for
from schemas.comparison import Comparison

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _publish(plan: Callable[..., object], method: Callable[..., object]) -> None:
    """Give a client's method the name, documentation and signature of its plan, and the type of what comes of it."""
    signature = inspect.signature(plan)
    result = get_args(signature.return_annotation)[-1]
    vars(wraps(plan)(method))["__signature__"] = signature.replace(return_annotation=result)


def _sync(plan: Callable[Concatenate[CallbackPlans, _P], Plan[_T]]) -> Callable[Concatenate["Client", _P], _T]:
    def method(self: "Client", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(plan(self._plans, *args, **kwargs))

    _publish(plan, method)
    return method


def _async(
    plan: Callable[Concatenate[CallbackPlans, _P], Plan[_T]],
) -> Callable[Concatenate["AsyncClient", _P], Coroutine[Any, Any, _T]]:
    async def method(self: "AsyncClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(plan(self._plans, *args, **kwargs))

    _publish(plan, method)
    return method


@contextmanager
def _told_of_the_environment() -> Iterator[None]:
    """Word what keeps a client from being made: all of it was read from the environment."""
    try:
        yield
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        raise ClientError(
            f"A proxy or the certificates that the environment names cannot be used ({error}). Look at HTTP_PROXY, "
            "HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
        ) from error


class Client:
    """A connection to a service. May be shared by threads; close it, or use it in a `with` statement.

    At most 100 calls are under way at a time; more wait for their turn.

    Args:
        base_url: where the service is, with whatever path a proxy puts before `/v1`; that may stand at the end, or not.
        api_key: sent as `Authorization: Bearer`; NIGHTCOURT_KEY of the environment when None.
        timeout: seconds to connect in, and for an answer to come in beyond the time that the server was asked to wait.
        max_retries: how often a call is made again after a passing failure; 0 is never. `judge` and waits, which have a
            `timeout` of their own, go on regardless.
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
        self._plans = CallbackPlans(base_url, api_key, timeout, max_retries)
        with _told_of_the_environment():
            self._http = httpx2.Client(transport=transport, **self._plans.connecting)
        self._room = threading.Semaphore(CONNECTIONS)
        self._sleep = time.sleep

    submit = _sync(CallbackPlans.submit)
    get = _sync(CallbackPlans.get)
    list = _sync(CallbackPlans.list)
    cancel = _sync(CallbackPlans.cancel)
    wait = _sync(CallbackPlans.wait)
    judge = _sync(CallbackPlans.judge)

    upload = _sync(CallbackPlans.upload)
    create_batch = _sync(CallbackPlans.create_batch)
    batch = _sync(CallbackPlans.batch)
    batches = _sync(CallbackPlans.batches)
    pause_batch = _sync(CallbackPlans.pause_batch)
    resume_batch = _sync(CallbackPlans.resume_batch)
    cancel_batch = _sync(CallbackPlans.cancel_batch)
    retry_batch = _sync(CallbackPlans.retry_batch)
    wait_batch = _sync(CallbackPlans.wait_batch)

    add_endpoint = _sync(CallbackPlans.add_endpoint)
    endpoints = _sync(CallbackPlans.endpoints)
    disable_endpoint = _sync(CallbackPlans.disable_endpoint)
    enable_endpoint = _sync(CallbackPlans.enable_endpoint)
    remove_endpoint = _sync(CallbackPlans.remove_endpoint)
    test_endpoint = _sync(CallbackPlans.test_endpoint)
    rotate_secret = _sync(CallbackPlans.rotate_secret)
    callbacks = _sync(CallbackPlans.callbacks)
    callback = _sync(CallbackPlans.callback)
    replay = _sync(CallbackPlans.replay)
    replay_dead = _sync(CallbackPlans.replay_dead)

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
                with self._room, closing(self._http.send(reading.request(), stream=True)) as response:
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
            step = next(plan)
            while True:
                self._sleep(step.pause)
                step = plan.send(self._send(step))
        except StopIteration as end:
            return cast("_T", end.value)

    def _send(self, step: Step) -> Outcome:
        if not self._room.acquire(timeout=room_for(step.by)):
            return no_room()
        try:
            return self._http.send(step.make())
        except httpx2.RequestError as error:
            return error
        finally:
            self._room.release()


class AsyncClient:
    """`Client` for asyncio: the same arguments, results and errors. Close it, or use it in an `async with`."""

    def __init__(
        self,
        base_url: str = LOCAL,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._plans = CallbackPlans(base_url, api_key, timeout, max_retries)
        with _told_of_the_environment():
            self._http = httpx2.AsyncClient(transport=transport, **self._plans.connecting)
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._sleep = asyncio.sleep

    submit = _async(CallbackPlans.submit)
    get = _async(CallbackPlans.get)
    list = _async(CallbackPlans.list)
    cancel = _async(CallbackPlans.cancel)
    wait = _async(CallbackPlans.wait)
    judge = _async(CallbackPlans.judge)

    upload = _async(CallbackPlans.upload)
    create_batch = _async(CallbackPlans.create_batch)
    batch = _async(CallbackPlans.batch)
    batches = _async(CallbackPlans.batches)
    pause_batch = _async(CallbackPlans.pause_batch)
    resume_batch = _async(CallbackPlans.resume_batch)
    cancel_batch = _async(CallbackPlans.cancel_batch)
    retry_batch = _async(CallbackPlans.retry_batch)
    wait_batch = _async(CallbackPlans.wait_batch)

    add_endpoint = _async(CallbackPlans.add_endpoint)
    endpoints = _async(CallbackPlans.endpoints)
    disable_endpoint = _async(CallbackPlans.disable_endpoint)
    enable_endpoint = _async(CallbackPlans.enable_endpoint)
    remove_endpoint = _async(CallbackPlans.remove_endpoint)
    test_endpoint = _async(CallbackPlans.test_endpoint)
    rotate_secret = _async(CallbackPlans.rotate_secret)
    callbacks = _async(CallbackPlans.callbacks)
    callback = _async(CallbackPlans.callback)
    replay = _async(CallbackPlans.replay)
    replay_dead = _async(CallbackPlans.replay_dead)

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
                async with self._room, aclosing(await self._http.send(reading.request(), stream=True)) as response:
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
            step = next(plan)
            while True:
                await self._sleep(step.pause)
                step = plan.send(await self._send(step))
        except StopIteration as end:
            return cast("_T", end.value)

    async def _send(self, step: Step) -> Outcome:
        try:
            async with asyncio.timeout(room_for(step.by)):
                await self._room.acquire()
        except TimeoutError:
            return no_room()
        try:
            return await self._http.send(step.make())
        except httpx2.RequestError as error:
            return error
        finally:
            self._room.release()
