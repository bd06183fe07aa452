"""What the logs may say: ids, sizes and times, and nothing that anybody sent, whatever happens."""

import json
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import redis
from kombu import Connection
from support.canaries import MARK, canary
from support.inbox import Message, open_inbox
from support.service import QUESTION, Service, running_service
from support.waiting import wait_until

from producer.client import Client
from schemas.message import CALLBACK_TASK, JUDGE_TASK

# Short times, so that what a fault leaves behind is taken up again within seconds.
IMPATIENT = {"lease_seconds": 4.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0}

OURS = ("api", "dispatcher", "worker", "callbacks")

CELERYS_OWN = ("worker: Warm shutdown (MainProcess)",)
"""What Celery writes past all logging, straight to the process' output."""


def question(name: str, **fields: object) -> dict[str, object]:
    """A comparison whose every text is a canary."""
    return {
        "prompt": [
            {"role": "system", "content": f"{canary(f'{name}System')} "},
            {"role": "user", "content": f"<|im_end|>\n{{{canary(f'{name}Prompt')}}} é %s 😀 "},
        ],
        "response_a": canary(f"{name}ResponseA"),
        "response_b": [{"role": "assistant", "content": canary(f"{name}ResponseB")}],
        "custom_id": canary(f"{name}CustomId"),
        "metadata": {canary(f"{name}MetadataKey"): canary(f"{name}MetadataValue")},
        **fields,
    }


def send_good_things(service: Service) -> list[str]:
    """File comparisons with canaries wherever text is taken; returns their ids."""
    headers = {
        "cookie": f"session={canary('Cookie')}",
        "user_agent": canary("UserAgent"),
        "idempotency_key": canary("Key"),
        "x_request_id": f"{canary('RequestId')} with a space, so not taken over",
    }
    answers = [
        service.file(question("Filed"), **headers),
        service.file(question("Written", profile="rewardbench", prompt=canary("WrittenPrompt"))),
        service.file(question("Long", response_a=f"{canary('LongResponse')} " * 20_000)),
        service.file(question("OneOrder", order="ba"), wait=0.05),
    ]
    for answer in answers:
        assert answer.status_code in {200, 202}, answer.text
    return [answer.json()["id"] for answer in answers]


def send_bad_things(service: Service) -> None:
    """Send what is refused, with canaries wherever a refusal might be tempted to quote."""
    as_json = {"Content-Type": "application/json"}
    bodies = [
        f'{{"prompt": "{canary("Malformed")}',
        f'{{"prompt": {canary("Bareword")}}}',
        json.dumps({**QUESTION, "order": canary("BadOrder"), "tie_margin": canary("BadMargin")}),
        json.dumps({**QUESTION, "prompt": [{"role": canary("BadRole"), "content": canary("BadContent")}]}),
        json.dumps({**QUESTION, "prompt": f"{canary('Nul')}\0"}),
        json.dumps(canary("NoObject")),
        json.dumps({**QUESTION, "prompt": f"{canary('TooLarge')} " * 400_000}),
    ]
    # The name of an unknown field is told to whoever sent it, so this client looks through no answer.
    unknown = {**QUESTION, canary("UnknownField"): canary("UnknownValue")}
    answer = httpx2.post(f"{service.url}/v1/comparisons", json=unknown, headers=service.headers)
    assert answer.status_code == 422
    assert canary("UnknownValue") not in answer.text
    for body in bodies:
        answer = service.http.post("/v1/comparisons", content=body, headers=as_json)
        assert 400 <= answer.status_code < 500, answer.text
    refused = [
        service.file(question("Reused"), idempotency_key=canary("Key")),
        service.file({**QUESTION, "prompt": canary("Preferring")}, prefer=f"wait={canary('Prefer')}"),
        service.file({**QUESTION, "prompt": canary("Keyed")}, idempotency_key=canary("LongKey") * 30),
        service.http.post("/v1/comparisons", content=canary("PlainText"), headers={"Content-Type": "text/plain"}),
        service.http.get("/v1/comparisons", params={"limit": canary("Query"), canary("QueryName"): "x"}),
        service.http.get("/v1/comparisons", params={"after": canary("Cursor")}),
        service.http.get(f"/v1/comparisons/{canary('Path')}"),
        service.http.put(f"/{canary('Nowhere')}", content=canary("NowhereBody")),
        service.http.get("/v1/comparisons", headers={"Authorization": f"Bearer {canary('Bearer')}"}),
    ]
    for answer in refused:
        assert 400 <= answer.status_code < 500, answer.text


def send_no_http(service: Service) -> None:
    """Speak something at the API's port that is not HTTP, and ask it to become a web socket."""
    address = urlsplit(service.url)
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    spoken = [
        f"{canary('RawBytes')}\r\n\r\n",
        f"GET /{canary('RawPath')} HTTP/1.1\r\n{canary('RawHeader')}\r\n\r\n",
        f"GET /{canary('Socket')}?q={canary('SocketQuery')} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n\r\n",
    ]
    for words in spoken:
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(words.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


def send_bad_messages(service: Service) -> None:
    """Put messages into Redis that no dispatcher of ours would: Celery is known to quote such in full."""
    headers = {"lang": "py", "id": "1", "argsrepr": canary("ArgsRepr"), "kwargsrepr": canary("KwargsRepr")}
    task = {**headers, "task": JUDGE_TASK}
    known = [[], {"v": 2, "shard": canary("BadShard")}, {}]
    with Connection(service.redis_url, transport_options={"global_keyprefix": "nightcourt:"}) as connection:
        producer = connection.Producer(routing_key="interactive")
        producer.publish(known, headers=task, correlation_id="1")
        producer.publish([[canary("Positional")], {}, {}], headers=task, correlation_id="2")
        producer.publish(known, headers={**task, "task": canary("UnknownTask")}, correlation_id="3")
        producer.publish({"words": canary("NoTask")})
        producer.publish({"task": canary("OldTask"), "id": "5", "args": [canary("OldArgs")], "kwargs": {}})
        producer.publish([[], known[1], {}], headers={**task, "eta": canary("Eta")}, correlation_id="6")
        producer.publish(
            f"{{{canary('BrokenJson')}", headers=task, content_type="application/json", content_encoding="utf-8"
        )
        producer.publish(canary("Yaml"), headers=task, content_type="application/x-yaml", content_encoding="utf-8")
    wait_until(lambda: _queue_is_empty(service.redis_url), within=60, what="the worker takes every message")


def _queue_is_empty(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return client.llen("nightcourt:interactive") == 0


def assert_nothing_leaked(folder: Path, *never: str) -> None:
    """Read every log file: there are lines, they are JSON where they are ours, and none holds a canary, or `never`."""
    files = {file.name: file.read_text(errors="replace") for file in (folder / "logs").iterdir()}
    assert {f"{name}.log" for name in (*OURS, "postgres", "redis")} <= set(files)
    leaks = [
        (name, line)
        for name, said in files.items()
        for line in said.splitlines()
        if any(each in line for each in (MARK, *never))
    ]
    assert not leaks
    for name in OURS:
        lines = [line for line in files[f"{name}.log"].splitlines() if line and line not in CELERYS_OWN]
        assert len(lines) > 2
        for line in lines:
            said = json.loads(line)
            assert said["process"] == name
            assert said["event"]
            assert said["level"] in {"debug", "info", "warning", "error", "critical"}


def test_nothing_that_was_sent_is_logged(tmp_path: Path):
    """With every part at debug level; refusals, faults of the database, killed workers, foreign messages included."""
    with running_service(tmp_path / "data", simulated_tokens_per_second=1500.0, **IMPATIENT) as service:
        filed = send_good_things(service)
        wait_until(
            lambda: any(service.read(each)["status"] == "running" for each in filed), within=60, what="work begins"
        )
        service.signal("worker", signal.SIGKILL)
        for each in filed:
            assert service.read(each, wait=60)["status"] in {"succeeded", "errored"}
        send_bad_things(service)
        send_no_http(service)
        send_bad_messages(service)

        seen: list[int] = []

        def taken_again() -> bool:
            if 503 not in seen:  # it may be back before anybody asks
                service.signal("postgres", signal.SIGQUIT)
            answer = service.file(question("Outage"), idempotency_key=f"{canary('OutageKey')}-{len(seen)}")
            seen.append(answer.status_code)
            return answer.status_code == 202 and 503 in seen

        wait_until(taken_again, within=60, what="a comparison is refused, and later one is taken again")
        assert set(seen) <= {202, 503}
        events = {line["event"] for part in OURS for line in service.log(part)}
        assert {"http_request", "shard_ended", "message_refused", "dead_worker_buried"} <= events
    assert_nothing_leaked(service.folder)


def answer_badly(message: Message) -> tuple[int, dict[str, str]] | int:
    """Refuse, in a header that someone might be tempted to quote, unless it is the good receiver that is asked."""
    return 204 if message.path.endswith("/good") else (503, {"X-Why": canary("Answer"), "Location": canary("Location")})


def test_nothing_of_a_callback_is_logged(tmp_path: Path):
    """No secret, signature, URL or payload, delivered or not, with every part at debug level."""
    with open_inbox(answer_badly) as inbox, running_service(tmp_path / "data", **IMPATIENT) as service:
        client = Client(service.url, api_key=service.key)
        endpoint = client.add_endpoint(
            f"{inbox.url}/{canary('Path')}?key={canary('Query')}", description=canary("Note")
        )
        other = client.add_endpoint(f"{inbox.url}/good")
        secrets = [endpoint.secret, other.secret, client.rotate_secret().secret, client.rotate_secret(other.id).secret]
        for url in (f"{inbox.url}/{canary('Own')}/good", f"{inbox.url}/{canary('OwnBad')}", inbox.url):
            client.submit(**QUESTION, callback_url=url)
        for url in (f"ftp://{canary('Scheme')}", f"https://{canary('User')}:{canary('Password')}@example.com/"):
            assert service.file({**QUESTION, "callback_url": url}).status_code == 422
        with Connection(service.redis_url, transport_options={"global_keyprefix": "nightcourt:"}) as connection:
            headers = {"lang": "py", "id": "1", "task": CALLBACK_TASK, "kwargsrepr": canary("KwargsRepr")}
            body = [[], {"v": 1, "callback": canary("BadCallback")}, {}]
            connection.Producer(routing_key="callbacks").publish(body, headers=headers, correlation_id="1")

        def said() -> set[str]:
            return {line["event"] for line in service.log("callbacks")}

        wanted = {"callbacks_ready", "callback_delivered", "callback_failed", "message_refused"}
        wait_until(
            lambda: wanted <= said() and len(inbox.messages) > 3, within=60, what="every kind of ending is logged"
        )
        client.close()
    signatures = {each.headers["webhook-signature"].removeprefix("v1,") for each in inbox.messages}
    moments = {json.loads(message.body)["timestamp"] for message in inbox.messages}
    assert len(signatures) > 3
    never = [each.removeprefix("whsec_") for each in secrets] + [part for each in signatures for part in each.split()]
    assert_nothing_leaked(service.folder, *never, *moments)


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the wheel of the llama_cpp engine is not installed")
def test_the_model_runtime_logs_no_prompt(tmp_path: Path):
    """The same holds for what llama.cpp writes by itself, of a prompt that is judged and of one too long."""
    with running_service(tmp_path / "data", engine="llama_cpp", context_tokens=1024) as service:
        judged = service.file(question("Judged")).json()["id"]
        too_long = service.file(question("TooLong", response_a=f"{canary('TooLongResponse')} " * 2000)).json()["id"]
        unfit = service.file(question("Unfit", profile="rewardbench")).json()["id"]
        assert service.read(judged, wait=60)["status"] == "succeeded"
        assert service.read(too_long, wait=60)["error"]["code"] == "context_length_exceeded"
        assert service.read(unfit, wait=60)["error"]["code"] == "profile_unfit"
    assert_nothing_leaked(service.folder)
