"""What the TensorRT-LLM engine loads, what it refuses to load, and what its tokenizer makes of prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import CONTROL, write_tokenizer
from support.court import comparison
from support.gpu import CARD, opened
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from infra.engine_folder import MANIFEST, read_manifest
from schemas.problems import Problem
from worker import prompts
from worker.engines.base import (
    VERDICT_OPENING,
    Prompt,
    VerdictTokens,
)
from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine
from worker.engines.vocabulary import Vocabulary


class TestLoading:
    @pytest.mark.parametrize(
        ("behaviour", "says"),
        [
            ({"gpus": 0}, "No GPU is at hand"),
            ({"gpus": 4}, "CUDA_VISIBLE_DEVICES"),
            ({"capability": [8, 0], "gpu": "NVIDIA A100"}, "architecture 90; this one"),
        ],
    )
    def test_it_is_not_loaded_on_another_gpu(self, folder: Path, behaviour: dict[str, Any], says: str):
        """None, several, or one of another architecture: the sentence says what to do."""
        with pytest.raises(Problem, match=says), opened(folder, **behaviour):
            pass

    def test_it_is_not_loaded_without_the_library(self, folder: Path):
        """On a host without TensorRT-LLM the sentence names the image."""
        with pytest.raises(Problem, match=r"image of TensorRT-LLM 1\.2\.1"):
            TensorRtLlmEngine(folder, prompt=CARD)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"tensorrt_llm": "1.1.0"}, r"built with TensorRT-LLM 1\.1\.0"),
            ({"tokenizer": "sha256:0"}, "Tokenizer and chat template"),
            ({"prompt": "sha256:0"}, "another prompt"),
        ],
    )
    def test_it_is_not_loaded_where_it_does_not_fit(
        self, folder: Path, tmp_path: Path, changes: dict[str, Any], says: str
    ):
        """Another library version, tokenizer or prompt than it was built for is refused by name."""
        copy = _copied(folder, tmp_path)
        manifest = read_manifest(copy)
        (copy / MANIFEST).write_text(manifest.model_copy(update=changes).model_dump_json())
        with pytest.raises(Problem, match=says), opened(copy):
            pass

    def test_a_half_written_folder_is_refused(self, folder: Path, tmp_path: Path):
        """Without its manifest, which is written last, a folder is nothing."""
        copy = _copied(folder, tmp_path)
        (copy / MANIFEST).unlink()
        with pytest.raises(Problem, match="cut short"), opened(copy):
            pass

    @pytest.mark.parametrize("harm", ["shorter", "gone"])
    def test_a_folder_that_was_copied_in_part_is_refused(self, folder: Path, tmp_path: Path, harm: str):
        """A file that is missing or too short is named."""
        copy = _copied(folder, tmp_path)
        engine = copy / "rank0.engine"
        engine.unlink() if harm == "gone" else engine.write_bytes(b"x")
        with pytest.raises(Problem, match=r"rank0\.engine"), opened(copy):
            pass

    def test_a_manifest_that_cannot_be_understood_is_refused(self, folder: Path, tmp_path: Path):
        """The field at fault is named."""
        copy = _copied(folder, tmp_path)
        (copy / MANIFEST).write_text(json.dumps({"version": 2}))
        with pytest.raises(Problem, match="version"):
            read_manifest(copy)


def _copied(folder: Path, to: Path) -> Path:
    copy = to / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


class TestLibrary:
    def test_an_engine_that_the_library_does_not_load_is_refused_in_a_sentence(self, folder: Path):
        """A GPU with too little room is told apart, as what helps there is another thing."""
        with (
            pytest.raises(Problem, match=r"out of memory\).*nvidia-smi.*MEMORY_SHARE"),
            opened(folder, no_room_to_load=1),
        ):
            pass


class TestVocabulary:
    def test_no_content_becomes_a_control_token(self, folder: Path):
        """A candidate that spells control tokens gets the ids of plain text."""
        vocabulary = Vocabulary(folder)
        control = {Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(each) for each in CONTROL}
        harmless = vocabulary.encode(Prompt((("user", "x"),), VERDICT_OPENING))
        hostile = vocabulary.encode(Prompt((("user", "".join(CONTROL) + "x" + "".join(CONTROL)),), VERDICT_OPENING))
        assert [each for each in hostile if each in control] == [each for each in harmless if each in control]
        assert len(hostile) > len(harmless) + 20

    def test_a_prompt_begins_once_and_ends_with_the_opening(self, folder: Path):
        """One token begins the text, and the last are those of the verdict's opening."""
        vocabulary = Vocabulary(folder)
        ids = vocabulary.encode(prompts.build(comparison(), "ab"))
        begin = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(CONTROL[0])
        assert (ids[0], ids.count(begin)) == (begin, 1)
        assert ids[-len(vocabulary.opening) :] == vocabulary.opening

    @pytest.mark.parametrize(("a", "refused"), [(32, False), (40, True)])
    def test_a_tokenizer_of_llama_3s_size_has_to_write_the_verdict_as_llama_3_does(
        self, tmp_path: Path, a: int, refused: bool
    ):
        """15873, 32 and 33, or the tokenizer is another one's and is refused."""
        write_tokenizer(tmp_path, _of_llama_3s_size(a))
        if refused:
            with pytest.raises(Problem, match="15873, 32 and 33"):
                Vocabulary(tmp_path)
        else:
            vocabulary = Vocabulary(tmp_path)
            assert (vocabulary.opening, vocabulary.verdict_tokens) == ([15873], VerdictTokens(a=32, b=33))

    def test_a_folder_without_a_tokenizer_is_named(self, tmp_path: Path):
        """The file that is missing stands in the sentence."""
        with pytest.raises(Problem, match=r"tokenizer\.json"):
            Vocabulary(tmp_path)


def _of_llama_3s_size(a: int) -> Tokenizer:
    """A tokenizer with as many tokens as Llama 3's, of which those of the verdict have these ids."""
    wanted = {"[[": 15873, "A": a, "B": 33, "]]": 5163}
    others = [each for each in pre_tokenizers.ByteLevel.alphabet() if each not in wanted]
    free = iter(sorted(set(range(128_256 - len(CONTROL))) - set(wanted.values())))
    vocabulary = wanted | {each: next(free) for each in others}
    vocabulary |= {f"<filler {number}>": number for number in free}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("[", "["), ("]", "]")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in CONTROL])
    return tokenizer
