"""Who may look at the dashboard: every route, tried without a session, with too little scope, and with others' ids.

The routes stand in no OpenAPI document; they are walked as `test_access.py` and `test_tenants.py` walk those that do.
"""

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl

import pytest
from support.keys import a_key
from support.pages import words
from support.tenants import WALLS, Tenants, fill, filled_in, nobodys, open_tenants

from infra.database import connect
from infra.local.postgres import Postgres
from producer import keys, sessions
from producer.dashboard import routes
from producer.dashboard.access import COOKIE
from schemas.keys import Scope, parse_key

OPEN = {
    "GET /dashboard/login",
    "POST /dashboard/login",
    "GET /dashboard/enter",
    "GET /dashboard/static/{name}",
}
"""What anybody may ask: how to get in, and how the pages look."""

SCOPES = {
    "GET /dashboard/": Scope.READ,
    "GET /dashboard/events": Scope.READ,
    "GET /dashboard/batches": Scope.READ,
    "GET /dashboard/batches/{batch_id}": Scope.READ,
    "POST /dashboard/batches/{batch_id}/{action}": Scope.SUBMIT,
    "GET /dashboard/batches/{batch_id}/events": Scope.READ,
    "GET /dashboard/batches/{batch_id}/report": Scope.READ,
    "GET /dashboard/comparisons/{comparison_id}": Scope.READ,
    "GET /dashboard/callbacks": Scope.READ,
    "GET /dashboard/callbacks/events": Scope.READ,
    "POST /dashboard/callbacks/replay": Scope.ADMIN,
    "POST /dashboard/callbacks/{callback_id}/replay": Scope.ADMIN,
    "GET /dashboard/callbacks/{callback_id}": Scope.READ,
    "GET /dashboard/waiting": Scope.READ,
    "POST /dashboard/logout": Scope.READ,
}
"""The scope that each other route takes, written down a second time: to weaken one takes a change here as well."""

ABOUT = [
    *(route for route in SCOPES if "_id}" in route and "{action}" not in route),
    *(f"POST /dashboard/batches/{{batch_id}}/{action}" for action in ("pause", "resume", "cancel")),
    *(f"GET /dashboard/waiting?id={{{name}}}" for name in ("batch_id", "comparison_id", "callback_id")),
    "POST /dashboard/callbacks/replay?endpoint={endpoint_id}",
]
"""What asks about one thing, wherever its id stands; what a POST has behind the question mark is sent as its form."""

SHOWS = {
    "GET /dashboard/": ["batch_id", "comparison_id"],
    "GET /dashboard/events": ["batch_id", "comparison_id"],
    "GET /dashboard/batches": ["batch_id"],
    "GET /dashboard/callbacks": ["callback_id", "endpoint_id"],
    "GET /dashboard/callbacks/events": ["endpoint_id"],
}
"""What lists things, and which."""

NARROWED = {
    "GET /dashboard/batches?after={batch_id}": "/dashboard/batches/batch_",
    "GET /dashboard/callbacks?after={callback_id}": "/dashboard/callbacks/cbk_",
    "GET /dashboard/callbacks?endpoint={endpoint_id}": "/dashboard/callbacks/cbk_",
}
"""Lists that an id narrows, and what each of their rows leads to."""


@pytest.fixture(scope="module")
def service(postgres: Postgres, template: str) -> Iterator[Tenants]:
    """The service as it is, behind both walls."""
    with open_tenants(postgres, template, *WALLS) as tenants:
        yield tenants


def sign_in(tenants: Tenants, key: str, *, revoked: bool = False) -> str:
    """Begin a session of a key, whatever its scopes; its key may be revoked as soon as it has begun."""
    known = parse_key(key)
    assert known is not None
    database = connect(tenants.database_url, application="test", pool_size=1)
    with database.begin() as connection:
        session = sessions.begin(connection, known.id)
        if revoked:
            keys.revoke(connection, known.id)
    database.dispose()
    return session


def of(tenants: Tenants, whose: dict[str, str]) -> str:
    """Begin a session of the key in a header."""
    return sign_in(tenants, whose["Authorization"].removeprefix("Bearer "))


def ask(tenants: Tenants, session: str | None, route: str) -> tuple[int, str]:
    """Ask for a page, or send the form of one. Gives the answer's status and text; of events, the first one's."""
    method, _, address = route.partition(" ")
    path, _, query = address.partition("?")
    form = {"form": sessions.form_token(session or ""), **dict(parse_qsl(query))}
    sent = {"params": query} if method == "GET" else {"data": form}
    cookie = {} if session is None else {"Cookie": f"{COOKIE}={session}"}
    with tenants.http.stream(method, path, headers=cookie, **sent) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer.status_code, next(line for line in answer.iter_lines() if line.startswith("data: "))
        return answer.status_code, answer.read().decode()


def about_nothing(route: str) -> str:
    """Fill in a route with what is not there."""
    named = {"batch_id": "batch_", "comparison_id": "cmp_", "callback_id": "cbk_"}
    return route.format(action="pause", **{name: prefix + "0" * 32 for name, prefix in named.items()})


def test_every_route_has_a_scope():
    """The dashboard has the routes whose scopes are written down above, and no others but those that are open."""
    known = {
        f"{method} {route.path}" for router in routes.ROUTERS for route in router.routes for method in route.methods
    }
    assert known == OPEN | set(SCOPES)


@pytest.mark.parametrize("route", SCOPES)
class TestEveryRoute:
    def test_no_session(self, service: Tenants, route: str):
        """Without a session, or with one that is none or whose key was revoked, a page asks for a key."""
        revoked = sign_in(service, a_key(service.database_url, tenant="alpha"), revoked=True)
        for session in (None, "nothing", revoked):
            status, page = ask(service, session, about_nothing(route))
            assert (status, "<h1>Sign in</h1>" in page, "alpha" in page) == (401, True, False)

    @pytest.mark.parametrize("scope", Scope)
    def test_too_little_scope(self, service: Tenants, route: str, scope: Scope):
        """A session does what its key's scopes let it, and is refused the rest before anything is looked up."""
        session = sign_in(service, a_key(service.database_url, tenant="alpha", scopes=[scope]))
        status, page = ask(service, session, about_nothing(route))
        if scope in (SCOPES[route], Scope.ADMIN):
            assert status in (200, 303, 404), page
        else:
            assert status == 403
            assert "scope_missing" in page
            assert f"scope `{SCOPES[route]}`" in page


_OWN = re.compile(r"\breq_[0-9a-f]+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
"""What each page has of its own: the request's id, and when it was made."""


@pytest.mark.parametrize("route", ABOUT)
def test_anothers_ids_are_not_there(tenants: Tenants, route: str):
    """Whatever is asked about another tenant's things is 404, in the words in which nobody's are."""
    session = of(tenants, tenants.beta)
    for asked, theirs in filled_in(route, tenants.ids):
        answers = []
        for each in (theirs, nobodys(theirs)):
            status, page = ask(tenants, session, asked.replace(theirs, each))
            assert status == 404, page
            answers.append(_OWN.sub("OWN", words(page.replace(each, "ID"))))
        assert answers[0] == answers[1]


@pytest.mark.parametrize("route", ABOUT)
def test_without_either_wall_they_are_there(unwalled: Tenants, route: str):
    """Each route is kept from another's things by the walls alone: with both gone, it finds and answers."""
    session = of(unwalled, unwalled.beta)
    for asked, _ in filled_in(route, fill(unwalled.http, unwalled.alpha)):
        status, page = ask(unwalled, session, asked)
        assert status in (200, 303), page


@pytest.mark.parametrize("route", SHOWS)
def test_lists_are_ones_own(tenants: Tenants, route: str):
    """A page shows what its reader's tenant has, and nothing that another has."""
    listed = [tenants.ids[name][0] for name in SHOWS[route]]
    for whose, sees in ((tenants.alpha, listed), (tenants.beta, [])):
        status, page = ask(tenants, of(tenants, whose), route)
        assert status == 200
        assert [each for each in listed if each in page] == sees


@pytest.mark.parametrize("route", NARROWED)
def test_nothing_is_listed_by_anothers_ids(tenants: Tenants, route: str):
    """Another tenant's id as a cursor or as a filter leads to no row."""
    for asked, _ in filled_in(route, tenants.ids):
        status, page = ask(tenants, of(tenants, tenants.beta), asked)
        assert status in (200, 404)
        assert NARROWED[route] not in page


@pytest.mark.parametrize("route", [*SHOWS, *NARROWED])
def test_without_either_wall_everything_is_listed(unwalled: Tenants, route: str):
    """What a list leaves out it leaves out by the walls alone: with both gone, it has another's things."""
    ids, session = fill(unwalled.http, unwalled.alpha), of(unwalled, unwalled.beta)
    if route in SHOWS:
        _, page = ask(unwalled, session, route)
        assert [name for name in SHOWS[route] if ids[name][0] in page] == SHOWS[route]
    else:
        for asked, _ in filled_in(route, ids):
            assert NARROWED[route] in ask(unwalled, session, asked)[1]


def test_nothing_of_it_was_changed(tenants: Tenants):
    """The batch that another tenant tried to pause and to cancel goes on."""
    [batch] = tenants.ids["batch_id"]
    shown = tenants.http.get(f"/v1/batches/{batch}", headers=tenants.alpha).json()
    assert (shown["status"], shown["paused"]) == ("in_progress", False)
