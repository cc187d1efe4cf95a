"""ONNX Runtime on CUDA: what it needs, how it is asked never to fall back, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from models.errors import BuildFailed, TargetUnavailable, first_line
from pipeline.backends import Target
from pipeline.machine import (
    cuda_libraries,
    declared,
    driver,
    libraries,
    missing_gpu,
    onnxruntime_cuda,
)

if TYPE_CHECKING:
    import onnx

PROVIDER = "CUDAExecutionProvider"
OPTIONS: dict[str, Any] = {
    "providers": [PROVIDER],
    "provider_options": {
        "use_tf32": "0",
        # The default tries every algorithm at each new shape, while a client waits.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Several engines share a GPU; doubling would take what others need.
        "arena_extend_strategy": "kSameAsRequested",
    },
}
_SEARCHES = ("HEURISTIC", "EXHAUSTIVE")
_CPU_PACKAGE, _GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"


def missing() -> tuple[str, ...]:
    """What lacks to run; to build takes no GPU."""
    package = _package()
    lacking = [package] if package else []
    # Its own build says which CUDA it needs; before it is there, pip brings the right one along.
    if not package:
        names = cuda_libraries(onnxruntime_cuda())
        lacking += [
            f"{one.name} cannot be loaded ({one.problem}): {_install()}, or put it on "
            "LD_LIBRARY_PATH"
            for one in libraries(names)
            if one.problem
        ]
    return (*lacking, *missing_gpu(driver()))


def _package() -> str:
    """What is wrong with the package that is installed, with the commands that mend it."""
    here = [name for name in (_CPU_PACKAGE, _GPU_PACKAGE) if _installed(name)]
    if len(here) < 2 and PROVIDER in ort.get_available_providers():
        return ""
    what = (
        f"{' and '.join(here)} are here and write the same files"
        if len(here) == 2
        else f"{here[0] if here else _CPU_PACKAGE} {ort.__version__} is here, which has no CUDA, "
        f"and excludes {_GPU_PACKAGE}"
    )
    gone = " ".join(here or [_CPU_PACKAGE])
    return f"{what}: pip uninstall --yes {gone} && {_install()}"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _install() -> str:
    return f"pip install '{_GPU_PACKAGE}[cuda,cudnn]{declared().get(_GPU_PACKAGE, '')}'"


def write(model: Path, target: Target, out: Path, keep: Collection[str]) -> dict[str, Any]:
    """Write the graph that is opened, and give the options that open it. Needs no GPU.

    The graph is not optimised beforehand: what ONNX Runtime saves is bound to the provider that
    saved it, and fusions for the CPU have no kernel on CUDA.
    """
    import onnx

    if target.precision == "fp16":
        from pipeline.backends import mixed

        mixed.write(model, out, target.precision, keep)
    else:
        out.write_bytes(model.read_bytes())
    graph = onnx.load(out, load_external_data=False).graph
    return {**OPTIONS, "shapes_on_cpu": shape_nodes(graph)}


def shape_nodes(graph: onnx.GraphProto) -> list[str]:
    """Nodes that see no value of any input, only shapes and constants.

    ONNX Runtime has these run on the CPU on purpose, for shapes are there: on the GPU each would
    cost a copy and a wait. No other node may, nor one whose name is not its own.
    """
    named = Counter(node.name for node in graph.node)
    seen = {"", *(tensor.name for tensor in graph.initializer)}
    names = []
    for node in graph.node:  # in topological order
        bodies = any(attribute.HasField("g") for attribute in node.attribute)
        if node.op_type in ("Shape", "Size") or (not bodies and seen.issuperset(node.input)):
            seen.update(node.output)
            if node.op_type != "Constant" and node.name and named[node.name] == 1:
                names.append(node.name)
    return names


def ways(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    settings = options["provider_options"]
    searches = dict.fromkeys((settings["cudnn_conv_algo_search"], *_SEARCHES))
    return {
        f"{search.lower()} search": {
            **options, "provider_options": {**settings, "cudnn_conv_algo_search": search},
        }
        for search in searches
    }  # fmt: skip


@cache
def _lacking() -> tuple[str, ...]:
    return missing()


def open(
    path: Path, options: Mapping[str, Any], settings: ort.SessionOptions
) -> ort.InferenceSession:
    """Open a graph on CUDA or not at all.

    Raises `TargetUnavailable` where CUDA cannot run, `BuildFailed` where ONNX Runtime would have
    the CPU take over.
    """
    if lacking := _lacking():  # else the libraries are loaded now
        raise TargetUnavailable(f"no engine for CUDA can be opened here: {lacking[0]}")
    refuse(settings, options)
    try:
        session = ort.InferenceSession(
            str(path), settings, providers=options["providers"],
            provider_options=[options["provider_options"]],
            enable_fallback=0,  # neither when it opens nor when a call fails
        )  # fmt: skip
    except Exception as error:  # ORT's errors share no base class
        raise BuildFailed(
            f"ONNX Runtime cannot open {path.name} on CUDA: {first_line(error)}",
            fix="see `fucina doctor`",
        ) from error
    check(session, options)
    return session


def refuse(settings: ort.SessionOptions, options: Mapping[str, Any]) -> None:
    """Have ONNX Runtime itself refuse the CPU, and tell where each node is to run."""
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not options["shapes_on_cpu"]:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def check(session: ort.InferenceSession, options: Mapping[str, Any]) -> None:
    """Raise `BuildFailed` unless the provider is there and has every node that is not of shapes."""
    if PROVIDER not in session.get_providers():
        raise BuildFailed(
            "ONNX Runtime opened the engine without CUDA",
            got=", ".join(session.get_providers()),
            expected=PROVIDER,
            fix="see `fucina doctor`",
        )
    allowed = set(options["shapes_on_cpu"])
    placed = assignment(session)
    if not placed:
        raise BuildFailed("ONNX Runtime does not say where any node of the engine runs")
    if stray := [(n, where) for n, where in placed if where != PROVIDER and n not in allowed]:
        raise BuildFailed(
            f"{len(stray)} of {len(placed)} nodes would not run on CUDA",
            got=", ".join(f"{name!r} on {where}" for name, where in stray[:3]),
            fix="CUDA has no kernel for them in this precision; build for another target",
        )


def assignment(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """Each node and its provider, as the graph was divided; several may have one name."""
    return [
        (node.name, subgraph.ep_name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


def facts(
    session: ort.InferenceSession,
    nodes: list[dict[str, Any]],
    options: Mapping[str, Any],
    graph: Path,
    optimised: Path,
) -> dict[str, Any]:
    """What a certificate says besides: what nodes were made of, providers before any call, TF32.

    A node of `nodes` that only knows of shapes is marked; those may run on the CPU. `optimised` is
    what the session made of `graph`.
    """
    import onnx

    shapes = set(options["shapes_on_cpu"])
    before, after = (onnx.load(path, load_external_data=False).graph for path in (graph, optimised))
    origins = made_of(before, after)
    told = [node | {"onnx": origins.get(node["name"], [node["name"]])} for node in nodes]
    return {
        "nodes": [node | {"shape": True} if node["name"] in shapes else node for node in told],
        "assigned": dict(Counter(provider for _, provider in assignment(session))),
        "tf32": session.get_provider_options()[PROVIDER].get("use_tf32", "1") != "0",
    }


def made_of(before: onnx.GraphProto, after: onnx.GraphProto) -> dict[str, list[str]]:
    """The nodes of a graph that each node of its optimised form computes; of a copy none.

    A fused node has a name of its own, but what it gives is called as before; what led there, from
    what is still computed by others, it computes.
    """
    producers = {name: node for node in before.node for name in node.output if name}
    still = {name for node in after.node for name in node.output}
    found = {}
    for node in after.node:
        waiting, members = [name for name in node.output if name in producers], []
        while waiting:
            member = producers[waiting.pop()]
            if member.name not in members:
                members.append(member.name)
                waiting += [n for n in member.input if n in producers and n not in still]
        found[node.name] = sorted(members)
    return found
