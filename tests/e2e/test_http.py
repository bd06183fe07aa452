"""The HTTP contract, asked over a socket of a service made of real processes."""

import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from support.service import QUESTION, Service
from support.waiting import wait_until


class TestFiling:
    def test_a_comparison_is_taken_and_then_decided(self, service: Service):
        """Filing answers 202 with an id at once; reading it later gives the verdict."""
        filed = service.file()
        assert filed.status_code == 202
        assert filed.json()["status"] in {"queued", "running"}
        assert filed.headers["location"] == f"/v1/comparisons/{filed.json()['id']}"
        decided = service.read(filed.json()["id"], wait=60)
        assert decided["status"] == "succeeded"
        assert decided["verdict"]["winner"] in {"A", "B"}
        assert [ballot["order"] for ballot in decided["verdict"]["ballots"]] == ["ab", "ba"]

    def test_waiting_gives_the_verdict_in_one_request(self, service: Service):
        """With Prefer: wait the answer is 200 and carries the verdict."""
        answer = service.file(wait=60)
        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=60"
        assert answer.json()["verdict"]["judge"]["simulated"] is True

    def test_waiting_ends_when_the_time_is_up(self, service_at_rest: Service):
        """A wait that ends without a verdict answers 202, not an error."""
        started = time.monotonic()
        answer = service_at_rest.file(wait=0.3)
        assert answer.status_code == 202
        assert 0.3 <= time.monotonic() - started < 30

    def test_what_the_caller_sent_along_comes_back(self, service: Service):
        """custom_id and metadata are given back as they were."""
        sent = {"custom_id": "é-1", "metadata": {"run": "one", "note": "ünï 😀"}}
        answer = service.file({**QUESTION, **sent}, wait=60).json()
        assert answer["custom_id"] == sent["custom_id"]
        assert answer["metadata"] == sent["metadata"]

    def test_one_order_makes_one_ballot(self, service: Service):
        """A caller may ask one order only; then nothing is said of consistency."""
        verdict = service.file({**QUESTION, "order": "ba"}, wait=60).json()["verdict"]
        assert [ballot["order"] for ballot in verdict["ballots"]] == ["ba"]
        assert verdict["consistent"] is None
        assert verdict["position_bias"] is None

    def test_conversations_are_judged(self, service: Service):
        """Prompts and responses may be lists of turns."""
        body = {
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Name a colour"},
            ],
            "response_a": [{"role": "assistant", "content": "Red"}],
            "response_b": "Blue",
        }
        assert service.file(body, wait=60).json()["status"] == "succeeded"

    def test_an_empty_response_is_judged(self, service: Service):
        """A system that said nothing is judged for it."""
        assert service.file({**QUESTION, "response_b": ""}, wait=60).json()["status"] == "succeeded"

    def test_a_prompt_too_long_is_errored_with_both_lengths(self, service: Service):
        """Nothing is cut: the error names the prompt's length and the judge's limit."""
        error = service.file({**QUESTION, "prompt": "word " * 100_000}, wait=60).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "8192" in error["message"]


class TestIdempotency:
    def test_the_same_key_files_once(self, service: Service):
        """A repeated request gives the first comparison back and says that it is a replay."""
        first = service.file(idempotency_key="once-1")
        again = service.file(idempotency_key="once-1")
        assert again.json()["id"] == first.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"

    def test_the_same_key_with_another_body_is_refused(self, service: Service):
        """A key stands for the body it came with: anything else is a mistake, and said so."""
        service.file(idempotency_key="once-2")
        answer = service.file({**QUESTION, "prompt": "Another?"}, idempotency_key="once-2")
        assert answer.status_code == 422
        assert answer.json()["code"] == "idempotency_key_reused"

    def test_defaults_spelt_out_are_the_same_body(self, service: Service):
        """Two bodies that ask for the same thing are the same, whatever they leave to the defaults."""
        first = service.file(idempotency_key="once-3")
        again = service.file({"order": "both", **QUESTION, "metadata": {}}, idempotency_key="once-3")
        assert again.json()["id"] == first.json()["id"]

    def test_many_at_the_same_instant_file_once(self, service: Service):
        """Requests that race with one key all get the same comparison."""
        ids = []
        start = threading.Barrier(8)

        def race() -> None:
            start.wait()
            ids.append(service.file(idempotency_key="race").json()["id"])

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 8
        assert len(set(ids)) == 1

    @pytest.mark.parametrize("key", ["x" * 256, "tab\tkey", ""], ids=["too long", "control", "empty"])
    def test_a_key_that_is_none_is_refused(self, service: Service, key: str):
        """A key is 1 to 255 printable characters."""
        answer = service.file(idempotency_key=key)
        assert answer.status_code == 400
        assert answer.json()["code"] == "invalid_header"


class TestReading:
    def test_pages_give_each_comparison_once(self, service: Service):
        """Following the cursor lists everything, newest first, without gaps or repeats."""
        filed = [service.file().json()["id"] for _ in range(5)]
        seen, after = [], None
        while True:
            page = service.http.get(
                "/v1/comparisons", params={"limit": 2, **({"after": after} if after else {})}
            ).json()
            assert page["object"] == "list"
            seen += [comparison["id"] for comparison in page["data"]]
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen[:5] == filed[::-1]
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize(
        ("path", "status", "code"),
        [
            ("/v1/comparisons/cmp_00000000000070008000000000000000", 404, "not_found"),
            ("/v1/comparisons/nonsense", 404, "not_found"),
            ("/v1/comparisons/cmp_zzz", 404, "not_found"),
            ("/v1/comparisons?after=nonsense", 404, "not_found"),
            ("/v1/comparisons?limit=0", 422, "invalid_request"),
            ("/v1/comparisons?limit=many", 422, "invalid_request"),
            ("/nowhere", 404, "not_found"),
        ],
    )
    def test_what_is_not_there_is_a_problem(self, service: Service, path: str, status: int, code: str):
        """Unknown ids, cursors, limits and paths are problems with a code, never a trace."""
        answer = service.http.get(path)
        assert answer.status_code == status
        assert answer.json()["code"] == code
        assert answer.headers["content-type"] == "application/problem+json"

    def test_a_wrong_method_is_a_problem(self, service: Service):
        """A method that a path does not take is told as such, with those it does."""
        answer = service.http.delete("/v1/comparisons")
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "GET, POST"


class TestCancelling:
    def test_what_waits_can_be_called_off(self, service_at_rest: Service):
        """A comparison that has not ended is cancelled, and stays so; cancelling again changes nothing."""
        filed = service_at_rest.file().json()["id"]
        for _ in range(2):
            answer = service_at_rest.http.post(f"/v1/comparisons/{filed}/cancel")
            assert answer.status_code == 200
            assert answer.json()["status"] == "cancelled"
            assert answer.json()["error"]["code"] == "cancelled"

    def test_what_is_being_judged_can_be_called_off(self, service_at_rest: Service):
        """Cancelling takes the comparison from the worker that holds it."""
        filed = service_at_rest.file().json()["id"]
        wait_until(lambda: service_at_rest.read(filed)["status"] == "running", within=60, what="a worker claims it")
        assert service_at_rest.http.post(f"/v1/comparisons/{filed}/cancel").json()["status"] == "cancelled"

    def test_what_has_ended_cannot(self, service: Service):
        """A verdict is not taken back: cancelling a decided comparison is a conflict."""
        filed = service.file(wait=60).json()["id"]
        answer = service.http.post(f"/v1/comparisons/{filed}/cancel")
        assert answer.status_code == 409
        assert answer.json()["code"] == "already_decided"


BAD_BODIES = {
    "not JSON": (b"prompt=x", 400, None),
    "nothing": (b"", 400, None),
    "invalid UTF-8": (b'{"prompt": "\xff", "response_a": "a", "response_b": "b"}', 400, None),
    "a lone surrogate": (b'{"prompt": "\\ud800", "response_a": "a", "response_b": "b"}', 400, None),
    "NaN": (b'{"prompt": "p", "response_a": "a", "response_b": "b", "tie_margin": NaN}', 400, None),
    "deep nesting": (b'{"prompt": ' + b"[" * 50_000, 400, None),
    "deep nesting of objects": (b'{"a":' * 50_000, 400, None),
    "a huge number": (b'{"prompt": "p", "response_a": "a", "response_b": "b", "tie_margin": 1e999}', 422, "tie_margin"),
    "5,000 digits": (b'{"prompt": ' + b"9" * 5000 + b', "response_a": "a", "response_b": "b"}', 400, None),
    "a list": (b"[]", 422, ""),
    "null": (b"null", 422, ""),
    "NUL": (b'{"prompt": "a\\u0000b", "response_a": "a", "response_b": "b"}', 422, "prompt"),
    "NUL in a turn": (
        b'{"prompt": [{"role": "user", "content": "\\u0000"}], "response_a": "a", "response_b": "b"}',
        422,
        "prompt[0].content",
    ),
    "NUL in metadata": (
        b'{"prompt": "p", "response_a": "a", "response_b": "b", "metadata": {"k": "\\u0000"}}',
        422,
        "metadata.k",
    ),
    "an empty prompt": (b'{"prompt": "", "response_a": "a", "response_b": "b"}', 422, "prompt"),
    "no turns": (b'{"prompt": [], "response_a": "a", "response_b": "b"}', 422, "prompt"),
    "a missing field": (b'{"prompt": "p", "response_a": "a"}', 422, "response_b"),
    "an unknown field": (b'{"prompt": "p", "response_a": "a", "response_b": "b", "winner": "A"}', 422, "winner"),
    "a wrong type": (b'{"prompt": "p", "response_a": 1, "response_b": "b"}', 422, "response_a"),
    "an unknown role": (
        b'{"prompt": [{"role": "tool", "content": "x"}], "response_a": "a", "response_b": "b"}',
        422,
        "prompt[0].role",
    ),
    "an unfinished conversation": (
        b'{"prompt": [{"role": "assistant", "content": "x"}], "response_a": "a", "response_b": "b"}',
        422,
        "prompt",
    ),
    "turns out of order": (
        b'{"prompt": "p", "response_a": [{"role": "user", "content": "x"}], "response_b": "b"}',
        422,
        "response_a",
    ),
    "an unknown profile": (b'{"prompt": "p", "response_a": "a", "response_b": "b", "profile": "x"}', 422, "profile"),
    "an unknown order": (b'{"prompt": "p", "response_a": "a", "response_b": "b", "order": "abba"}', 422, "order"),
    "a margin of everything": (
        b'{"prompt": "p", "response_a": "a", "response_b": "b", "tie_margin": 0.5}',
        422,
        "tie_margin",
    ),
    "a margin that is text": (
        b'{"prompt": "p", "response_a": "a", "response_b": "b", "tie_margin": "0.1"}',
        422,
        "tie_margin",
    ),
    "too much metadata": (
        b'{"prompt": "p", "response_a": "a", "response_b": "b", "metadata": {%s}}'
        % b",".join(b'"k%d": ""' % number for number in range(17)),
        422,
        "metadata",
    ),
}


class TestBadInput:
    @pytest.mark.parametrize("name", BAD_BODIES)
    def test_bad_input_is_told_and_named(self, service: Service, name: str):
        """Whatever is sent, the answer is a 4xx problem that names the field at fault, or where the JSON breaks."""
        body, status, field = BAD_BODIES[name]
        answer = service.http.post("/v1/comparisons", content=body, headers={"Content-Type": "application/json"})
        problem = answer.json()
        assert answer.status_code == status, problem
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["request_id"] == answer.headers["x-request-id"]
        if field is None:
            assert problem["code"] == "malformed_json"
            assert "line 1 column" in problem["detail"]
        else:
            assert field in [error["field"] for error in problem["errors"]]

    def test_a_body_that_says_it_is_too_large_is_refused_unread(self, service: Service):
        """A Content-Length above the cap is answered with 413 before any of the body has come."""
        address = urlsplit(service.url)
        headers = {**service.headers, "Host": address.netloc, "Content-Type": "application/json"}
        headers["Content-Length"] = str(4 * 1024 * 1024 + 1)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(f"POST /v1/comparisons HTTP/1.1\r\n{head}\r\n".encode())
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"body_too_large"' in answer

    def test_a_body_without_an_end_is_cut_off(self, service: Service):
        """A chunked body is counted as it comes, and refused when it passes the cap."""

        def chunks():
            for _ in range(80):
                yield b" " * 65536

        answer = service.http.post("/v1/comparisons", content=chunks(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413

    @pytest.mark.parametrize(
        "headers",
        [{"Content-Type": "text/plain"}, {}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}],
        ids=["text", "none", "gzip"],
    )
    def test_other_media_types_are_refused(self, service: Service, headers: dict[str, str]):
        """Only plain JSON is taken, and the answer says which header to send."""
        answer = service.http.post("/v1/comparisons", content=b"{}", headers=headers)
        assert answer.status_code == 415
        assert "Content-Type: application/json" in answer.json()["detail"]

    @pytest.mark.parametrize("wait", ["wait=soon", "wait=-1", "wait=", "wait=1e9", "wait=nan"])
    def test_a_wait_that_is_no_number_is_refused(self, service: Service, wait: str):
        """Prefer: wait takes seconds."""
        answer = service.http.post("/v1/comparisons", json=QUESTION, headers={"Prefer": wait})
        assert answer.status_code == 400
        assert answer.json()["code"] == "invalid_header"


class TestHealth:
    def test_a_running_stack_is_ready(self, service: Service):
        """Readiness names each part."""
        assert service.http.get("/livez").json() == {"status": "alive"}
        assert service.http.get("/readyz").json() == {
            "status": "ready",
            "database": "ok",
            "redis": "ok",
            "workers": 1,
            "wrong": [],
        }

    def test_the_documentation_is_served(self, service: Service):
        """The OpenAPI document describes the operations, with problems as their default answer."""
        assert service.http.get("/docs").status_code == 200
        operation = service.http.get("/openapi.json").json()["paths"]["/v1/comparisons"]["post"]
        assert "application/problem+json" in operation["responses"]["default"]["content"]

    def test_a_request_id_follows_the_comparison_into_the_workers_log(self, service: Service):
        """The id that a caller sends stands in the lines of the API and of the worker."""
        answer = service.file(wait=60, x_request_id="trace-me-123")
        assert answer.headers["x-request-id"] == "trace-me-123"
        for part in ("api", "worker"):
            wait_until(
                lambda part=part: any(line.get("request_id") == "trace-me-123" for line in service.log(part)),
                within=60,
                what=f"the request id in the log of the {part}",
            )
