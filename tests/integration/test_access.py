"""Who may ask: every operation of the OpenAPI document, tried without a key and with keys that are not enough."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from structlog.testing import capture_logs
from support.databases import own_database
from support.edge import open_edge
from support.keys import a_key, bearer
from support.waiting import wait_until

from infra.database import connect
from infra.local.postgres import Postgres
from infra.settings import Settings
from producer import guessing, keys
from producer.api.app import create_app
from producer.guessing import FREE
from producer.keyring import SECONDS
from schemas.keys import Scope, parse_key

OPEN = {"/livez", "/readyz", "/metrics"}
"""What anybody may ask: it tells how a process fares, and nothing that was sent."""

NOWHERE = {
    "comparison_id": f"cmp_{'0' * 32}",
    "file_id": f"file-{'0' * 32}",
    "batch_id": f"batch_{'0' * 32}",
    "endpoint_id": f"cep_{'0' * 32}",
    "callback_id": f"cbk_{'0' * 32}",
}

SCOPES = {
    "POST /v1/comparisons": Scope.SUBMIT,
    "GET /v1/comparisons": Scope.READ,
    "GET /v1/comparisons/{comparison_id}": Scope.READ,
    "POST /v1/comparisons/{comparison_id}/cancel": Scope.SUBMIT,
    "POST /v1/files": Scope.SUBMIT,
    "GET /v1/files": Scope.READ,
    "GET /v1/files/{file_id}": Scope.READ,
    "DELETE /v1/files/{file_id}": Scope.SUBMIT,
    "GET /v1/files/{file_id}/content": Scope.READ,
    "POST /v1/batches": Scope.SUBMIT,
    "GET /v1/batches": Scope.READ,
    "GET /v1/batches/{batch_id}": Scope.READ,
    "POST /v1/batches/{batch_id}/cancel": Scope.SUBMIT,
    "POST /v1/batches/{batch_id}/pause": Scope.SUBMIT,
    "POST /v1/batches/{batch_id}/resume": Scope.SUBMIT,
    "POST /v1/batches/{batch_id}/retry": Scope.SUBMIT,
    "GET /v1/batches/{batch_id}/results": Scope.READ,
    "GET /v1/batches/{batch_id}/events": Scope.READ,
    "GET /v1/batches/{batch_id}/report": Scope.READ,
    "GET /v1/callback-endpoints": Scope.READ,
    "POST /v1/callback-endpoints": Scope.ADMIN,
    "GET /v1/callback-endpoints/{endpoint_id}": Scope.READ,
    "DELETE /v1/callback-endpoints/{endpoint_id}": Scope.ADMIN,
    "POST /v1/callback-endpoints/{endpoint_id}/disable": Scope.ADMIN,
    "POST /v1/callback-endpoints/{endpoint_id}/enable": Scope.ADMIN,
    "POST /v1/callback-endpoints/{endpoint_id}/rotate-secret": Scope.ADMIN,
    "POST /v1/callback-endpoints/{endpoint_id}/test": Scope.ADMIN,
    "POST /v1/callback-secret": Scope.ADMIN,
    "GET /v1/callbacks": Scope.READ,
    "POST /v1/callbacks/replay": Scope.ADMIN,
    "GET /v1/callbacks/{callback_id}": Scope.READ,
    "POST /v1/callbacks/{callback_id}/replay": Scope.ADMIN,
}
"""The scope that each operation takes, written down a second time: to weaken one takes a change here as well."""


class Operation(NamedTuple):
    """An operation as the document has it."""

    method: str
    path: str
    described: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"


COUNT = itertools.count(1)
DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [
    Operation(method, path, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
]
KEYED = [operation for operation in OPERATIONS if operation.path not in OPEN]


class Edge(NamedTuple):
    """The HTTP edge, and the database under it."""

    http: httpx2.Client
    database_url: str


@pytest.fixture(scope="module")
def edge(postgres: Postgres, template: str) -> Iterator[Edge]:
    """An edge over a database of this module's own, behind a proxy on this machine that says who asks."""
    with own_database(postgres, template) as url, open_edge(url, trusted_proxies="127.0.0.1") as http:
        yield Edge(http, url)


def ask(edge: Edge, operation: Operation, headers: dict[str, str], **sent: Any) -> httpx2.Response:
    """Send an operation with those headers, about things that are not there, each time from another address."""
    path = operation.path.format(**NOWHERE)
    origin = {"X-Forwarded-For": f"2001:db8:0:{next(COUNT):x}::1"}
    return edge.http.request(operation.method, path, headers={**headers, **origin}, **sent)


def code(answer: httpx2.Response) -> str:
    """The code of a problem, in our shape or in OpenAI's."""
    said = answer.json()
    return said.get("error", said)["code"]


@pytest.mark.parametrize("operation", KEYED, ids=str)
class TestEveryOperation:
    def test_no_key(self, edge: Edge, operation: Operation):
        """Without a key, or with something that is no key of the kind, the answer is 401 before anything is read."""
        for headers in ({}, {"Authorization": "Basic bmM6bmM="}, {"Authorization": "Bearer"}):
            answer = ask(edge, operation, headers, content=b"{ no JSON")
            assert (answer.status_code, code(answer)) == (401, "key_missing")
            assert answer.headers["www-authenticate"] == "Bearer"

    def test_a_key_that_is_not_good(self, edge: Edge, operation: Operation, bad_keys: dict[str, str]):
        """Revoked, expired, unknown and wrong keys get one and the same answer."""
        answers = [ask(edge, operation, bearer(key)) for key in bad_keys.values()]
        assert {(answer.status_code, code(answer)) for answer in answers} == {(401, "key_invalid")}
        bodies = {json.dumps({**answer.json(), "request_id": None}) for answer in answers}
        assert len(bodies) == 1

    def test_too_little_scope(self, edge: Edge, operation: Operation, keys_of_a_scope: dict[Scope, str]):
        """A key without the scope is answered 403 with the scope's name, whatever else is wrong with the request."""
        needed = SCOPES[str(operation)]
        for scope, key in keys_of_a_scope.items():
            answer = ask(edge, operation, bearer(key), content=b"{ no JSON")
            if scope in (needed, Scope.ADMIN):
                assert answer.status_code in (200, 400, 404, 415, 422), answer.text
            else:
                assert (answer.status_code, code(answer)) == (403, "scope_missing")
                assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{needed}"'

    def test_it_is_described(self, operation: Operation):
        """The document says that a key is needed, and what is answered without."""
        assert operation.described["security"] == [{"key": []}]
        assert {"401", "403"} <= set(operation.described["responses"])


@pytest.fixture(scope="module")
def bad_keys(edge: Edge) -> dict[str, str]:
    """Keys that are good for nothing."""
    revoked, good = a_key(edge.database_url), a_key(edge.database_url)
    database = connect(edge.database_url, application="test")
    with database.begin() as connection:
        keys.revoke(connection, parse_key(revoked).id)
    database.dispose()
    return {
        "revoked": revoked,
        "expired": a_key(edge.database_url, expires_seconds=-1),
        "unknown": keys.spell_key(keys.new_key()),
        "wrong": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "cut short": good[:-1],
        "id alone": good.rpartition("_")[0],
        "another thing": "sk-1234",
    }


@pytest.fixture(scope="module")
def keys_of_a_scope(edge: Edge) -> dict[Scope, str]:
    """A key of each scope alone."""
    return {scope: a_key(edge.database_url, scopes=[scope]) for scope in Scope}


class TestOpen:
    def test_every_operation_has_a_scope(self):
        """The document has the operations whose scopes are written down above, and no others."""
        assert [str(operation) for operation in KEYED] == list(SCOPES)

    def test_only_health_is_open(self):
        """Every operation takes a key but the three that tell how a process fares."""
        without = {operation.path for operation in OPERATIONS if "security" not in operation.described}
        assert without == OPEN

    @pytest.mark.parametrize("path", [*sorted(OPEN), "/docs", "/openapi.json"])
    def test_it_answers_without_a_key(self, edge: Edge, path: str):
        """Health, numbers and documentation are there for whoever reaches the port."""
        assert edge.http.get(path).status_code == 200


class TestRevoking:
    def test_it_takes_effect_within_five_seconds(self, edge: Edge):
        """A key that was good a moment ago is refused soon after it is revoked, though it was remembered."""
        key = a_key(edge.database_url)

        def asked() -> int:
            return edge.http.get("/v1/comparisons", headers=bearer(key)).status_code

        assert asked() == 200
        database = connect(edge.database_url, application="test")
        with database.begin() as connection:
            keys.revoke(connection, parse_key(key).id)
        database.dispose()
        over = time.monotonic() + SECONDS
        wait_until(lambda: asked() == 401 or time.monotonic() > over, within=60, what="the key is refused")
        assert asked() == 401  # whoever asks from then on


class TestGuessing:
    @pytest.fixture(autouse=True)
    def waits(self, monkeypatch: pytest.MonkeyPatch):
        """The first wait is as long as the longest, so that it is not over before it is asked about."""
        monkeypatch.setattr(guessing, "FIRST_SECONDS", guessing.LONGEST_SECONDS)

    def test_a_guesser_is_slowed_down(self, edge: Edge):
        """After some wrong keys the address is told to wait, whatever it sends; other addresses are not."""
        here, there = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        known, fresh = a_key(edge.database_url), a_key(edge.database_url)

        def ask_with(key: str, origin: dict[str, str]) -> httpx2.Response:
            return edge.http.get("/v1/comparisons", headers={**bearer(key), **origin})

        assert ask_with(known, here).status_code == 200
        statuses = [ask_with(keys.spell_key(keys.new_key()), here).status_code for _ in range(FREE + 3)]
        assert statuses[:FREE] == [401] * FREE
        assert statuses[-1] == 429
        refused = ask_with(fresh, here)
        assert (refused.status_code, code(refused)) == (429, "too_many_wrong_keys")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert ask_with(fresh, there).status_code == 200
        # Whoever shares the address with a guesser goes on, by a key that was good here before.
        assert ask_with(known, here).status_code == 200
        assert ask_with(fresh, here).status_code == 200

    def test_no_proxy_no_forwarding(self, database_url: str):
        """Where no proxy is trusted, the address is that of whoever connects, whatever the request says."""
        with open_edge(database_url) as http:
            wrong = [
                http.get("/v1/comparisons", headers={**bearer("nck_1"), "X-Forwarded-For": f"192.0.2.{number}"})
                for number in range(FREE + 2)
            ]
        assert wrong[-1].status_code == 429

    @pytest.mark.parametrize(
        ("trusted", "forwarded", "warned"),
        [
            ("", "192.0.2.1", ["127.0.0.1"]),
            ("", "227.0.0.127.0.0.1", ["127.0.0.1"]),
            ("127.0.0.1", "192.0.2.1", []),
            ("127.0.0.1", "192.0.2.1:4711", []),
            ("127.0.0.1", "[2001:db8::1]:4711", []),
            ("127.0.0.1", "192.0.2.1, 10.0.0.7", ["10.0.0.7"]),
            ("127.0.0.1,10.0.0.7", "192.0.2.1, 10.0.0.7", []),
            ("127.0.0.1", "10.1.1.1, 9.9.9.9", []),
        ],
    )
    def test_a_proxy_that_is_not_trusted_is_told_of_once(
        self, database_url: str, trusted: str, forwarded: str, warned: list[str]
    ):
        """The log names the address of whoever forwards, unless it is believed, or a public one behind one that is."""
        with capture_logs() as logs, open_edge(database_url, trusted_proxies=trusted) as http:
            for _ in range(2):
                http.get("/livez", headers={"X-Forwarded-For": forwarded})
        assert [each["client"] for each in logs if each["event"] == "proxy_not_trusted"] == warned

    def test_a_store_that_is_down_locks_nobody_out(self):
        """While Postgres is away no key can be told, and so none is counted as wrong: it is 503, and nobody waits."""
        with open_edge("postgresql://127.0.0.1:1/nowhere") as http:
            headers = bearer(keys.spell_key(keys.new_key()))
            answers = [http.get("/v1/comparisons", headers=headers) for _ in range(FREE + 3)]
        assert {(answer.status_code, code(answer)) for answer in answers} == {(503, "unavailable")}
