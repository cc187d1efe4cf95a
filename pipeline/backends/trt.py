"""Engines by TensorRT: a graph that holds its precision, and the plan compiled from it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.errors import TargetUnavailable
from models.signature import Arrays, Signature
from pipeline.backends import Built, Session, Target
from pipeline.backends.trt_build import GRAPH, LAYERS, PLAN, compile_graph
from pipeline.backends.trt_library import has, library, missing_to_run, versions
from pipeline.machine import gpu
from pipeline.progress import Progress, silent

_AS_THEY_ARE = ("fp32", "tf32")
_HALF = ("fp16", "bf16")
# Operators that ONNX has in a precision and TensorRT does not take: its parser mixes the types of
# a GRU, and its compiler cannot type the other.
_LACKING = {"bf16": ("ConvTranspose", "GRU")}
_OPTIONS = {"cuda_graphs": True}  # where a session measures that they pay


def build(
    model: Path,
    signature: Signature,
    target: Target,
    out: Path,
    *,
    keep: Collection[str] = (),
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Built:
    graph = out / GRAPH
    if target.precision in _AS_THEY_ARE:
        shutil.copyfile(model, graph)
    elif target.precision in _HALF:
        from pipeline.backends.mixed import write

        write(model, graph, target.precision, keep)
    else:
        from pipeline.backends.qdq import quantise

        with tempfile.TemporaryDirectory() as folder:
            ranges = (scratch or Path(folder)) / "ranges.json"
            quantise(model, signature, graph, keep, ranges, target.precision)
    return rebuild(graph, signature, target, out, progress=progress)


def rebuild(
    graph: Path, signature: Signature, target: Target, out: Path, *, progress: Progress = silent
) -> Built:
    """Compile an engine's own graph again, such as for another GPU; it has its precision."""
    if graph != out / GRAPH:
        shutil.copyfile(graph, out / GRAPH)
    report = compile_graph(
        out / GRAPH, signature, out,
        tf32=target.precision == "tf32", gpu=gpu(), progress=progress,
    )  # fmt: skip
    return Built(
        files=(PLAN, GRAPH, LAYERS), options=dict(_OPTIONS), built_on=host(target), report=report
    )


def host(target: Target) -> dict[str, str]:
    return {
        **versions(), "machine": platform.machine(), "os": platform.system(), **gpu()
    }  # fmt: skip


def bound() -> tuple[str, ...]:
    # Not the driver: a plan survives it.
    return (*versions(), "machine", "os", "gpu", "compute_capability")


def missing(target: Target, *, to_run: bool = True) -> tuple[str, ...]:
    lacks = []
    try:
        library()
    except TargetUnavailable as error:
        lacks.append(str(error))
    else:
        if target.precision == "fp8" and not has("DataType", "FP8"):
            lacks.append("this TensorRT has no fp8: install a newer one")
    if target.precision not in _AS_THEY_ARE and importlib.util.find_spec("onnx") is None:
        lacks.append("the package 'onnx' is not installed: pip install 'fucina[train]'")
    return (*lacks, *(missing_to_run() if to_run else ()))


def lowered(model: Path, target: Target) -> tuple[str, ...]:
    if target.precision in _HALF:
        from pipeline.backends.mixed import lowered as nodes

        return nodes(model)
    from pipeline.backends.qdq import products

    return products(model)


def sensitive(model: Path, signature: Signature, target: Target) -> dict[str, str]:
    if target.precision not in _HALF:
        return {}
    from pipeline.backends.graphs import named
    from pipeline.backends.mixed import sensitive as found

    lacking = {
        node.name: f"TensorRT takes no {node.op_type} in {target.precision}"
        for node in named(model).graph.node
        if node.op_type in _LACKING.get(target.precision, ())
    }
    return found(model, signature, target.precision) | lacking


def ways(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "graphs where they pay": dict(options), "launches": {**options, "cuda_graphs": False}
    }  # fmt: skip


def open(folder: Path, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
    from pipeline.backends.trt_run import open_plan

    return open_plan(folder, files, options)


def as_written(model: Path) -> Session:
    from pipeline.backends.ort import as_written as on_the_cpu

    return on_the_cpu(model)


def effective(
    folder: Path, files: Mapping[str, str], options: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], Arrays]:
    from pipeline.backends.trt_run import effective as measured

    return measured(folder, files, options, inputs)
