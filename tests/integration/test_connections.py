"""What connections cost the API, over real sockets: those that ask nothing, those without end, and many at once."""

import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import Response
from sqlalchemy import Connection, text
from support.edge import open_edge, served
from support.keys import a_key, bearer
from support.waiting import wait_until

from infra.database import tenant
from infra.local.ports import free_port, listens
from infra.settings import Settings
from producer import limits
from producer.api import app, bodies, connections, health, multipart
from producer.dashboard import access

BODY = b'{"prompt": "Which?", "response_a": "this", "response_b": "that"}'
AT_ONCE = 5


@pytest.fixture
def http(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    """An API that takes five requests at a time, with a client that sends a key."""
    monkeypatch.setattr(app, "_REQUESTS_AT_ONCE", AT_ONCE)
    with open_edge(database_url) as client:
        client.headers.update(bearer(a_key(database_url)))
        yield client


@contextmanager
def connected(http: httpx2.Client, said: bytes = b"") -> Iterator[socket.socket]:
    """A connection of its own, on which this was said and no more."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        connection.sendall(said)
        yield connection


def filing(http: httpx2.Client, length: int = len(BODY)) -> bytes:
    """The head of a request that files a comparison."""
    return posting(http, "/v1/comparisons", "application/json", length)


def an_edge(database_url: str) -> Settings:
    """The settings of an API on a database."""
    return Settings(database_url=database_url, redis_url="redis://127.0.0.1:1", secret_keys="0123456789abcdef" * 4)


def posting(http: httpx2.Client, path: str, media_type: str, length: int) -> bytes:
    """The head of a request with a body."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: here",
        "Connection: close",
        f"Content-Type: {media_type}",
        f"Content-Length: {length}",
        f"Authorization: {http.headers['authorization']}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def all_of(connection: socket.socket) -> bytes:
    """What the API says until it closes the connection."""
    said = b""
    while more := connection.recv(65536):
        said += more
    return said


def until_under_way(http: httpx2.Client, requests: int) -> None:
    """Wait until so many requests are under way beside the one that asks."""
    told = re.compile(rf"^nightcourt_http_requests_under_way {requests + 1}\.0$", re.MULTILINE)
    wait_until(lambda: told.search(http.get("/metrics").text), within=60, what=f"{requests} are under way")


def test_who_asks_nothing_takes_nobodys_place(http: httpx2.Client):
    """More connections than requests are taken, half of them with half a head; probes and requests are answered."""
    with ExitStack() as stack:
        for said in [b"", b"GET /livez HTTP/1.1\r\nX: "] * AT_ONCE:
            stack.enter_context(connected(http, said))
        assert [http.get(path).status_code for path in ("/livez", "/v1/comparisons")] == [200, 200]


def test_requests_beyond_what_is_taken_are_told_so_and_probes_are_answered(http: httpx2.Client):
    """While five wait for their bodies a sixth is to come again, in the shape of its route; probes are not."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(connected(http, filing(http))) for _ in range(AT_ONCE)]
        until_under_way(http, AT_ONCE)
        refused = http.get("/v1/comparisons")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert http.get("/v1/batches").json()["error"]["code"] == "unavailable"
        assert [http.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [200] * 3
        for each in waiting:
            each.sendall(BODY)
            assert all_of(each).startswith(b"HTTP/1.1 202 ")
    assert http.get("/v1/comparisons").status_code == 200


def test_probes_share_a_look(http: httpx2.Client, connection: Connection, monkeypatch: pytest.MonkeyPatch):
    """However many ask at a time whether the API is ready, Postgres is asked once, and all are told."""
    monkeypatch.setattr(health, "_PATIENCE", 20.0)
    asked = text("SELECT count(*) FROM pg_locks WHERE relation = 'workers'::regclass AND NOT granted")
    with ThreadPoolExecutor(4) as pool:
        connection.execute(text("BEGIN"))
        connection.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        probes = [pool.submit(http.get, "/readyz") for _ in range(4)]
        until_under_way(http, 4)
        wait_until(lambda: connection.execute(asked).scalar(), within=60, what="Postgres is asked")
        assert [http.get("/v1/files").status_code for _ in range(20)] == [200] * 20
        assert connection.execute(asked).scalar() == 1
        connection.execute(text("COMMIT"))
        assert [each.result().json()["status"] for each in probes] == ["degraded"] * 4
    assert http.get("/readyz").json()["database"] == "ok"


def test_a_key_takes_no_more_than_its_share(database_url: str, monkeypatch: pytest.MonkeyPatch):
    """While two of a key wait for their bodies its third is refused, and another key's is not; then it goes on."""
    monkeypatch.setattr(app, "_REQUESTS_OF_A_KEY", 2)
    with open_edge(database_url) as http, ExitStack() as stack:
        key, other = bearer(a_key(database_url)), bearer(a_key(database_url))
        http.headers.update(key)
        assert http.get("/v1/comparisons").status_code == 200
        waiting = [stack.enter_context(connected(http, filing(http))) for _ in range(2)]
        until_under_way(http, 2)
        refused = http.get("/v1/comparisons")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert '"requests-at-once";q=2' in refused.headers["ratelimit-policy"]
        assert http.get("/v1/comparisons", headers=other).status_code == 200
        for each in waiting:
            each.sendall(BODY)
            assert all_of(each).startswith(b"HTTP/1.1 202 ")
        assert http.get("/v1/comparisons").status_code == 200


def test_who_signs_in_takes_no_place_of_who_has_a_key(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """While as many forms come as are read at a time, the next is to be sent again, and keys are served."""
    monkeypatch.setattr(limits, "_STRANGERS", 2)
    head = posting(http, "/dashboard/login", "application/x-www-form-urlencoded", 1000)
    with connected(http, head), connected(http, head):
        until_under_way(http, 2)
        refused = http.post("/dashboard/login", data={"key": "nck_1"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert http.get("/v1/comparisons").status_code == 200
    wait_until(
        lambda: http.post("/dashboard/login", data={"key": "nck_1"}).status_code == 401,
        within=60,
        what="forms are read again",
    )


def test_a_connection_that_asks_nothing_in_time_is_closed(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """Whoever says nothing, or half a head, is closed without an answer; whoever has asked may take longer."""
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.5)
    half = b"GET /livez HTTP/1.1\r\nX: "
    with connected(http, filing(http)) as asked, connected(http) as silent, connected(http, half) as slow:
        assert all_of(silent) == b""
        assert all_of(slow) == b""
        asked.sendall(BODY)
        assert all_of(asked).startswith(b"HTTP/1.1 202 ")


def test_a_second_request_on_a_connection_has_as_long(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """A connection that was answered is closed in the middle of the next head, too."""
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.5)
    with connected(http, b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\nGET /livez HTTP/1.1\r\nX: ") as twice:
        assert all_of(twice).count(b"HTTP/1.1 200 ") == 1


def test_a_head_without_end_is_cut_off(http: httpx2.Client):
    """Beyond 64 KiB nothing more of a head is kept, however fast it comes."""
    head = b"GET /livez HTTP/1.1\r\n" + (b"X: " + b"x" * 1000 + b"\r\n") * 30_000
    with pytest.raises(ConnectionError), connected(http, head):
        pass


def until_answered(connection: socket.socket) -> None:
    """Read the answer to what was asked on a connection, and not its end."""
    said = b""
    while b"}" not in said:
        said += connection.recv(65536)


@pytest.mark.parametrize("trailers", [b"X: x\r\n" * 2_000_000, b"X: " + b"x" * 10_000_000], ids=["many", "a long one"])
def test_trailers_without_end_are_cut_off(http: httpx2.Client, trailers: bytes):
    """What comes after the last piece of a body is bounded as a head is, though the request was answered before."""
    head = b"POST /livez HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(http, head) as chunked:
        until_answered(chunked)
        with pytest.raises(ConnectionError):
            chunked.sendall(b"0\r\n" + trailers)


@pytest.mark.parametrize("rest", [b"\r\n", b"x"], ids=["a line break", "a piece of the body"])
def test_what_follows_an_answer_keeps_no_connection(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, rest: bytes):
    """Whoever sends a byte after the answer, and begins no request, is closed in time all the same."""
    monkeypatch.setattr(connections, "_REST_SECONDS", 2.0)
    length = 100 * (rest == b"x")
    head = b"POST /v1/comparisons HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % length
    with connected(http, head) as refused:
        until_answered(refused)
        refused.sendall(rest)
        assert all_of(refused) == b""


def test_a_refused_body_may_be_sent_to_its_end(http: httpx2.Client):
    """A body whose answer came early is read past, however large, and the connection is good for the next request."""
    head = b"POST /v1/comparisons HTTP/1.1\r\nHost: here\r\nContent-Length: 5000000\r\n\r\n"
    with connected(http, head) as refused:
        until_answered(refused)
        refused.sendall(b"x" * 5_000_000 + b"GET /livez HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert all_of(refused).startswith(b"HTTP/1.1 200 ")


def test_a_refused_body_may_come_slowly(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """While pieces of it come it is read past, for longer than the first of them may wait for the second."""
    monkeypatch.setattr(connections, "_REST_SECONDS", 4.0)
    head = b"POST /v1/comparisons HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n"
    with connected(http, head) as refused:
        until_answered(refused)
        refused.settimeout(0.5)
        for _ in range(10):
            refused.sendall(b"x" * 100_000)
            with pytest.raises(TimeoutError):
                refused.recv(1)
        refused.settimeout(60)
        refused.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert all_of(refused).startswith(b"HTTP/1.1 200 ")


UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n"


def test_who_reads_nothing_takes_nobodys_place_for_long(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """As many as are served at a time ask for more than is buffered and read none of it: they are cut off."""
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 6.0)
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            stack.enter_context(connected(http, UNREAD * 200))
        until_under_way(http, AT_ONCE)
        assert http.get("/v1/comparisons").status_code == 503
        until_under_way(http, 0)
        assert http.get("/v1/comparisons").status_code == 200


def test_who_reads_slowly_gets_it_all(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """A reader that takes a little between one look and the next is waited for, though far more stands unread."""
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 4.0)
    with connected(http) as slow:
        slow.sendall(UNREAD * 100 + b"GET /livez HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        until_under_way(http, 1)
        said = b""
        for _ in range(15):
            read = time.monotonic()
            said += slow.recv(256 * 1024)
            wait_until(lambda read=read: time.monotonic() > read + 0.4, within=60, what="the next piece is read")
        assert (said + all_of(slow)).count(b"HTTP/1.1 200 ") == 101


def test_who_reads_no_end_is_not_waited_for(database_url: str, monkeypatch: pytest.MonkeyPatch):
    """An answer that was written whole and is not read keeps no socket, though its connection was closed before."""
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.5)
    edge = app.create_app(settings := an_edge(database_url))
    edge.get("/large")(lambda: Response(b"x" * 20_000_000))
    sockets = Path("/proc/self/fd")
    with served(edge, **app.serving(settings)) as url, httpx2.Client(base_url=url) as http:
        open_before = len(list(sockets.iterdir()))
        with connected(http, b"GET /large HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n") as unread:
            assert unread.recv(1) == b"H"
            wait_until(
                lambda: len(list(sockets.iterdir())) == open_before + 1, within=20, what="the API closes its socket"
            )


def test_a_body_that_comes_with_its_head_is_no_head(http: httpx2.Client):
    """What arrives with a head in one piece, as of an upload from nearby, does not count against the head."""
    body = BODY + b" " * 200_000
    with connected(http, filing(http, len(body)) + body) as whole:
        assert all_of(whole).startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v1/comparisons", "application/json"),
        ("/v1/files", "multipart/form-data; boundary=x"),
        ("/dashboard/login", "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_that_does_not_come_is_not_waited_for(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, media_type: str
):
    """Whoever announces a body and sends half of it is told so, gives their place back, and is closed."""
    monkeypatch.setattr(bodies, "_SECONDS", 0.5)
    monkeypatch.setattr(multipart, "_PIECE_SECONDS", 0.5)
    monkeypatch.setattr(access, "_FORM_SECONDS", 0.5)
    with connected(http, posting(http, path, media_type, 1000) + b"--x\r\n") as half:
        said = all_of(half)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in said
    assert b"did not come within 0.5 s" in said


def test_a_body_has_longer_where_larger_ones_may_come(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """A key that may send a hundred times as much has a hundred times as long: by a slow link it can."""
    monkeypatch.setattr(bodies, "_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "_OF_BYTES", Settings().max_body_bytes // 100)
    with connected(http, posting(http, "/v1/comparisons", "application/json", len(BODY)) + BODY[:10]) as slow:
        slow.settimeout(1.0)
        with pytest.raises(TimeoutError):
            slow.recv(1)
        slow.sendall(BODY[10:])
        slow.settimeout(60)
        assert all_of(slow).startswith(b"HTTP/1.1 202 ")


def test_an_upload_takes_as_long_as_its_pieces_come(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch):
    """One that takes longer than may pass between two of its pieces is stored."""
    monkeypatch.setattr(multipart, "_PIECE_SECONDS", 5.0)
    part = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    pieces = [part % (b"purpose", b"batch"), part % (b"file", (BODY + b"\n") * 3), b"--x--\r\n"]
    head = posting(http, "/v1/files", "multipart/form-data; boundary=x", sum(map(len, pieces)))
    with connected(http, head) as upload:
        upload.settimeout(2.0)
        for piece in pieces:
            with pytest.raises(TimeoutError):
                upload.recv(1)
            upload.sendall(piece)
        upload.settimeout(60)
        assert all_of(upload).startswith(b"HTTP/1.1 200 ")


SERVE = """
import resource, sys
from infra.settings import Settings
from producer.api.app import serve
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
serve(Settings(port=int(sys.argv[1]), secret_keys="0123456789abcdef" * 4))
"""


def test_the_api_may_open_as_many_files_as_it_is_let():
    """The usual soft limit is under what a thousand requests need, beside the connections that ask nothing just now."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stdout=subprocess.DEVNULL) as api:
        try:
            wait_until(lambda: listens(api.pid, port), within=60, what="the API listens")
            limits = Path(f"/proc/{api.pid}/limits").read_text()
        finally:
            api.terminate()
    [soft] = re.findall(r"^Max open files +(\d+) ", limits, re.MULTILINE)
    assert int(soft) == min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)


def test_a_request_behind_another_begins_as_nobodys(database_url: str):
    """Two requests come at once on one connection: the second knows nothing of the first one's tenant."""
    chosen = an_edge(database_url)
    edge = app.create_app(chosen)

    @edge.get("/whose")
    async def whose() -> str:
        return f"whose: {tenant.get()}"

    with served(edge, **app.serving(chosen)) as url, httpx2.Client(base_url=url) as http:
        http.headers.update(bearer(a_key(database_url)))
        first = f"GET /v1/comparisons HTTP/1.1\r\nHost: here\r\nAuthorization: {http.headers['authorization']}\r\n\r\n"
        second = "GET /whose HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        with connected(http, (first + second).encode()) as both:
            said = all_of(both)
    assert said.count(b"HTTP/1.1 200 ") == 2
    assert b"whose: None" in said


def test_an_idle_connection_outlives_what_proxies_keep(http: httpx2.Client):
    """They use one again for a minute as a rule, and what they send on it would meet its end."""
    question = b"GET /livez HTTP/1.1\r\nHost: any\r\n\r\n"

    def ask(connection: socket.socket) -> None:
        connection.sendall(question)
        answer = b""
        while not answer.endswith(b"}"):
            more = connection.recv(4096)
            assert more, "it was closed"
            answer += more

    with connected(http) as connection:
        ask(connection)
        connection.settimeout(6.0)  # uvicorn's own limit is five seconds
        with pytest.raises(TimeoutError):
            connection.recv(1)
        ask(connection)
    assert app.serving(Settings())["timeout_keep_alive"] > 600
