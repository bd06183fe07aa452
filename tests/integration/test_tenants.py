"""Tenants see nothing of each other: every operation of the OpenAPI document, tried with another tenant's ids."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from support.databases import own_database
from support.edge import open_edge
from support.keys import a_key, bearer
from support.waiting import wait_until

from infra.local.postgres import Postgres
from infra.settings import Settings
from producer.api.app import create_app

PAIR = {"prompt": "Which?", "response_a": "this", "response_b": "that"}
NOBODYS = f"{0:032x}"
DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [
    (method, path, described) for path, methods in DOCUMENT["paths"].items() for method, described in methods.items()
]
ABOUT = [(method, path) for method, path, _ in OPERATIONS if "{" in path]
LISTS = [path for method, path, _ in OPERATIONS if method == "get" and "{" not in path and path.startswith("/v1")]


class Tenants(NamedTuple):
    """An edge, a tenant that has something of everything, and one that has nothing."""

    http: httpx2.Client
    alpha: dict[str, str]
    """The header of a key of the first."""
    beta: dict[str, str]
    ids: dict[str, list[str]]
    """What the first has, by the name that the document gives such an id in paths."""


def said(answer: httpx2.Response) -> Any:
    """What an answer holds, if it is one of ours."""
    answer.raise_for_status()
    return answer.json()


def fill(http: httpx2.Client, mine: dict[str, str]) -> dict[str, list[str]]:
    """Make something of everything, and tell what it is called."""
    single = said(http.post("/v1/comparisons", json=PAIR, headers=mine))["id"]
    data = "\n".join(json.dumps(PAIR) for _ in range(2)) + "\n"
    file = said(http.post("/v1/files", files={"file": ("x", data)}, data={"purpose": "batch"}, headers=mine))["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = said(http.post("/v1/batches", json=asked, headers=mine))["id"]
    other = said(http.post("/v1/files", files={"file": ("y", data)}, data={"purpose": "batch"}, headers=mine))["id"]
    endpoint = said(http.post("/v1/callback-endpoints", json={"url": "https://example.com/"}, headers=mine))["id"]
    callback = said(http.post(f"/v1/callback-endpoints/{endpoint}/test", headers=mine))["id"]
    number = batch.removeprefix("batch_")
    return {
        "comparison_id": [single, f"cmp_{number}_1"],
        "file_id": [file, other, f"file-output-{number}", f"file-errors-{number}"],
        "batch_id": [batch],
        "endpoint_id": [endpoint],
        "callback_id": [callback],
    }


@pytest.fixture(scope="module")
def tenants(postgres: Postgres, template: str) -> Iterator[Tenants]:
    """Two tenants of one service, each with a key for everything."""
    with own_database(postgres, template) as url, open_edge(url, callback_allow="example.com") as http:
        alpha, beta = (bearer(a_key(url, tenant=name)) for name in ("alpha", "beta"))
        yield Tenants(http, alpha, beta, fill(http, alpha))


def send(tenants: Tenants, method: str, path: str, headers: dict[str, str], **ids: str) -> httpx2.Response:
    """Send an operation about these things, with a body that fits where one may be sent."""
    body = {"json": {}} if "requestBody" in DOCUMENT["paths"][path][method] else {}
    return tenants.http.request(method, path.format(**ids), headers=headers, **body)


def cases(path: str, ids: dict[str, list[str]]) -> list[dict[str, str]]:
    """Every way to fill in the id of a path."""
    name = path[path.index("{") + 1 : path.index("}")]
    return [{name: each} for each in ids[name]]


@pytest.mark.parametrize(("method", "path"), ABOUT)
def test_anothers_ids_are_not_there(tenants: Tenants, method: str, path: str):
    """Whatever is asked about another tenant's things is 404, in the words in which nobody's are."""
    for known in cases(path, tenants.ids):
        [(name, theirs)] = known.items()
        nobodys = theirs.replace(theirs.removesuffix("_1")[-32:], NOBODYS)
        answers = [send(tenants, method, path, tenants.beta, **{name: each}) for each in (theirs, nobodys)]
        assert [answer.status_code for answer in answers] == [404, 404], answers[0].text
        words = [
            answer.text.replace(each, "ID").replace(answer.headers["x-request-id"], "REQUEST")
            for answer, each in zip(answers, (theirs, nobodys), strict=True)
        ]
        assert words[0] == words[1]


@pytest.mark.parametrize("path", LISTS)
def test_lists_are_ones_own(tenants: Tenants, path: str):
    """A list has nothing of another tenant's; a cursor or a filter that names it finds nothing."""
    assert said(tenants.http.get(path, headers=tenants.alpha))["data"]
    assert said(tenants.http.get(path, headers=tenants.beta))["data"] == []
    for parameter in DOCUMENT["paths"][path]["get"].get("parameters", []):
        named = {"after": path, "endpoint_id": "callback-endpoints", "object_id": "comparisons"}.get(parameter["name"])
        for name, ids in tenants.ids.items():
            if named and name.removesuffix("_id") in named:
                for each in ids:
                    answer = tenants.http.get(path, params={parameter["name"]: each}, headers=tenants.beta)
                    assert answer.status_code == 404 or answer.json()["data"] == []


def test_nothing_is_made_of_anothers(tenants: Tenants):
    """No batch is made of another tenant's file, and none of its callbacks are sent again."""
    asked = {"endpoint": "/v1/comparisons", "completion_window": "24h"}
    answers = [
        tenants.http.post("/v1/batches", json={**asked, "input_file_id": file}, headers=tenants.beta)
        for file in (*tenants.ids["file_id"], f"file-{NOBODYS}")
    ]
    assert {answer.status_code for answer in answers} == {422}
    assert len({answer.text for answer in answers[:2] + answers[-1:]}) == 1
    [endpoint] = tenants.ids["endpoint_id"]
    since = {"since": "2020-01-01T00:00:00Z"}
    named = tenants.http.post("/v1/callbacks/replay", json={**since, "endpoint_id": endpoint}, headers=tenants.beta)
    assert named.status_code == 404
    assert said(tenants.http.post("/v1/callbacks/replay", json=since, headers=tenants.beta)) == {"replayed": 0}


def test_an_idempotency_key_is_ones_own(tenants: Tenants):
    """The same key of two tenants is two keys."""
    filed = [
        said(tenants.http.post("/v1/comparisons", json=PAIR, headers={**whose, "Idempotency-Key": "k"}))["id"]
        for whose in (tenants.alpha, tenants.beta)
    ]
    assert len(set(filed)) == 2


def test_what_was_asked_about_is_there(tenants: Tenants):
    """The walk above was about things that are there: their owner reads each of them, and nothing of it was changed."""
    for method, path in ABOUT:
        if method != "get" or path.endswith("/events"):
            continue
        for known in cases(path, tenants.ids):
            answer = send(tenants, method, path, tenants.alpha, **known)
            assert answer.status_code == 200, (path, known, answer.text)
    [batch] = tenants.ids["batch_id"]
    wait_until(
        lambda: said(tenants.http.get(f"/v1/batches/{batch}", headers=tenants.alpha))["status"] == "in_progress",
        within=5,
        what="the batch goes on",
    )
