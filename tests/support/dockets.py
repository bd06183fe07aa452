"""Lines and outcomes for tests of the docket."""

import json

from infra.filed import Filed
from infra.outcomes import Outcome
from schemas.problems import OutcomeError
from schemas.states import OutcomeStatus

MAX_ATTEMPTS = 2
LONG = 3600.0
TALLY = json.dumps({"winner": "A", "probability_a": 0.9, "consistent": True, "position_bias": 0.0, "ballots": []})


def a_line(number: int) -> Filed:
    """Make a comparison that says as little as a comparison can."""
    return Filed(
        line=number,
        custom_id=None,
        prompt="Which?",
        response_a="this",
        response_b="that",
        orders="both",
        profile="card",
        tie_margin=None,
        metadata={},
    )


def an_outcome(number: int, *, good: bool) -> Outcome:
    """Make an outcome that is a success, or that names an error."""
    if good:
        return Outcome(line=number, status=OutcomeStatus.SUCCEEDED, tally=TALLY, judge_id="jdg_test")
    return Outcome(line=number, status=OutcomeStatus.ERRORED, error_code=OutcomeError.UNPARSEABLE, error_message="-")
