"""Engines by ONNX Runtime, on the CPU or CUDA: a graph and recorded session settings."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.errors import BuildFailed, first_line
from models.signature import Arrays, Signature
from pipeline.backends import DEFAULT_TARGET, TARGETS, Built, Target, ort_cuda
from pipeline.machine import gpu

# Saved at EXTENDED, whose fusions hold on any CPU; opened at ALL, which adds the memory layout
# of the CPU that serves. A graph saved at ALL is bound to the CPU that built it.
_SAVED_LEVEL = "EXTENDED"
_OPTIONS: dict[str, Any] = {
    "providers": ["CPUExecutionProvider"],
    "optimization_level": "ALL",
    "execution_mode": "SEQUENTIAL",
    # One thread an engine: small graphs gain nothing from more, and workers scale by processes.
    "intra_op_threads": 1,
    "inter_op_threads": 1,
}
_FILE = "engine.onnx"

# Nodes that the session adds by itself are numbered in an order that differs from run to run.
_NUMBERED = re.compile(r"_token_\d+$")

# ONNX Runtime's words for what every backend reports in the same terms.
_DEVICES = {"CPUExecutionProvider": "cpu", ort_cuda.PROVIDER: "cuda"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("bool", "float16", "uint8")},
    **{f"tensor(int{bits})": f"int{bits}" for bits in (8, 16, 32, 64)},
}
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}


class OrtSession:
    """One ONNX Runtime session behind the `Session` interface."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        answers = self._session.run(self._outputs, dict(inputs))
        return {n: np.asarray(a) for n, a in zip(self._outputs, answers, strict=True)}


def build(
    model: Path,
    signature: Signature,
    target: Target,
    out: Path,
    *,
    keep: Collection[str] = (),
    scratch: Path | None = None,
) -> Built:
    if target.device == "cuda":
        options = _OPTIONS | ort_cuda.write(model, target, out / _FILE, keep)
        return Built(files=(_FILE,), options=options, built_on=host(target))
    if target.precision == "int8":
        from pipeline.backends.ort_int8 import quantise

        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / model.name
            quantise(model, signature, graph, keep, (scratch or Path(folder)) / "ranges.json")
            return _save(graph, target, out)
    return _save(model, target, out)


def host(target: Target) -> dict[str, str]:
    facts = {
        "onnxruntime": ort.__version__, "machine": platform.machine(), "os": platform.system()
    }  # fmt: skip
    return facts | (gpu() if target.device == "cuda" else {})


def bound() -> tuple[str, ...]:
    return ()


def rebuild(graph: Path, signature: Signature, target: Target, out: Path) -> Built:
    if target.device == "cuda":  # the graph has its precision already
        return build(graph, signature, replace(target, precision="fp32"), out)
    return adopt(graph, (), out)


def missing(target: Target, *, to_run: bool = True) -> tuple[str, ...]:
    if to_run:
        return ort_cuda.missing() if target.device == "cuda" else ()
    writes = target.device == "cuda" or target.precision == "int8"  # a graph, from a graph
    here = importlib.util.find_spec("onnx") is not None or not writes
    return () if here else ("the package 'onnx' is not installed: pip install 'fucina[train]'",)


def lowered(model: Path, target: Target) -> tuple[str, ...]:
    if target.precision == "int8":
        from pipeline.backends.ort_int8 import products as nodes
    else:
        from pipeline.backends.mixed import lowered as nodes

    return nodes(model)


def sensitive(model: Path, signature: Signature, target: Target) -> dict[str, str]:
    if target.precision == "int8":
        return {}
    from pipeline.backends.sensitive import sensitive as found

    return found(model, signature, target.precision)


def ways(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if _on_cuda(options):
        return ort_cuda.ways(options)
    threads = dict.fromkeys((options["intra_op_threads"], os.cpu_count() or 1))
    levels = dict.fromkeys((options["optimization_level"], "EXTENDED"))
    return {
        f"{count} {'thread' if count == 1 else 'threads'}, {level}": {
            **options, "intra_op_threads": count, "optimization_level": level,
        }
        for count in threads
        for level in levels
    }  # fmt: skip


def _save(model: Path, target: Target, out: Path) -> Built:
    settings = _settings({**_OPTIONS, "optimization_level": _SAVED_LEVEL})
    settings.optimized_model_filepath = str(out / _FILE)
    try:
        ort.InferenceSession(str(model), settings, providers=_OPTIONS["providers"])
    except Exception as error:  # ORT's errors share no base class
        raise BuildFailed(
            f"ONNX Runtime refuses {model.name}: {first_line(error)}",
            fix="see the node it names in the exported graph",
        ) from error
    return Built(files=(_FILE,), options=dict(_OPTIONS), built_on=host(target))


def open(folder: Path, files: Mapping[str, str], options: Mapping[str, Any]) -> OrtSession:
    return OrtSession(_session(folder, options, _settings(options)))


def as_written(model: Path) -> OrtSession:
    settings = _settings(_OPTIONS)
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return OrtSession(ort.InferenceSession(str(model), settings, providers=_OPTIONS["providers"]))


def effective(
    folder: Path, files: Mapping[str, str], options: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], Arrays]:
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(scratch) / "profile")
        optimised = Path(scratch) / _FILE
        if _on_cuda(options):
            settings.optimized_model_filepath = str(optimised)
        session = _session(folder, options, settings)
        answers = OrtSession(session).run(inputs)
        nodes = _ran(json.loads(Path(session.end_profiling()).read_text()))
        facts = {
            "declared": declared([*session.get_inputs(), *session.get_outputs()]),
            "nodes": nodes,
            "devices": dict(Counter(node["device"] for node in nodes)),
            "precisions": dict(Counter(node["precision"] for node in nodes)),
            "tf32": False,  # the CPU has no such mode
        }
        if _on_cuda(options):
            facts |= ort_cuda.facts(session, nodes, options, folder / _FILE, optimised)
    return facts, answers


def _ran(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    nodes = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            dtypes: set[str] = {d for output in facts.get("output_type_shape", []) for d in output}
            nodes.append(
                {
                    "name": _NUMBERED.sub("", event["name"].removesuffix("_kernel_time")),
                    "operator": facts.get("op_name", ""),
                    "device": _DEVICES.get(facts.get("provider", ""), facts.get("provider", "")),
                    "precision": "+".join(sorted(_PRECISIONS.get(d) or d for d in dtypes)),
                }
            )
    return nodes


def declared(values: Sequence[ort.NodeArg]) -> dict[str, str]:
    """Tensors of a session as `TensorSpec.declared` writes them."""
    return {
        value.name: f"{_DTYPES.get(value.type, value.type)}[{', '.join(map(str, value.shape))}]"
        for value in values
    }


def adopt(model: Path, weights: Sequence[str], out: Path) -> Built:
    """Take a graph as an engine just as it is, with the files beside it that hold its weights."""
    shutil.copyfile(model, out / _FILE)
    for name in weights:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.parent / name, out / name)
    return Built((_FILE, *weights), dict(_OPTIONS), host(TARGETS[DEFAULT_TARGET]))


def _session(
    folder: Path, options: Mapping[str, Any], settings: ort.SessionOptions
) -> ort.InferenceSession:
    path = folder / _FILE
    if _on_cuda(options):
        return ort_cuda.open(path, options, settings)
    try:
        return ort.InferenceSession(str(path), settings, providers=options["providers"])
    except Exception as error:
        raise BuildFailed(
            f"ONNX Runtime cannot open {path.name}: {first_line(error)}",
            fix=f"build it again with the ONNX Runtime that is here, {ort.__version__}",
        ) from error


def _on_cuda(options: Mapping[str, Any]) -> bool:
    return ort_cuda.PROVIDER in options["providers"]


def _settings(options: Mapping[str, Any]) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, f"ORT_ENABLE_{options['optimization_level']}"
    )
    settings.execution_mode = getattr(ort.ExecutionMode, f"ORT_{options['execution_mode']}")
    settings.intra_op_num_threads = options["intra_op_threads"]
    settings.inter_op_num_threads = options["inter_op_threads"]
    settings.log_severity_level = 4  # what fails is raised; no need to print it as well
    return settings
