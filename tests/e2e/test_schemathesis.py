"""The OpenAPI document against the service that it describes: requests made up from the one, sent to the other."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.service import Service

ENDLESS = "/v1/batches/{batch_id}/events"
"""Holds its answer until the batch ends."""


@pytest.mark.timeout(1800)
def test_no_made_up_request_is_answered_otherwise_than_described(
    service: Service, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is sent, valid or not, the answer is no 5xx, and of a status, a type and a shape that are documented."""
    # Whoever runs the tests may have a proxy; the service is on this machine.
    monkeypatch.setenv("NO_PROXY", "*")
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    full = request.config.getoption("--full")
    seen: Counter[int] = Counter()
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        if operation.path == ENDLESS:
            continue

        @settings(
            max_examples=300 if full else 25,
            derandomize=not full,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.one_of(
                operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
                operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
            )
        )
        def send(case: schemathesis.Case) -> None:
            case.headers.pop("Prefer", None)  # no held answers: they prove nothing here and take their time
            answer = case.call(timeout=30, headers=service.headers)
            seen[answer.status_code] += 1
            case.validate_response(
                answer,
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        send()
    assert seen[422] > 0, seen
    assert seen[202] + seen[200] > 0, seen
    assert service.http.get("/readyz").json()["status"] == "ready"
