"""Reads, from source, what a program uses of TensorRT-LLM: imports, classes, keywords, methods, attributes, members."""

import ast
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

CLASSES = ("LLM", "SamplingParams", "KvCacheConfig", "SchedulerConfig", "BuildConfig", "QuantConfig", "CalibConfig")
ENUMS = ("CapacitySchedulerPolicy", "QuantAlgo")

HELD: Mapping[str, str] = {
    "self._llm": "LLM",
    "llm": "LLM",
    "build": "BuildConfig",
    "build.plugin_config": "PluginConfig",
    "request.future": "RequestOutput",
    "output": "CompletionOutput",
    "self._sampling_params": "SamplingParams",
}
"""What the program calls its objects of the library's, and what these are."""

DICTS: Mapping[str, str] = {"quantised": "LLM"}
"""Dicts that become keywords of a class."""


@dataclass(frozen=True)
class Api:
    """What there is."""

    fields: Mapping[str, AbstractSet[str]]
    """Keywords and attributes, by class."""
    methods: Mapping[str, Mapping[str, tuple[str, ...]]]
    """The arguments of methods, by class."""
    members: Mapping[str, AbstractSet[str]]
    """Of enums."""
    imports: AbstractSet[str]


@dataclass
class Usage:
    """What is used that is not there, and which of the names above were met."""

    unknown: list[str] = field(default_factory=list)
    met: set[str] = field(default_factory=set)


def usage(source: str, api: Api) -> Usage:
    """Walk a source file and hold all it uses of the library to what there is."""
    found = Usage()
    for node in ast.walk(ast.parse(source)):
        found.unknown += _unknown(node, api, found.met)
    return found


def _unknown(node: ast.AST, api: Api, met: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"import {each.name}" for each in node.names if each.name.startswith("tensorrt_llm"))
    elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tensorrt_llm":
        names = {f"{node.module}.{each.name}" for each in node.names}
        met |= {each.rpartition(".")[2] for each in names}
        yield from sorted(names - api.imports)
    elif isinstance(node, ast.Call):
        yield from _in_call(node, api, met)
    elif isinstance(node, ast.Attribute):
        yield from _in_attribute(node, api, met)
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in DICTS and isinstance(node.slice, ast.Constant):
        name = DICTS[ast.unparse(node.value)]
        met.add(ast.unparse(node.value))
        if node.slice.value not in api.fields[name]:
            yield f"{name}({node.slice.value}=)"


def _in_call(node: ast.Call, api: Api, met: set[str]) -> Iterator[str]:
    called = ast.unparse(node.func)
    known: AbstractSet[str]
    if called in CLASSES or HELD.get(called) in CLASSES:
        name = HELD.get(called, called)
        known = api.fields[name]
    else:
        holder, _, method = called.rpartition(".")
        name = f"{HELD.get(holder)}.{method}"
        if HELD.get(holder) not in api.methods or method not in api.methods[HELD[holder]]:
            return
        known = frozenset(api.methods[HELD[holder]][method])
        if len(node.args) > len(known):
            yield f"{name} with {len(node.args)} arguments"
    met.add(name)
    for keyword in node.keywords:
        if keyword.arg is None and ast.unparse(keyword.value) not in DICTS:
            yield f"{name}(**{ast.unparse(keyword.value)})"
        elif keyword.arg is not None and keyword.arg not in known:
            yield f"{name}({keyword.arg}=)"


def _in_attribute(node: ast.Attribute, api: Api, met: set[str]) -> Iterator[str]:
    holder = ast.unparse(node.value)
    if holder in ENUMS:
        met.add(holder)
        if node.attr not in api.members[holder]:
            yield f"{holder}.{node.attr}"
    elif holder in HELD:
        met.add(holder)
        name = HELD[holder]
        if node.attr not in api.fields.get(name, frozenset()) | set(api.methods.get(name, ())):
            yield f"{name}.{node.attr}"
