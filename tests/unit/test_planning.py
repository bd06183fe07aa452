"""Planning a night: the arithmetic, where its rates are from, and how the command says so."""

import json
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from producer import planning
from producer.cli.app import make_app
from producer.planning import BenchReport, Job, Plan, PlanError, Rate

RATE = Rate(tokens_per_second=1000.0, kind="given", source="", note="")
BERLIN = ZoneInfo("Europe/Berlin")
REPORT = {
    "engine": {"engine": "tensorrt_llm", "model": "critic", "quantisation": "fp8", "simulated": False, "more": 1},
    "in_flight": 64,
    "measured": [
        {"prompt_tokens": 1024, "tokens_per_judgement": 1030.5, "tokens_per_second": 70_000.0, "seconds": 30.0},
        {"prompt_tokens": 4096, "tokens_per_judgement": 4100.0, "tokens_per_second": 60_000.0, "seconds": 30.0},
    ],
}


def run(*arguments: object):
    """The command, in this process."""
    return CliRunner().invoke(make_app(), ["plan", *map(str, arguments)])


def planned(*arguments: object) -> dict:
    """What it gives as JSON."""
    ended = run("--lines", 1_000_000, "--tokens", 1500, *arguments, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


class TestArithmetic:
    def test_both_orders_are_two_judgements(self):
        """A hundred comparisons of 500 tokens, at 1,000 tokens a second, take a hundred seconds."""
        plan = Plan(Job(lines=100, tokens=500), RATE, gpus=1)
        assert plan.job.judgements == 200
        assert plan.seconds == 100
        assert plan.judgements_per_second == 2
        assert plan.comparisons_per_second == 1

    def test_one_order_and_reuse_take_less(self):
        """Half of the judgements, and of each only what is not reused."""
        assert Plan(Job(100, 500, orders="ab"), RATE, gpus=1).seconds == 50
        assert Plan(Job(100, 500, orders="ba", reused_tokens=400), RATE, gpus=2).seconds == 5

    @given(lines=st.integers(1, 10**7), tokens=st.integers(1, 8192), seconds=st.floats(1, 1e6))
    def test_as_many_gpus_as_needed_and_not_one_more(self, lines, tokens, seconds):
        """What is said to be needed is in time, and one fewer is not."""
        job = Job(lines, tokens)
        needed = planning.gpus_needed(job, RATE, seconds)
        assert Plan(job, RATE, needed).seconds <= seconds * (1 + 1e-9)
        assert needed == 1 or Plan(job, RATE, needed - 1).seconds > seconds * (1 - 1e-9)


class TestRates:
    @pytest.mark.parametrize(("gpu", "rate"), [("h100", 55_200), ("h200", 56_608)])
    def test_the_published_rates(self, gpu, rate):
        """3,450 and 3,538 output tokens/s at 128 out are 27 requests/s, of 2,048 tokens each."""
        found = planning.published(gpu)
        assert found.tokens_per_second == pytest.approx(rate)
        assert found.kind == "published"
        assert "NVIDIA" in found.source
        assert "not measured here" in found.note

    @pytest.mark.parametrize(
        ("tokens", "gflop", "bf16", "fp8"),
        [(1024, "14.23", 69_500, 139_000), (2048, "14.50", 68_300, 137_000), (8192, "16.11", 61_400, 123_000)],
    )
    def test_the_roofline(self, tokens, gflop, bf16, fp8):
        """Operations a token, and peaks over them, are those computed by hand for this model."""
        assert f"over {gflop} GFLOP a token" in planning.roofline("h100", "bf16", tokens).source
        assert planning.roofline("h100", "bf16", tokens).tokens_per_second == pytest.approx(bf16, rel=0.005)
        assert planning.roofline("h200", "fp8", tokens).tokens_per_second == pytest.approx(fp8, rel=0.005)
        assert "no run reaches" in planning.roofline("h100", "fp8", tokens).note

    def test_no_published_rate_is_above_the_roofline(self):
        """Otherwise one of them would be wrong."""
        for gpu in ("h100", "h200"):
            assert planning.published(gpu).tokens_per_second < planning.roofline(gpu, "fp8", 2048).tokens_per_second

    @pytest.mark.parametrize(("tokens", "rate"), [(900, 70_000), (2500, 70_000), (2600, 60_000), (9000, 60_000)])
    def test_a_measured_rate_is_that_of_the_nearest_length(self, tokens, rate):
        """And the source says which that is."""
        found = planning.measured(BenchReport.model_validate(REPORT), tokens, name="bench.json")
        assert found.tokens_per_second == rate
        assert found.kind == "measured"
        assert "bench.json: tensorrt_llm with critic (fp8)" in found.source

    def test_a_simulation_is_named(self):
        """A pretended rate is not taken for a GPU's."""
        simulated = REPORT | {"engine": REPORT["engine"] | {"simulated": True}}
        assert "simulated" in planning.measured(BenchReport.model_validate(simulated), 900, name="x").note

    def test_a_gpu_without_figures(self):
        """The message says which have some, and what to give for others."""
        for find in (lambda: planning.published("a100"), lambda: planning.roofline("a100", "bf16", 100)):
            with pytest.raises(PlanError, match=r"a100 is not|of a100 is known.*h100 and h200.*--measured"):
                find()


class TestClocks:
    @pytest.mark.parametrize(
        ("start", "at", "hours"),
        [
            (datetime(2026, 1, 10, 21, 0, tzinfo=UTC), time(6, 0), 8),
            (datetime(2026, 1, 10, 3, 0, tzinfo=UTC), time(6, 0), 2),
            (datetime(2026, 1, 10, 5, 0, tzinfo=UTC), time(6, 0), 24),
            (datetime(2026, 3, 28, 21, 0, tzinfo=UTC), time(6, 0), 7),  # clocks go forward
            (datetime(2026, 10, 24, 20, 0, tzinfo=UTC), time(6, 0), 9),  # and back
        ],
    )
    def test_the_next_time_on_the_clock(self, start, at, hours):
        """Tonight or tomorrow, and a night of changing clocks is as long as it is."""
        assert (planning.next_time(start, at, BERLIN) - start).total_seconds() == hours * 3600

    @pytest.mark.parametrize(
        ("noon", "hours"),
        [
            (datetime(2026, 1, 10, 12, tzinfo=UTC), 8),
            (datetime(2026, 3, 28, 12, tzinfo=UTC), 7),  # clocks go forward
            (datetime(2026, 10, 24, 12, tzinfo=UTC), 9),  # and back
        ],
    )
    def test_a_night_from_one_time_to_another(self, noon, hours):
        """Between two times on the clock of one zone lie the hours that pass, and not those that the clock shows."""
        begins = planning.next_time(noon, time(22, 0), BERLIN)
        assert (planning.next_time(begins, time(6, 0), BERLIN) - begins).total_seconds() == hours * 3600

    @pytest.mark.parametrize(("start", "minutes"), [(time(2, 30), 15), (time(2, 30, fold=1), 15), (time(2, 50), 55)])
    def test_a_time_that_comes_twice(self, start, minutes):
        """In the night in which clocks go back, a quarter to three comes before that and after."""
        begins = datetime.combine(date(2026, 10, 25), start, BERLIN).astimezone(UTC)
        assert planning.next_time(begins, time(2, 45), BERLIN) - begins == timedelta(minutes=minutes)

    def test_a_time_that_is_left_out(self):
        """In the night in which clocks go forward, half past two is when it would have been."""
        begins = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)  # one o'clock
        assert planning.next_time(begins, time(2, 30), BERLIN) - begins == timedelta(minutes=90)

    def test_this_machines_zone_by_default(self):
        """The moment found shows the time that was asked for."""
        found = planning.next_time(datetime.now(UTC), time(6, 30), None)
        assert found.astimezone().strftime("%H:%M") == "06:30"


class TestTheCommand:
    def test_a_million_overnight(self):
        """Hours, judgements a second, and the source of the rate."""
        ended = run("--lines", 1_000_000, "--tokens", 1500, "--gpus", 4, "--gpu", "h100")
        assert ended.exit_code == 0
        assert "4 x h100: 3.77 hours, 147.2 judgements/s, 73.6 comparisons/s" in ended.stdout
        assert "source: NVIDIA TensorRT-LLM, performance overview for v1.0" in ended.stdout
        assert "not measured here" in ended.stdout
        assert "nothing is reused" in ended.stdout

    def test_json_holds_the_same(self):
        """For programs, with where the rate is from."""
        found = planned("--gpus", 4)
        assert found["hours"] == pytest.approx(3.7742)
        assert found["rate"]["kind"] == "published"
        assert found["job"]["judgements"] == 2_000_000
        assert found["deadline"] is None

    def test_the_gpus_needed_by_a_time(self):
        """Three billion tokens in eight hours take two GPUs at the published rate, and one says that it is too few."""
        when = ("--start", "22:00", "--by", "06:00", "--timezone", "UTC")
        assert planned(*when)["deadline"] | {"start": 0, "by": 0} == {
            "start": 0,
            "by": 0,
            "hours": 8.0,
            "gpus_needed": 2,
            "enough": False,
        }
        assert planned(*when, "--gpus", 2)["deadline"]["enough"]
        assert planned(*when, "--order", "ab")["deadline"]["gpus_needed"] == 1
        assert "2 needed, 1 too few" in run("--lines", 1_000_000, "--tokens", 1500, *when).stdout

    def test_both_times_are_told_in_the_zone(self):
        """As a clock on the wall there shows them."""
        found = planned("--start", "22:00", "--by", "06:00", "--timezone", "Asia/Kolkata")["deadline"]
        assert (found["start"][11:], found["by"][11:]) == ("22:00+05:30", "06:00+05:30")

    def test_reuse_is_stated_as_an_assumption(self):
        """What is assumed to be shared stands in the answer."""
        found = planned("--reused-tokens", 500)
        assert found["hours"] == pytest.approx(planned()["hours"] * 2 / 3, rel=1e-3)
        assert "500 of the 1,500 tokens of each prompt are reused" in found["assumed"][0]

    def test_a_measured_plan_names_its_report_and_no_gpu(self, tmp_path):
        """Nothing published stands in it."""
        file = tmp_path / "bench.json"
        file.write_text(json.dumps(REPORT))
        found = planned("--measured", file)
        assert found["rate"]["kind"] == "measured"
        assert found["rate"]["tokens_per_second"] == 70_000
        assert str(file) in found["rate"]["source"]
        assert found["gpu"] is None
        assert "published" not in json.dumps(found)

    @pytest.mark.parametrize("rate", [1e-9, 1e12])
    def test_any_rate_can_be_planned_with(self, rate):
        """However slow or fast somebody says that a GPU is, there are hours."""
        assert planned("--rate", rate, "--gpus", 100)["hours"] == pytest.approx(3e9 / rate / 100 / 3600, abs=1e-3)

    def test_a_given_rate_is_said_to_be_given(self):
        """Nobody has checked it."""
        assert planned("--rate", 1000)["rate"]["source"] == "given with --rate"

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--rate", 1, "--source", "roofline"), "stands on one rate"),
            (("--rate", "inf"), "--rate"),
            (("--rate", "1e308"), "--rate"),
            (("--gpu", "a100"), "no published rate of a100"),
            (("--gpu", "a100", "--source", "roofline"), "peak of a100"),
            (("--by", "6 o'clock"), "takes hours and minutes"),
            (("--start", "22:00"), "goes with --by"),
            (("--by", "06:00", "--timezone", "Mars"), "no time zone"),
            (("--reused-tokens", 1500), "fewer than --tokens"),
            (("--measured", "x", "--reused-tokens", 5), "counts prompts whole"),
        ],
    )
    def test_what_cannot_be_planned_is_said(self, arguments, says):
        """The command line is refused, with the option at fault."""
        ended = run("--lines", 10, "--tokens", 1500, *arguments)
        assert ended.exit_code == 2
        assert says in " ".join(ended.output.replace("│", " ").split())

    @pytest.mark.parametrize(
        "content", [json.dumps(REPORT).replace("70000.0", "1e400"), "", "{}", '{"engine": {}, "measured": []}', "[]"]
    )
    def test_a_report_that_is_none_is_named(self, tmp_path, content):
        """The message names the file and the field."""
        file = tmp_path / "bench.json"
        file.write_text(content)
        ended = run("--lines", 10, "--tokens", 10, "--measured", file)
        assert ended.exit_code == 1
        assert f"{file}: not a report of `nightcourt engine bench --json`" in str(ended.exception.detail)
        missing = run("--lines", 10, "--tokens", 10, "--measured", tmp_path / "none.json")
        assert "No such file" in str(missing.exception.detail)
