"""What `nightcourt engine` runs: `python -m worker.commands build|verify|bench ORDER`, the order as JSON."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TextIO

from infra import logs
from infra.settings import load
from schemas.engine import BenchOrder, BuildOrder, VerifyOrder
from schemas.problems import ENGINE_UNFIT, Problem
from worker.commands.bench import bench
from worker.commands.build import build
from worker.commands.saying import keep_output, print_json, say
from worker.commands.verify import unfit, verify
from worker.engines.base import EngineError, VerdictTokens


def main(arguments: list[str]) -> int:
    """Carry out an order. Returns an exit status; what is wrong was said on standard error."""
    command, given = arguments[0], arguments[1]
    as_json = '"as_json":true' in given
    out = keep_output()
    try:
        if command == "reference":
            return _reference(Path(given), Path(arguments[2]))
        return _carry_out(command, given, out)
    except Problem as problem:
        _tell(problem, as_json=as_json)
    except (EngineError, ValueError) as error:
        _tell(Problem(ENGINE_UNFIT, f"{error}."), as_json=as_json)
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    return 1


def _carry_out(command: str, given: str, out: TextIO) -> int:
    settings = load()
    logs.configure(process=f"engine-{command}", level="warning", style=settings.log_format)
    if command == "build":
        order = BuildOrder.model_validate_json(given)
        print_json(build(order, say).model_dump(mode="json", exclude={"files"}), out, pretty=not order.as_json)
        return 0
    if command == "bench":
        from worker.opening import open_engine  # noqa: PLC0415 - the others need no engine

        measure = BenchOrder.model_validate_json(given)
        with closing(open_engine(settings)) as engine:
            print_json(bench(engine, measure, say), out, pretty=not measure.as_json)
        return 0
    proof = VerifyOrder.model_validate_json(given)
    report = verify(proof, settings, say)
    print_json(report, out, pretty=not proof.as_json)
    problem = unfit(report)
    if problem is not None:
        raise problem
    return 0


def _reference(asked: Path, answer: Path) -> int:
    """The child of a verification that computes what the model itself says."""
    from worker.engines.tensorrt_llm.reference import reference_log_odds  # noqa: PLC0415 - this child alone

    order = json.loads(asked.read_bytes())
    tokens = VerdictTokens(a=order["a"], b=order["b"])
    lengths, prompts = list(order["prompts"]), [ids for each in order["prompts"].values() for ids in each]
    said = reference_log_odds(Path(order["checkpoint"]), prompts, tokens)
    odds = {length: [next(said) for _ in order["prompts"][length]] for length in lengths}
    answer.write_text(json.dumps(odds))
    return 0


def _tell(problem: Problem, *, as_json: bool) -> None:
    if as_json:
        say(problem.document().model_dump_json(exclude_none=True))
    else:
        say(f"error: {problem.kind.title}. {problem.detail}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
