"""What a process counts, and how Prometheus reads it."""

import re
import socket
from collections.abc import Sequence

import httpx2
import pytest
from support.court import ScriptedEngine
from support.series import series
from support.waiting import wait_until

from infra import metrics
from infra.local.ports import free_port
from infra.meters import Meters
from infra.metrics import METRICS, Metric
from worker.engines.base import EngineError, EngineGoneError, EngineOutOfMemoryError, Generation
from worker.engines.metered import MeteredEngine


class TestDefinitions:
    @pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
    def test_a_metric_is_named_as_prometheus_wants_it(self, metric: Metric):
        """The name has a prefix and ends in a unit, `_total` for counters alone; the help is a sentence."""
        assert re.fullmatch(r"nightcourt_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")
        assert metric.help.endswith(".")

    def test_names_are_unique(self):
        """No two metrics share a name."""
        assert len({metric.name for metric in METRICS}) == len(METRICS) > 40

    def test_open_labels_are_those_that_this_program_names(self):
        """Only these labels have no fixed list of values; none of them comes from a tenant."""
        unlisted = {label for metric in METRICS for label, values in metric.labels.items() if not values}
        assert unlisted == {"method", "route", "status", "process", "version", "engine", "simulated"}


class TestMeters:
    def test_every_series_with_known_labels_is_there_from_the_start(self):
        """At 0, so that a rate has a beginning."""
        read = series(Meters("worker"))
        assert read["nightcourt_claims_total", ("bulk",)] == 0
        assert read["nightcourt_outcomes_total", ("interactive", "engine_failed")] == 0
        assert read["nightcourt_engine_step_seconds_count", ("score",)] == 0

    def test_a_process_has_its_own_metrics_and_no_others(self):
        """To count what is another process' is a mistake in the program."""
        with pytest.raises(KeyError):
            Meters("api").add(metrics.CLAIMS, lane="bulk")

    def test_what_a_label_does_not_have_counts_as_other(self):
        """Nothing from outside can become a label."""
        meters = Meters("worker")
        meters.add(metrics.CLAIMS, lane="a tenant's text")
        read = series(meters)
        assert read["nightcourt_claims_total", ("other",)] == 1
        assert "tenant" not in meters.text().decode()

    def test_two_meters_share_nothing(self):
        """What is counted belongs to the object, not to the module."""
        first, second = Meters("worker"), Meters("worker")
        first.add(metrics.IDLE_HINTS, 3)
        assert series(first)["nightcourt_hints_without_work_total", ()] == 3
        assert series(second)["nightcourt_hints_without_work_total", ()] == 0

    def test_they_say_who_they_are(self):
        """Process, version and engine stand in one series that is always 1."""
        said = Meters("worker", engine="simulated", simulated=True).text().decode()
        assert re.search(
            r'nightcourt_build_info\{engine="simulated",process="worker",simulated="true",version="[^"]+"\} 1', said
        )

    def test_a_gauge_may_be_asked_when_it_is_read(self):
        """For what another part of the process keeps."""
        meters = Meters("worker")
        meters.ask(metrics.ENGINE_STATE, lambda: 7, what="active")
        assert series(meters)["nightcourt_engine_state", ("active",)] == 7


class TestServing:
    def test_they_are_served_on_a_port_of_their_own(self):
        """In Prometheus' text format."""
        meters, port = Meters("callbacks"), free_port()
        meters.serve("127.0.0.1", port)
        answer = httpx2.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert "nightcourt_callback_attempts_total" in answer.text

    def test_they_are_served_on_an_address_of_ipv6(self):
        """As the API is, where the setting names one."""
        meters, port = Meters("callbacks"), free_port("::1")
        meters.serve("::1", port)
        assert httpx2.get(f"http://[::1]:{port}/metrics").status_code == 200

    def test_a_reader_that_speaks_no_http_disturbs_nothing(self, capfd: pytest.CaptureFixture[str]):
        """Nothing is written to standard error over it, and the next reader is served."""
        meters, port = Meters("callbacks"), free_port()
        meters.serve("127.0.0.1", port)
        for words in (b"\r\n", b"no words that HTTP has\r\n\r\n", b"GET /%s HTTP/9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(words)
                connection.recv(100)
        assert httpx2.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        assert capfd.readouterr().err == ""

    def test_a_port_that_is_taken_ends_no_process(self):
        """The work goes on without its numbers."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            Meters("callbacks").serve("127.0.0.1", taken.getsockname()[1])


class TestMeteredEngine:
    def test_what_the_engine_answers_is_counted(self):
        """Prompts, their tokens, those that were reused, and the device's seconds."""
        meters = Meters("worker")
        engine = MeteredEngine(ScriptedEngine(), meters)
        assert len(engine.score([[65] * 10, [65] * 20])) == 2
        read = series(meters)
        assert read["nightcourt_ballots_total", ()] == 2
        assert read["nightcourt_prompt_tokens_total", ()] == 30
        assert read["nightcourt_cached_tokens_total", ()] == 6
        assert read["nightcourt_gpu_seconds_total", ()] == 1.0
        assert read["nightcourt_engine_step_seconds_count", ("score",)] == 1

    def test_writing_is_counted_too(self):
        """A profile that writes asks one prompt at a time."""
        meters = Meters("worker")
        said = Generation("[[A]]", None, generated_tokens=3, cached_tokens=4, seconds=0.25)
        engine = MeteredEngine(ScriptedEngine(writes=lambda _: said), meters)
        assert engine.generate([65] * 10, 2048) is said
        read = series(meters)
        assert read["nightcourt_cached_tokens_total", ()] == 4
        assert read["nightcourt_engine_step_seconds_count", ("generate",)] == 1

    def test_each_call_has_a_clock_of_its_own(self):
        """Calls that follow each other are no long call, and where none is under way there is nothing to time."""
        times: list[float] = []

        def work(_: list[str]) -> None:
            began = engine.longest_call()
            wait_until(lambda: engine.longest_call() > began + 0.5, within=60, what="the call takes its time")
            times.append(began)

        engine = MeteredEngine(ScriptedEngine(while_working=work), Meters("worker"))
        for _ in range(2):
            engine.score([[65]])
            assert engine.longest_call() == 0
        assert max(times) < 0.5

    @pytest.mark.parametrize(
        ("error", "kind"),
        [(EngineError, "failed"), (EngineOutOfMemoryError, "out_of_memory"), (EngineGoneError, "gone")],
    )
    def test_a_failure_is_counted_by_its_kind_and_goes_on(self, error: type[EngineError], kind: str):
        """The step's time counts, its prompts do not."""

        def fail(_: Sequence[str]) -> None:
            raise error("as told")

        meters = Meters("worker")
        with pytest.raises(error):
            MeteredEngine(ScriptedEngine(while_working=fail), meters).score([[65]])
        read = series(meters)
        assert read["nightcourt_engine_errors_total", (kind,)] == 1
        assert read["nightcourt_ballots_total", ()] == 0
        assert read["nightcourt_engine_step_seconds_count", ("score",)] == 1
