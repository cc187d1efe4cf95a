"""Kit: a folder that reproduces where an engine diverges, with numpy and onnxruntime alone."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.signature import Arrays
from pipeline.artifacts import write_bytes, write_json
from pipeline.diverge import Divergence
from pipeline.intermediates import unoptimised
from pipeline.matching import differs, inputs_of
from pipeline.versions import libraries

if TYPE_CHECKING:
    import onnx

_TEMPLATES = Path(__file__).parent / "templates"


def write_kit(folder: Path, found: Divergence) -> None:
    """Write `minimal.onnx`, its arrays, `reproduce.py` and what is needed to run it into `folder`.

    The graph goes from the last tensors that are right to the first that is not; the whole one
    where those are not enough to see it. Nothing of what only is declared otherwise, which there is
    no running of.
    """
    import onnx

    if found.diagnosis.kind == "declared":
        return
    folder.mkdir(parents=True)
    graph, inputs, expected = _minimal(found) or _whole(found)
    onnx.save_model(graph, folder / "minimal.onnx")
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]
    level = found.options.get("optimization_level", "ALL")
    settings = {
        "limits": {name: found.limits.get(name, found.tolerance) for name in expected},
        "optimization_level": "DISABLE_ALL" if level == "DISABLE_ALL" else f"ENABLE_{level}",
        "intra_op_threads": found.options.get("intra_op_threads", 1),
    }
    write_json(folder / "settings.json", settings)
    versions = libraries("numpy", "onnxruntime") | {
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    write_json(folder / "versions.json", versions)
    write_bytes(folder / "reproduce.py", (_TEMPLATES / "reproduce.py").read_bytes())
    words = found.diagnosis.model_dump() | versions
    readme = (_TEMPLATES / "kit.md").read_text().format(**words)
    write_bytes(folder / "README.md", readme.encode())


def extract(
    graph: onnx.ModelProto, inputs: Mapping[str, np.ndarray], outputs: Iterable[str]
) -> onnx.ModelProto:
    """The part of a graph that computes `outputs` from tensors of these values."""
    import onnx
    from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

    outputs = list(outputs)
    part = onnx.ModelProto()
    part.CopyFrom(graph)
    needed, nodes = set(outputs), []
    for node in reversed(graph.graph.node):
        if needed.intersection(node.output) - inputs.keys():
            nodes.append(node)
            needed.update(name for name in inputs_of(node) if name not in inputs)
    read = {name for node in nodes for name in inputs_of(node)}
    for field in ("node", "input", "output", "value_info", "initializer"):
        part.graph.ClearField(field)
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in graph.graph.initializer if t.name in read)
    part.graph.input.extend(
        make_tensor_value_info(name, np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
        if name in read
    )
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part


def _minimal(found: Divergence) -> tuple[onnx.ModelProto, Arrays, Arrays] | None:
    """From right tensors to the first wrong one; None where that by itself is not wrong.

    To the outputs, where nobody knows what that tensor should be.
    """
    if found.diagnosis.kind != "values":
        return None
    first = found.diagnosis.tensor
    targets = [first] if first in found.expected else list(found.case.reference)
    computed = {name for node in found.graph.graph.node if node.input for name in node.output}
    right = found.known & (computed | found.case.inputs.keys()) - set(targets)
    known = {name: found.values[name] for name in sorted(right)}
    graph = extract(found.graph, known, targets)
    inputs = {value.name: known[value.name] for value in graph.graph.input}
    expected = {name: found.expected[name] for name in targets}
    try:
        answers = unoptimised(graph)(inputs)
    except Exception:  # whatever the runtime raises: a node that fails is what was to be shown
        return (graph, inputs, expected) if found.diagnosis.error is None else None
    limits = {name: found.limits.get(name, found.tolerance) for name in targets}
    shown = any(differs(answers[n], expected[n], limits[n]) for n in targets)
    return (graph, inputs, expected) if shown else None


def _whole(found: Divergence) -> tuple[onnx.ModelProto, Arrays, Arrays]:
    given = {value.name for value in found.graph.graph.input}
    inputs = {name: array for name, array in found.case.inputs.items() if name in given}
    return found.graph, inputs, dict(found.case.reference)
