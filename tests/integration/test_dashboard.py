"""The dashboard over HTTP: what its pages say, of whose work, and what they are sent with."""

import json
import re
from collections.abc import Iterator
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, text
from support.court import Court, ScriptedEngine
from support.databases import away
from support.dockets import batch as insert_batch
from support.dockets import claim_one
from support.filed import LINES, file_and_judge, file_batch, judge_batches
from support.pages import words
from support.waiting import wait_until

from infra import roster
from schemas import ids


@pytest.fixture
def filed(client: TestClient, court: Court, engine: ScriptedEngine) -> Any:
    """A batch that was judged, and a comparison that was filed singly."""
    made = file_and_judge(client, court, engine)
    return SimpleNamespace(client=client, get=lambda path: client.get(f"/dashboard{path}"), **vars(made))


class TestNow:
    def test_lanes_and_workers_are_there_and_a_simulated_judge_is_called_so(self, filed: Any, connection: Connection):
        """The first page counts both lanes, names the worker, and says of a simulated one that it is."""
        engine = {"model": "hash", "simulated": True, "caveat": "Simulated: no model was asked."}
        roster.report(connection, worker="w", slots=8, bulk_slots=4, engine=engine)
        said = words(filed.get("/").text)
        assert "interactive 0 0 0" in said
        assert "bulk 0 0 0" in said
        assert "hash simulated 0 of 8 idle" in said
        assert "spot" in said

    def test_without_a_worker_it_says_so(self, client: TestClient):
        """That nothing will be judged is in the first sentence, with what to do."""
        assert "No worker was heard of for 30 s, so nothing is judged. Start one" in words(
            client.get("/dashboard/").text
        )

    def test_all_batches_under_way_are_added_up_and_those_being_judged_stand_first(
        self, client: TestClient, connection: Connection
    ):
        """The sums are those of all, and an old batch that is being judged is not pushed out by new ones that wait."""
        judged = insert_batch(connection, 2)
        claim_one(connection)
        for _ in range(22):
            insert_batch(connection, 1)
        page = client.get("/dashboard/").text
        said = words(page)
        assert "23 batches are under way, 24 comparisons are left" in said
        assert "And 3 more, among all batches" in said
        shown = re.findall(r'href="/dashboard/batches/(batch_\w+)" class="file"', page)
        assert len(shown) == 20
        assert shown[0] == ids.batch_id(judged)
        assert shown[1:] == sorted(shown[1:], reverse=True)

    def test_all_that_workers_have_in_hand_is_counted(self, client: TestClient, connection: Connection):
        """However much it is, none is shown to have less: the oldest shards stand there, the others as so many."""
        insert_batch(connection, 1200)
        engine = {"model": "hash", "simulated": True, "caveat": "Simulated: no model was asked."}
        for number in range(60):
            roster.report(connection, worker=f"w{number}", slots=20, bulk_slots=19, engine=engine)
        connection.execute(
            text("""
            UPDATE shards SET state = 'running', lease_owner = 'w' || first_line % 60, lease_token = first_line,
                              lease_until = now() + interval '1 minute'
        """)
        )
        said = words(client.get("/dashboard/").text)
        assert said.count(" 20 of 20 ") == 60
        assert said.count(" and 4 more ") == 60
        assert "idle" not in said

    def test_the_address_without_a_slash_leads_there(self, filed: Any):
        """`/dashboard` is what people type."""
        answer = filed.client.get("/dashboard", follow_redirects=True)
        assert answer.status_code == 200
        assert "<h1>Now</h1>" in answer.text


class TestBatch:
    def test_the_list_leads_to_the_batch(self, filed: Any):
        """Batches stand by the names of their files, with their counts and a link."""
        page = filed.get("/batches").text
        assert f'href="/dashboard/batches/{filed.batch}"' in page
        assert f"<i>pairs</i>.jsonl batch_…{filed.batch[-8:]}" in words(page)

    def test_counts_and_reasons_are_those_of_the_batch(self, filed: Any):
        """The page says how many lines ended how, and groups those without a verdict by reason."""
        said = words(filed.get(f"/batches/{filed.batch}").text)
        assert f"{LINES} of {LINES} decided" in said
        assert f"succeeded {LINES - 1} errored 1" in said
        assert "context length exceeded 1 7 the prompt is" in said

    def test_its_report_says_what_the_verdicts_add_up_to(self, filed: Any):
        """The report's figures are those of `GET /v1/batches/{id}/report`."""
        counted = filed.client.get(f"/v1/batches/{filed.batch}/report").json()
        said = words(filed.get(f"/batches/{filed.batch}/report").text)
        assert f"agrees with {counted['accuracy']['value']:.1%}" in said
        assert f"{LINES - 1} of {LINES} lines that have ended have a verdict" in said
        assert "1 have none (context length exceeded)" in said

    def test_its_report_shows_the_largest_of_many_topics(self, client: TestClient, court: Court):
        """Lines name their topics as they like: the page shows so many and says how many there are."""
        pair = {"prompt": "Which?", "response_a": "this", "response_b": "that"}
        lines = [json.dumps({**pair, "topic": f"topic {number}"}) for number in range(201)]
        batch = file_batch(client, "\n".join(lines))
        judge_batches(court)
        report = client.get(f"/dashboard/batches/{batch}/report").text
        assert "The 200 largest of 201 subsets" in words(report)
        assert report.count('<th scope="row">topic ') == 200

    @pytest.mark.parametrize(
        ("query", "fits"),
        [
            ("", lambda _: True),
            ("ended=A", lambda each: each["verdict"] and each["verdict"]["winner"] == "A"),
            ("ended=errored", lambda each: each["status"] == "errored"),
            ("orders=disagree", lambda each: each["verdict"] and not each["verdict"]["consistent"]),
            ("ended=B&orders=agree", lambda each: (v := each["verdict"]) and v["winner"] == "B" and v["consistent"]),
            ("unsure=true", lambda each: each["verdict"] and 0.4 <= each["verdict"]["probability_a"] <= 0.6),
            ("reason=context_length_exceeded", lambda each: each["status"] == "errored"),
            ("named=row-1", lambda each: each["custom_id"].startswith("row-1")),
        ],
        ids=["all", "winner", "errored", "disagree", "both", "unsure", "reason", "named"],
    )
    def test_a_filter_shows_what_fits_and_nothing_else(self, filed: Any, query: str, fits: Any):
        """Following the pages of a filter gives each outcome that it is about once, in the order of the lines."""
        path, seen = f"/batches/{filed.batch}?{query}", []
        while path:
            page = filed.get(path).text
            seen += re.findall(r'<th scope="row" class="right"><a href="/dashboard/comparisons/([^"]+)"', page)
            further = re.search(r'href="/dashboard([^"#]+)#verdicts" rel="next"', page)
            path = unescape(further[1]) if further else None
        assert seen == [each["id"] for each in filed.results if fits(each)]
        assert seen

    def test_both_ballots_name_the_response_that_they_prefer(self, filed: Any):
        """In the order "ba" response B was shown first, so a vote for the first slot is one for B."""
        said = words(filed.get(f"/batches/{filed.batch}").text)
        verdict = filed.results[0]["verdict"]
        first, second = (ballot["log_odds"] for ballot in verdict["ballots"])
        ballots = [f"{'A' if first > 0 else 'B'} {first:+.2f}", f"{'B' if second > 0 else 'A'} {second:+.2f}"]
        assert " ".join(ballots).replace("-", "−") in said  # noqa: RUF001 - as pages write it


class TestComparison:
    def test_texts_are_shown_as_texts(self, filed: Any):
        """Whatever a prompt or a response holds, it is on the page as it was written and does nothing."""
        page = filed.get(f"/comparisons/{filed.results[0]['id']}").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script>alert" not in page
        assert "this &amp; that 1" in page
        assert "&lt;b&gt;the other&lt;/b&gt;" in page
        assert "Response B better labelled better" in words(page) or "Response B labelled better" in words(page)

    def test_one_line_leads_to_the_next(self, filed: Any):
        """The lines of a batch can be walked through, one by one."""
        page = filed.get(f"/comparisons/{filed.results[1]['id']}").text
        assert f'href="/dashboard/comparisons/{filed.results[0]["id"]}" rel="prev"' in page
        assert f'href="/dashboard/comparisons/{filed.results[2]["id"]}" rel="next"' in page

    def test_a_line_that_was_no_comparison_is_stepped_over(self, filed: Any, connection: Connection):
        """From its neighbours the way leads past it, either way, and no way leads to where nothing is."""
        connection.execute(text("DELETE FROM comparisons WHERE source_id = (SELECT file_id FROM batches) AND line = 3"))
        before, after = filed.results[1]["id"], filed.results[3]["id"]
        assert f'href="/dashboard/comparisons/{after}" rel="next"' in filed.get(f"/comparisons/{before}").text
        assert f'href="/dashboard/comparisons/{before}" rel="prev"' in filed.get(f"/comparisons/{after}").text
        assert 'rel="next"' not in filed.get(f"/comparisons/{filed.results[-1]['id']}").text

    def test_a_single_one_has_its_page(self, filed: Any):
        """What was filed singly is shown with its verdict, both ballots and whose verdict it is."""
        said = words(filed.get(f"/comparisons/{filed.single}").text)
        assert "B is better" in said
        assert "Both orders agree" in said
        assert "A B −2.00 .960 B B +2.00 .960" in said  # noqa: RUF001 - as pages write it
        assert "engine scripted 1" in said

    def test_a_simulated_verdict_says_that_it_is(self, filed: Any, connection: Connection):
        """Wherever a verdict of a simulated judge is shown, the page says that no model was asked."""
        mark = """UPDATE judges SET card = jsonb_set(jsonb_set(card::jsonb, '{simulated}', 'true'), '{caveat}',
                  '"Simulated: no model was asked."')"""
        connection.execute(text(mark))
        for path in ("/", f"/batches/{filed.batch}", f"/comparisons/{filed.single}"):
            assert "Simulated: no model was asked." in words(filed.get(path).text), path


class TestEdges:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/batches/nonsense", 404),
            ("/batches/batch_00000000000070008000000000000000", 404),
            ("/batches?after=nonsense", 404),
            ("/comparisons/cmp_00000000000070008000000000000000", 404),
            ("/comparisons/nonsense", 404),
            ("/static/routes.py", 404),
            ("/nowhere", 404),
        ],
    )
    def test_what_is_not_there_is_told_on_a_page(self, filed: Any, path: str, status: int):
        """A person gets a page, with the problem's code and the request's id, and never JSON or a trace."""
        answer = filed.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert "not_found" in answer.text
        assert answer.headers["x-request-id"] in answer.text

    def test_a_filter_that_is_none_is_told(self, filed: Any):
        """A query that does not fit names its field."""
        answer = filed.get(f"/batches/{filed.batch}?ended=perhaps&after=-1")
        assert answer.status_code == 422
        assert "ended:" in words(answer.text)

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            (f"after={2**31 - 1}", "has ended"),
            ("reason=%00context_length_exceeded", "row-7"),
            ("named=row-7%00", "row-7"),
        ],
    )
    def test_no_filter_is_too_much(self, filed: Any, query: str, said: str):
        """The last line that can be, and a character that Postgres has not, are answered with what fits."""
        answer = filed.get(f"/batches/{filed.batch}?{query}")
        assert answer.status_code == 200
        assert said in words(answer.text)

    def test_no_page_needs_an_exception_from_the_policy(self, filed: Any):
        """Each page forbids inline scripts and styles, has none, and is neither cached nor framed."""
        for path in ("/", "/batches", f"/batches/{filed.batch}", f"/comparisons/{filed.single}", "/nowhere"):
            answer = filed.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", answer.text)

    def test_style_and_script_are_served_with_their_types(self, filed: Any):
        """The files that pages name are there, and a browser is told not to guess what they are."""
        page = filed.get("/").text
        files = re.findall(r'(?:href|src)="/dashboard(/static/[^"]+)"', page)
        assert len(files) >= 2
        for file in files:
            answer = filed.get(file)
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "max-age" in answer.headers["cache-control"]

    def test_no_browser_keeps_a_file_under_the_address_of_another(self, client: TestClient):
        """What an older service has, asked for by a newer one's page, is not kept as the newer one's."""
        for query in ("?0123abcd", ""):
            answer = client.get(f"/dashboard/static/dashboard.js{query}")
            assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")

    def test_the_work_of_others_is_not_there(self, filed: Any, connection: Connection):
        """Another tenant's batch is in no list, and its address is a 404 like that of none."""
        other = insert_batch(connection, 1, tenant="other").hex
        assert filed.get(f"/batches/batch_{other}").status_code == 404
        assert filed.get(f"/comparisons/cmp_{other}_1").status_code == 404
        for path in ("/", "/batches"):
            assert other not in filed.get(path).text


class TestLive:
    def events(self, answer: Any) -> Iterator[tuple[str, Any]]:
        """Read events as they come."""
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))

    def test_a_batch_is_followed_to_its_end(self, filed: Any, connection: Connection):
        """What changes comes as the parts of the page that it is in, and at the end it is said that this was all."""
        connection.execute(text("UPDATE batches SET status = 'in_progress', ended_at = NULL"))
        page = filed.get(f"/batches/{filed.batch}").text
        path = re.search(r'data-events="([^"]+)"', page)[1]
        with filed.client.stream("GET", path) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = self.events(answer)
            kind, parts = next(events)
            assert kind == "parts"
            assert all(f'id="{name}"' in page for name in parts)
            assert "in progress" in words(parts["live_stand"])
            connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now()"))
            rest = list(events)
        assert "completed" in words(rest[0][1]["live_stand"])
        assert rest[-1] == ("ended", {})

    def test_a_page_is_followed_on_when_postgres_is_back(
        self, filed: Any, database: Engine, database_url: str, capfd: pytest.CaptureFixture[str]
    ):
        """A look that finds no database is a look without news: the stream goes on, and tells of what came after."""
        with database.begin() as connection:
            connection.execute(text("UPDATE batches SET status = 'in_progress', ended_at = NULL"))
        with filed.client.stream("GET", f"/dashboard/batches/{filed.batch}/events") as answer:
            events = self.events(answer)
            next(events)
            with away(database_url):
                wait_until(
                    lambda: "database_unreachable" in "".join(capfd.readouterr()), within=30, what="a look fails"
                )
            with database.begin() as connection:
                connection.execute(text("UPDATE batches SET status = 'completed', ended_at = now()"))
            rest = list(events)
        assert "completed" in words(rest[0][1]["live_stand"])
        assert rest[-1] == ("ended", {})

    def test_what_has_ended_is_not_followed(self, filed: Any):
        """A page that will not change asks for no events."""
        assert "data-events" not in filed.get(f"/batches/{filed.batch}").text

    def test_the_events_of_others_are_not_there(self, client: TestClient, connection: Connection):
        """Following another tenant's batch is a 404 before anything is sent."""
        other = insert_batch(connection, 1, tenant="other").hex
        assert client.get(f"/dashboard/batches/batch_{other}/events").status_code == 404
