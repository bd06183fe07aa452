"""Every method of the clients, once: plans of requests that touch no socket, and the one retry policy."""

import math
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Generator, Sequence
from threading import TIMEOUT_MAX
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar, Unpack
from uuid import uuid4

import httpx2
from pydantic import BaseModel, ValidationError

from producer.client.errors import (
    ClientError,
    InvalidRequest,
    NotDecided,
    ServerProblem,
    ServerUnreachable,
    UnexpectedAnswer,
    read_problem,
)
from schemas import comparison as words
from schemas.comparison import Comparison, ComparisonPage, ComparisonRequest
from schemas.ids import parse_comparison_id
from schemas.problems import field_path, invalid_request

LOCAL = "http://127.0.0.1:8300"
CONNECTIONS = 100
"""How many calls of a client are under way at a time."""
PATIENCE = 570.0
"""How many seconds more an answer may take that comes once a whole file was stored, or a whole log gone through."""
_PATH = "/v1/comparisons"
_VERSION = re.compile(r"(?<!/)/v1/*$")  # and no host of that name
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_UNDONE = 429  # a 503 may follow a commit whose answer was lost
_FIRST_BACKOFF, _LONGEST_BACKOFF, _LONGEST_RETRY_AFTER = 0.2, 5.0, 30.0
_LONGEST_WAIT = 60.0  # what a server holds an answer for, unless it was set up otherwise
_POLL = 20.0  # shorter than proxies commonly leave a connection without a byte
_BREATH = 0.25  # between two polls, so that nothing spins where a proxy drops `Prefer`

PromptLike: TypeAlias = str | Sequence[words.PromptTurn | dict[str, str]]
AnswerLike: TypeAlias = str | Sequence[words.ResponseTurn | dict[str, str]]


class ComparisonOptions(TypedDict, total=False):
    """How to judge, and what to give back: the optional fields of `schemas.comparison.ComparisonRequest`."""

    order: words.Orders
    profile: words.Profile
    tie_margin: float | None
    custom_id: str | None
    metadata: dict[str, str]
    callback_url: str | None


class ComparisonFields(ComparisonOptions, total=False):
    """The fields of a comparison as keyword arguments. These three are needed."""

    prompt: PromptLike
    response_a: AnswerLike
    response_b: AnswerLike


_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)
_Error = TypeVar("_Error", bound=ClientError)
Outcome: TypeAlias = httpx2.Response | httpx2.RequestError


class Step(NamedTuple):
    """A request of a plan."""

    pause: float
    """Seconds to sleep before it."""
    make: Callable[[], httpx2.Request]
    """Makes it, once there is a connection for it: how long its answer may be held hangs on when that is."""
    by: float = math.inf
    """When it is too late for a connection."""


Plan: TypeAlias = Generator[Step, Outcome, _T]
"""A course of requests that touches no socket: it yields steps, is handed what came of each, and returns the result.
Both clients carry out the same plans, so there is one policy."""


def end_of(timeout: float | None) -> float:
    """Tell when a time to wait of so many seconds is over; one of None never is."""
    return math.inf if timeout is None else time.monotonic() + timeout


def room_for(by: float) -> float | None:
    """Tell how many seconds there are to wait for a connection; None is forever."""
    return None if by == math.inf else max(0.0, min(by - time.monotonic(), TIMEOUT_MAX))


def no_room() -> httpx2.PoolTimeout:
    """Make the outcome of a step for which there was no connection in time."""
    return httpx2.PoolTimeout(f"all {CONNECTIONS} connections of this client were taken until the time was up")


def without_version(base_url: str) -> str:
    """Take off the `/v1` that OpenAI's client wants at the end of an address: every path of ours brings its own."""
    return _VERSION.sub("", base_url).rstrip("/")


def passing(outcome: Outcome) -> bool:
    """Tell whether what failed may go well another time."""
    if isinstance(outcome, httpx2.Response):
        return outcome.status_code in _PASSING
    return not isinstance(outcome, httpx2.DecodingError | httpx2.LocalProtocolError) and not _distrusted(outcome)


def _distrusted(error: BaseException | None) -> bool:
    """Tell whether it was the server's certificate that kept us from asking: another time it is the same one."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def retry_delay(attempt: int, outcome: Outcome, max_retries: float, draw: Callable[[], float]) -> float | None:
    """Tell how many seconds to sleep before the next attempt, or None to give up.

    Args:
        attempt: how many attempts came before the one that had this outcome.
        outcome: the response, or why there is none.
        max_retries: how many attempts may follow the first.
        draw: gives a number from 0 to 1, for the jitter.
    """
    if attempt >= max_retries or not passing(outcome):
        return None
    asked = outcome.headers.get("retry-after", "") if isinstance(outcome, httpx2.Response) else ""
    at_least = min(float(asked), _LONGEST_RETRY_AFTER) if asked.isascii() and asked.isdigit() else 0.0
    return at_least + draw() * min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt, 10))


def surely_undone(outcome: Outcome) -> bool:
    """Tell whether a call that failed has certainly done nothing, so that making it again cannot do it twice."""
    if isinstance(outcome, httpx2.Response):
        return outcome.status_code == _UNDONE
    return isinstance(outcome, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def _marked(error: _Error, outcome: Outcome) -> _Error:
    error.passing = passing(outcome)
    return error


def invalid(name: str, message: str) -> InvalidRequest:
    """Say what is wrong with an argument, as the server would."""
    return InvalidRequest(invalid_request([{"type": "client", "loc": (name,), "msg": message}]).document())


def refused(error: ValidationError) -> InvalidRequest:
    """Say what is wrong with a request, as the server would."""
    return InvalidRequest(invalid_request(error.errors(include_url=False, include_input=False)).document())


def _header(name: str, value: str) -> str:
    if not (1 <= len(value) <= 255 and value.isascii() and value.isprintable() and value == value.strip()):  # noqa: PLR2004
        raise invalid(name, "takes 1 to 255 printable ASCII characters")
    return value


def key_header(key: str | None) -> str:
    """Give the Idempotency-Key of a call: the caller's, or else a new one."""
    return str(uuid4()) if key is None else _header("Idempotency-Key", key)


def _one(comparison_id: str) -> str:
    if parse_comparison_id(comparison_id) is None:
        raise invalid("comparison_id", "looks like cmp_ and 32 hexadecimal digits; this is none")
    return f"{_PATH}/{comparison_id}"


def _request(request: ComparisonRequest | None, fields: Any) -> ComparisonRequest:
    if request is not None and fields:
        raise TypeError("give a ComparisonRequest or the fields of one, not both")
    try:
        return request or ComparisonRequest.model_validate(fields)
    except ValidationError as error:
        raise refused(error) from None


class Plans:
    """Every method of the clients, once. Documented for those who call it on a client."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float, max_retries: int) -> None:
        try:
            url = httpx2.URL(base_url)
        except httpx2.InvalidURL as error:
            raise invalid("base_url", f"is no URL ({error})") from None
        if url.scheme not in {"http", "https"} or not url.host or (url.port or 0) > 0xFFFF:  # noqa: PLR2004 - the last port
            raise invalid("base_url", f"begins with http:// or https:// and names a host, for instance {LOCAL}")
        if url.userinfo:  # it would be sent in place of the key
            raise invalid("base_url", "has a user or a password in it, and neither is a key; give the key as api_key")
        self._url = without_version(str(url))
        self._host = url.netloc.decode("ascii")
        self._timeout, self.max_retries = timeout, max_retries
        self._headers = {"Accept": "application/json", "User-Agent": "nightcourt-client"}
        if api_key is None:  # a program that files comparisons has no settings of ours
            api_key = os.environ.get("NIGHTCOURT_KEY")  # noqa: TID251
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {_header('api_key', api_key)}"
        # A proxy that the environment names cannot reach this machine's own loopback, and a context without
        # certificates, which take long to load and could only be of use to a proxy, trusts nobody.
        loopback = url.scheme == "http" and url.host in {"127.0.0.1", "::1", "localhost"}
        alone: dict[str, Any] = {"trust_env": False, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20)
        self.connecting = {"limits": limits, **(alone if loopback else {})}

    def submit(
        self,
        request: ComparisonRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **fields: Unpack[ComparisonFields],
    ) -> Plan[Comparison]:
        """File a comparison, given whole or as its fields. It is stored, and will be judged, once this returns.

        Args:
            request: the comparison.
            idempotency_key: the same key with the same comparison files nothing twice; by default new with each call.
            wait: seconds, up to 60, to hold the answer until there is a verdict.
            fields: prompt, response_a and response_b, each text or a list of turns, and any of `ComparisonOptions`.
        """
        return self._file(_request(request, fields), idempotency_key, wait)

    def get(self, comparison_id: str, wait: float | None = None) -> Plan[Comparison]:
        """Read a comparison, at once or held for up to `wait` seconds (60 at most) until it has ended."""
        return self.call(Comparison, "GET", _one(comparison_id), wait=wait)

    def list(self, *, limit: int = 20, after: str | None = None) -> Plan[ComparisonPage]:
        """Read a page of 1 to 100 comparisons, newest first; `after` is the `last_id` of the page before."""
        params = {"limit": str(limit)} | ({} if after is None else {"after": after})
        return self.call(ComparisonPage, "GET", _PATH, params=params)

    def cancel(self, comparison_id: str) -> Plan[Comparison]:
        """Call a comparison off. Raises `ServerProblem` with code `already_decided` if it ended in another way."""
        return self.call(Comparison, "POST", f"{_one(comparison_id)}/cancel")

    def wait(self, comparison_id: str, timeout: float | None) -> Plan[Comparison]:
        """Wait up to `timeout` seconds for a comparison to end, well or not: read its `status`. None waits for ever.

        A service that is away meanwhile is waited for too.

        Raises:
            NotDecided: it has not ended by then. This is a `TimeoutError` too.
        """
        return self._until_final(_one(comparison_id), end_of(timeout))

    def judge(
        self,
        prompt: PromptLike,
        response_a: AnswerLike,
        response_b: AnswerLike,
        *,
        timeout: float | None = 60.0,
        idempotency_key: str | None = None,
        **options: Unpack[ComparisonOptions],
    ) -> Plan[Comparison]:
        """File a comparison and wait up to `timeout` seconds for it to end, well or not: read its `status`.

        None waits for ever. A service that is away or has no room meanwhile is tried until then, for filing as for
        waiting. All tries carry one idempotency key, so nothing is filed twice. It is filed even where other calls of
        this client keep all connections longer than that.

        Raises:
            NotDecided: it has not ended by then. It stays filed; `wait` for it with the id of `error.comparison`.
        """
        give_up_at = end_of(timeout)
        request = _request(None, {"prompt": prompt, "response_a": response_a, "response_b": response_b, **options})
        filed = yield from self._file(request, idempotency_key, _POLL, give_up_at, lasting=True)
        return filed if filed.status.final else (yield from self._until_final(_one(filed.id), give_up_at, filed))

    def _file(
        self,
        request: ComparisonRequest,
        key: str | None,
        wait: float | None,
        give_up_at: float = math.inf,
        *,
        lasting: bool = False,
    ) -> Plan[Comparison]:
        headers = {"Idempotency-Key": key_header(key)}
        body = request.model_dump_json(exclude_unset=True)
        return self.call(
            Comparison,
            "POST",
            _PATH,
            headers,
            wait=wait,
            give_up_at=give_up_at,
            lasting=lasting,
            surely=True,
            content=body,
        )

    def _until_final(self, path: str, give_up_at: float, now: Comparison | None = None) -> Plan[Comparison]:
        pause = 0.0
        while True:
            try:
                now = yield from self.call(
                    Comparison, "GET", path, wait=_POLL, give_up_at=give_up_at, pause=pause, lasting=True
                )
            except ClientError as error:
                if now is None or not error.passing:
                    raise
                raise NotDecided(now) from error
            pause = min(_BREATH, give_up_at - time.monotonic())
            if now.status.final:
                return now
            if pause <= 0:
                raise NotDecided(now)

    def call(
        self,
        model: type[_Model],
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        wait: float | None = None,
        give_up_at: float = math.inf,
        pause: float = 0.0,
        patience: float = 0.0,
        again: Callable[[Outcome], bool] = lambda _: True,
        lasting: bool = False,
        surely: bool = False,
        **parts: Any,
    ) -> Plan[_Model]:
        """Make one call, again and again until it succeeds, trying is of no use, or `give_up_at` would pass.

        `again` tells whether what failed in passing may be made again, and with `lasting` it is until `give_up_at`,
        however often. With `surely` it is made once even where there is no connection for it by then. `patience` is how
        many seconds more than usual an answer may take.
        """

        def make() -> httpx2.Request:
            held = max(0.0, min(wait or 0.0, _LONGEST_WAIT, give_up_at - time.monotonic()))
            sent = (headers or {}) | ({"Prefer": f"wait={held:.3f}"} if held else {})
            return self.request(method, path, sent, patience=held + patience, **parts)

        outcome = yield Step(pause, make, math.inf if surely else give_up_at)
        attempt = 0
        while True:
            delay = retry_delay(attempt, outcome, math.inf if lasting else self.max_retries, random.random)
            if not again(outcome):
                return self.read(model, path, outcome, unsure=True)
            if delay is None or time.monotonic() + delay >= give_up_at:
                return self.read(model, path, outcome)
            before, outcome = outcome, (yield Step(delay, make, give_up_at))
            if isinstance(outcome, httpx2.PoolTimeout):  # the time is up, and it was asked before
                return self.read(model, path, before)
            attempt += 1

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, patience: float = 0.0, **parts: Any
    ) -> httpx2.Request:
        """Make a request whose answer may take `patience` seconds beyond the usual. There is a connection for it."""
        # All that is sent whole is JSON; files are streams, and say themselves what they are.
        written = {"Content-Type": "application/json"} if "content" in parts else {}
        sent = {"Host": self._host, **self._headers, **written, **(headers or {})}
        timeout = httpx2.Timeout(self._timeout, read=self._timeout + patience, pool=None).as_dict()
        return httpx2.Request(method, self._url + path, headers=sent, extensions={"timeout": timeout}, **parts)

    def read(self, model: type[_Model], path: str, outcome: Outcome, *, unsure: bool = False) -> _Model:
        """Make the result of an answer, or raise what is the matter; `unsure`: it may yet have been done."""
        if isinstance(outcome, httpx2.RequestError):
            if isinstance(outcome, httpx2.PoolTimeout):
                raise _marked(ServerUnreachable(f"{self._url} was not asked: {outcome}."), outcome)
            why = f"No nightcourt server answered at {self._url} ({str(outcome) or type(outcome).__name__})."
            start = "Start one with `nightcourt up`, or give the address of one that runs."
            done = "What was asked for may have been done all the same; look before you ask for it again."
            raise _marked(ServerUnreachable(f"{why} {done if unsure else start}"), outcome) from outcome
        try:
            if outcome.is_success:
                return model.model_validate_json(outcome.content or b"null")  # a 204 has none
            problem = read_problem(outcome.status_code, outcome.content, outcome.headers.get("x-request-id"))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
        else:
            raise _marked(ServerProblem(problem), outcome)
        why = f"{field_path(first['loc']) or 'the body'}: {first['msg']}"
        raise _marked(self.unexpected(path, outcome, why), outcome)

    def unexpected(self, path: str, outcome: httpx2.Response, why: str) -> UnexpectedAnswer:
        """Say that what answered is not nightcourt, and why."""
        media_type = outcome.headers.get("content-type", "of no type").partition(";")[0]
        moved = f" It redirects to {outcome.headers['location']}." if outcome.has_redirect_location else ""
        return UnexpectedAnswer(
            f"{self._url}{path} answered {outcome.status_code} ({media_type}), not as nightcourt would ({why})."
            f"{moved} Another program may listen there, a proxy may stand between, or the server is of another version."
        )
