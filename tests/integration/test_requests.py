"""What becomes of requests that go wrong: by the service's own mistakes, and where callers wait for no answer."""

import socket

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs
from support.edge import open_edge
from support.keys import a_key, bearer
from support.waiting import wait_until

UPLOAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{"prompt": '


@pytest.mark.parametrize("path", ["/v1/comparisons", "/v1/batches", "/dashboard/batches"])
def test_our_own_mistake_is_answered_with_its_id(database_url: str, connection: Connection, path: str):
    """An answer of 500 says under which id it is logged, in each form that answers have, and what the key has left."""
    key = a_key(database_url)
    with open_edge(database_url) as http, capture_logs() as logged:
        http.post("/dashboard/login", data={"key": key})
        connection.execute(text("ALTER TABLE batches RENAME TO elsewhere"))
        answer = http.get(path, headers=bearer(key))
    assert answer.status_code == 500
    assert "request_failed" in {each["event"] for each in logged}
    assert answer.headers["x-request-id"] in answer.text
    assert answer.headers["ratelimit"].startswith('"requests";r=')


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        ("/v1/comparisons", "application/json", b'{"prompt": '),
        ("/v1/files", "multipart/form-data; boundary=x", UPLOAD),
    ],
)
def test_who_hangs_up_is_no_mistake_of_ours(database_url: str, path: str, media_type: str, body: bytes):
    """A caller who is gone in the middle of their body is counted as such, and not as a 500, which wakes somebody."""
    with open_edge(database_url) as http:
        head = (
            f"POST {path} HTTP/1.1",
            "Host: x",
            f"Authorization: {bearer(a_key(database_url))['Authorization']}",
            f"Content-Type: {media_type}",
            "Content-Length: 1000",
        )
        with socket.create_connection((http.base_url.host, http.base_url.port)) as caller:
            caller.sendall("\r\n".join((*head, "", "")).encode() + body)

        def counted() -> list[str]:
            return [line for line in http.get("/metrics").text.splitlines() if f'route="{path}"' in line]

        wait_until(lambda: any('status="' in line for line in counted()), within=20, what="the request is counted")
        assert [line for line in counted() if 'status="499"' in line]
        assert not [line for line in counted() if 'status="500"' in line]
