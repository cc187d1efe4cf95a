"""Intermediates: what each node of a graph computes, exposed as outputs, or a module, written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.signature import Arrays
from pipeline.artifacts import pack, write_bytes
from pipeline.compare import Run

if TYPE_CHECKING:
    import onnx

# A module's steps by case, beside its recorded cases. Named in `OnnxModel.apart`.
INTERMEDIATES = "intermediates.safetensors"
_MOST_BYTES = 1 << 28

Open = Callable[["onnx.ModelProto"], Run]


def write_intermediates(folder: Path, steps: Iterable[tuple[str, Arrays]]) -> None:
    """Write what a module computes on the way, by case, until there is no more room.

    For models trained elsewhere, whose graph is the engine itself: `pipeline.diverge` then looks
    for the engine's tensors among these instead of running `model.onnx`. `steps` may be lazy:
    `((c.name, intermediates(module, c.inputs)) for c in cases if c.origin == HELD_OUT)`, small
    cases first, for only cases that are written can be diagnosed.
    """
    tensors: Arrays = {}
    room = _MOST_BYTES
    for case, arrays in steps:
        room -= sum(array.nbytes for array in arrays.values())
        if room < 0 and tensors:
            break
        tensors |= {f"{case}/{name}": array for name, array in arrays.items()}
    write_bytes(folder / INTERMEDIATES, pack(tensors))


def read_intermediates(folder: Path, case: str) -> Arrays:
    """A module's steps at a case; empty when they were not written."""
    from safetensors import safe_open

    prefix = f"{case}/"
    with safe_open(folder / INTERMEDIATES, "numpy") as file:
        return {
            key.removeprefix(prefix): file.get_tensor(key)
            for key in sorted(file.keys())
            if key.startswith(prefix)
        }


def unoptimised(graph: onnx.ModelProto | Path) -> Run:
    """A graph run by ONNX Runtime node by node, as it is written."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    what = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = ort.InferenceSession(what, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Any]) -> Arrays:
        answers = session.run(names, dict(inputs))
        return {n: a for n, a in zip(names, answers, strict=True) if isinstance(a, np.ndarray)}

    return run


def tensors(graph: onnx.ModelProto) -> list[str]:
    """What the nodes compute, in their order, which is topological."""
    return [name for node in graph.graph.node for name in node.output if name]


def expose(graph: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The same graph with these tensors among its outputs; ONNX Runtime infers their types."""
    import onnx

    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    already = {output.name for output in graph.graph.output}
    exposed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in already
    )
    return exposed


def run_exposed(
    graph: onnx.ModelProto, inputs: Arrays, open: Open
) -> tuple[Arrays, onnx.NodeProto | None]:
    """Every tensor; where a node fails, those of the nodes before it, and that node."""
    nodes = graph.graph.node
    try:
        return inputs | open(expose(graph, tensors(graph)))(inputs), None
    except Exception:  # whatever a backend raises; a shorter graph tells which node did
        pass
    runs, fails = 0, len(nodes)  # bisection over how many nodes run
    found: Arrays = {}
    while fails - runs > 1:
        middle = (runs + fails) // 2
        try:
            found = open(first_nodes(graph, middle))(inputs)
            runs = middle
        except Exception:  # the same
            fails = middle
    return inputs | found, nodes[runs]


def first_nodes(graph: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The graph of the first nodes, whose outputs are all that they compute."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(graph)
    del part.graph.node[count:]
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors(part))
    return part


def declared(value: onnx.ValueInfoProto) -> str:
    """An input or output as `TensorSpec.declared` writes it."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    dtype = tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{dtype}[{', '.join(str(d.dim_param or d.dim_value) for d in tensor.shape.dim)}]"
