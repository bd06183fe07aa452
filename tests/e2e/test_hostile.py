"""Hostile and careless input: one running service, over a hundred things that it must not be moved by."""

import json
from typing import Any

import pytest
from support.canaries import MARK, canary
from support.hostile import BAD_LINES, INJECTIONS, JSON, REQUESTS
from support.service import QUESTION, Service
from support.waiting import wait_until


@pytest.fixture(scope="module")
def listed(service: Service) -> dict[str, dict[str, Any]]:
    """What is said of each bad line: all of them stand in one file, good lines between."""
    good = b'{"prompt": "p", "response_a": "a", "response_b": "b"}'
    data = b"\n".join(line for bad, _, _ in BAD_LINES.values() for line in (good, bad))
    file = service.http.post("/v1/files", files={"file": ("x", data)}, data={"purpose": "batch"}).json()
    assert (file["lines"], file["bad_lines"]) == (len(BAD_LINES), len(BAD_LINES))
    body = {"input_file_id": file["id"], "endpoint": "/v1/comparisons", "completion_window": "24h"}
    batch = service.http.post("/v1/batches", json=body).json()
    assert batch["status"] == "failed"
    errors = {error["line"]: error for error in batch["errors"]["data"]}
    return {name: errors[2 * number] for number, name in enumerate(BAD_LINES, 1)}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_gets_its_own_answer(service: Service, name: str):
    """The status and code are those of the table, the problem has a sentence, and nothing sent comes back in it."""
    bad = REQUESTS[name]
    headers = {key: value.encode() for key, value in bad.headers.items()}
    answer = service.http.request(bad.method, bad.path, headers=headers, content=bad.body)
    said = answer.json()
    assert answer.status_code == bad.status, said
    problem = said.get("error", said)
    assert problem["code"] == bad.code, said
    assert len(problem.get("detail", problem.get("message"))) > 10
    assert len(answer.content) < 2000
    assert service.http.get("/livez").status_code == 200


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_listed_with_its_reason(listed: dict[str, dict[str, Any]], name: str):
    """Code and field are those of the table, and the message is a sentence that does not quote the line."""
    _, code, param = BAD_LINES[name]
    error = listed[name]
    assert (error["code"], error["param"]) == (code, param), error
    assert 5 < len(error["message"]) < 300


def test_bad_lines_cost_the_good_ones_nothing(service: Service):
    """Where bad lines are to be skipped, each line between them gets a verdict, and each of them its error."""
    good = [json.dumps({**QUESTION, "prompt": f"Question {n}?"}).encode() for n in range(len(BAD_LINES))]
    data = b"\n".join(
        line for pair in zip(good, (bad for bad, _, _ in BAD_LINES.values()), strict=True) for line in pair
    )
    file = service.http.post("/v1/files", files={"file": ("x", data)}, data={"purpose": "batch"}).json()
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/comparisons",
        "completion_window": "24h",
        "on_bad_line": "skip",
    }
    batch = service.http.post("/v1/batches", json=body).json()
    ended = wait_until(
        lambda: found if (found := service.http.get(f"/v1/batches/{batch['id']}").json())["completed_at"] else None,
        within=60,
        what="the batch ends",
    )
    counts = ended["request_counts"]
    assert (counts["succeeded"], counts["errored"]) == (len(good), len(BAD_LINES))


@pytest.mark.parametrize("name", INJECTIONS)
@pytest.mark.parametrize("profile", ["card", "rewardbench"])
def test_no_text_speaks_for_the_judge(service: Service, name: str, profile: str):
    """A candidate that holds a verdict, control tokens or sections is judged like any other, by the engine's odds."""
    body = {**QUESTION, "response_a": INJECTIONS[name], "profile": profile}
    decided = service.file(body, wait=60).json()
    assert decided["status"] == "succeeded", decided
    for ballot in decided["verdict"]["ballots"]:
        # A ballot read from the text that was sent would have no odds, or odds that speak against it.
        assert ballot["vote"] == ("A" if ballot["log_odds"] > 0 else "B")


def test_nothing_of_it_is_in_the_logs(service: Service):
    """A word that was in bad requests and bad lines stands in no line that any process logged."""
    word = canary("Hostile")
    body = json.dumps({**QUESTION, "prompt": word, "winner": word, "metadata": {word: word}})
    lines = f"{body}\n{body}}}\n".encode()
    answers = [
        service.file({**QUESTION, "prompt": word}, wait=60),
        service.http.post("/v1/comparisons", content=body, headers=JSON),
        service.http.post("/v1/comparisons", content=body + "}", headers=JSON),
        service.http.post("/v1/files", files={"file": ("x", lines)}, data={"purpose": "batch"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 400, 200]
    assert answers[-1].json()["bad_lines"] == 2
    for answer in answers:
        asked = answer.headers["x-request-id"]
        wait_until(
            lambda asked=asked: any(line.get("request_id") == asked for line in service.log("api")),
            within=60,
            what="the request is logged",
        )
    logs = list((service.folder / "logs").glob("*.log"))
    assert len(logs) > 5
    for log in logs:
        assert MARK not in log.read_text(errors="replace"), log.name
