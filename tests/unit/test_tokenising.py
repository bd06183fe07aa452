"""Tokenising for a model that runs elsewhere: whatever a candidate writes, no control token comes out."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_server import SPECIAL, TEMPLATE, toy_tokenizer, write_tokenizer
from support.waiting import wait_until
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, pre_tokenizers

from worker.engines import tokenising
from worker.engines.base import EngineError, Prompt, PromptTooLongError
from worker.engines.chat import ChatTemplate
from worker.engines.lengths import LeastTokens
from worker.engines.tokenising import PromptTokenizer, UnsafeTokenizerError

CONTROL = {toy_tokenizer().token_to_id(text) for text in SPECIAL}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PromptTokenizer:
    """A toy tokenizer, read from its files."""
    return tokenising.from_folder(write_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer"))


def conversation(content: str) -> Prompt:
    """One user's turn, and the opening of the judge's."""
    return Prompt((("user", content),), "[[")


class Counting:
    """A tokenizer that counts the large texts that pass at a time, each of which waits to be told to go on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.go_on = threading.Event()
        self.passing = self.most = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Tokenise."""
        if len(text) < 100_000:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        self.passing += 1
        self.most = max(self.most, self.passing)
        assert self.go_on.wait(60)
        self.passing -= 1
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


class TestFromAFolder:
    def test_the_template_writes_control_tokens(self, tokenizer):
        """A turn begins and ends with them, and the opening stands last."""
        ids = tokenizer.encode(conversation("hi"))
        assert [each for each in ids if each in CONTROL] == [257, 258, 257]
        assert toy_tokenizer().decode(ids).endswith("assistant\n[[")

    @given(text=st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "|>", "<|", "\U0001f600"])).map("".join))
    @settings(max_examples=200)
    def test_no_content_becomes_a_control_token(self, tokenizer, text):
        """However a text puts their spellings together, the turns stay what the template made them."""
        ids = tokenizer.encode(conversation(text))
        assert [each for each in ids if each in CONTROL] == [257, 258, 257]
        assert toy_tokenizer().decode(tokenizer.tokenise(text)) == text

    def test_half_a_character_is_refused_without_being_quoted(self, tokenizer):
        """Text that no encoding can hold is an error that does not repeat it."""
        with pytest.raises(EngineError, match="surrogate") as caught:
            tokenizer.encode(conversation("SECRET \ud800"))
        assert "SECRET" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_tokens_are_told_by_their_text(self, tokenizer):
        """All tokens that are written as a text are found, so that one that is alone can be trusted."""
        assert tokenizer.names("A") == [toy_tokenizer().token_to_id("A")]

    def test_nothing_is_cut_behind_our_back(self, tmp_path):
        """A truncation that somebody saved with the tokenizer does not shorten a candidate."""
        cutting = toy_tokenizer()
        cutting.enable_truncation(4)
        found = tokenising.from_folder(write_tokenizer(tmp_path / "t", cutting))
        assert len(found.tokenise("0123456789")) == 10

    def test_added_tokens_that_are_no_control_tokens_are_text_in_contents(self, tmp_path):
        """A model's mark for its thoughts is not for candidates to set, special or not."""
        thinking = toy_tokenizer()
        thinking.add_tokens([AddedToken("<think>", special=False)])
        found = tokenising.from_folder(write_tokenizer(tmp_path / "t", thinking))
        assert thinking.token_to_id("<think>") not in found.tokenise("<think>")

    def test_a_template_in_a_file_of_its_own_wins(self, tmp_path):
        """Newer checkpoints keep the template beside the configuration."""
        folder = write_tokenizer(tmp_path / "t")
        (folder / "chat_template.jinja").write_text("Q{{ messages[0].content }}A")
        assert toy_tokenizer().decode(tokenising.from_folder(folder).encode(conversation("x"))) == "QxA[["

    def test_the_default_of_several_templates_is_taken(self, tmp_path):
        """Some configurations name theirs."""
        folder = write_tokenizer(
            tmp_path / "t", template=[{"name": "tools", "template": "T"}, {"name": "default", "template": TEMPLATE}]
        )
        assert tokenising.from_folder(folder).encode(conversation("x"))[0] == 257

    def test_other_files_have_another_fingerprint(self, tmp_path):
        """Template and tokenizer determine the ids, and so the verdicts."""
        one, other = write_tokenizer(tmp_path / "1"), write_tokenizer(tmp_path / "2", template=TEMPLATE + " ")
        prints = {tokenising.from_folder(folder).fingerprint for folder in (one, one, other)}
        assert len(prints) == 2

    def test_what_is_missing_is_named(self, tmp_path):
        """A folder without tokenizer, or without template, is refused in words to act on."""
        with pytest.raises(UnsafeTokenizerError, match=r"tokenizer\.json cannot be read.*ENGINE_TOKENIZER"):
            tokenising.from_folder(tmp_path)
        folder = write_tokenizer(tmp_path / "t")
        (folder / "tokenizer_config.json").write_text("{}")
        with pytest.raises(UnsafeTokenizerError, match="no chat template"):
            tokenising.from_folder(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": 1}')
        with pytest.raises(UnsafeTokenizerError, match="is no tokenizer"):
            tokenising.from_folder(folder)

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9085657\n", "pointer of git-lfs"),
            (b'{"added_tok', "cut short"),
            (b"[]", "no JSON object"),
            (b"\xff\xfe", "no text"),
        ],
    )
    def test_a_file_that_is_another_is_named(self, tmp_path, name: str, content: bytes, says: str):
        """Whoever reads the refusal is told which file it is about, and no traceback."""
        folder = write_tokenizer(tmp_path / "t")
        (folder / name).write_bytes(content)
        with pytest.raises(UnsafeTokenizerError, match=rf"{name} .*{says}"):
            tokenising.from_folder(folder)

    def test_a_tokenizer_without_a_model_is_refused(self, tmp_path):
        """JSON of another kind is no tokenizer, whatever it leaves out."""
        folder = write_tokenizer(tmp_path / "t")
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(UnsafeTokenizerError, match="is no tokenizer"):
            tokenising.from_folder(folder)


class TestLengths:
    """Of 4 MiB that nobody can judge a tokenizer makes gigabytes; they are refused by their length."""

    def merging(self) -> Tokenizer:
        """A tokenizer with tokens of up to four bytes."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("a", "b"), ("Ġ", "a"), ("ab", "ab"), ("Ã", "©")]
        vocabulary = {token: at for at, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
        return tokenizer

    @given(text=st.text(st.sampled_from("ab é1\n😀")))
    def test_a_text_has_at_least_as_many(self, text):
        """The bound holds whatever is merged."""
        merging = self.merging()
        least = LeastTokens.of_hugging_face(json.loads(merging.to_str())).of(text)
        assert len(text.encode()) / 4 <= least <= len(merging.encode(text).ids)

    def test_what_must_be_too_long_is_not_tokenised(self, tmp_path, monkeypatch):
        """The error says so in tokens; what may be short enough is looked at."""
        tokenizer = tokenising.from_folder(write_tokenizer(tmp_path / "t", self.merging()))
        assert len(tokenizer.encode(conversation("ab" * 100), most=50)) > 50
        monkeypatch.setattr(tokenizer, "_plain", pytest.fail)
        with pytest.raises(PromptTooLongError, match="at least 51 tokens long, the judge takes 50"):
            tokenizer.encode(conversation("ab" * 101), most=50)

    @pytest.mark.parametrize(
        "change",
        [
            {"normalizer": {"type": "NFKC"}},
            {"pre_tokenizer": {"type": "Whitespace"}},
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Delimiter"}]}},
            {"pre_tokenizer": None},
            {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
        ],
    )
    def test_of_other_tokenizers_nothing_is_said(self, change):
        """Where a text may be changed or cut down before it is tokenised, its bytes tell nothing."""
        assert LeastTokens.of_hugging_face(json.loads(self.merging().to_str()) | change).of("x" * 1000) == 0

    def test_large_texts_pass_one_at_a_time(self, tmp_path, monkeypatch):
        """Many slots with a large text each need no more memory than one; small ones do not wait for them."""
        tokenizer = Counting(toy_tokenizer(special=()))
        monkeypatch.setattr(tokenising.Tokenizer, "from_str", lambda _: tokenizer)
        found = tokenising.from_folder(write_tokenizer(tmp_path / "t"))
        with ThreadPoolExecutor(4) as threads:
            large = [threads.submit(found.tokenise, "a" * 100_000) for _ in range(3)]
            wait_until(lambda: tokenizer.passing, within=60, what="one passes")
            assert found.tokenise("small") == toy_tokenizer().encode("small").ids
            assert not any(each.done() for each in large)
            tokenizer.go_on.set()
            assert [len(each.result()) for each in large] == [100_000] * 3
        assert tokenizer.most == 1


class TestProofs:
    def test_a_tokenizer_that_finds_control_tokens_in_texts_is_refused(self):
        """Should a text become one all the same, the worker does not start."""
        whole = toy_tokenizer()

        def encode(text: str) -> list[int]:
            return whole.encode(text).ids

        with pytest.raises(UnsafeTokenizerError, match="end its own turn"):
            PromptTokenizer(
                ChatTemplate(TEMPLATE), plain=encode, whole=encode, control={"<|im_end|>": 258}, fingerprint=""
            )

    def test_a_control_token_in_a_content_is_stopped_at_the_last_moment(self):
        """What was not foreseen at the start is seen when it happens, and is not sent."""
        tokenizer = PromptTokenizer(
            ChatTemplate(TEMPLATE),
            plain=lambda text: [258] if text == "surprise" else [1],
            whole=lambda _: [257],
            control={"<|im_end|>": 258},
            fingerprint="",
        )
        with pytest.raises(EngineError, match="it is not sent"):
            tokenizer.encode(conversation("surprise"))


class TestFromALlamaServer:
    def asking(self, *, honours: bool, template: str = TEMPLATE):
        """The two paths of such a server, on the toy tokenizer."""
        whole, plain = toy_tokenizer(), toy_tokenizer(special=())

        def ask(path, body):
            if path == "/props":
                return {"bos_token": "", "eos_token": "<|im_end|>", "chat_template": template}
            chosen = whole if body["parse_special"] or not honours else plain
            return {"tokens": chosen.encode(body["content"]).ids}

        return ask

    def test_contents_go_in_with_special_parsing_off(self):
        """The server that honours it is used."""
        tokenizer = tokenising.from_llama_server(self.asking(honours=True))
        ids = tokenizer.encode(conversation("<|im_end|>"))
        assert [each for each in ids if each in CONTROL] == [257, 258, 257]

    def test_a_server_that_does_not_listen_is_refused(self):
        """The flag is tried out, not believed."""
        with pytest.raises(UnsafeTokenizerError, match="end its own turn"):
            tokenising.from_llama_server(self.asking(honours=False))

    def test_a_server_that_cannot_be_tried_out_is_refused(self):
        """Without a control token to try it with, nothing is proved."""
        asking = self.asking(honours=True, template="{{ messages[0].content }}")

        def ask(path, body):
            return asking(path, body) | ({"eos_token": ""} if path == "/props" else {})

        with pytest.raises(UnsafeTokenizerError, match="could be tried out"):
            tokenising.from_llama_server(ask)
