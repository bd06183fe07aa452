"""Files by the calls of OpenAI's own client: what is not done here is said, and no answer is made up."""

from collections.abc import Iterator

import openai
import pytest
from support.edge import open_edge
from support.keys import a_key

LINE = b'{"prompt": "p", "response_a": "a", "response_b": "b"}'


@pytest.fixture
def client(database_url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a service in which nothing is judged."""
    with (
        open_edge(database_url) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=a_key(database_url), max_retries=0) as client,
    ):
        yield client


def upload(client: openai.OpenAI) -> str:
    """A file's id."""
    return client.files.create(file=("pairs.jsonl", LINE), purpose="batch").id


def test_a_file_that_is_to_expire_is_refused(client: openai.OpenAI):
    """It would be kept for longer than was asked for; and nothing of it is kept."""
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(
            file=("pairs.jsonl", LINE), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert (refused.value.code, refused.value.param) == ("invalid_request", "expires_after")
    assert client.files.list().data == []


def test_a_list_is_of_one_purpose(client: openai.OpenAI):
    """All that is listed was uploaded for batches."""
    file = upload(client)
    for asked, found in [("batch", [file]), ("batch_output", []), ("fine-tune", [])]:
        page = client.files.list(purpose=asked)
        assert ([each.id for each in page], page.has_more) == (found, False)
    assert [each.id for each in client.files.list()] == [file]


def test_a_list_has_an_order(client: openai.OpenAI):
    """Newest first or oldest first, page by page."""
    oldest, *_ = made = [upload(client) for _ in range(3)]
    assert [each.id for each in client.files.list(limit=2)] == made[::-1]
    assert [each.id for each in client.files.list(order="asc", limit=2)] == made
    assert [each.id for each in client.files.list(order="asc", after=oldest).data] == made[1:]
    with pytest.raises(openai.UnprocessableEntityError, match="order"):
        client.files.list(order="largest")


def test_an_output_file_is_a_view_of_its_batch(client: openai.OpenAI):
    """It is as old as the batch, and cannot be deleted without it."""
    batch = client.batches.create(input_file_id=upload(client), endpoint="/v1/comparisons", completion_window="24h")
    for kind in ("output", "errors"):
        view = f"file-{kind}-{batch.id.removeprefix('batch_')}"
        assert client.files.retrieve(view).created_at == batch.created_at
        with pytest.raises(openai.UnprocessableEntityError, match=f"a view of {batch.id}"):
            client.files.delete(view)
        with pytest.raises(openai.NotFoundError):
            client.files.delete(view.replace("0", "1"))
