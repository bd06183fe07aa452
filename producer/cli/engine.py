"""`nightcourt engine`: build, verify and measure the engine that judges."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from infra import settings
from producer.cli.options import finite
from producer.cli.pairs import example_file
from schemas.engine import BenchOrder, BuildOrder, Limits, Quantisation, VerifyOrder
from schemas.problems import BAD_SETTING, Problem

app = typer.Typer(help="Build, verify and measure the engine that runs the judge model.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="The result in one line of JSON, and problems as JSON.")]
Folder = Annotated[Path, typer.Argument(help="The engine folder.")]
InFlight = Annotated[int, typer.Option(min=1, help="Comparisons that are put to the engine at a time.")]

# What an order is without its options has one home: an engine is marked as verified by what verify asks by default.
_BUILD, _VERIFY, _BENCH = (
    {name: field.default for name, field in order.model_fields.items()}
    for order in (BuildOrder, VerifyOrder, BenchOrder)
)


def _run(command: str, order: BaseModel) -> None:
    settings.load()  # a wrong setting is told here, before the process changes
    # Engines belong to the worker, which producers never import: the command is a program of its own.
    arguments = [sys.executable, "-P", "-m", "worker.commands", command, order.model_dump_json()]
    os.execv(sys.executable, arguments)  # noqa: S606 - a program of ours, no shell


@app.command()
def build(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint, or OWNER/NAME on the hub.")],
    folder: Annotated[Path, typer.Argument(help="The engine folder to make.")],
    name: Annotated[
        str | None, typer.Option(help="What verdicts call the model; by default the last part of CHECKPOINT.")
    ] = None,
    quantisation: Annotated[
        Quantisation | None,
        typer.Option(help="By default what the GPU does best: fp8 from Ada on, bf16 on Ampere, fp16 before."),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Comparisons like those to be judged, to calibrate fp8 and int4_awq with.")
    ] = None,
    samples: Annotated[int, typer.Option(min=16, help="Prompts of them to calibrate with, at most.")] = _BUILD[
        "samples"
    ],
    max_batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one step.")] = Limits().max_batch_size,
    max_num_tokens: Annotated[int, typer.Option(min=256, help="Tokens in one step.")] = Limits().max_num_tokens,
    max_seq_len: Annotated[int, typer.Option(min=256, help="The longest prompt, in tokens.")] = Limits().max_seq_len,
    as_json: AsJson = False,
) -> None:
    """Build a TensorRT-LLM engine from a checkpoint, for the GPU at hand. Takes the whole GPU, and minutes.

    The folder is there whole or not at all, with a manifest of what it was made from. Given again with the same
    inputs, the command finds that there is nothing to do; with others, it refuses rather than overwrite.

    Example: nightcourt engine build Skywork/Skywork-Critic-Llama-3.1-8B /engines/critic-fp8 --pairs pairs.jsonl
    """
    _run(
        "build",
        BuildOrder(
            checkpoint=checkpoint,
            folder=folder,
            name=name,
            quantisation=quantisation,
            pairs=pairs,
            samples=samples,
            limits=Limits(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len),
            as_json=as_json,
        ),
    )


@app.command()
def verify(
    folder: Folder,
    pairs: Annotated[Path, typer.Option(help="Comparisons like those to be judged, labelled where they can be.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="What the engine was built from: the reference is computed with it, in bf16.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The reference that an earlier run kept, instead of a checkpoint.")
    ] = None,
    per_length: Annotated[int, typer.Option(min=1, help="Prompts at each length of the parity check.")] = _VERIFY[
        "per_length"
    ],
    soak: Annotated[int, typer.Option(min=0, help="Prompts of the soak; 0 leaves it out.")] = _VERIFY["soak"],
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to measure throughput at each length.", callback=finite)
    ] = _VERIFY["seconds"],
    in_flight: InFlight = _VERIFY["in_flight"],
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            help="The GPU's dense peak for this quantisation, where it is not known: H100, H200.", callback=finite
        ),
    ] = None,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = _VERIFY["report"],
    as_json: AsJson = False,
) -> None:
    """Prove an engine: verdict tokens, parity with bf16 at 1k, 4k and 8k tokens, agreement, throughput, a soak.

    Parity: the log-odds of "A" over "B" may differ from bf16's by .10 in the median and .35 at the 95th percentile
    (bf16, fp16), .30 and 1.0 (fp8), .60 and 2.0 (int4_awq), and 99 % of the votes must be the same where bf16 is sure
    by 1 or more. Agreement: the median prompt puts .90 of its probability on A and B, and 60 % of the pairs get the
    same winner in both orders. Soak: no failure, memory grows by less than 256 MiB, and the odds of one prompt that is
    asked again and again stay within .35.

    The engine folder is marked as verified once all of it passed at the default sizes or above; until then every
    verdict carries a caveat. Ends with 1 if a check did not pass. Takes about 20 GB of GPU memory for the reference,
    then the whole GPU.

    Example: nightcourt engine verify /engines/critic-fp8 --checkpoint /models/critic --pairs labelled.jsonl
    """
    try:
        order = VerifyOrder(
            folder=folder,
            checkpoint=checkpoint,
            reference=reference,
            pairs=pairs,
            per_length=per_length,
            soak=soak,
            seconds=seconds,
            in_flight=in_flight,
            peak_tflops=peak_tflops,
            report=report,
            as_json=as_json,
        )
    except ValidationError:
        raise Problem(
            BAD_SETTING, "Give either --checkpoint, for the reference to be computed, or --reference."
        ) from None
    _run("verify", order)


@app.command()
def bench(
    pairs: Annotated[Path | None, typer.Option(help="Comparisons to measure with; the examples by default.")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=256, help="Measure with prompts of this many tokens; may be repeated.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to measure at each length.", callback=finite)
    ] = _BENCH["seconds"],
    in_flight: InFlight = _BENCH["in_flight"],
    as_json: AsJson = False,
) -> None:
    """Measure the engine that the settings name: tokens and judgements a second. Nothing is stored.

    A judgement is one forward pass; a comparison in both orders takes two.

    Example: NIGHTCOURT_ENGINE=tensorrt_llm NIGHTCOURT_ENGINE_FOLDER=/engines/critic-fp8 nightcourt engine bench
    """
    _run(
        "bench",
        BenchOrder(
            pairs=pairs or example_file(),
            lengths=tuple(length or ()),
            seconds=seconds,
            in_flight=in_flight,
            as_json=as_json,
        ),
    )
