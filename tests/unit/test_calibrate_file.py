"""What `nightcourt eval calibrate` writes, from verdicts that were given before."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from scipy import special
from support.judged import JUDGE
from support.rows import write
from typer.testing import CliRunner

from producer.cli.app import make_app
from schemas.comparison import Comparison
from schemas.verdict import Ballot, Usage, Verdict

PAIRS = 100
ODDS = 2.0


def verdict(number: int) -> str:
    """A verdict for A at log-odds of 2, which mean that it is right 88 times in 100."""
    ballots = [
        Ballot(order="ab", log_odds=ODDS, mass=1.0, vote="A"),
        Ballot(order="ba", log_odds=-ODDS, mass=1.0, vote="B"),
    ]
    given = Verdict(
        winner="A", probability_a=float(special.expit(ODDS)), consistent=True, position_bias=0.0, ballots=ballots,
        judge=JUDGE, usage=Usage(prompt_tokens=1, cached_tokens=0, gpu_seconds=0.0),
    )  # fmt: skip
    now = datetime.now(UTC)
    return Comparison(
        id=f"cmp_{number}", status="succeeded", created_at=now, decided_at=now, custom_id=str(number), metadata={},
        verdict=given, error=None,
    ).model_dump_json()  # fmt: skip


@pytest.mark.parametrize(("right", "written"), [(70, True), (88, False)])
def test_a_temperature_is_written_only_where_it_is_better_than_one(tmp_path: Path, right: int, written: bool):
    """A judge that is right less often than it says is calibrated; of one that means what it says T stays at 1."""
    pairs, verdicts, file = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl", tmp_path / "calibration.json"
    rows = [
        {
            "id": str(number),
            "prompt": f"Q{number}",
            "response_a": "x",
            "response_b": "y",
            "label": "AB"[number >= right],
        }
        for number in range(PAIRS)
    ]
    write(pairs, rows)
    verdicts.write_text("".join(verdict(number) + "\n" for number in range(PAIRS)))
    asked = ["eval", "calibrate", str(pairs), "--verdicts", str(verdicts), "--write", str(file)]
    ended = CliRunner().invoke(make_app(), asked)
    assert ended.exit_code == 0, ended.output
    assert file.exists() is written
    assert (f"Did not write {file}" in ended.stderr) is not written
    assert "take it away" not in ended.stderr

    file.write_text("{}")
    again = CliRunner().invoke(make_app(), asked)
    assert ("take it away" in again.stderr) is not written
