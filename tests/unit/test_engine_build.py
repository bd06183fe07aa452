"""Building an engine over the stand-in: what is built for which GPU, and what is refused, resumed and cleaned up."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import CONTROL, make_checkpoint, write_pairs
from support.gpu import gpu_host

from infra.engine_folder import MANIFEST, build_of, check_files, describe, read_manifest
from schemas.engine import BuildOrder, Limits, Manifest
from schemas.problems import Problem
from worker import prompts
from worker.commands.build import build, hash_weights, weight_files

PAIRS = 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    return make_checkpoint(tmp_path / "hub")


@pytest.fixture
def order(tmp_path: Path, checkpoint: Path) -> Callable[..., BuildOrder]:
    """An order to build, with changes."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", PAIRS)

    def make(**changes: Any) -> BuildOrder:
        plain = {"checkpoint": str(checkpoint), "folder": tmp_path / "engine", "pairs": pairs, "samples": 32}
        return BuildOrder(**{**plain, **changes})

    return make


def run(order: BuildOrder, said: list[str] | None = None, **behaviour: object) -> Manifest:
    """Build on a pretended GPU host."""
    with gpu_host(**behaviour):
        return build(order, (said if said is not None else []).append)


def built_as(folder: Path) -> dict[str, str]:
    """What the stand-in was told to build, which it writes into the engine."""
    text = (folder / "rank0.engine").read_text()
    return json.loads(text[: text.index("}") + 1])


class TestChoice:
    @pytest.mark.parametrize(
        ("capability", "asked", "chosen", "dtype", "algorithm"),
        [
            ([9, 0], None, "fp8", "bfloat16", "FP8"),
            ([8, 9], None, "fp8", "bfloat16", "FP8"),
            ([8, 0], None, "bf16", "bfloat16", "None"),
            ([7, 5], None, "fp16", "float16", "None"),
            ([9, 0], "bf16", "bf16", "bfloat16", "None"),
            ([8, 6], "int4_awq", "int4_awq", "float16", "W4A16_AWQ"),
        ],
    )
    def test_the_gpu_decides_unless_somebody_does(
        self, order: Any, capability: list[int], asked: str | None, chosen: str, dtype: str, algorithm: str
    ):
        """FP8 from Ada on, BF16 on Ampere, FP16 before; 4-bit AWQ where it is asked for."""
        manifest = run(order(quantisation=asked), capability=capability)
        assert manifest.quantisation == chosen
        assert manifest.gpu_architecture == 10 * capability[0] + capability[1]
        assert manifest.kv_cache == ("fp8" if chosen == "fp8" else "as the weights")
        assert built_as(order().folder) == {"dtype": dtype, "quant": algorithm}

    @pytest.mark.parametrize(
        ("capability", "asked", "says"),
        [
            ([8, 0], "fp8", "fp8 needs 89 or newer"),
            ([7, 5], "bf16", "bf16 needs 80 or newer"),
            ([10, 0], "int4_awq", "before 100"),
        ],
    )
    def test_what_the_gpu_does_not_have_is_refused(self, order: Any, capability: list[int], asked: str, says: str):
        """The sentence names the GPU's architecture and what would do instead."""
        with pytest.raises(Problem, match=says):
            run(order(quantisation=asked), capability=capability)
        assert not order().folder.exists()


class TestManifest:
    def test_it_says_what_the_engine_was_made_from(self, order: Any):
        """Weights, tokenizer, prompt, limits, versions and every file of the folder, to the byte."""
        manifest = run(order(limits=Limits(max_batch_size=4, max_num_tokens=512, max_seq_len=1024)))
        folder = order().folder
        assert read_manifest(folder) == manifest
        check_files(folder, manifest, contents=True)
        assert manifest.prompt == prompts.PROFILES["card"].sha256
        assert (manifest.tensorrt_llm, manifest.gpu) == ("1.2.1", "NVIDIA H100 80GB HBM3")
        assert (manifest.limits.max_seq_len, manifest.limits.max_input_len) == (1024, 1023)
        assert manifest.shape.vocabulary == 517
        assert set(manifest.files) == {"config.json", "rank0.engine", "tokenizer.json", "tokenizer_config.json"}
        assert "not verified yet" in describe(folder)

    def test_other_weights_are_another_hash(self, order: Any, tmp_path: Path):
        """One byte of the weights changes what the engine is said to be made of."""
        other = make_checkpoint(tmp_path / "other", weights=b"other noise")
        first = run(order())
        second = run(order(checkpoint=str(other), folder=tmp_path / "second"))
        assert first.weights != second.weights
        assert first.tokenizer == second.tokenizer

    def test_the_same_weights_computed_with_otherwise_are_others(self, order: Any, checkpoint: Path):
        """Once a wrong `config.json` is put right, the engine that was built by it is not taken for the one wanted."""
        run(order())
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "rope_scaling": {"factor": 8.0}}))
        with pytest.raises(Problem, match=r"holds another engine \(weights: "):
            run(order())

    def test_the_model_is_called_by_its_folder_or_as_somebody_says(self, order: Any, tmp_path: Path):
        """A checkpoint that is mounted under another name keeps its own in every verdict."""
        assert run(order()).model == "Skywork-Critic-Llama-3.1-8B"
        assert run(order(name="Critic", folder=tmp_path / "second")).model == "Critic"

    def test_builds_can_be_told_apart(self, order: Any, tmp_path: Path):
        """Two builds from the same inputs have names of their own, as their engines differ."""
        first, second = run(order()), run(order(folder=tmp_path / "second", quantisation="bf16"))
        assert build_of(first) != build_of(second)


class TestCalibration:
    def test_it_is_calibrated_on_judge_shaped_prompts(self, order: Any, monkeypatch: pytest.MonkeyPatch):
        """Both orders of each pair, in the chat template, without a second token that begins a text."""
        kept: list[str] = []
        original = shutil.rmtree

        def keep(path: Path, *args: Any, **given: Any) -> None:
            for file in Path(path).glob("calibration/train.jsonl"):
                kept.extend(json.loads(line)["text"] for line in file.read_text().splitlines())
            original(path, *args, **given)

        monkeypatch.setattr(shutil, "rmtree", keep)
        manifest = run(order(samples=30))
        assert manifest.calibration is not None
        assert len(kept) == 30
        assert all(text.startswith(CONTROL[2] + "user") and text.endswith("[[") for text in kept)
        assert "river number 0" in kept[0]
        assert kept[0] != kept[1]

    @pytest.mark.parametrize(("changes", "says"), [({"pairs": None}, "--pairs"), ({"samples": 8}, "needs 16 at least")])
    def test_what_is_calibrated_needs_pairs(self, order: Any, changes: dict[str, Any], says: str):
        """Without pairs, or with too few, FP8 is not built."""
        with pytest.raises(Problem, match=says):
            run(order(**changes))

    def test_what_is_not_calibrated_needs_none(self, order: Any):
        """BF16 is built from the checkpoint alone."""
        assert run(order(quantisation="bf16", pairs=None)).calibration is None

    def test_a_bad_line_of_pairs_is_named(self, order: Any, tmp_path: Path):
        """The file, the line and the field stand in the sentence."""
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"prompt": "?", "response_a": "x", "response_b": "y"}\n{"prompt": "?"}\n')
        with pytest.raises(Problem, match=r"line 2: response_a"):
            run(order(pairs=bad))


class TestCheckpoints:
    @pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"])
    def test_a_checkpoint_that_is_not_whole_is_refused(self, order: Any, checkpoint: Path, missing: str):
        """A file that is not there is named, those that only the index knows of too."""
        (checkpoint / missing).unlink()
        with pytest.raises(Problem, match=missing):
            run(order())

    def test_a_part_that_was_begun_and_not_downloaded_is_refused(self, order: Any, checkpoint: Path):
        """An empty weight file is as good as none."""
        (checkpoint / "model-00001-of-00002.safetensors").write_bytes(b"")
        with pytest.raises(Problem, match="not whole"):
            run(order())

    @pytest.mark.parametrize("whole", [True, False])
    def test_weights_in_pytorchs_own_format_are_taken(self, order: Any, checkpoint: Path, whole: bool):
        """The critic is published in it: files that an index names, and all of them have to be there."""
        (checkpoint / "model.safetensors.index.json").unlink()
        for at, part in enumerate(sorted(checkpoint.glob("*.safetensors")), start=1):
            part.rename(checkpoint / f"pytorch_model-0000{at}-of-00002.bin")
        index = {"weight_map": {f"layer.{at}": f"pytorch_model-0000{at}-of-00002.bin" for at in (1, 2)}}
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        first, second = weight_files(checkpoint)
        if whole:
            built = run(order()).weights
            second.write_bytes(b"others")
            assert hash_weights(checkpoint) != built
        else:
            first.unlink()
            with pytest.raises(Problem, match=first.name):
                run(order())

    def test_a_checkpoint_without_any_weights_is_refused(self, order: Any, checkpoint: Path):
        """The sentence says how they would be named."""
        for each in checkpoint.glob("model*"):
            each.unlink()
        (checkpoint / "training_args.bin").write_bytes(b"none of them")
        with pytest.raises(Problem, match=r"\*\.safetensors or pytorch_model\*\.bin"):
            run(order())

    def test_another_architecture_is_refused(self, order: Any, tmp_path: Path):
        """Only Llama is built here, and the sentence says what else there is."""
        other = make_checkpoint(tmp_path / "other", architectures=["QwenForCausalLM"])
        with pytest.raises(Problem, match="openai_server"):
            run(order(checkpoint=str(other)))

    def test_what_is_neither_a_folder_nor_a_name_is_refused(self, order: Any, tmp_path: Path):
        """A path that is not there is said to be none."""
        with pytest.raises(Problem, match="neither a folder nor"):
            run(order(checkpoint=str(tmp_path / "nowhere")))


class TestWholeOrNotAtAll:
    def test_the_same_again_is_nothing_to_do(self, order: Any):
        """The command can be given again: it finds the engine, and builds nothing."""
        first, said = run(order()), []
        changed = (order().folder / "rank0.engine").stat().st_mtime_ns
        assert run(order(), said, build_fails=True) == first
        assert "this very engine already" in said[-1]
        assert (order().folder / "rank0.engine").stat().st_mtime_ns == changed

    def test_another_engine_is_never_overwritten(self, order: Any):
        """A folder with an engine from other inputs is left alone, and the difference is named."""
        first = run(order())
        with pytest.raises(Problem, match="quantisation: fp8 there, bf16 wanted"):
            run(order(quantisation="bf16"))
        assert read_manifest(order().folder) == first

    def test_a_place_that_cannot_be_written_to_is_named(self, order: Any, tmp_path: Path):
        """In a sentence, before anything is built."""
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(Problem, match="file cannot be written to"):
            run(order(folder=tmp_path / "file" / "engine"))

    def test_a_folder_with_something_else_is_never_touched(self, order: Any):
        """Somebody's files are no engine, and stay."""
        order().folder.mkdir()
        (order().folder / "thesis.txt").write_text("dear")
        with pytest.raises(Problem, match=MANIFEST):
            run(order())
        assert (order().folder / "thesis.txt").read_text() == "dear"

    def test_a_build_that_fails_leaves_nothing(self, order: Any, tmp_path: Path):
        """What the library says is passed on, and no half of an engine stays."""
        with pytest.raises(Problem, match="out of memory"):
            run(order(), build_fails=True)
        assert not order().folder.exists()
        assert not (tmp_path / ".engine.building").exists()
        assert run(order())

    def test_what_a_killed_build_left_is_cleaned_up(self, order: Any, tmp_path: Path):
        """Half a hidden folder is thrown away, and the build begins anew."""
        half = tmp_path / ".engine.building" / "workspace"
        half.mkdir(parents=True)
        (half / "rank0.engine").write_bytes(b"half")
        manifest = run(order())
        check_files(order().folder, manifest, contents=True)
        assert not half.parent.exists()

    def test_a_build_killed_before_its_renaming_is_finished(self, order: Any, tmp_path: Path):
        """A hidden folder with its manifest is a whole engine, and is used instead of built again."""
        first = run(order())
        order().folder.rename(tmp_path / ".engine.building")
        assert run(order(), build_fails=True) == first
        assert read_manifest(order().folder) == first

    def test_a_finished_build_from_other_inputs_is_not_taken(self, order: Any, tmp_path: Path):
        """What lies in the hidden folder counts only if it is what is wanted now."""
        run(order())
        order().folder.rename(tmp_path / ".engine.building")
        assert run(order(quantisation="bf16")).quantisation == "bf16"

    def test_two_builds_of_one_folder_do_not_meet(self, order: Any, tmp_path: Path):
        """While one is under way, another is told to wait."""
        with (tmp_path / ".engine.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(Problem, match="under way"):
                run(order())

    def test_a_changed_byte_is_found(self, order: Any):
        """Reading every byte tells a changed engine of the same size."""
        manifest = run(order())
        engine = order().folder / "rank0.engine"
        content = bytearray(engine.read_bytes())
        content[7] ^= 1
        engine.write_bytes(content)
        check_files(order().folder, manifest, contents=False)
        with pytest.raises(Problem, match="not the file that was built"):
            check_files(order().folder, manifest, contents=True)
