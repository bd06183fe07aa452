"""`nightcourt engine verify`: what needs the whole GPU first, then the checks of checks.py, then the report."""

import itertools
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.engine_folder import REPORT, build_of, check_files, read_manifest
from infra.roofline import peak_tflops
from infra.settings import Settings
from schemas.engine import Manifest, VerifyOrder
from schemas.problems import BAD_INPUT_FILE, BAD_OUTPUT_FILE, ENGINE_UNFIT, Problem
from worker import prompts
from worker.commands import checks
from worker.commands.build import find_checkpoint, hash_weights
from worker.commands.checks import Reference
from worker.commands.pairs import Pair, of_length, read_pairs
from worker.commands.saying import Say
from worker.engines.base import EngineError
from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine
from worker.engines.vocabulary import Vocabulary

LEAST_LENGTHS, LEAST_PROMPTS, LEAST_SOAK = (
    VerifyOrder.model_fields[name].default for name in ("lengths", "per_length", "soak")
)
"""What an engine has to have been asked before it is marked: as much as the command asks by default."""
_NEARLY = 0.9
"""Of a length: prompts are made a little shorter than is asked for."""


def verify(order: VerifyOrder, settings: Settings, say: Say) -> dict[str, Any]:
    """Verify an engine folder, check by check, and write the report.

    Where all checks pass and none was smaller than usual, the report is put into the folder too, and verdicts of this
    build are no longer said to be of an engine that was not verified. An earlier report is taken out of it first.

    Raises:
        Problem: the engine, the reference or the pairs cannot be used.
    """
    manifest = read_manifest(order.folder)
    say("reading every byte of the engine folder")
    check_files(order.folder, manifest, contents=True)
    pairs = read_pairs(order.pairs)
    vocabulary = Vocabulary(order.folder)
    reference = _reference(order, manifest, pairs, vocabulary, say)
    _unmark(order.folder)
    say("loading the engine")
    engine = TensorRtLlmEngine(
        order.folder,
        prompt=prompts.PROFILES["card"].sha256,
        memory_share=settings.engine_memory_share,
        reuse=settings.engine_reuse,
        timeout_seconds=settings.engine_timeout_seconds,
    )
    with closing(engine):
        peak = order.peak_tflops or peak_tflops(manifest.gpu, manifest.quantisation)
        found = {
            "verdict_tokens": checks.check_tokens(engine, vocabulary.opening),
            "parity": _outcome(lambda: checks.check_parity(engine, reference, manifest.quantisation, say)),
            "agreement": _outcome(lambda: checks.check_agreement(engine, pairs, order.in_flight, say)),
            "throughput": _outcome(lambda: checks.measure(engine, pairs, manifest, peak, order, say)),
            "soak": _outcome(lambda: checks.soak(engine, pairs, order, checks.Memory(), say))
            if order.soak
            else {"passed": None},
        }
        report = {
            "build": build_of(manifest),
            "verified_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "passed": all(check["passed"] for check in found.values()),
            "engine": asdict(engine.card),
            "gpu": asdict(engine.gpu),
            "manifest": manifest.model_dump(mode="json", exclude={"files"}),
            "checks": found,
            "statistics": engine.statistics.snapshot(),
        }
        text = json.dumps(report, indent=2) + "\n"
        # While the engine is up: one that broke may raise, abort or hang as it ends.
        _write(order.report, text)
    enough = all(_long_enough(reference, length, manifest) >= LEAST_PROMPTS for length in LEAST_LENGTHS)
    if report["passed"] and enough and order.soak >= LEAST_SOAK:
        _write(order.folder / REPORT, text)
    elif report["passed"]:
        say("not marked as verified: this verification asked less than the command does by default")
    return report


def _outcome(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Carry a check out. An engine that fails at it has not passed it, and what the others found is kept."""
    try:
        return check()
    except EngineError as error:
        return {"passed": False, "reason": str(error)}


def _long_enough(reference: Reference, length: int, manifest: Manifest) -> int:
    """Count the prompts for a length that are about as long as that, or as the engine takes.

    They are looked at one by one: a reference may be of another build, which took shorter ones for the same length.
    """
    least = _NEARLY * min(length, manifest.limits.max_input_len)
    return sum(len(prompt) >= least for prompt in reference.prompts.get(length, ()))


def unfit(report: dict[str, Any]) -> Problem | None:
    """What to tell a person of a report that did not pass."""
    failed = [name for name, check in report["checks"].items() if check["passed"] is False]
    if failed:
        return Problem(
            ENGINE_UNFIT, f"Not passed: {', '.join(failed)}. The report has the figures; verdicts keep their caveat."
        )
    return None


def _reference(
    order: VerifyOrder, manifest: Manifest, pairs: list[Pair], vocabulary: Vocabulary, say: Say
) -> Reference:
    """Read the reference, or have it computed and keep it beside the report."""
    if order.reference is not None:
        try:
            reference = Reference.model_validate_json(order.reference.read_bytes())
        except (OSError, ValidationError) as error:
            raise Problem(
                BAD_INPUT_FILE, f"{order.reference} is no reference that an earlier verification wrote: {error}."
            ) from None
        _agree(order.reference, reference.weights, reference.tokenizer, manifest)
        return reference
    checkpoint = find_checkpoint(order.checkpoint or "", say)
    say("hashing the checkpoint's weights")
    weights = hash_weights(checkpoint)
    _agree(checkpoint, weights, Vocabulary(checkpoint).fingerprint, manifest)
    asked = {}
    for length in order.lengths:
        tokens = min(length, manifest.limits.max_input_len)
        made = itertools.islice(of_length(pairs, tokens, vocabulary.encode), order.per_length)
        asked[length] = [vocabulary.encode(prompts.build(each, "ab")) for each in made]
    reference = Reference(
        weights=weights,
        tokenizer=manifest.tokenizer,
        prompts=asked,
        log_odds=checks.compute_reference(checkpoint, asked, vocabulary.verdict_tokens, say),
    )
    kept = order.report.with_name("nightcourt-reference.json")
    _write(kept, reference.model_dump_json())
    say(f"kept the reference as {kept}; give it with --reference the next time")
    return reference


def _unmark(folder: Path) -> None:
    """Take away what an earlier verification left: if this one does not pass, that one does not count."""
    mark = folder / REPORT
    if mark.exists():  # asked first, because a folder that cannot be written to refuses even to remove nothing
        try:
            mark.unlink()
        except OSError as error:
            raise Problem(BAD_OUTPUT_FILE, f"{mark}: {error.strerror}.") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise Problem(BAD_OUTPUT_FILE, f"{path}: {error.strerror}. The report was: {text}") from None


def _agree(what: Path, weights: str, tokenizer: str, manifest: Manifest) -> None:
    for name, ours, theirs in (("weights", manifest.weights, weights), ("tokenizer", manifest.tokenizer, tokenizer)):
        if ours != theirs:
            raise Problem(
                ENGINE_UNFIT, f"{what} has other {name} than the engine was built from ({theirs}, not {ours})."
            )
