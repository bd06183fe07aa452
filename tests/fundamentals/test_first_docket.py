"""A first docket, told from top to bottom: what a producer does with nightcourt, and what comes back.

Every page of it runs against a whole service: Postgres, Redis, the HTTP edge, a dispatcher and a worker. The engine
is the simulated one, which asks no model: a verdict here is a hash of the text, but everything around it is real.
"""

import asyncio
import json
import math
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Service, running_service

from producer.client import AsyncClient, Client, InvalidRequest, NotDecided, ServerProblem

ROOT = Path(__file__).parents[2]
QUESTION = "What is the capital of Australia?"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service, as `nightcourt up` would run it, with a key for its own users. It reads 5,000 tokens in a second."""
    folder = tmp_path_factory.mktemp("first-docket") / "data"
    with running_service(folder, simulated_tokens_per_second=5000.0) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A producer's connection to it. Whoever sends no key is told to."""
    with Client(service.url, api_key=service.key) as connected:
        yield connected


def test_file_a_comparison_and_come_back_for_the_verdict(client: Client):
    """Filing stores a comparison and answers at once; the verdict is there a little later, under the same id."""
    filed = client.submit(prompt=QUESTION, response_a="Sydney.", response_b="Canberra.")
    assert filed.id.startswith("cmp_")
    assert filed.status in {"queued", "running"}
    assert filed.verdict is None

    decided = client.wait(filed.id, timeout=30)
    assert decided.id == filed.id
    assert decided.status == "succeeded"
    assert decided.verdict.winner in {"A", "B"}
    assert client.get(filed.id) == decided  # for good: an outcome never changes


def test_or_wait_for_it_in_one_call(client: Client):
    """`judge` files and waits, for whoever has nothing else to do."""
    verdict = client.judge(QUESTION, "Sydney.", "Canberra.").verdict
    assert 0 < verdict.probability_a < 1
    assert (verdict.winner == "A") == (verdict.probability_a > 0.5)


def test_the_judge_is_asked_in_both_orders_and_its_odds_add_up(client: Client):
    """Both ballots are there as the model cast them, so that anyone can work the verdict out again."""
    verdict = client.judge(QUESTION, "Sydney.", "Canberra.").verdict
    shown_a_first, shown_b_first = verdict.ballots
    assert (shown_a_first.order, shown_b_first.order) == ("ab", "ba")

    # A ballot's log-odds are for the response that was shown first. Half their difference is the preference ...
    preference = (shown_a_first.log_odds - shown_b_first.log_odds) / 2
    assert math.isclose(verdict.probability_a, 1 / (1 + math.exp(-preference / verdict.judge.temperature)))

    # ... and half their sum is how far the judge leans to whatever it is shown first.
    leaning = (shown_a_first.log_odds + shown_b_first.log_odds) / 2
    assert math.isclose(verdict.position_bias, leaning)

    # The orders agree when they name the same response, which stands first in the one and second in the other.
    assert verdict.consistent == (shown_a_first.vote != shown_b_first.vote)


def test_every_verdict_says_who_made_it_and_what_it_cost(client: Client):
    """The judge is stored with the verdict, with the one thing to mind before believing it."""
    verdict = client.judge(QUESTION, "Perth.", "Canberra.").verdict
    assert verdict.judge.engine == "simulated"
    assert verdict.judge.simulated
    assert verdict.judge.weights.startswith("sha256:")
    assert verdict.judge.caveat.startswith("Simulated: no model was asked.")
    assert verdict.usage.prompt_tokens > 0
    assert verdict.usage.gpu_seconds > 0


def test_the_same_question_is_not_judged_twice(client: Client):
    """The same comparison under the same judge is answered from the stored verdict, at no cost, and says so."""
    first = client.judge(QUESTION, "Hobart.", "Canberra.").verdict
    again = client.judge(QUESTION, "Hobart.", "Canberra.").verdict
    assert (first.usage.reused, again.usage.reused) == (False, True)
    assert again.usage.gpu_seconds == 0
    assert again.ballots == first.ballots


def test_ties_are_for_those_who_ask_for_them(client: Client):
    """With a margin, a probability that close to one half is a tie; without one, there always is a winner."""
    decided = client.judge(QUESTION, "Canberra.", "It is Canberra.").verdict
    distance = abs(decided.probability_a - 0.5)
    wide = client.judge(QUESTION, "Canberra.", "It is Canberra.", tie_margin=min(0.499, distance + 0.01)).verdict
    narrow = client.judge(QUESTION, "Canberra.", "It is Canberra.", tie_margin=distance / 2).verdict
    assert wide.winner == "tie"
    assert narrow.winner == decided.winner
    assert wide.probability_a == narrow.probability_a == decided.probability_a


def test_conversations_and_names_of_your_own(client: Client):
    """A prompt may be a conversation, a response too, and what you send along comes back as it was."""
    conversation = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another."},
    ]
    response = [{"role": "assistant", "content": "Blue."}]
    sent = {"custom_id": "colours-7", "metadata": {"run": "tonight"}}
    decided = client.judge(conversation, response, "Well, there are many colours.", **sent)
    assert decided.status == "succeeded"
    assert (decided.custom_id, decided.metadata) == ("colours-7", {"run": "tonight"})


def test_filing_twice_by_mistake_files_once(client: Client):
    """Under one idempotency key a comparison is filed once, however often it is sent, and nothing else is."""
    first = client.submit(prompt=QUESTION, response_a="a", response_b="b", idempotency_key="docket-1")
    again = client.submit(prompt=QUESTION, response_a="a", response_b="b", idempotency_key="docket-1")
    assert again.id == first.id
    with pytest.raises(ServerProblem) as refused:
        client.submit(prompt=QUESTION, response_a="a", response_b="another", idempotency_key="docket-1")
    assert refused.value.code == "idempotency_key_reused"


def test_many_at_once(service: Service):
    """`AsyncClient` is the same client with `await`: forty comparisons are on their way together."""

    async def docket() -> list[str]:
        async with AsyncClient(service.url, api_key=service.key) as client:
            calls = [client.judge(f"Is {number} a prime?", "Yes.", "No.", timeout=120) for number in range(40)]
            return [decided.status for decided in await asyncio.gather(*calls)]

    assert asyncio.run(docket()) == ["succeeded"] * 40


def test_what_was_filed_can_be_listed(client: Client):
    """The newest come first, a page at a time, or one after the other."""
    filed = [client.submit(prompt=QUESTION, response_a="a", response_b="b").id for _ in range(3)]
    page = client.list(limit=2)
    assert [each.id for each in page.data] == filed[:0:-1]
    assert page.has_more
    assert client.list(limit=1, after=page.last_id).data[0].id == filed[0]
    everything = [each.id for each in client.iterate()]
    assert everything[:3] == filed[::-1]
    assert len(everything) > 40


def test_what_is_no_longer_wanted_is_called_off(client: Client):
    """Cancelling ends a comparison that has no verdict yet; one that has keeps it."""
    filed = client.submit(prompt="Take your time. " * 1800, response_a="a", response_b="b")
    with pytest.raises(NotDecided) as late:
        client.wait(filed.id, timeout=0.1)
    assert late.value.comparison.id == filed.id  # it stays filed
    assert client.cancel(filed.id).status == "cancelled"
    assert client.wait(filed.id, timeout=10).error.code == "cancelled"

    decided = client.judge(QUESTION, "Sydney.", "Canberra.")
    with pytest.raises(ServerProblem) as refused:
        client.cancel(decided.id)
    assert (refused.value.status, refused.value.code) == (409, "already_decided")


def test_mistakes_are_told_so_that_you_can_mend_them(client: Client):
    """A problem has a code for programs, a sentence for people and the fields at fault; nothing is cut in silence."""
    with pytest.raises(InvalidRequest) as refused:
        client.submit(prompt="", response_a="a", response_b="b", tie_margin=0.7)
    assert refused.value.code == "invalid_request"
    assert {error.field for error in refused.value.document.errors} == {"prompt", "tie_margin"}

    with pytest.raises(ServerProblem, match=r"There is no comparison cmp_0{32}\."):
        client.get(f"cmp_{'0' * 32}")

    too_long = client.judge("word " * 20_000, "a", "b")
    assert (too_long.status, too_long.verdict) == ("errored", None)
    assert too_long.error.code == "context_length_exceeded"
    assert "the judge takes 8192" in too_long.error.message


def test_the_programs_of_the_page_run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `docs/client.md` shows can be copied: one comparison, a file, and two hundred at once in two ways."""
    monkeypatch.setenv("NIGHTCOURT_KEY", service.key)
    monkeypatch.chdir(ROOT)
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
    assert len(found) == 4
    ran = []
    for program in found:
        (script := tmp_path / "script.py").write_text(program.replace("http://127.0.0.1:8300", service.url))
        ran.append(runpy.run_path(str(script)))
    rewards = [names["rewards"] for names in ran if "rewards" in names]
    assert [len(each) for each in rewards] == [200, 200]
    assert all(0 < each < 1 for step in rewards for each in step)


def test_it_is_plain_http_underneath(client: Client, service: Service):
    """Any language will do: one POST of JSON, with a header that says how long to hold the answer."""
    import httpx2  # noqa: PLC0415 - the one page that does without the client

    answer = httpx2.post(
        f"{service.url}/v1/comparisons",
        json={"prompt": QUESTION, "response_a": "Sydney.", "response_b": "Canberra."},
        headers={"Authorization": f"Bearer {service.key}", "Prefer": "wait=30"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.json() == json.loads(client.get(answer.json()["id"]).model_dump_json())
