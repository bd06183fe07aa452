"""Callbacks to real receivers on loopback, most of them bad: each try ends by design, in time, in little memory."""

import gzip
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from support.receivers import CHUNK, Behaviour, Call, Receiver, answering, blackhole, saying, self_signed, serving
from support.sockets import connects
from support.waiting import wait_until

from infra.addresses import Allowed
from infra.local.ports import free_port
from schemas.callback import AttemptReason
from worker.egress import MOST_BODY_BYTES, MOST_HEAD_BYTES, Reply, send, tls_context

HERE = Allowed.parse(["127.0.0.1"])
BODY = b'{"type": "comparison.succeeded"}'
DEADLINE = 1.0
"""Of receivers that say nothing."""
SLOW = 3.0
"""Of those that say something, and not all of it."""
AMPLE = 20.0
"""Of all others, which a busy machine may keep waiting."""
SLACK = 10.0
"""For a machine that is busy. Every bad receiver goes on for a minute, and is not waited for until the others' time."""
BODY_SECONDS = 1.0
"""What a body is given once the headers are there."""
MEMORY = 2 * 1024 * 1024
KERNEL = 64 * 1024 * 1024
"""More than the kernel's buffers of a connection hold on both sides together, and far less than 10 GB."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def post(url: str, *, allowed: Allowed = HERE, deadline_seconds: float = AMPLE, **options: Any) -> Reply:
    """Send the usual body."""
    headers = options.pop("headers", {"Content-Type": "application/json"})
    return send(url, body=BODY, headers=headers, allowed=allowed, deadline_seconds=deadline_seconds, **options)


BOMB = gzip.compress(bytes(64 * 1024 * 1024))
"""Small, and 64 MB when it is unpacked."""


# -- how receivers behave


def answers_after_we_hung_up(call: Call) -> None:
    """Is slower than anyone waits, and then content."""
    call.read()
    call.wait_for_hangup()
    call.say(OK)


def never_answers(call: Call) -> None:
    """Takes the request, and that was that."""
    call.read()
    call.wait_for_hangup()


def hangs_up(call: Call) -> None:
    """Takes the request and closes."""
    call.read()


def resets(call: Call) -> None:
    """Takes the request and breaks the connection."""
    call.read()
    call.reset()


def never_reads(call: Call) -> None:
    """Does not even read, and breaks the connection when it is over."""
    call.connection.recv(1)
    call.reset()


def dribbles_its_headers(call: Call) -> None:
    """A byte of a header a second."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    call.dribble(b"abc")


def dribbles_its_body(call: Call) -> None:
    """Says 200 at once, and a byte of the body a second."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    call.dribble(b"abc")


def dribbles_chunks(call: Call) -> None:
    """Says 200 at once, and then chunks that never get anywhere."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    call.dribble(b"1\r\na\r\n")


def cuts_its_body_short(call: Call) -> None:
    """Promises a thousand bytes, sends three."""
    call.read()
    call.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")


def pours(head: bytes, data: bytes) -> Behaviour:
    """Sends ten gigabytes, or as much of them as anyone takes."""

    def behave(call: Call) -> None:
        call.read()
        call.say(head)
        call.pour(data, 10 * 1024**3)

    return behave


# -- the table: what each receiver does, and what comes of it

TEN_GIGABYTES = pours(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n", CHUNK)
GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
ENDLESS_CHUNK = pours(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + CHUNK + b"\r\n")

RECEIVERS: dict[str, tuple[Behaviour, AttemptReason | None, int | None]] = {
    "200": (answering(200), None, 200),
    "204 without a body": (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), None, 204),
    "200 by HTTP/1.0, without a length": (saying(b"HTTP/1.0 200 OK\r\n\r\nok"), None, 200),
    "200 after 100 and 103": (
        saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
        None,
        200,
    ),
    "400": (answering(400), None, 400),
    "410": (answering(410), None, 410),
    "500": (answering(500, body=b"oh no"), None, 500),
    "999": (answering(999), None, 999),
    "200 after we hung up": (answers_after_we_hung_up, AttemptReason.TIMEOUT, None),
    "never answers": (never_answers, AttemptReason.TIMEOUT, None),
    "headers of a byte a second": (dribbles_its_headers, AttemptReason.TOO_SLOW, None),
    "body of a byte a second": (dribbles_its_body, None, 200),
    "chunks of a byte a second": (dribbles_chunks, None, 200),
    "body cut short": (cuts_its_body_short, None, 200),
    "body of 10 GB": (TEN_GIGABYTES, None, 200),
    "chunks of 10 GB": (ENDLESS_CHUNK, None, 200),
    "gzip bomb": (saying(GZIP % len(BOMB) + BOMB), None, 200),
    "headers without end": (pours(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n"), AttemptReason.TOO_LARGE, None),
    "a header without end": (pours(b"HTTP/1.1 200 OK\r\nX-Long: ", CHUNK), AttemptReason.TOO_LARGE, None),
    "100 without end": (pours(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), AttemptReason.TOO_LARGE, None),
    "a status line without end": (pours(b"HTTP/1.1 200 ", CHUNK), AttemptReason.TOO_LARGE, None),
    "not HTTP": (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), AttemptReason.BROKEN, None),
    "HTTP/2": (saying(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), AttemptReason.BROKEN, None),
    "switches protocols": (saying(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"), AttemptReason.BROKEN, None),
    "two lengths": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        AttemptReason.BROKEN,
        None,
    ),
    "hangs up": (hangs_up, AttemptReason.BROKEN, None),
    "hangs up in the headers": (saying(b"HTTP/1.1 200 OK\r\nX-Half"), AttemptReason.BROKEN, None),
    "resets": (resets, AttemptReason.BROKEN, None),
    "resets without reading": (never_reads, AttemptReason.BROKEN, None),
}

DEADLINES = {AttemptReason.TIMEOUT: DEADLINE, AttemptReason.TOO_SLOW: SLOW}
"""Of receivers that end that way. All others have ended long before theirs."""


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Notes what came of each receiver; the table is printed when all are done."""
    rows = [f"{'receiver':36} {'reason':15} {'status':>6} {'retry after':>11} {'seconds':>8} {'peak KB':>8}"]

    def note(name: str, reply: Reply, peak: int | None = None) -> None:
        retry = "-" if reply.retry_after is None else f"{reply.retry_after:.0f}"
        size = "-" if peak is None else f"{peak / 1024:.0f}"
        rows.append(
            f"{name:36} {reply.reason or '-':15} {reply.status or '-':>6} {retry:>11} {reply.seconds:8.3f} {size:>8}"
        )

    yield note
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join(rows))  # noqa: T201 (the table is the point)


class TestReceivers:
    @pytest.mark.parametrize("name", RECEIVERS)
    def test_whatever_a_receiver_does_ends_by_its_design(self, name, table):
        """AttemptReason and status are the designed ones, within the deadline, in little memory, on one connection."""
        behaviour, reason, status = RECEIVERS[name]
        with Receiver(behaviour) as receiver, connects() as attempts:
            tracemalloc.start()
            reply = post(f"http://127.0.0.1:{receiver.port}/hook", deadline_seconds=DEADLINES.get(reason, AMPLE))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        table(name, reply, peak)
        assert (reply.reason, reply.status) == (reason, status)
        assert reply.seconds < DEADLINES.get(reason, BODY_SECONDS) + SLACK
        assert attempts == [("127.0.0.1", receiver.port)]
        assert peak < MEMORY
        assert receiver.calls[0].sent < KERNEL

    def test_a_request_arrives_as_it_was_given(self):
        """Path, query, headers and body come to the byte; what is ours cannot be overruled."""
        mine = {"Webhook-Id": "evt_1", "Content-Type": "application/json", "HOST": "evil", "Content-Length": "1"}
        with Receiver(answering(200)) as receiver:
            assert post(f"http://127.0.0.1:{receiver.port}/hook/a%20b?c=d", headers=mine).status == 200
        head, _, body = receiver.calls[0].request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first == "POST /hook/a%20b?c=d HTTP/1.1"
        assert dict(line.lower().split(": ", 1) for line in lines) == {
            "host": f"127.0.0.1:{receiver.port}",
            "webhook-id": "evt_1",
            "content-type": "application/json",
            "content-length": str(len(BODY)),
            "connection": "close",
            "accept-encoding": "identity",
        }
        assert body == BODY

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_an_answer_and_nothing_more(self, status, table):
        """Where it points to is never contacted."""
        with Receiver(answering(200)) as trap:
            where = f"Location: http://127.0.0.1:{trap.port}/\r\n"
            with Receiver(answering(status, where)) as receiver, connects() as attempts:
                reply = post(f"http://127.0.0.1:{receiver.port}/")
        table(f"{status}", reply)
        assert (reply.reason, reply.status) == (None, status)
        assert attempts == [("127.0.0.1", receiver.port)]
        assert trap.calls == []

    def test_a_slow_receiver_is_cut_off_and_may_be_content_all_the_same(self):
        """It sees that we hung up; its 200 comes to nobody, which is why a later try carries the same id."""
        content = threading.Event()

        def behave(call: Call) -> None:
            answers_after_we_hung_up(call)
            content.set()

        with Receiver(behave) as receiver:
            assert post(f"http://127.0.0.1:{receiver.port}/", deadline_seconds=0.3).reason is AttemptReason.TIMEOUT
            wait_until(content.is_set, within=60, what="the receiver sees that we hung up")

    def test_nothing_listens(self, table):
        """A closed port is told from a silent one."""
        reply = post(f"http://127.0.0.1:{free_port()}/")
        table("closed port", reply)
        assert (reply.reason, reply.status) == (AttemptReason.CONNECT_FAILED, None)

    def test_a_black_hole(self, table):
        """Where packets go to vanish, the deadline ends the try."""
        listener, fillers = blackhole()
        reply = post(f"http://127.0.0.1:{listener.getsockname()[1]}/", deadline_seconds=DEADLINE)
        for sock in (listener, *fillers):
            sock.close()
        table("black hole", reply)
        assert (reply.reason, reply.status) == (AttemptReason.TIMEOUT, None)
        assert reply.seconds < DEADLINE + SLACK

    @pytest.mark.parametrize("deadline", [0.0, -1.0])
    def test_a_deadline_in_the_past_ends_before_it_began(self, deadline):
        """No time is no connection."""
        with connects() as attempts:
            assert post("http://127.0.0.1:9/", deadline_seconds=deadline).reason is AttemptReason.TIMEOUT
        assert attempts == []

    def test_many_at_once(self):
        """Senders in many threads get their own answers, and each body arrives once."""
        with Receiver(answering(200)) as receiver, ThreadPoolExecutor(16) as pool:
            url = f"http://127.0.0.1:{receiver.port}/"
            sent = [
                pool.submit(send, url, body=str(n).encode(), headers={}, allowed=HERE, deadline_seconds=30)
                for n in range(200)
            ]
            assert {one.result().status for one in sent} == {200}
        bodies = [call.request.partition(b"\r\n\r\n")[2] for call in receiver.calls]
        assert sorted(bodies, key=int) == [str(n).encode() for n in range(200)]

    @pytest.mark.parametrize("headers", [{"X-Bad": "secret\r\nX: y"}, {"X Bad": "secret"}, {"X-Bad": "secret\u20ac"}])
    def test_a_header_that_http_cannot_carry_is_the_callers_mistake(self, headers):
        """It is raised, before anything is connected to, and the message does not repeat it."""
        with connects() as attempts, pytest.raises(ValueError, match="HTTP cannot carry") as raised:
            post("http://127.0.0.1:9/", headers=headers)
        assert attempts == []
        assert "secret" not in str(raised.value)

    def test_the_body_is_read_to_its_end_where_that_is_near(self):
        """A receiver that answers as one should sees the whole answer taken, and no reset."""
        ended = []

        def behave(call: Call) -> None:
            answering(200, body=b"a" * (MOST_BODY_BYTES - 1))(call)
            ended.append(call.connection.recv(1))

        with Receiver(behave) as receiver:
            assert post(f"http://127.0.0.1:{receiver.port}/").status == 200
        assert ended == [b""]


ANSWERS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n", b"\r\n", b": ", b"Content-Length: 3\r\n", b"\n"]
        ),
        st.sampled_from(
            [b"Transfer-Encoding: chunked\r\n", b"ffffffffffff\r\n", b"0\r\n\r\n", b"Retry-After: ", b"\x00"]
        ),
        st.binary(max_size=20),
    ),
    max_size=12,
).map(b"".join)


class TestAnything:
    @settings(max_examples=300)
    @given(answer=ANSWERS)
    def test_any_bytes_at_all_end_in_a_reply(self, answer):
        """Whatever comes back, nothing is raised, and a status is given only with an answer."""
        with Receiver(saying(answer)) as receiver:
            reply = post(f"http://127.0.0.1:{receiver.port}/", deadline_seconds=20)
        assert reply.reason in {None, AttemptReason.BROKEN}
        assert (reply.status is None) == (reply.reason is AttemptReason.BROKEN)

    def test_headers_up_to_the_limit_are_read(self):
        """Just under the limit is an answer, and a little more is too large."""
        start, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Long: ", b"\r\n\r\n"
        for over, reason in ((0, None), (1, AttemptReason.TOO_LARGE)):
            fill = b"a" * (MOST_HEAD_BYTES - len(start) - len(end) + over)
            with Receiver(saying(start + fill + end)) as receiver:
                assert post(f"http://127.0.0.1:{receiver.port}/").reason is reason


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 0.0),
            ("120", 120.0),
            ("00120", 120.0),
            ("999999999", 999999999.0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ],
    )
    def test_the_wait_that_a_receiver_asks_for(self, value, seconds, table):
        """Seconds are taken as they are, and a date that has passed is no wait at all."""
        with Receiver(answering(429, f"Retry-After: {value}\r\n")) as receiver:
            reply = post(f"http://127.0.0.1:{receiver.port}/")
        table(f"429, {value}", reply)
        assert (reply.status, reply.retry_after) == (429, seconds)

    @pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"])
    def test_a_date_in_each_of_its_forms(self, form, table):
        """The three forms of RFC 9110 become seconds from now."""
        date = datetime.now(UTC) + timedelta(seconds=3600)
        assert form != "%a, %d %b %Y %H:%M:%S GMT" or date.strftime(form) == format_datetime(date, usegmt=True)
        with Receiver(answering(503, f"Retry-After: {date.strftime(form)}\r\n")) as receiver:
            reply = post(f"http://127.0.0.1:{receiver.port}/")
        table(f"503, {date.strftime(form)}", reply)
        assert reply.status == 503
        assert reply.retry_after == pytest.approx(3600, abs=60)

    @pytest.mark.parametrize(
        "value",
        ["", "soon", "-5", "1.5", "1e3", "9" * 400, "\u0661", "Mon, 99 Foo 2026", "Sun, 06 Nov 99999999 08:49:37 GMT"],
    )
    def test_nonsense_is_no_wait_asked_for(self, value):
        """A header that cannot be read is as good as none."""
        with Receiver(saying(f"HTTP/1.1 429 So\r\nRetry-After: {value}\r\n\r\n".encode())) as receiver:
            reply = post(f"http://127.0.0.1:{receiver.port}/")
        assert (reply.status, reply.retry_after) == (429, None)


# -- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of the test's own."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Our terms of TLS, with the test's authority as the only one."""
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(file)
    return tls_context(file)


def here(_host: str) -> list[IPv4Address]:
    """A resolver that knows one place."""
    return [IPv4Address("127.0.0.1")]


def silent(call: Call) -> None:
    """Takes the connection and says nothing."""
    call.wait_for_hangup()


def dribbles_tls(call: Call) -> None:
    """Begins a handshake's record, a byte a second."""
    call.dribble(b"\x16\x03\x03\x40\x00")


class TestTls:
    def try_one(
        self, receiver: Receiver, tls: ssl.SSLContext | None, host: str = "hooks.test", **options: Any
    ) -> Reply:
        """Send to a receiver that is called hooks.test, with time enough for all that is well."""
        options = {"deadline_seconds": 20.0, **options}
        return post(f"https://{host}:{receiver.port}/hook", tls=tls, resolve=here, **options)

    def test_a_good_certificate(self, authority, trusting, table):
        """The name is verified and told to the server, and the answer is as without TLS."""
        with Receiver(answering(200), tls=serving(authority.issue_cert("hooks.test"))) as receiver:
            reply = self.try_one(receiver, trusting)
        table("TLS", reply)
        assert (reply.reason, reply.status) == (None, 200)
        assert receiver.server_names == ["hooks.test"]
        assert b"\r\nhost: hooks.test:%d\r\n" % receiver.port in receiver.calls[0].request.lower()

    def test_a_good_certificate_of_an_address(self, authority, trusting):
        """A URL with an address needs a certificate for that address."""
        with Receiver(answering(200), tls=serving(authority.issue_cert("127.0.0.1"))) as receiver:
            assert self.try_one(receiver, trusting, "127.0.0.1").status == 200
            assert self.try_one(receiver, trusting).reason is AttemptReason.TLS_FAILED

    @pytest.mark.parametrize("flaw", ["another authority", "another host", "expired", "not yet valid"])
    def test_a_bad_certificate_gets_nothing(self, flaw, authority, trusting, table):
        """The try ends before the receiver has read a byte of the callback."""
        day, now = timedelta(days=1), datetime.now(UTC)
        certificate = {
            "another authority": lambda: trustme.CA().issue_cert("hooks.test"),
            "another host": lambda: authority.issue_cert("other.test", "*.hooks.test"),
            "expired": lambda: authority.issue_cert("hooks.test", not_before=now - 2 * day, not_after=now - day),
            "not yet valid": lambda: authority.issue_cert("hooks.test", not_before=now + day, not_after=now + 2 * day),
        }[flaw]()
        with Receiver(answering(200), tls=serving(certificate)) as receiver:
            reply = self.try_one(receiver, trusting)
        table(f"TLS, {flaw}", reply)
        assert (reply.reason, reply.status) == (AttemptReason.TLS_FAILED, None)
        assert [call.request for call in receiver.calls] == [b""]

    def test_a_self_signed_certificate_gets_nothing_either(self, trusting, tmp_path, table):
        """That it vouches for itself, and for the right name, counts for nothing."""
        with Receiver(answering(200), tls=self_signed("hooks.test", tmp_path / "own.pem")) as receiver:
            reply = self.try_one(receiver, trusting)
        table("TLS, self-signed", reply)
        assert (reply.reason, reply.status) == (AttemptReason.TLS_FAILED, None)
        assert [call.request for call in receiver.calls] == [b""]

    def test_the_usual_authorities_do_not_know_ours(self, authority):
        """Without a word about whom to trust, it is the system that is asked, and it says no."""
        with Receiver(answering(200), tls=serving(authority.issue_cert("hooks.test"))) as receiver:
            assert self.try_one(receiver, None).reason is AttemptReason.TLS_FAILED

    @pytest.mark.parametrize(
        ("name", "behaviour", "reason"),
        [
            ("plain HTTP", lambda call: call.say(OK), AttemptReason.TLS_FAILED),
            ("hangs up", lambda call: call.connection.recv(1), AttemptReason.TLS_FAILED),
            ("silent", silent, AttemptReason.TIMEOUT),
            ("handshake of a byte a second", dribbles_tls, AttemptReason.TIMEOUT),
        ],
    )
    def test_a_receiver_that_speaks_no_tls(self, name, behaviour, reason, trusting, table):
        """A handshake is bound by the same deadline, however many bytes it comes in."""
        with Receiver(behaviour) as receiver:
            reply = self.try_one(receiver, trusting, deadline_seconds=DEADLINES.get(reason, AMPLE))
        table(f"TLS, {name}", reply)
        assert (reply.reason, reply.status) == (reason, None)
        assert reply.seconds < DEADLINE + SLACK

    @pytest.mark.parametrize("behaviour", [dribbles_its_headers, dribbles_its_body, TEN_GIGABYTES])
    def test_the_bad_are_as_bad_with_tls(self, behaviour, authority, trusting):
        """Deadline and limits hold for what comes out of TLS, too."""
        reason = AttemptReason.TOO_SLOW if behaviour is dribbles_its_headers else None
        with Receiver(behaviour, tls=serving(authority.issue_cert("hooks.test"))) as receiver:
            reply = self.try_one(receiver, trusting, deadline_seconds=DEADLINES.get(reason, AMPLE))
        assert reply.reason is reason
        assert reply.seconds < DEADLINES.get(reason, BODY_SECONDS) + SLACK
        assert receiver.calls[0].sent < KERNEL
