"""`nightcourt engine build`: from a checkpoint to an engine folder, whole or not at all.

Everything is made in a hidden folder beside the one that is wanted, with the manifest written last, and renamed at the
end. What an earlier build left there is finished if only the renaming was missing, and cleaned up otherwise.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.engine_folder import MANIFEST, check_files, hash_files, mark_files, read_manifest
from schemas.engine import (
    LEAST_ARCHITECTURE,
    NOT_FROM_ARCHITECTURE,
    BuildOrder,
    Manifest,
    ModelShape,
    Quantisation,
    best_quantisation,
)
from schemas.problems import ENGINE_BUILD, Problem
from worker import prompts
from worker.cases import ORDERS
from worker.commands.pairs import read_pairs
from worker.commands.saying import Say
from worker.engines.tensorrt_llm.compiler import compile_engine
from worker.engines.tensorrt_llm.gpu import Gpu, gpu_at_hand
from worker.engines.vocabulary import FILES, Vocabulary

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FEWEST_SAMPLES = 16


def build(order: BuildOrder, say: Say) -> Manifest:
    """Build an engine, unless the very same is there already.

    Raises:
        Problem: it cannot be built; the detail says why and what to do. The wanted folder is then as it was.
    """
    target = order.folder.absolute()
    gpu = gpu_at_hand()
    quantisation = choose(order.quantisation, gpu)
    checkpoint = find_checkpoint(order.checkpoint, say)
    vocabulary = Vocabulary(checkpoint)
    texts = _calibration(order, quantisation, vocabulary, say)
    say("hashing the weights")
    wanted = Manifest(
        model=order.name or order.checkpoint.rstrip("/").rpartition("/")[2],
        weights=hash_weights(checkpoint),
        tokenizer=vocabulary.fingerprint,
        prompt=prompts.PROFILES["card"].sha256,
        quantisation=quantisation,
        kv_cache="fp8" if quantisation == "fp8" else "as the weights",
        calibration=f"sha256:{hashlib.sha256(json.dumps(texts).encode()).hexdigest()}" if texts else None,
        gpu_architecture=gpu.architecture,
        tensorrt_llm=gpu.tensorrt_llm,
        limits=order.limits,
        shape=_shape(checkpoint),
        gpu=gpu.name,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={},
    )
    with _alone(target) as part:
        there = _already_there(target, part, wanted)
        if there is not None:
            say(f"{target} is this very engine already")
            return there
        say(f"building for {gpu.name} in {quantisation}; this takes a while and the whole GPU")
        made = _make(part, checkpoint, wanted, texts, order.samples)
        part.rename(target)
    say(f"built {target}")
    return made


def choose(asked: Quantisation | None, gpu: Gpu) -> Quantisation:
    """Take the quantisation that was asked for, or the best that the GPU has.

    Raises:
        Problem: the GPU has it not.
    """
    quantisation = asked or best_quantisation(gpu.architecture)
    least, end = LEAST_ARCHITECTURE[quantisation], NOT_FROM_ARCHITECTURE.get(quantisation, 1 << 30)
    if not least <= gpu.architecture < end:
        instead = best_quantisation(gpu.architecture)
        raise Problem(
            ENGINE_BUILD,
            f"{gpu.name} is of architecture {gpu.architecture}, and {quantisation} needs {least} or newer"
            f"{f', before {end}' if end < 1 << 30 else ''}. Leave --quantisation out for {instead}.",
        )
    return quantisation


def find_checkpoint(name: str, say: Say) -> Path:
    """Find the folder of a checkpoint, bringing it from the hub where the name is no folder.

    Raises:
        Problem: there is none, or it is not whole.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and _HUB_NAME.fullmatch(name):
        say(f"looking for {name} on the hub; what was downloaded before is used again")
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers, on GPU hosts

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
            if not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "pytorch_model*.bin"]))
        except Exception as error:
            raise Problem(
                ENGINE_BUILD,
                f"{name} is no folder here, and the hub did not give it ({type(error).__name__}). Download it "
                "elsewhere, and give the path of its folder.",
            ) from error
    if not folder.is_dir():
        raise Problem(ENGINE_BUILD, f"{name} is neither a folder nor the name of a checkpoint on a hub, `owner/name`.")
    for needed in ("config.json", *FILES[:2]):
        if not (folder / needed).is_file():
            raise Problem(
                ENGINE_BUILD,
                f"{folder} has no {needed}, so it is no whole checkpoint. Download it again, with all its small files.",
            )
    weight_files(folder)
    return folder


def weight_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint's weights, all of those that its index names.

    Where there are safetensors they are what is loaded, here and by transformers. The critic is published in PyTorch's
    own format.

    Raises:
        Problem: one is missing or empty.
    """
    files: list[Path] = []
    for name, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        index = checkpoint / f"{name}.index.json"
        if index.is_file():
            files = [checkpoint / each for each in sorted(set(_json(index).get("weight_map", {}).values()))]
        else:
            files = sorted(checkpoint.glob(pattern))
        if files:
            break
    missing = [path.name for path in files if not path.is_file() or not path.stat().st_size]
    if missing or not files:
        what = ", ".join(missing[:3]) or "its weights, *.safetensors or pytorch_model*.bin"
        raise Problem(ENGINE_BUILD, f"{checkpoint} lacks {what}: the download is not whole. Give the command again.")
    return files


def hash_weights(checkpoint: Path) -> str:
    """Hash a checkpoint's weights with the `config.json` by which they are computed with: 'sha256:...'.

    Raises:
        Problem: a file of weights is missing or empty.
    """
    return hash_files([*weight_files(checkpoint), checkpoint / "config.json"])


def _shape(checkpoint: Path) -> ModelShape:
    config = _json(checkpoint / "config.json")
    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise Problem(
            ENGINE_BUILD,
            f"{checkpoint} holds a {', '.join(config.get('architectures') or ['model of no known kind'])}, and only "
            "Llama is built here. Serve it with another server, and judge with the openai_server engine.",
        )
    try:
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=config["num_attention_heads"],
            key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_size=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            vocabulary=config["vocab_size"],
        )
    except KeyError as error:
        raise Problem(ENGINE_BUILD, f"{checkpoint / 'config.json'} says nothing of {error}.") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Problem(ENGINE_BUILD, f"{path} cannot be read: {error}.") from None
    return content


def _calibration(order: BuildOrder, quantisation: Quantisation, vocabulary: Vocabulary, say: Say) -> list[str]:
    """The texts to calibrate with: judge-shaped prompts, both orders of each pair; none where nothing is calibrated."""
    if quantisation not in {"fp8", "int4_awq"}:
        return []
    if order.pairs is None:
        raise Problem(
            ENGINE_BUILD,
            f"{quantisation} is calibrated on prompts like those that will be judged: give a file of pairs with "
            f"--pairs, {order.samples // 2} of them for the full {order.samples} prompts.",
        )
    # TensorRT-LLM tokenises these anew, and puts the token that begins a text before them by itself.
    texts = [
        vocabulary.as_text(prompts.build(pair.comparison, view))
        for pair in read_pairs(order.pairs)[: (order.samples + 1) // 2]
        for view in ORDERS["both"]
    ][: order.samples]
    if len(texts) < _FEWEST_SAMPLES:
        raise Problem(
            ENGINE_BUILD, f"{order.pairs} makes {len(texts)} prompts, and calibration needs {_FEWEST_SAMPLES} at least."
        )
    if len(texts) < order.samples:
        say(f"calibrating on {len(texts)} prompts; {order.samples} were asked for, and the file has no more")
    return texts


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Hold the hidden folder beside the target, so that two builds never write to the same."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise Problem(
            ENGINE_BUILD, f"{target.parent} cannot be written to ({error.strerror}). Choose another folder."
        ) from None
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(
                ENGINE_BUILD, f"Another build of {target} is under way. Wait for its end, or choose another folder."
            ) from None
        yield target.parent / f".{target.name}.building"


def _already_there(target: Path, part: Path, wanted: Manifest) -> Manifest | None:
    """Find the same engine in the target, or finished but not renamed beside it; make room for building otherwise.

    Raises:
        Problem: the target holds something else. It is never deleted here.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        there = read_manifest(target)
        check_files(target, there, contents=False)
        ours, theirs = wanted.identity(), there.identity()
        differing = [name for name in ours if ours[name] != theirs.get(name)]
        if differing:
            name = differing[0]
            raise Problem(
                ENGINE_BUILD,
                f"{target} holds another engine ({name.replace('_', ' ')}: {theirs.get(name)} there, {ours[name]} "
                "wanted). Choose another folder, or remove that one.",
            )
        return there
    try:
        done = read_manifest(part)
        check_files(part, done, contents=True)
    except Problem:
        shutil.rmtree(part, ignore_errors=True)
        return None
    if done.identity() != wanted.identity():
        shutil.rmtree(part)
        return None
    part.rename(target)
    return done


def _make(part: Path, checkpoint: Path, wanted: Manifest, texts: Sequence[str], samples: int) -> Manifest:
    """Build into the hidden folder. Its manifest is written last, and everything is on the disk before that."""
    engine, workspace, calibration = part, part / "workspace", part / "workspace" / "calibration"
    calibration.mkdir(parents=True)
    (calibration / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    try:
        compile_engine(
            checkpoint,
            engine,
            quantisation=wanted.quantisation,
            limits=wanted.limits,
            calibration=calibration if texts else None,
            samples=min(samples, len(texts)) if texts else samples,
            workspace=workspace,
        )
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        raise Problem(
            ENGINE_BUILD,
            f"TensorRT-LLM could not build it ({type(error).__name__}: {str(error)[:500]}). Its lines above say more.",
        ) from error
    shutil.rmtree(workspace)
    for name in FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, part / name)
    if not {"config.json", "rank0.engine"} <= {path.name for path in part.iterdir()}:
        raise Problem(ENGINE_BUILD, "TensorRT-LLM saved no engine. Its own lines above say more.")
    if Vocabulary(part).fingerprint != wanted.tokenizer:
        raise Problem(
            ENGINE_BUILD, "The engine's tokenizer is not the checkpoint's. Report this: it should not happen."
        )
    made = wanted.model_copy(update={"files": mark_files(part)})
    for name in made.files:
        _flush(part / name)
    (part / MANIFEST).write_text(made.model_dump_json(indent=2))
    _flush(part / MANIFEST)
    return made


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
