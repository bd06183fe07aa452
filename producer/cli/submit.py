"""`nightcourt submit`: file pairs with a running service and print the verdicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infra import settings
from producer.cli import verdicts
from producer.cli.options import DataDir, Server, TieMargin, finite
from producer.cli.output import Exit, console, print_json, progress
from producer.cli.pairs import Pair, read_pairs
from producer.cli.report import Report
from producer.cli.server import find_server
from producer.cli.watch import file_each, watch
from producer.client import Client, ClientError, ServerProblem
from schemas.comparison import Comparison, Orders, Profile
from schemas.problems import Problem


def submit(
    pair: Annotated[
        Path,
        typer.Argument(help="A JSON object with prompt, response_a, response_b; or one a line; - for stdin."),
    ],
    server: Server = None,
    data_dir: DataDir = None,
    order: Annotated[Orders | None, typer.Option(help="In which orders to ask; both when unset.")] = None,
    profile: Annotated[
        Profile | None, typer.Option(help="The prompt profile; the service's default when unset.")
    ] = None,
    tie_margin: TieMargin = None,
    wait: Annotated[bool, typer.Option(help="Wait for the verdicts.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all of them.", callback=finite)] = 3600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One comparison object a line, then a summary object.")
    ] = False,
) -> None:
    """File pairs and print their verdicts. Ends with 1 if there is none.

    Example: nightcourt submit examples/first-docket.jsonl
    """
    chosen = settings.load(server=server, data_dir=data_dir)
    pairs = read_pairs(pair, order=order, profile=profile, tie_margin=tie_margin)
    at = find_server(chosen)
    with Client(at.url, api_key=at.key) as client:
        filed = file_all(client, pairs, as_json=as_json)
        if not wait:
            print_filed(filed, as_json=as_json)
            return
        decided: list[verdicts.Decided] = []
        try:
            for each in watch(client, pairs, filed, seconds=timeout):
                show(each, as_json=as_json)
                decided.append(each)
        except (ClientError, Problem, KeyboardInterrupt) as error:
            left = filed[len(decided) :]
            print_filed(left, as_json=as_json)
            if isinstance(error, KeyboardInterrupt):
                progress.print(f"Stopped watching. {len(left)} comparisons stay filed and will be judged.")
                raise typer.Exit(Exit.INTERRUPTED) from None
            raise
    conclude(decided, as_json=as_json)


def file_all(client: Client, pairs: Sequence[Pair], *, as_json: bool) -> list[Comparison]:
    """File every pair. Where that ends early, what was filed stays filed, so it is printed before."""
    filed: list[Comparison] = []
    try:
        for comparison in file_each(client, pairs):
            filed.append(comparison)  # noqa: PERF402 - what is there counts when this ends early
    except (ClientError, KeyboardInterrupt) as error:
        if filed or isinstance(error, KeyboardInterrupt):
            # Whatever kept its answer from us, the last request may have arrived.
            unsure = "" if isinstance(error, ServerProblem) else ", and the next one may have been"
            progress.print(
                f"{len(filed)} of {len(pairs)} were filed{unsure}. What is filed will be judged.", soft_wrap=True
            )
            print_filed(filed, as_json=as_json)
        raise
    return filed


def print_filed(filed: Sequence[Comparison], *, as_json: bool) -> None:
    """Print what was filed: ids, or objects, one a line."""
    for comparison in filed:
        if as_json:
            print_json(comparison.model_dump(mode="json"))
        else:
            console.print(comparison.id, soft_wrap=True, markup=False)


def show(decided: verdicts.Decided, *, as_json: bool) -> None:
    """Print one comparison that has ended."""
    if as_json:
        print_json(decided.comparison.model_dump(mode="json"))
    else:
        verdicts.print_line(decided)


def conclude(decided: Sequence[verdicts.Decided], *, as_json: bool) -> None:
    """Print what the verdicts add up to, and end with 1 where there is none."""
    report = Report()
    for each in decided:
        report.add(each.comparison.model_dump(mode="json"), each.pair.label, each.pair.subset)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(console)
    if decided and not any(each.comparison.verdict for each in decided):
        raise typer.Exit(Exit.FAILED)
