"""The two clients: they carry out the plans, one waiting and one awaiting."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, get_args

import httpx2

from producer.client.plans import LOCAL, Outcome, Plan, Plans
from schemas.comparison import Comparison

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _publish(plan: Callable[..., object], method: Callable[..., object]) -> None:
    """Give a client's method the name, documentation and signature of its plan, and the type of what comes of it."""
    signature = inspect.signature(plan)
    result = get_args(signature.return_annotation)[-1]
    vars(wraps(plan)(method))["__signature__"] = signature.replace(return_annotation=result)


def _sync(plan: Callable[Concatenate[Plans, _P], Plan[_T]]) -> Callable[Concatenate["Client", _P], _T]:
    def method(self: "Client", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(plan(self._plans, *args, **kwargs))

    _publish(plan, method)
    return method


def _async(
    plan: Callable[Concatenate[Plans, _P], Plan[_T]],
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
        self._plans = Plans(base_url, api_key, timeout, max_retries)
        self._http = httpx2.Client(transport=transport, **self._plans.connecting)
        self._sleep = time.sleep

    submit = _sync(Plans.submit)
    get = _sync(Plans.get)
    list = _sync(Plans.list)
    cancel = _sync(Plans.cancel)
    wait = _sync(Plans.wait)
    judge = _sync(Plans.judge)

    def iterate(self) -> Iterator[Comparison]:
        """Read all comparisons that were filed singly, newest first, a page at a time."""
        after, more = None, True
        while more:
            page = self.list(limit=100, after=after)
            yield from page.data
            after, more = page.last_id, page.has_more and bool(page.data)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        self._plans = Plans(base_url, api_key, timeout, max_retries)
        self._http = httpx2.AsyncClient(transport=transport, **self._plans.connecting)
        self._sleep = asyncio.sleep

    submit = _async(Plans.submit)
    get = _async(Plans.get)
    list = _async(Plans.list)
    cancel = _async(Plans.cancel)
    wait = _async(Plans.wait)
    judge = _async(Plans.judge)

    async def iterate(self) -> AsyncIterator[Comparison]:
        """Read all comparisons that were filed singly, newest first, a page at a time."""
        after, more = None, True
        while more:
            page = await self.list(limit=100, after=after)
            for comparison in page.data:
                yield comparison
            after, more = page.last_id, page.has_more and bool(page.data)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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
