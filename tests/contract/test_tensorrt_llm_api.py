"""The adapter and the builder use nothing of TensorRT-LLM that is not there, and the stand-in takes nothing else.

Two witnesses: the stand-in's own table, which comes with the checkout, and the API data that it was taken down from,
where that is beside the checkout (NVIDIA's API stability references and a dump of argument classes around 1.2.1).
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.gpu import gpu_host
from support.trt_usage import CLASSES, DICTS, ENUMS, HELD, Api, usage

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / "worker" / "engines" / "tensorrt_llm"
SOURCES = sorted(ADAPTER.glob("*.py"))
REFERENCE = ROOT.parent / "shared" / "reference"

# What the data does not list and the notes beside it, read in the library's source, do.
FROM_THE_NOTES = {
    "LLM.save": "llm.save(dir)",
    "QuantAlgo.FP8": "QuantAlgo.FP8",
    "QuantAlgo.W4A16_AWQ": "QuantAlgo.W4A16_AWQ",
    "tensorrt_llm.SamplingParams": "from tensorrt_llm import SamplingParams",
    "tensorrt_llm.llmapi.RequestError": "RequestError = per-request",
    "tensorrt_llm.llmapi.CalibConfig": "from tensorrt_llm.llmapi import CalibConfig, QuantAlgo, QuantConfig",
    "tensorrt_llm.llmapi.QuantAlgo": "from tensorrt_llm.llmapi import CalibConfig, QuantAlgo, QuantConfig",
    "tensorrt_llm.llmapi.QuantConfig": "from tensorrt_llm.llmapi import CalibConfig, QuantAlgo, QuantConfig",
    "tensorrt_llm.llmapi.CapacitySchedulerPolicy": "from tensorrt_llm.llmapi import CapacitySchedulerPolicy",
}


@pytest.fixture(scope="module")
def surface() -> Any:
    """The stand-in's table."""
    with gpu_host():
        from tensorrt_llm import _surface  # noqa: PLC0415 - the stand-in's

        yield _surface


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """The API data: the dump, and the references by their kind, those that are committed and the others as one."""
    folder = REFERENCE / "tensorrt-llm-api"
    if not folder.is_dir():
        pytest.skip("the API data of TensorRT-LLM is not beside this checkout (../shared/reference/tensorrt-llm-api)")
    references: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "upstream").glob("*.yaml")):
        kind = references.setdefault(file.name.split(".")[1], {"methods": {}, "properties": {}})
        content = yaml.safe_load(file.read_text())
        for name, method in content["methods"].items():
            kind["methods"].setdefault(name, {}).update(method["parameters"])
        kind["properties"].update(content["properties"])
    return {"dump": json.loads((folder / "derived" / "contract.json").read_text()), "references": references}


@pytest.fixture(scope="module")
def notes() -> str:
    """The notes beside the data."""
    file = REFERENCE / "tensorrt-llm.md"
    if not file.is_file():
        pytest.skip("the notes on TensorRT-LLM are not beside this checkout (../shared/reference/tensorrt-llm.md)")
    return file.read_text()


def from_table(surface: Any) -> Api:
    """What there is by the stand-in's table."""
    tables = {
        "LLM": surface.LLM,
        "SamplingParams": surface.SAMPLING_PARAMS,
        "KvCacheConfig": surface.KV_CACHE_CONFIG,
        "SchedulerConfig": surface.SCHEDULER_CONFIG,
        "BuildConfig": surface.BUILD_CONFIG,
        "PluginConfig": surface.PLUGIN_CONFIG,
        "QuantConfig": surface.QUANT_CONFIG,
        "CalibConfig": surface.CALIB_CONFIG,
        "RequestOutput": surface.REQUEST_OUTPUT,
        "CompletionOutput": surface.COMPLETION_OUTPUT,
    }
    return Api(
        fields={name: frozenset(table) for name, table in tables.items()},
        methods=surface.METHODS,
        members={
            "CapacitySchedulerPolicy": frozenset(surface.CAPACITY_SCHEDULER_POLICIES),
            "QuantAlgo": frozenset(surface.QUANT_ALGOS),
        },
        imports=surface.IMPORTS,
    )


def from_data(data: dict[str, Any]) -> Api:
    """What there is by the data and, for the few names above, by the notes."""
    dump, references = data["dump"], data["references"]
    fields = {
        name: frozenset(dump[name]["fields"])
        for name in ("KvCacheConfig", "SchedulerConfig", "BuildConfig", "PluginConfig", "CompletionOutput")
    }
    arguments = dump["TrtLlmArgs"]
    fields["LLM"] = frozenset(arguments["fields_trt_only"]) | frozenset(arguments["fields_shared_used"])
    for name, kind in (
        ("SamplingParams", "sampling_params"),
        ("QuantConfig", "quant_config"),
        ("CalibConfig", "calib_config"),
    ):
        fields[name] = frozenset(references[kind]["methods"]["__init__"])
    result = references["request_output"]
    fields["RequestOutput"] = (frozenset(result["methods"]) | frozenset(result["properties"])) - {"__init__"}
    methods = {
        "LLM": {name: tuple(of) for name, of in references["llm"]["methods"].items()} | {"save": ("engine_dir",)},
        "RequestOutput": {name: tuple(of) for name, of in result["methods"].items()},
    }
    imports = set(FROM_THE_NOTES)
    for each in dump.values():
        imports |= set(re.findall(r"tensorrt_llm\.[\w.]+", each.get("import", "")))
    return Api(
        fields=fields,
        methods=methods,
        members={
            "CapacitySchedulerPolicy": frozenset(dump["SchedulerConfig"]["enums"]["CapacitySchedulerPolicy"]),
            "QuantAlgo": frozenset(each.partition(".")[2] for each in FROM_THE_NOTES if each.startswith("QuantAlgo.")),
        },
        imports=imports,
    )


@pytest.fixture(params=["the stand-in's table", "the API data"])
def api(request: pytest.FixtureRequest) -> Api:
    """What there is, by either witness."""
    if request.param == "the API data":
        return from_data(request.getfixturevalue("data"))
    return from_table(request.getfixturevalue("surface"))


class TestUse:
    @pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
    def test_everything_that_is_used_is_there(self, file: Path, api: Api):
        """Every import, class, keyword, method, attribute and member that the adapter and the builder use exists."""
        assert usage(file.read_text(), api).unknown == []

    def test_the_walk_sees_what_it_is_to_see(self, api: Api):
        """Each class, enum and object that the walk knows is met in the sources, so that none is passed over."""
        met = set().union(*(usage(file.read_text(), api).met for file in SOURCES))
        assert {*CLASSES, *ENUMS, *HELD, *DICTS} <= met | {"self._sampling_params"}
        assert {"LLM.generate_async", "LLM.get_stats", "LLM.save", "RequestOutput.result", "RequestError"} <= met

    @pytest.mark.parametrize(
        ("file", "was", "becomes", "expected"),
        [
            ("engine.py", "enable_chunked_prefill=True", "enable_chunked_prefill=True, made_up=1", "LLM(made_up=)"),
            ("engine.py", "enable_chunked_prefill=True", "cuda_graph_config=None", "LLM(cuda_graph_config=)"),
            ("engine.py", "top_k=1,", "top_k=1, made_up=1,", "SamplingParams(made_up=)"),
            ("engine.py", "enable_block_reuse=reuse", "reuse_blocks=reuse", "KvCacheConfig(reuse_blocks=)"),
            ("engine.py", "capacity_scheduler_policy=", "policy=", "SchedulerConfig(policy=)"),
            ("engine.py", ".GUARANTEED_NO_EVICT", ".NO_EVICT", "CapacitySchedulerPolicy.NO_EVICT"),
            ("engine.py", "streaming=False,", "stream=False,", "LLM.generate_async(stream=)"),
            ("engine.py", "get_stats(timeout=", "get_stats(wait=", "LLM.get_stats(wait=)"),
            ("engine.py", "output.generation_logits", "output.logits", "CompletionOutput.logits"),
            ("engine.py", "request.future.abort()", "request.future.cancel()", "RequestOutput.cancel"),
            ("engine.py", "result(timeout=", "result(within=", "RequestOutput.result(within=)"),
            ("engine.py", "self._llm.shutdown()", "self._llm.close()", "LLM.close"),
            ("engine.py", "import SamplingParams ", "import Sampling as SamplingParams ", "tensorrt_llm.Sampling"),
            ("compiler.py", "max_beam_width=1,", "beams=1,", "BuildConfig(beams=)"),
            ("compiler.py", ".use_paged_context_fmha =", ".paged_fmha =", "PluginConfig.paged_fmha"),
            ("compiler.py", 'quantised["quant_config"]', 'quantised["quantisation"]', "LLM(quantisation=)"),
            ("compiler.py", "calib_batches=", "batches=", "CalibConfig(batches=)"),
            ("compiler.py", "kv_cache_quant_algo=", "kv_cache=", "QuantConfig(kv_cache=)"),
            ("compiler.py", "QuantAlgo.W4A16_AWQ", "QuantAlgo.AWQ", "QuantAlgo.AWQ"),
            ("compiler.py", "llm.save(", "llm.write(", "LLM.write"),
        ],
    )
    def test_a_made_up_name_is_found(self, api: Api, file: str, was: str, becomes: str, expected: str):
        """With any one name in the source changed to one that is not there, the walk says which."""
        source = (ADAPTER / file).read_text()
        assert was in source
        assert expected in usage(source.replace(was, becomes), api).unknown


class TestStandIn:
    def test_the_table_is_that_of_the_data(self, surface: Any, data: dict[str, Any]):
        """Every class of the stand-in takes the names that the data gives it, no more and no fewer."""
        table, witness = from_table(surface), from_data(data)
        assert {name: table.fields[name] ^ witness.fields[name] for name in table.fields} == dict.fromkeys(
            table.fields, frozenset()
        )
        assert table.members == witness.members
        assert table.imports <= witness.imports
        for name, methods in table.methods.items():
            for method, arguments in methods.items():
                assert set(arguments) == set(witness.methods[name][method]), f"{name}.{method}"

    def test_defaults_are_those_of_the_data(self, surface: Any, data: dict[str, Any]):
        """What is left out means the same as in the real library."""
        dump, references = data["dump"], data["references"]
        expected = {
            "KV_CACHE_CONFIG": {name: default for name, (_, default) in dump["KvCacheConfig"]["fields"].items()},
            "BUILD_CONFIG": {name: default for name, (_, default) in dump["BuildConfig"]["fields"].items()},
            "PLUGIN_CONFIG": {name: default for name, (_, default) in dump["PluginConfig"]["fields"].items()},
            "SCHEDULER_CONFIG": {name: default for name, (_, default) in dump["SchedulerConfig"]["fields"].items()},
        }
        for table, kind in (
            ("QUANT_CONFIG", "quant_config"),
            ("CALIB_CONFIG", "calib_config"),
            ("SAMPLING_PARAMS", "sampling_params"),
        ):
            parameters = references[kind]["methods"]["__init__"]
            expected[table] = {name: parameter["default"] for name, parameter in parameters.items()}
        for table, defaults in expected.items():
            assert {name: default for name, (_, default) in getattr(surface, table).items()} == defaults, table

    def test_what_only_the_other_class_takes_is_not_in_the_table(self, surface: Any, data: dict[str, Any]):
        """Arguments of the PyTorch class, which the engine class rejects, are no arguments here."""
        assert set(surface.LLM).isdisjoint(data["dump"]["TrtLlmArgs"]["torch_only_rejected"])

    def test_the_notes_say_what_the_data_leaves_out(self, notes: str):
        """The few names that are in no reference stand word for word in the notes that were made from the source."""
        assert [name for name, words in FROM_THE_NOTES.items() if words not in notes] == []

    def test_methods_have_the_arguments_of_the_table(self, surface: Any):
        """The stand-in's own methods are written as the table has them."""
        with gpu_host():
            from tensorrt_llm import _tensorrt_engine  # noqa: PLC0415 - the stand-in's

            for name, methods in surface.METHODS.items():
                for method, arguments in methods.items():
                    if method == "aresult":
                        continue  # needs an event loop, and is not used
                    written = inspect.signature(getattr(getattr(_tensorrt_engine, name), method)).parameters
                    assert tuple(written)[1:] == arguments


@pytest.fixture
def llmapi() -> Iterator[Any]:
    """The stand-in's classes."""
    with gpu_host():
        from tensorrt_llm import llmapi  # noqa: PLC0415 - the stand-in's

        yield llmapi


class TestStrictness:
    @pytest.mark.parametrize("name", ["KvCacheConfig", "SchedulerConfig", "BuildConfig", "QuantConfig", "CalibConfig"])
    def test_unknown_names_are_refused(self, llmapi: Any, name: str):
        """As pydantic forbids extra fields in the real classes, it does here."""
        getattr(llmapi, name)()
        with pytest.raises(ValueError, match="made_up"):
            getattr(llmapi, name)(made_up=1)

    def test_sampling_params_take_keywords_alone(self, llmapi: Any):
        """An unknown keyword is a TypeError, and an unknown attribute an AttributeError."""
        with pytest.raises(TypeError, match="made_up"):
            llmapi.SamplingParams(made_up=1)
        with pytest.raises(TypeError):
            llmapi.SamplingParams(1)
        with pytest.raises(AttributeError):
            llmapi.SamplingParams().made_up = 1

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("KvCacheConfig", {"enable_block_reuse": "yes"}),
            ("KvCacheConfig", {"free_gpu_memory_fraction": 1.5}),
            ("BuildConfig", {"max_batch_size": "many"}),
            ("CalibConfig", {"device": "gpu"}),
            ("SchedulerConfig", {"capacity_scheduler_policy": "NO_EVICT"}),
            ("SamplingParams", {"max_tokens": 1.5}),
        ],
    )
    def test_values_of_another_type_are_refused(self, llmapi: Any, name: str, given: dict[str, Any]):
        """A value that the real class would not take is a ValueError."""
        with pytest.raises(ValueError, match=r"."):
            getattr(llmapi, name)(**given)

    def test_plugin_settings_are_checked_when_they_are_set(self, llmapi: Any):
        """A plugin setting that is not there cannot be assigned."""
        build = llmapi.BuildConfig()
        build.plugin_config.gemm_plugin = "auto"
        with pytest.raises(ValueError, match="made_up"):
            build.plugin_config.made_up = True

    def test_the_engine_class_refuses_what_the_other_takes(self, tmp_path: Path):
        """An argument of the PyTorch class is a ValueError before anything is loaded."""
        with gpu_host():
            from tensorrt_llm._tensorrt_engine import LLM  # noqa: PLC0415 - the stand-in's

            with pytest.raises(ValueError, match="cuda_graph_config"):
                LLM(model=str(tmp_path), cuda_graph_config=None)
