"""The Python client: file comparisons with a running service and read the verdicts.

    from producer.client import Client

    with Client("http://127.0.0.1:8300", api_key="nck_...") as client:
        decided = client.judge("What is the capital of Australia?", "Sydney.", "Canberra.")
        if decided.verdict:
            print(decided.verdict.winner, decided.verdict.probability_a)

Without `api_key`, the key is that of the environment variable NIGHTCOURT_KEY.

A file of any size is filed as a batch, and read back as a stream:

    with Client() as client:
        batch = client.create_batch(client.upload("pairs.jsonl").id, completion_window="24h")
        client.wait_batch(batch.id, timeout=86400)
        for comparison in client.batch_results(batch.id):
            print(comparison.custom_id, comparison.verdict)

A receiver of callbacks makes sure that what it gets is from the service:

    event = verify_callback(body, headers, "whsec_...")

Needs httpx2, pydantic, standardwebhooks and `schemas`, and nothing of the server. `AsyncClient` is the same with
`await`.

A call that meets a passing failure (no connection, no answer in time, status 408, 429, 500, 502, 503 or 504) is made
again up to `max_retries` times; `judge`, `wait` and `wait_batch` go on until their `timeout`. That does nothing twice:
`submit`, `judge` and `create_batch` keep an Idempotency-Key over their retries, and cancelling twice is the same as
once. `retry_batch`, `add_endpoint`, `test_endpoint`, `rotate_secret`, `replay` and `replay_dead` have no key; they are
made again only where the first call was certainly not carried out: it found no connection, or was answered with 429.
What is raised says by `error.passing` whether the same call may go well another time.
"""

from producer.client.bulk import BatchOptions
from producer.client.callbacks import verify_callback
from producer.client.clients import AsyncClient, Client
from producer.client.errors import (
    BatchNotEnded,
    CallbackRefused,
    ClientError,
    InvalidRequest,
    NotDecided,
    ServerProblem,
    ServerUnreachable,
    UnexpectedAnswer,
)
from producer.client.plans import ComparisonFields, ComparisonOptions

__all__ = [
    "AsyncClient",
    "BatchNotEnded",
    "BatchOptions",
    "CallbackRefused",
    "Client",
    "ClientError",
    "ComparisonFields",
    "ComparisonOptions",
    "InvalidRequest",
    "NotDecided",
    "ServerProblem",
    "ServerUnreachable",
    "UnexpectedAnswer",
    "verify_callback",
]
