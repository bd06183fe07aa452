"""Tenants see nothing of each other: every operation of the OpenAPI document, tried with another tenant's ids.

What keeps them apart are two walls: the queries ask whose a row is, and so does Postgres. Each is tried alone.
"""

from typing import Any

import pytest
from support.rows import PAIR
from support.tenants import NOBODYS, Tenants, fill, filled_in, nobodys, said
from support.waiting import wait_until

from infra.settings import Settings
from producer.api.app import create_app

DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [
    (method, path, described) for path, methods in DOCUMENT["paths"].items() for method, described in methods.items()
]
ABOUT = [(method, path) for method, path, _ in OPERATIONS if "{" in path]
ANSWERED = {200, 202, 204, 409, 422}
"""What an operation says of a thing that it has found: done, or not as things stand."""
LISTS = [path for method, path, _ in OPERATIONS if method == "get" and "{" not in path and path.startswith("/v1")]


def body(method: str, path: str) -> dict[str, Any]:
    """A body that fits, where an operation takes one."""
    return {"json": {}} if "requestBody" in DOCUMENT["paths"][path][method] else {}


@pytest.mark.parametrize(("method", "path"), ABOUT)
def test_anothers_ids_are_not_there(tenants: Tenants, method: str, path: str):
    """Whatever is asked about another tenant's things is 404, in the words in which nobody's are."""
    for asked, theirs in filled_in(path, tenants.ids):
        answers = [
            tenants.http.request(method, asked.replace(theirs, each), headers=tenants.beta, **body(method, path))
            for each in (theirs, nobodys(theirs))
        ]
        assert [answer.status_code for answer in answers] == [404, 404], answers[0].text
        words = [
            answer.text.replace(each, "ID").replace(answer.headers["x-request-id"], "REQUEST")
            for answer, each in zip(answers, (theirs, nobodys(theirs)), strict=True)
        ]
        assert words[0] == words[1]


def test_no_wait_tells_of_anothers(tenants: Tenants):
    """Whoever asks to be held is told at once that a comparison is not there, whether it is another's or nobody's."""
    for theirs in tenants.ids["comparison_id"]:
        for each in (theirs, nobodys(theirs)):
            asked = {**tenants.beta, "Prefer": "wait=60"}
            answer = tenants.http.get(f"/v1/comparisons/{each}", headers=asked, timeout=30)
            assert (answer.status_code, "preference-applied" in answer.headers) == (404, False)


@pytest.mark.parametrize(("method", "path"), ABOUT)
def test_without_either_wall_they_are_there(unwalled: Tenants, method: str, path: str):
    """Each operation is kept from another's things by the walls alone: with both gone, it finds and answers."""
    ids = fill(unwalled.http, unwalled.alpha)
    for asked, theirs in filled_in(path, ids):
        if method == "delete" and theirs in ids["file_id"][2:]:
            continue  # A view of a batch is there to be read, and is no file that even its owner deletes.
        # Streamed, since a batch's events go on for as long as the batch does.
        with unwalled.http.stream(method, asked, headers=unwalled.beta, **body(method, path)) as answer:
            assert answer.status_code in ANSWERED, (theirs, answer.read())


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
    assert said(tenants.http.post("/v1/callbacks/replay", json=since, headers=tenants.beta)) == {
        "replayed": 0,
        "held": 0,
    }


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
        for asked, _ in filled_in(path, tenants.ids):
            answer = tenants.http.get(asked, headers=tenants.alpha)
            assert answer.status_code == 200, (asked, answer.text)
    [batch] = tenants.ids["batch_id"]
    wait_until(
        lambda: said(tenants.http.get(f"/v1/batches/{batch}", headers=tenants.alpha))["status"] == "in_progress",
        within=60,
        what="the batch goes on",
    )
