"""Two tenants of one service, one of which has something of everything, apart by the walls that a test leaves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

from infra import roles
from infra.database import connect
from infra.local.postgres import Postgres
from support.databases import own_database
from support.edge import open_edge
from support.keys import a_key, bearer
from support.rows import PAIR

NOBODYS = f"{0:032x}"
"""What stands in the id of a thing that nobody has."""
WALLS = ("filter", "policies")
"""What keeps tenants apart: the conditions of the queries, or Postgres for whoever does not own the tables."""
_PASSWORD = "password-of-api"  # noqa: S105 - of a server that is gone after the test


class Tenants(NamedTuple):
    """An edge, a tenant that has something of everything, and one that has nothing."""

    http: httpx2.Client
    database_url: str
    """As the owner of the tables logs in."""
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


@contextmanager
def open_tenants(postgres: Postgres, template: str, *walls: str) -> Iterator[Tenants]:
    """Serve two tenants, each with a key for everything, kept apart by these of the walls alone."""
    with own_database(postgres, template) as url:
        owner = connect(url, application="test")
        with owner.begin() as connection:
            roles.let_in(connection, {"api": _PASSWORD})
        owner.dispose()
        api_url = roles.url_as(url, "api", _PASSWORD) if "policies" in walls else url
        with open_edge(api_url, unfiltered="filter" not in walls, callback_allow="example.com") as http:
            alpha, beta = (bearer(a_key(url, tenant=name)) for name in ("alpha", "beta"))
            yield Tenants(http, url, alpha, beta, fill(http, alpha))


def filled_in(path: str, ids: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Every way to fill in the id of a path: the path with it, and the id."""
    name = path[path.index("{") + 1 : path.index("}")]
    return [(path.replace(f"{{{name}}}", each), each) for each in ids[name]]


def nobodys(thing: str) -> str:
    """Spell an id of the same kind that nobody has."""
    return thing.replace(thing.removesuffix("_1")[-32:], NOBODYS)
