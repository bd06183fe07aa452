"""Sends a callback, and nothing else, to wherever a producer wants it: the one way out of the service.

Whatever the receiver or the network does, a try ends within its deadline, in little memory and with a reason. The
name is resolved once and the connection goes to an address that was judged (`infra/addresses.py`), so that a name
cannot change its meaning in between. Nothing is taken from the environment but OpenSSL's own SSL_CERT_FILE and
SSL_CERT_DIR, no redirect is followed and nothing is unpacked (decision 10).
"""

import errno
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import h11

from infra.addresses import Address, Allowed, Target, UrlRefusedError, check_url, is_permitted
from infra.retry_after import read_retry_after
from schemas.callback import AttemptReason

MOST_HEAD_BYTES = 16 * 1024
"""What a receiver may say before its headers are at their end."""
MOST_BODY_BYTES = 4 * 1024
"""What is read, and dropped, of an answer's body."""

_READ_BYTES = 4 * 1024
_MOST_ADDRESSES = 4
_BODY_SECONDS = 1.0

Resolve = Callable[[str], Sequence[Address]]
"""Gives a host's addresses, best first. May block; raises OSError where there are none."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a try.

    Attributes:
        status: The HTTP status, where the receiver answered.
        reason: Why the receiver did not answer; None where it did, with whatever status.
        retry_after: Seconds from now that the receiver asks us to wait, at least 0. It may ask for years.
        seconds: How long the try took.
    """

    status: int | None
    reason: AttemptReason | None
    retry_after: float | None
    seconds: float


class _FailedError(Exception):
    def __init__(self, reason: AttemptReason) -> None:
        super().__init__(reason)
        self.reason = reason


def resolve_host(host: str) -> list[Address]:
    """Ask the system's resolver.

    Raises:
        OSError: The name has no address, or nobody can be asked.
    """
    # As bytes: a string would go through Python's own idea of international names.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [ip_address(entry[4][0]) for entry in found]


def tls_context(authorities: Path | None = None) -> ssl.SSLContext:
    """The terms on which we speak TLS: 1.2 or newer, certificate and host name verified.

    Not `ssl.create_default_context`: it would write every session's keys to a file that the environment names.

    Args:
        authorities: A PEM file of the only ones to trust; those that the system trusts when None.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if authorities is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(authorities)
    return context


def send(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    allowed: Allowed,
    deadline_seconds: float,
    resolve: Resolve = resolve_host,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """POST a body, once, on a connection of its own. Thread-safe.

    Args:
        url: Where to; checked here again.
        body: Sent as it is, to the byte.
        headers: Sent with it. Host, Content-Length, Connection and Accept-Encoding are ours.
        allowed: What is permitted beyond the public internet.
        deadline_seconds: For everything together: resolving, connecting, TLS, sending and the answer's headers. With
            the headers the receiver has answered; its body gets what is left of this, a second at most.
        resolve: Called once, and not at all where the host is an address.
        tls: What `tls_context` gave; the system's authorities when None.

    Returns:
        What came of it, whatever the receiver and the network do.

    Raises:
        ValueError: HTTP cannot carry one of the headers.
    """
    began = time.monotonic()
    deadline = began + deadline_seconds
    status = reason = retry_after = None
    try:
        target = check_url(url, allowed)
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
        request = _request(http, target, headers, body)
        addresses = _addresses(target, allowed, resolve, deadline)
        with _connected(addresses, target, tls, deadline) as sock:
            answer = _exchange(sock, http, request, deadline)
            status, retry_after = answer.status_code, _retry_after(answer)
            _drop_body(sock, http, min(deadline, time.monotonic() + _BODY_SECONDS))
    except UrlRefusedError:
        reason = AttemptReason.REFUSED
    except _FailedError as failure:
        reason = failure.reason
    return Reply(status, reason, retry_after, time.monotonic() - began)


def _request(http: h11.Connection, target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    ours = {
        "host": target.authority,
        "content-length": str(len(body)),
        "connection": "close",
        "accept-encoding": "identity",
    }
    every = {name.lower(): value for name, value in headers.items()} | ours
    try:
        head = http.send(h11.Request(method="POST", target=target.path, headers=list(every.items())))
        return b"".join((head or b"", http.send(h11.Data(body)) or b"", http.send(h11.EndOfMessage()) or b""))
    except (h11.LocalProtocolError, UnicodeEncodeError):
        # Not chained: the error quotes the header, which may be a signature.
        raise ValueError("HTTP cannot carry one of these headers: ASCII without line breaks it must be") from None


def _addresses(target: Target, allowed: Allowed, resolve: Resolve, deadline: float) -> Sequence[Address]:
    """The addresses to try, all of them permitted. One bad one among them is reason enough to send nothing."""
    if target.address is not None:
        return [target.address]
    with _failing(AttemptReason.DNS_FAILED, late=AttemptReason.DNS_FAILED):
        found = _within(functools.partial(resolve, target.host), deadline)
    if not found:
        raise _FailedError(AttemptReason.DNS_FAILED)
    if target.host not in allowed.hosts and not all(is_permitted(address, allowed) for address in found):
        raise _FailedError(AttemptReason.REFUSED)
    return found[:_MOST_ADDRESSES]


def _within(call: Callable[[], Sequence[Address]], deadline: float) -> Sequence[Address]:
    """What a call that nobody can interrupt returns, or TimeoutError; OSError where there is nobody left to make it.

    The system's resolver gives up by itself after some tens of seconds, so a sender leaves few such threads behind.
    """
    future: Future[Sequence[Address]] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (it is raised where the call was asked for)
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="resolver", daemon=True).start()
    except RuntimeError as error:  # as many as the system lets us have
        raise OSError(errno.EAGAIN, str(error)) from None
    return future.result(_left(deadline))


@contextmanager
def _connected(
    addresses: Sequence[Address], target: Target, tls: ssl.SSLContext | None, deadline: float
) -> Iterator[socket.socket]:
    """A connection to one of the addresses, closed in the end whatever is still to be read."""
    with _failing(AttemptReason.CONNECT_FAILED):
        plain = _connect(addresses, target.port, deadline)
    with plain:
        if target.scheme == "http":
            yield plain
            return
        with _failing(AttemptReason.TLS_FAILED):
            # The handshake as a whole has to be done in this time, however many packets it takes.
            plain.settimeout(_left(deadline))
            secured = (tls or _usual_tls()).wrap_socket(plain, server_hostname=target.host)
        with secured:
            yield secured


def _connect(addresses: Sequence[Address], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that lets us; each may take its share of the time that is left."""
    failure = OSError("no address")
    for place, address in enumerate(addresses):
        share = _left(deadline) / (len(addresses) - place)
        try:
            sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)  # noqa: PLR2004
        except OSError as error:
            failure = error
            continue
        try:
            sock.settimeout(share)
            sock.connect((str(address), port))
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


@functools.cache
def _usual_tls() -> ssl.SSLContext:
    """Reading the system's authorities takes tens of milliseconds, so it is done once."""
    return tls_context()


def _exchange(sock: socket.socket, http: h11.Connection, request: bytes, deadline: float) -> h11.Response:
    """Send the request and read the answer's status and headers."""
    with _failing(AttemptReason.BROKEN):
        unsent = memoryview(request)
        while unsent:
            sock.settimeout(_left(deadline))
            unsent = unsent[sock.send(unsent) :]
        for event in _events(sock, http, deadline, MOST_HEAD_BYTES):
            if isinstance(event, h11.Response):
                return event
    raise _FailedError(AttemptReason.BROKEN)


def _drop_body(sock: socket.socket, http: h11.Connection, deadline: float) -> None:
    """Read a little of the body: a receiver cut off while it writes may take its own work for failed.

    The status was given, so nothing that happens here changes what came of the try.
    """
    with suppress(_FailedError, OSError, h11.RemoteProtocolError):
        for event in _events(sock, http, deadline, MOST_BODY_BYTES):
            if not isinstance(event, h11.Data):
                return


def _events(sock: socket.socket, http: h11.Connection, deadline: float, most: int) -> Iterator[object]:
    """What the receiver says, up to so many bytes, and for no longer than the deadline."""
    came = 0
    while True:
        event = http.next_event()
        if event is not h11.NEED_DATA:
            yield event
            continue
        if came >= most:
            raise _FailedError(AttemptReason.TOO_LARGE)
        try:
            sock.settimeout(_left(deadline))
            data = sock.recv(min(_READ_BYTES, most - came))
        except TimeoutError:
            raise _FailedError(AttemptReason.TOO_SLOW if came else AttemptReason.TIMEOUT) from None
        came += len(data)
        http.receive_data(data)


def _retry_after(answer: h11.Response) -> float | None:
    value = next((value for name, value in answer.headers if name == b"retry-after"), b"")
    return read_retry_after(value.decode("latin-1"))


def _left(deadline: float) -> float:
    """Seconds until then; TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _failing(reason: AttemptReason, *, late: AttemptReason = AttemptReason.TIMEOUT) -> Iterator[None]:
    """Give what goes wrong inside its reason."""
    try:
        yield
    except TimeoutError:
        raise _FailedError(late) from None
    except (OSError, h11.RemoteProtocolError):
        raise _FailedError(reason) from None
