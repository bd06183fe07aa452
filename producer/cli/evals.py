"""`nightcourt eval`: what verdicts say of systems, judges and labels, each from files to a report in one command."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

from producer.cli import destinations
from producer.cli.options import DataDir, Server, TieMargin, finite
from schemas import comparison as words
from schemas.problems import MISSING_EXTRA, Problem

app = typer.Typer(
    help="Say what verdicts say: of systems, of judges, of labels.",
    no_args_is_help=True,
)

_LIBRARIES = frozenset({"evalica", "jinja2", "markupsafe", "numpy", "pandas", "scipy"})

Profile = Annotated[words.Profile | None, typer.Option(help="The prompt profile; the service's default when unset.")]
Verdicts = Annotated[
    Path | None,
    typer.Option(help="Judge nothing: take verdicts from this file, as `batch run` and `batch results` write it."),
]
Output = Annotated[Path | None, typer.Option(help="Folder for the report and the rows behind it; made if need be.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="File anew, even if the same run is remembered.")]
AsJson = Annotated[bool, typer.Option("--json", help="The report as an object, for a program.")]
Pairs = Annotated[Path, typer.Argument(help="Pairs with a label, or preference rows: JSON lines or .parquet.")]


def _bodies() -> ModuleType:
    """Load what the commands do. The statistics are an extra, and too slow to load for commands that need none.

    Raises:
        Problem: the extra is not installed.
    """
    try:
        from producer.cli import eval_runs  # noqa: PLC0415 - see above
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise Problem(
            MISSING_EXTRA, f'Evals need {error.name}, which the extra brings: pip install "nightcourt[evals]".'
        ) from None
    return eval_runs


@app.command()
def versus(
    file: Annotated[Path, typer.Argument(help="AlpacaEval outputs of the system; without BASELINE, pairs.")],
    baseline: Annotated[Path | None, typer.Argument(help="AlpacaEval outputs of the system to compare with.")] = None,
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    tie_margin: TieMargin = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Compare a system with a baseline on the same prompts. In a file of pairs, response A is the baseline's.

    Example: nightcourt eval versus ours.jsonl theirs.jsonl --output report
    """
    destinations.check_report(output, [file, baseline, verdicts], systems=baseline is not None)
    runs = _bodies()
    asked = runs.Asked(server, data_dir, profile, tie_margin, verdicts, output, fresh, as_json)
    runs.versus_files(asked, file, baseline)


@app.command()
def tournament(
    files: Annotated[list[Path], typer.Argument(help="AlpacaEval outputs, one file a system, on the same prompts.")],
    schedule: Annotated[
        Literal["full", "baseline", "adaptive"],
        typer.Option(help="All pairs of systems; those with --baseline; or whatever tells most of the least sure."),
    ] = "full",
    baseline: Annotated[str | None, typer.Option(help="The system that all others meet.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="At most this many matches.")] = None,
    target: Annotated[
        float | None,
        typer.Option(min=0, help="Stop once the least sure difference is known to this many points.", callback=finite),
    ] = None,
    round_size: Annotated[int, typer.Option(min=1, help="Matches a round, with --schedule adaptive.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Draws the order in which prompts are taken.")] = 0,
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    tie_margin: TieMargin = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Rate several systems by who beats whom. Interrupted, the same command goes on where it was.

    Example: nightcourt eval tournament one.jsonl two.jsonl three.jsonl --schedule adaptive --target 40
    """
    if len(files) < 2:  # noqa: PLR2004 - who would meet whom
        raise typer.BadParameter("give two files at least", param_hint="FILES")
    if schedule == "adaptive" and budget is None and target is None:
        raise typer.BadParameter("say when it is enough, by --budget or --target", param_hint="--schedule")
    if target is not None and schedule != "adaptive":
        raise typer.BadParameter("goes with --schedule adaptive", param_hint="--target")
    if (schedule == "baseline") != (baseline is not None):
        raise typer.BadParameter("goes with --schedule baseline, and that with it", param_hint="--baseline")
    destinations.check_report(output, [*files, verdicts], systems=True)
    runs = _bodies()
    asked = runs.Asked(server, data_dir, profile, tie_margin, verdicts, output, fresh, as_json)
    plan = runs.Plan(schedule=schedule, baseline=baseline, budget=budget, target=target, round_size=round_size)
    runs.tournament_of(asked, files, plan, seed)


@app.command()
def rewardbench(
    file: Annotated[Path, typer.Argument(help="Rows with id, prompt, chosen, rejected, subset.")],
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Score a judge on RewardBench, next to the published figures. Theirs were made with --profile rewardbench.

    Example: nightcourt eval rewardbench rewardbench.parquet --profile rewardbench
    """
    destinations.check_report(output, [file, verdicts])
    runs = _bodies()
    asked = runs.Asked(server, data_dir, profile, None, verdicts, output, fresh, as_json)
    runs.rewardbench_file(asked, file)


@app.command()
def gold(
    file: Pairs,
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    tie_margin: TieMargin = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Hold a judge against labels that people gave: accuracy, consistency, agreement, calibration.

    Example: nightcourt eval gold pairs.jsonl --output report
    """
    destinations.check_report(output, [file, verdicts])
    runs = _bodies()
    runs.gold_file(runs.Asked(server, data_dir, profile, tie_margin, verdicts, output, fresh, as_json), file)


@app.command()
def calibrate(
    file: Pairs,
    write: Annotated[Path, typer.Option(help="The calibration file to write.")] = Path("calibration.json"),
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Fit the temperature at which a judge's probabilities mean what they say, for workers to use.

    Example: nightcourt eval calibrate gold.jsonl --write calibration.json
    """
    destinations.check_file(write, "--write", [file, verdicts])
    destinations.check_report(output, [file, verdicts], [write])
    runs = _bodies()
    asked = runs.Asked(server, data_dir, profile, None, verdicts, output, fresh, as_json)
    runs.calibrate_file(asked, file, write)


@app.command()
def curate(
    file: Annotated[
        Path, typer.Argument(help="Rows with chosen and rejected, or pairs with a label: JSON lines or .parquet.")
    ],
    write: Annotated[
        Path | None,
        typer.Option(help="The training file to write: .jsonl or .parquet. By default curated.jsonl, if that is free."),
    ] = None,
    form: Annotated[
        Literal["dpo", "kto", "reward"], typer.Option("--format", help="What it is for; reward rows have a margin.")
    ] = "dpo",
    min_confidence: Annotated[
        float,
        typer.Option(
            min=0.5, max=1, help="Keep a row where P(labelled response better) is this at least.", callback=finite
        ),
    ] = 0.6,
    flip_confidence: Annotated[
        float,
        typer.Option(
            min=0.5, max=1, help="Turn a label round where P(other better) is this at least.", callback=finite
        ),
    ] = 0.9,
    flip: Annotated[bool, typer.Option(help="Turn labels round at all.")] = True,
    consistent: Annotated[bool, typer.Option(help="Leave out rows whose two orders disagree.")] = True,
    on_bad_line: Annotated[
        Literal["fail", "skip"], typer.Option(help="fail: nothing is curated. skip: the others are.")
    ] = "fail",
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Keep the preference rows that a judge is sure of, turn wrong labels round, and count every row's fate.

    Example: nightcourt eval curate preferences.parquet --write curated.jsonl --format dpo
    """
    training = write or Path("curated.jsonl")
    if training.suffix not in {".jsonl", ".parquet"}:
        raise typer.BadParameter("is to end in .jsonl or .parquet", param_hint="--write")
    beside = destinations.datasheet(training)
    for each in (training, beside):
        destinations.check_file(each, "--write", [file, verdicts])
    destinations.check_report(output, [file, verdicts], [training, beside])
    runs = _bodies()
    if write is None:
        runs.require_free(training, file)
    asked = runs.Asked(server, data_dir, profile, None, verdicts, output, fresh, as_json)
    rules = runs.Rules(
        min_confidence=min_confidence, flip_confidence=flip_confidence if flip else None, consistent=consistent
    )
    runs.curate_file(asked, file, training, form, rules, skip=on_bad_line == "skip")


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="Pairs, with or without labels: JSON lines or .parquet.")],
    most: Annotated[int, typer.Option("--controlled", min=0, help="Rows that changed pairs are made from.")] = 200,
    server: Server = None,
    data_dir: DataDir = None,
    profile: Profile = None,
    verdicts: Verdicts = None,
    output: Output = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Find what sways a judge: the order, length and formatting, in your rows and in changed copies of them.

    Example: nightcourt eval audit pairs.jsonl --output report
    """
    destinations.check_report(output, [file, verdicts])
    runs = _bodies()
    asked = runs.Asked(server, data_dir, profile, None, verdicts, output, fresh, as_json)
    runs.audit_file(asked, file, most)
