"""Files of batches over HTTP, with real processes: what is taken, what is named as bad, and what is refused whole."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from support.clerk import Clerk, lines

from producer.client import Client, ServerProblem


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "fold"),
        [
            ("plain", lambda data: data),
            ("gzip", gzip.compress),
            ("zstd", lambda data: zstandard.ZstdCompressor().compress(data)),
            ("gzip in members", lambda data: gzip.compress(data[:500]) + gzip.compress(data[500:])),
        ],
    )
    def test_a_file_is_taken_as_it_comes(self, clerk: Clerk, name: str, fold: Any):
        """JSON lines, gzip and zstd are told by their first bytes, and come out as the same lines."""
        data = lines(600)
        file = clerk.upload(fold(data), name).json()
        assert (file["lines"], file["bad_lines"], file["bytes"]) == (600, 0, len(data))
        assert clerk.http.get(f"/v1/files/{file['id']}/content").content == data

    def test_a_file_is_given_back_as_it_came(self, clerk: Clerk):
        """Backslashes, tabs and carriage returns inside lines come out as they went in."""
        data = b'{"prompt":\t"a\\\\t \\n \\\\",\r "response_a": "\\\\\\"", "response_b": "C:\\\\tmp"}\n' * 2
        file = clerk.upload(data).json()
        assert file["lines"] == 2
        assert clerk.http.get(f"/v1/files/{file['id']}/content").content == data

    def test_lines_end_at_line_feeds_alone(self, clerk: Clerk):
        """A BOM, blank lines, carriage returns, a missing last line feed and line separators in text are no trouble."""
        row = '{"prompt": "a\u2028b\u0085c", "response_a": "x", "response_b": "y"}'
        data = b"\xef\xbb\xbf" + f"{row}\r\n\n  \n{row}".encode()
        assert clerk.upload(data).json()["lines"] == 2

    def test_bad_lines_are_counted_and_named(self, clerk: Clerk):
        """Each line that is no comparison is kept in mind with its number and the reason."""
        bad = [
            b"{",
            b"[]",
            b'{"prompt": "p", "response_a": "a"}',
            b'{"prompt": "p", "response_a": "\\u0000", "response_b": "b"}',
            b'{"prompt": "\xff", "response_a": "a", "response_b": "b"}',
            b'{"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": {}}',
            b'{"prompt": "p", "response_a": "a", "response_b": "b", "label": "C"}',
        ]
        batch = clerk.create(lines(3) + b"\n".join(bad))
        assert batch["status"] == "failed"
        assert [error["line"] for error in batch["errors"]["data"]] == [4, 5, 6, 7, 8, 9, 10]
        assert "column 1" in batch["errors"]["data"][0]["message"]
        assert batch["errors"]["data"][2]["param"] == "response_b"

    def test_an_id_of_null_is_no_name(self, clerk: Clerk):
        """Rows of tables have empty columns: such lines have no name, and are not each other's namesakes."""
        row = {"id": None, "prompt": "p", "response_a": "a", "response_b": "b"}
        preference = {"id": None, "prompt": "p", "chosen": "a", "rejected": "b"}
        file = clerk.upload(b"\n".join(json.dumps(each).encode() for each in (row, row, preference))).json()
        assert (file["lines"], file["bad_lines"]) == (3, 0)

    def test_the_same_custom_id_twice_is_a_bad_line(self, clerk: Clerk):
        """The first line keeps the name; the second is named with the line of the first."""
        batch = clerk.create(lines(300) + lines(1))
        [error] = batch["errors"]["data"]
        assert error["line"] == 301
        assert error["code"] == "duplicate_custom_id"
        assert error["message"] == "custom_id: stands already on line 1"

    @pytest.mark.parametrize(
        ("data", "status", "code"),
        [
            (gzip.compress(b" " * 50_000_000), 413, "body_too_large"),
            (gzip.compress(b"{}")[:12] + b"rubbish" * 9, 400, "bad_compression"),
            (b" " * (5 * 1024 * 1024), 413, "body_too_large"),
        ],
        ids=["a bomb", "broken gzip", "an endless line"],
    )
    def test_what_is_no_file_of_lines_is_refused_whole(self, clerk: Clerk, data: bytes, status: int, code: str):
        """Bombs, broken compression and endless lines end the upload, and nothing of it is kept."""
        before = clerk.http.get("/v1/files").json()["data"]
        answer = clerk.upload(data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert clerk.http.get("/v1/files").json()["data"] == before

    def test_parquet_is_refused_with_what_to_do(self, clerk: Clerk, tmp_path: Path):
        """Its rows would be lines that nobody wrote, so it ends as it begins, and the problem names what reads it."""
        file = tmp_path / "pairs.parquet"
        rows = [{"prompt": f"p{n}", "response_a": random.randbytes(99).hex(), "response_b": "b"} for n in range(20_000)]
        parquet.write_table(pa.Table.from_pylist(rows), file)
        before = clerk.http.get("/v1/files").json()["data"]
        with (
            Client(clerk.service.url, api_key=clerk.service.key) as client,
            pytest.raises(ServerProblem, match=r"`nightcourt batch run FILE\.parquet` reads it") as raised,
        ):
            client.upload(file)
        assert (raised.value.status, raised.value.code) == (415, "unsupported_media_type")
        assert clerk.http.get("/v1/files").json()["data"] == before

    def test_a_file_refused_late_leaves_no_line(self, clerk: Clerk):
        """Pieces that are being stored when an upload turns out bad are taken out with those before them."""
        with psycopg.connect(clerk.service.database_url, autocommit=True) as connection:
            kept = "SELECT (SELECT count(*) FROM comparisons), (SELECT count(*) FROM file_runs)"
            before = connection.execute(kept).fetchone()
            assert clerk.upload(lines(9000) + b" " * (5 * 1024 * 1024)).status_code == 413
            assert connection.execute(kept).fetchone() == before

    def test_a_wrong_purpose_is_refused(self, clerk: Clerk):
        """Files are for batches."""
        answer = clerk.http.post("/v1/files", files={"file": ("x", lines(1))}, data={"purpose": "fine-tune"})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "purpose"

    def test_a_file_can_be_deleted_until_a_batch_is_made_of_it(self, clerk: Clerk):
        """What verdicts refer to stays."""
        free, used = clerk.upload(lines(2)).json()["id"], clerk.create(lines(2))["input_file_id"]
        assert clerk.http.delete(f"/v1/files/{free}").json() == {"id": free, "object": "file", "deleted": True}
        assert clerk.http.get(f"/v1/files/{free}").status_code == 404
        assert clerk.http.delete(f"/v1/files/{used}").status_code == 422
