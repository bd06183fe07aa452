"""The shapes that others depend on. A test here that has to change breaks somebody's program."""

import json
from importlib.metadata import version
from typing import Any

import pytest
from pydantic import ValidationError

from infra.broker import make_celery
from infra.settings import Settings
from producer.api.app import create_app
from schemas.comparison import Comparison, ComparisonPage, ComparisonRequest
from schemas.ids import ComparisonKey, comparison_id, new_filing_id, parse_comparison_id
from schemas.message import CALLBACK_QUEUE, CALLBACK_TASK, JUDGE_TASK, QUEUES, CallbackHint, ShardHint
from schemas.problems import INVALID_REQUEST, NOT_FOUND, FieldError, Problem
from schemas.states import ComparisonStatus
from schemas.verdict import Ballot, Judge, Usage, Verdict

VERDICT = Verdict(
    winner="A",
    probability_a=0.75,
    consistent=True,
    position_bias=0.25,
    ballots=[Ballot(order="ab", log_odds=1.5, mass=0.9, vote="A")],
    judge=Judge(
        model="m",
        weights="sha256:0",
        quantisation="FP8",
        engine="e",
        engine_build="1",
        profile="card",
        prompt="sha256:0",
        temperature=1.0,
        simulated=False,
        caveat=None,
    ),
    usage=Usage(prompt_tokens=10, cached_tokens=5, gpu_seconds=0.1),
)


@pytest.fixture(scope="module")
def conf() -> Any:
    """The configuration of our Celery app."""
    return make_celery("redis://localhost:1/0", name="test").conf


KEYED = {"401", "403", "429", "default"}
"""What every operation that takes a key may answer."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document, as it is served."""
    return create_app(Settings()).openapi()


class TestHint:
    """What travels through Redis, where a worker of the next release may read what one of this wrote."""

    def test_a_hint_is_a_version_and_an_id(self):
        """Nothing else travels: no text, no tenant, no attempt."""
        assert json.loads(ShardHint(shard=7).model_dump_json()) == {"v": 1, "shard": 7}

    @pytest.mark.parametrize(
        "message",
        [
            {"v": 2, "shard": 7},
            {"v": 1, "shard": 7, "more": 1},
            {"v": 1, "shard": "7"},
            {"v": 1, "shard": True},
            {"v": 1, "shard": 7.0},
            {"v": 1, "shard": None},
            {"v": 1},
            {},
        ],
        ids=str,
    )
    def test_anything_else_is_refused(self, message: dict[str, Any]):
        """A worker does not guess at what a foreign or future message means."""
        with pytest.raises(ValidationError):
            ShardHint.model_validate(message)

    def test_a_callbacks_hint(self):
        """The same, of a callback: its key, and nothing of what it says or where it goes."""
        key = "0" * 32
        assert json.loads(CallbackHint(callback=key).model_dump_json()) == {"v": 1, "callback": key}
        for other in ({"v": 2, "callback": key}, {"v": 1, "callback": key[1:]}, {"v": 1, "callback": 7}, {"v": 1}):
            with pytest.raises(ValidationError):
                CallbackHint.model_validate(other)

    def test_names_that_stand_in_redis(self):
        """A dispatcher and a worker of different releases meet at these names."""
        assert JUDGE_TASK == "nightcourt.judge"
        assert (CALLBACK_TASK, CALLBACK_QUEUE) == ("nightcourt.call_back", "callbacks")
        assert [str(queue) for queue in QUEUES.values()] == ["interactive", "bulk"]


class TestCelery:
    """The settings that keep Celery a hint channel. Each has cost somebody a night."""

    def test_messages_are_json_and_nothing_else(self, conf):
        """Whoever can write to Redis must not be able to run code in a worker, as pickle would let them."""
        assert conf.task_serializer == "json"
        assert list(conf.accept_content) == ["json"]

    def test_there_is_no_result_backend(self, conf):
        """Outcomes are rows in Postgres; results in Redis would be a second truth, and would fill it."""
        assert conf.result_backend is None
        assert conf.task_ignore_result is True
        assert conf.task_store_errors_even_if_ignored is False

    def test_a_hint_is_acknowledged_after_the_work(self, conf):
        """A worker that dies leaves its hint unacknowledged, and takes no more of them than it works on."""
        assert conf.task_acks_late is True
        assert conf.worker_prefetch_multiplier == 1

    def test_a_lost_worker_rejects_nothing_at_once(self, conf):
        """A shard that kills its worker comes back by its lease, which counts attempts, as Redis would not."""
        assert conf.task_reject_on_worker_lost is False

    def test_redelivery_is_slower_than_the_lease(self, conf):
        """Redis gives a hint out again long after the sweep has, so that work in progress is not hinted twice."""
        assert conf.broker_transport_options["visibility_timeout"] == 300
        assert conf.broker_transport_options["visibility_timeout"] > Settings.model_fields["lease_seconds"].default

    def test_a_broker_that_hangs_is_noticed(self, conf):
        """Every wait for Redis ends within seconds, since a hung broker must not hang the dispatcher."""
        options = conf.broker_transport_options
        assert options["socket_timeout"] == 5
        assert options["socket_connect_timeout"] == 3
        assert options["health_check_interval"] == 5
        assert conf.broker_pool_acquire_timeout == 5

    def test_a_broker_that_is_gone_is_waited_for(self, conf):
        """A worker looks for Redis until it is back, from its start on, and never gives up and ends."""
        assert conf.broker_connection_retry_on_startup is True
        assert conf.broker_connection_max_retries is None

    def test_publishing_is_tried_once(self, conf):
        """The dispatcher's loop is the retry; one inside Celery would hold the loop up."""
        assert conf.task_publish_retry is False

    def test_the_interactive_queue_is_read_first(self, conf):
        """Queues are asked in their order at each turn, instead of round and round."""
        assert conf.broker_transport_options["queue_order_strategy"] == "priority"
        assert [queue.name for queue in conf.task_queues] == ["interactive", "bulk", "callbacks"]
        assert conf.task_create_missing_queues is False

    def test_keys_in_redis_have_our_prefix(self, conf):
        """A Redis shared with another Celery program mixes nothing up."""
        assert conf.broker_transport_options["global_keyprefix"] == "nightcourt:"

    def test_nobody_commands_a_worker_through_redis(self, conf):
        """Remote control and events are off: they cost memory in Redis, and let its users stop workers."""
        assert conf.worker_enable_remote_control is False
        assert conf.worker_send_task_events is False
        assert conf.task_send_sent_event is False

    def test_celery_leaves_logging_alone(self, conf):
        """There is one way of logging, and it is ours."""
        assert conf.worker_hijack_root_logger is False
        assert conf.worker_redirect_stdouts is False


class TestObjects:
    """The objects that producers read."""

    def test_a_comparison(self):
        """These keys, in this order, with null where there is nothing yet."""
        comparison = Comparison(
            id="cmp_0",
            status=ComparisonStatus.QUEUED,
            created_at="2026-01-02T03:04:05Z",
            decided_at=None,
            custom_id=None,
            metadata={},
            verdict=None,
            error=None,
        )
        assert json.loads(comparison.model_dump_json()) == {
            "id": "cmp_0",
            "object": "comparison",
            "status": "queued",
            "created_at": "2026-01-02T03:04:05Z",
            "decided_at": None,
            "custom_id": None,
            "metadata": {},
            "label": None,
            "verdict": None,
            "error": None,
            "waiting_for": None,
        }

    def test_a_verdict(self):
        """A verdict holds what it is recomputed from, who made it, and what it cost."""
        said = VERDICT.model_dump(mode="json")
        assert list(said) == [
            "winner",
            "probability_a",
            "consistent",
            "position_bias",
            "ballots",
            "judge",
            "usage",
        ]
        assert list(said["ballots"][0]) == ["order", "log_odds", "mass", "vote"]
        assert list(said["usage"]) == ["prompt_tokens", "cached_tokens", "gpu_seconds", "reused"]
        assert list(said["judge"]) == [
            "model",
            "weights",
            "quantisation",
            "engine",
            "engine_build",
            "profile",
            "prompt",
            "temperature",
            "calibration",
            "simulated",
            "caveat",
        ]

    def test_a_page(self):
        """A list has the keys that OpenAI's lists have, so that habits carry over."""
        page = ComparisonPage(data=[], first_id=None, last_id=None, has_more=False)
        assert list(page.model_dump()) == ["object", "data", "first_id", "last_id", "has_more"]

    def test_a_request(self):
        """Three fields are needed, and these are all there are."""
        fields = ComparisonRequest.model_fields
        assert [name for name, field in fields.items() if field.is_required()] == ["prompt", "response_a", "response_b"]
        assert [name for name, field in fields.items() if not field.is_required()] == [
            "order",
            "profile",
            "tie_margin",
            "custom_id",
            "metadata",
            "callback_url",
        ]

    def test_the_statuses(self):
        """Two of them are passing and four are final."""
        assert {status.value: status.final for status in ComparisonStatus} == {
            "queued": False,
            "running": False,
            "succeeded": True,
            "errored": True,
            "cancelled": True,
            "expired": True,
        }

    def test_an_id(self):
        """A comparison's id says what it is, sorts by time, and is read back as the same key."""
        first, second = new_filing_id(), new_filing_id()
        spelt = comparison_id(ComparisonKey(first, 0))
        assert len(spelt) == len("cmp_") + 32
        assert first.version == 7
        assert first.int >> 80 <= second.int >> 80
        assert parse_comparison_id(spelt) == (first, 0)
        assert parse_comparison_id(comparison_id(ComparisonKey(first, 12))) == (first, 12)


class TestProblems:
    """Problems are RFC 9457 documents."""

    def test_a_problem(self):
        """The members of the RFC, our code, and what belongs to this one request."""
        problem = Problem(NOT_FOUND, "There is no comparison cmp_0.")
        assert problem.document("req_1").model_dump(exclude_none=True) == {
            "type": "urn:nightcourt:problem:not_found",
            "title": "There is no such thing here",
            "status": 404,
            "detail": "There is no comparison cmp_0.",
            "code": "not_found",
            "request_id": "req_1",
        }

    def test_a_problem_of_fields(self):
        """Fields at fault are listed, each with a message of its own."""
        problem = Problem(INVALID_REQUEST, "prompt: empty.", errors=[FieldError(field="prompt", message="empty")])
        assert problem.document().model_dump(exclude_none=True)["errors"] == [{"field": "prompt", "message": "empty"}]


class TestOpenAPI:
    """The description that clients are generated from."""

    def test_these_are_the_operations(self, document):
        """Every path with its methods, and the statuses that each is documented to answer with."""
        described = {
            f"{method.upper()} {path}": set(operation["responses"])
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        assert described == {
            "POST /v1/comparisons": {"200", "202", *KEYED},
            "GET /v1/comparisons": {"200", *KEYED},
            "GET /v1/comparisons/{comparison_id}": {"200", *KEYED},
            "POST /v1/comparisons/{comparison_id}/cancel": {"200", *KEYED},
            "POST /v1/files": {"200", *KEYED},
            "GET /v1/files": {"200", *KEYED},
            "GET /v1/files/{file_id}": {"200", *KEYED},
            "DELETE /v1/files/{file_id}": {"200", *KEYED},
            "GET /v1/files/{file_id}/content": {"200", *KEYED},
            "POST /v1/batches": {"200", *KEYED},
            "GET /v1/batches": {"200", *KEYED},
            "GET /v1/batches/{batch_id}": {"200", *KEYED},
            "POST /v1/batches/{batch_id}/cancel": {"200", *KEYED},
            "POST /v1/batches/{batch_id}/pause": {"200", *KEYED},
            "POST /v1/batches/{batch_id}/resume": {"200", *KEYED},
            "POST /v1/batches/{batch_id}/retry": {"200", *KEYED},
            "GET /v1/batches/{batch_id}/report": {"200", *KEYED},
            "GET /v1/batches/{batch_id}/results": {"200", *KEYED},
            "GET /v1/batches/{batch_id}/events": {"200", *KEYED},
            "POST /v1/callback-endpoints": {"201", *KEYED},
            "GET /v1/callback-endpoints": {"200", *KEYED},
            "GET /v1/callback-endpoints/{endpoint_id}": {"200", *KEYED},
            "DELETE /v1/callback-endpoints/{endpoint_id}": {"204", *KEYED},
            "POST /v1/callback-endpoints/{endpoint_id}/disable": {"200", *KEYED},
            "POST /v1/callback-endpoints/{endpoint_id}/enable": {"200", *KEYED},
            "POST /v1/callback-endpoints/{endpoint_id}/rotate-secret": {"200", *KEYED},
            "POST /v1/callback-endpoints/{endpoint_id}/test": {"202", *KEYED},
            "POST /v1/callback-secret": {"200", *KEYED},
            "GET /v1/callbacks": {"200", *KEYED},
            "POST /v1/callbacks/replay": {"200", *KEYED},
            "GET /v1/callbacks/{callback_id}": {"200", *KEYED},
            "POST /v1/callbacks/{callback_id}/replay": {"202", *KEYED},
            "GET /livez": {"200"},
            "GET /metrics": {"200"},
            "GET /readyz": {"200", "503"},
        }

    def test_the_headers_are_described(self, document):
        """Filing takes an Idempotency-Key and Prefer, both of them optional."""
        parameters = document["paths"]["/v1/comparisons"]["post"]["parameters"]
        assert {(parameter["in"], parameter["name"].lower()) for parameter in parameters} == {
            ("header", "idempotency-key"),
            ("header", "prefer"),
        }
        assert not any(parameter["required"] for parameter in parameters)

    def test_the_problem_document_is_described(self, document):
        """What operations answer by default is a schema of the document, with the members that a problem has."""
        schema = document["components"]["schemas"]["ProblemDocument"]
        assert list(schema["properties"]) == ["type", "title", "status", "detail", "code", "request_id", "errors"]
        assert schema["required"] == ["type", "title", "status", "detail", "code"]

    def test_every_reference_leads_somewhere(self, document):
        """A generator that follows the references finds each of them."""
        schemas = document["components"]["schemas"]
        wanted = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
        assert wanted <= set(schemas)

    def test_the_version_is_the_packages(self, document):
        """The document tells which release it describes."""
        assert document["info"]["version"] == version("nightcourt")
