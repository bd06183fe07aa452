"""`nightcourt engine` as a program: build, verify, measure, and what it says when something is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint, write_pairs
from support.gpu import gpu_host
from support.program import Cli

from infra.engine_folder import REPORT


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The program on a pretended GPU host."""
    with gpu_host():
        yield Cli(tmp_path / "home")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty comparisons."""
    return write_pairs(tmp_path / "pairs.jsonl", 40)


def test_from_a_checkpoint_to_a_verified_engine(cli: Cli, tmp_path: Path, pairs: Path):
    """Build, verify, measure, and a doctor who says so: each ends with 0 and gives its result, and no more, as JSON."""
    checkpoint, folder = make_checkpoint(tmp_path), tmp_path / "engine"
    built = cli("engine", "build", checkpoint, folder, "--pairs", pairs, "--max-seq-len", 2048, "--json")
    assert built.status == 0, built.err
    [manifest] = built.objects  # and nothing that the library says, as it does when it is imported
    assert manifest["quantisation"] == "fp8"
    assert "TensorRT LLM version: 1.2.1" in built.err
    assert "written in C++" in built.err
    doctor = cli("doctor", "--json", engine="tensorrt_llm", engine_folder=folder)
    assert "not verified yet" in next(each["says"] for each in doctor.objects if each["part"] == "model")
    report = tmp_path / "report.json"
    quick = ("--soak", 600, "--seconds", 1, "--per-length", 4, "--in-flight", 8, "--report", report)
    verified = cli("engine", "verify", folder, "--checkpoint", checkpoint, "--pairs", pairs, *quick, "--json")
    assert verified.status == 0, verified.err
    [proof] = verified.objects
    assert proof["passed"]
    assert proof == json.loads(report.read_text())
    # So small a verification marks nothing; one of full size leaves its report in the folder, as is done here.
    assert "not marked as verified" in verified.err
    assert not (folder / REPORT).exists()
    (folder / REPORT).write_text(report.read_text())
    doctor = cli("doctor", "--json", engine="tensorrt_llm", engine_folder=folder)
    model = next(each for each in doctor.objects if each["part"] == "model")
    assert model["ok"]
    assert "TensorRT-LLM 1.2.1, verified" in model["says"]
    quick = ("--pairs", pairs, "--seconds", 0.5, "--in-flight", 4)
    measured = cli("engine", "bench", *quick, "--json", engine="tensorrt_llm", engine_folder=folder)
    assert measured.status == 0, measured.err
    [figures] = measured.objects
    assert figures["engine"]["model"] == manifest["model"]


def test_an_engine_that_does_not_pass_ends_with_1_and_its_report(cli: Cli, tmp_path: Path, pairs: Path):
    """The report comes all the same, and the sentence names the checks that did not pass."""
    checkpoint, folder = make_checkpoint(tmp_path), tmp_path / "engine"
    assert cli("engine", "build", checkpoint, folder, "--quantisation", "bf16", "--max-seq-len", 2048).status == 0
    ended = cli(
        *("engine", "verify", folder, "--checkpoint", checkpoint, "--pairs", pairs, "--report", tmp_path / "r.json"),
        *("--soak", 0, "--seconds", 1, "--per-length", 4, "--json"),
        standin=json.dumps({"shift": 0.5}),
    )
    assert ended.status == 1
    assert not ended.objects[0]["passed"]
    assert json.loads(ended.err.splitlines()[-1])["code"] == "engine_unfit"
    assert "parity" in ended.err


def test_the_simulated_engine_is_measured_and_says_that_it_is_simulated(cli: Cli, pairs: Path):
    """Whatever engine the settings name can be measured; figures come with the engine's card."""
    ended = cli(
        *("engine", "bench", "--pairs", pairs, "--seconds", 0.5, "--in-flight", 4, "--json"),
        engine="simulated",
        simulated_tokens_per_second=100_000,
    )
    assert ended.status == 0, ended.err
    [result] = ended.objects
    assert result["engine"]["simulated"]
    assert "no model was asked" in result["engine"]["caveat"]
    assert 0 < result["measured"][0]["tokens_per_second"] < 130_000


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "says"),
    [
        (("engine", "build", "nowhere", "e"), {}, "engine_build", "neither a folder nor"),
        (("engine", "verify", "e", "--pairs", "p.jsonl"), {}, "bad_setting", "either --checkpoint"),
        (
            ("engine", "verify", "e", "--pairs", "p", "--checkpoint", "c"),
            {},
            "engine_folder",
            "nightcourt engine build",
        ),
        (("engine", "bench"), {"engine": "tensorrt_llm"}, "bad_setting", "NIGHTCOURT_ENGINE_FOLDER"),
        (("engine", "bench"), {"engine": "tensorrt_llm", "engine_folder": "e"}, "engine_folder", "is no folder"),
        (("engine", "bench", "--pairs", "none.jsonl"), {"engine": "simulated"}, "bad_input_file", "none.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    cli: Cli, arguments: tuple[str, ...], settings: dict[str, str], code: str, says: str
):
    """Each command ends with 1, and standard error has a problem with its code and what to do."""
    ended = cli(*arguments, "--json", **settings)
    assert (ended.status, ended.out) == (1, "")
    problem = json.loads(ended.err.splitlines()[-1])
    assert problem["code"] == code
    assert says in problem["detail"]
