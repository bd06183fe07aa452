"""A calibration file in a worker's hands: used for the judge it was made for, told in every verdict, or refused."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from support.court import Court, comparison

from infra.calibration import read_calibration
from infra.settings import Settings
from schemas.calibration import CalibratedJudge, Calibration
from schemas.verdict import Judge
from worker import app, ballots
from worker.engines.simulated import SimulatedEngine


@pytest.fixture
def engine() -> SimulatedEngine:
    """An engine that is at hand."""
    return SimulatedEngine()


def calibration_for(judge: Judge, **changes: object) -> Calibration:
    """A calibration of a judge at temperature 2.5."""
    whose = CalibratedJudge.of(judge).model_copy(update=changes)
    return Calibration(
        temperature=2.5, low=2.0, high=3.0, pairs=400, log_loss_before=0.7, log_loss_after=0.6, judge=whose
    )


def written(folder: Path, calibration: Calibration) -> Settings:
    """The settings of a worker that is given this calibration as a file."""
    file = folder / "calibration.json"
    file.write_text(calibration.model_dump_json())
    return Settings(engine="simulated", calibration_file=file)


def test_verdicts_are_made_at_its_temperature_and_say_so(engine, database, connection, tmp_path):
    """P = sigmoid(d / 2.5) for the profile that was calibrated, with the temperature and the file's hash beside it."""
    calibration = calibration_for(app.judges_of(engine.card)["card"])
    bench = app.make_bench(written(tmp_path, calibration), engine, database)
    court = Court(bench, connection)
    court.file(comparison())
    court.sit()
    row = court.outcome()
    assert ballots.count(row.tally["ballots"], temperature=2.5, tie_margin=None) == row.tally
    assert ballots.count(row.tally["ballots"], temperature=1.0, tie_margin=None) != row.tally
    card = connection.execute(text("SELECT card FROM judges WHERE id = :id"), {"id": row.judge_id}).scalar_one()
    assert (card["temperature"], card["calibration"]) == (2.5, calibration.sha256)
    assert card["caveat"]


def test_other_profiles_stay_as_they_are(engine, database, tmp_path):
    """A temperature is one judge's: the same model asked by another prompt is another."""
    calibration = calibration_for(app.judges_of(engine.card)["card"])
    bench = app.make_bench(written(tmp_path, calibration), engine, database)
    assert bench.rules.calibrated == {"card": 2.5}
    judges = app.calibrate(app.judges_of(engine.card), tmp_path / "calibration.json")
    assert (judges["rewardbench"].temperature, judges["rewardbench"].calibration) == (1.0, None)


def test_another_build_of_the_engine_may_use_it(engine, tmp_path):
    """What the temperature belongs to is the model as it is stored and asked, not the program that runs it."""
    newer = app.judges_of(engine.card)["card"].model_copy(update={"engine_build": "99"})
    written(tmp_path, calibration_for(app.judges_of(engine.card)["card"]))
    assert app.calibrate({"card": newer}, tmp_path / "calibration.json")["card"].temperature == 2.5


@pytest.mark.parametrize("changed", ["weights", "quantisation", "engine", "profile", "prompt", "model"])
def test_a_file_made_for_another_judge_is_refused(engine, database, tmp_path, changed):
    """Whatever makes it another judge, the worker says whose temperature it is and does not start."""
    calibration = calibration_for(app.judges_of(engine.card)["card"], **{changed: "another"})
    with pytest.raises(ValueError, match=r"was made for .* which is not the judge of this worker"):
        app.make_bench(written(tmp_path, calibration), engine, database)
    with database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM judges WHERE id <> 'jdg_test'")).scalar_one() == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("", "is no calibration file"),
        (json.dumps({"temperature": -1}), "temperature"),
        (json.dumps({"object": "verdict"}), "object"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, content, why):
    """A missing file, an empty one or another kind of JSON is named with what is wrong."""
    file = tmp_path / "calibration.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=why):
        read_calibration(file)


def test_what_is_written_is_what_is_read(engine, tmp_path):
    """The file's hash is that of the calibration, however the file is laid out."""
    calibration = calibration_for(app.judges_of(engine.card)["card"])
    file = tmp_path / "calibration.json"
    file.write_text(calibration.model_dump_json(indent=4))
    assert read_calibration(file) == calibration
    assert read_calibration(file).sha256 == calibration.sha256
