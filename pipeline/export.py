"""Export: the trained module becomes a self-contained ONNX graph, and cases are recorded of it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import torch
from torch import nn

from models.codec import Codec
from models.datasets import Dataset, Split
from models.errors import ExportFailed, first_line
from models.recipe import Recipe
from models.signature import Axis, Signature
from pipeline.artifacts import digest_files, write_json
from pipeline.carrying import replay_sequences
from pipeline.cases import CASES_FILE, Case, write_cases
from pipeline.compare import derive_limits, replay
from pipeline.floors import measure_floors
from pipeline.intermediates import unoptimised
from pipeline.parts import new_part, save_value
from pipeline.progress import Progress, silent
from pipeline.recording import answer, record, record_samples, record_sequences
from pipeline.samples import (
    CALIBRATION_ROWS,
    HELD_OUT_ROWS,
    VALIDATION_ROWS,
    choose_samples,
    write_samples,
)
from pipeline.train import load_module
from pipeline.values import CODEC, MODEL, OnnxModel, TrainedModel
from pipeline.versions import libraries

# What dynamo writes by itself; 17 to 20 is what every engine builder takes, so it is read back.
_OPSET = 18
_OPSETS = range(17, 21)
_ANSWERED = 1024  # rows of which a part's answers are the next one's samples
# Of rows apart from the cases, at most.
_CALIBRATION = 256
_VALIDATION = 1024
_HELD_OUT = 1024


def export(
    recipe: Recipe,
    dataset: Dataset,
    trained: TrainedModel,
    out: Path,
    *,
    progress: Progress = silent,
) -> OnnxModel:
    """Write model.onnx and the recorded cases into `out`, of the whole and of each part.

    The graph's declared axes must equal the signature, and the graph as written must answer
    every recorded case as the module does. Cases are held-out test rows at every corner of the
    signature and edge inputs, with the answers of the module in fp32 and in fp64.

    Raises `ExportFailed`.
    """
    module = load_module(recipe, trained)
    codec = Codec.model_validate_json((trained.folder / CODEC).read_bytes())
    steps = _Steps(progress, 4 * (1 + len(recipe.parts)))
    splits = [dataset.train, dataset.validation, dataset.test]
    # From left to right: what one part answers may be what the next one is given.
    parts = {}
    for name, piece in recipe.parts.items():
        taken, signature = piece.take(module).eval(), recipe.make_part(name)
        folder = new_part(out, name)
        value = _export(
            recipe, taken, signature, splits, codec.of_part(), trained, folder, steps, f"{name}: "
        )
        parts[name] = value.digest
        splits = [_answered(taken, signature, split) for split in splits]
    signature = recipe.make_signature()
    return _export(recipe, module, signature, splits, codec, trained, out, steps, parts=parts)


@dataclass
class _Steps:
    """Progress through several graphs."""

    progress: Progress
    total: int
    done: int = 0

    def __call__(self, text: str) -> None:
        self.done += 1
        self.progress(self.done, self.total, text)


def _export(
    recipe: Recipe,
    module: nn.Module,
    signature: Signature,
    splits: Sequence[Split],
    codec: Codec,
    trained: TrainedModel,
    out: Path,
    step: _Steps,
    name: str = "",
    parts: Mapping[str, str] = MappingProxyType({}),
) -> OnnxModel:
    """One graph, of the whole or of a part, with its cases and its tables of rows."""
    step(f"{name}tracing with {recipe.exporter}")
    graph, ranges = _trace(recipe, module, signature)
    step(f"{name}checking the graph's axes")
    declared = _check_declared(graph, signature, recipe.name)
    onnx.save_model(graph, out / MODEL)
    step(f"{name}recording cases")
    calibration, validation, held_out = splits
    cases = record(module, signature, held_out.inputs)
    if signature.recurrence:
        cases += record_sequences(module, signature, held_out.inputs, codec.generation)
    write_cases(cases, out)
    rows = choose_samples(signature, calibration, rows=_CALIBRATION)
    write_samples(replace(rows, targets={}), out / CALIBRATION_ROWS)
    chosen = record_samples(module, signature, validation, _VALIDATION)
    write_samples(chosen, out / VALIDATION_ROWS)
    write_samples(record_samples(module, signature, held_out, _HELD_OUT), out / HELD_OUT_ROWS)
    write_json(out / CODEC, codec.model_dump(mode="json"))
    step(f"{name}running the graph on every case")
    _check_answers(out / MODEL, signature, cases, recipe.name)
    value = OnnxModel(
        folder=out,
        recipe=recipe.name,
        parent=trained.digest,
        signature=signature,
        opset=_opset(graph),
        exporter=recipe.exporter,
        libraries=libraries("torch", "onnx", "onnxscript"),
        files=digest_files(out, [MODEL, CASES_FILE, CODEC]),
        declared=declared,
        ranges=ranges,
        floors=measure_floors(module, signature, cases, rows, chosen),
        drift=recipe.drift,
        apart=digest_files(out, [CALIBRATION_ROWS, VALIDATION_ROWS, HELD_OUT_ROWS]),
        parts=dict(parts),
    )
    save_value(value)
    return value


def _answered(module: nn.Module, signature: Signature, split: Split) -> Split:
    """As many rows of a split as there is use for, with what a part answers to them."""
    few = {name: array[:_ANSWERED] for name, array in split.inputs.items()}
    given = {spec.name: few[spec.name] for spec in signature.inputs}
    targets = {name: array[:_ANSWERED] for name, array in split.targets.items()}
    return Split(few | answer(module, given), targets)


Ranges = dict[str, tuple[int, int]]


def _trace(
    recipe: Recipe, module: nn.Module, signature: Signature
) -> tuple[onnx.ModelProto, Ranges | None]:
    """The graph, and the sizes of each axis as the exporter understood them, if it says."""
    sizes = signature.example()
    example = {
        spec.name: torch.from_numpy(np.zeros(spec.at(sizes), spec.dtype))
        for spec in signature.inputs
    }
    inputs = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]
    try:
        with _quiet():
            if recipe.exporter == "dynamo":
                graph, ranges = _trace_dynamo(module, signature, example, inputs, outputs)
            else:
                graph = _trace_torchscript(module, signature, example, inputs, outputs)
                ranges = None
    except ExportFailed:
        raise
    except Exception as error:
        raise ExportFailed(
            f"torch.onnx cannot export {recipe.name!r}: {first_line(error)}",
            fix="see the trap list of exporters; recurrent nets need exporter='torchscript'",
        ) from error
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    if _opset(graph) not in _OPSETS:
        raise ExportFailed(
            f"the graph of {recipe.name!r} has an opset that engine builders refuse",
            got=_opset(graph),
            expected=f"{_OPSETS[0]} to {_OPSETS[-1]}",
        )
    return graph, ranges


def _trace_dynamo(
    module: nn.Module,
    signature: Signature,
    example: dict[str, torch.Tensor],
    inputs: list[str],
    outputs: list[str],
) -> tuple[onnx.ModelProto, Ranges]:
    dims = {
        name: torch.export.Dim(name, min=axis.min, max=axis.max)
        for name, axis in signature.axes.items()
        if axis.min < axis.max
    }
    shapes = {
        spec.name: {
            i: dims[s.name]
            for i, s in enumerate(spec.shape)
            if isinstance(s, Axis) and s.name in dims
        }
        for spec in signature.inputs
    }
    program = torch.onnx.export(
        module, (), kwargs=example, dynamo=True, dynamic_shapes=shapes, input_names=inputs,
        output_names=outputs, opset_version=_OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None
    assert program.exported_program is not None
    ranges = _understood(program.exported_program, signature)
    promised = {name: (a.min, a.max) for name, a in signature.axes.items() if a.min < a.max}
    if ranges != promised:
        raise ExportFailed(
            "the exporter's range constraints are not the signature's axes",
            got=ranges,
            expected=promised,
            fix="remove what depends on a size in Python, or narrow the axis",
        )
    return program.model_proto, ranges


def _understood(program: torch.export.ExportedProgram, signature: Signature) -> Ranges:
    """The range of each axis that the exporter left open, in every place where it stands."""
    given = program.graph_signature.user_inputs
    tensors = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in given}
    found: dict[str, set[tuple[int, int]]] = {}
    for name, axes in signature.dynamic_axes().items():
        for place, axis in axes.items():
            size = tensors[name].shape[place] if name in tensors else None
            if isinstance(size, torch.SymInt):
                known = program.range_constraints[size.node.expr]
                found.setdefault(axis.name, set()).add((int(known.lower), int(known.upper)))
    return {
        name: (max(low for low, _ in some), min(high for _, high in some))
        for name, some in found.items()
    }


def _trace_torchscript(
    module: nn.Module,
    signature: Signature,
    example: dict[str, torch.Tensor],
    inputs: list[str],
    outputs: list[str],
) -> onnx.ModelProto:
    axes = {
        name: {i: axis.name for i, axis in dims.items()}
        for name, dims in signature.dynamic_axes().items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / MODEL
        torch.onnx.export(
            module, tuple(example[name] for name in inputs), file, dynamo=False, dynamic_axes=axes,
            input_names=inputs, output_names=outputs, opset_version=_OPSET,
        )  # fmt: skip
        return onnx.load_model(file)


def _strip(graph: onnx.ModelProto) -> None:
    """Remove what the exporter noted of the source: file paths, stack traces, doc strings."""
    for part in [graph, graph.graph, *graph.graph.node, *graph.graph.value_info]:
        part.doc_string = ""
        del part.metadata_props[:]
    for tensor in [*graph.graph.input, *graph.graph.output, *graph.graph.initializer]:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _check_declared(graph: onnx.ModelProto, signature: Signature, name: str) -> dict[str, str]:
    """Every tensor as the graph declares it, which is as the signature promises it."""
    found: dict[str, str] = {}
    for specs, values in (
        (signature.inputs, graph.graph.input),
        (signature.outputs, graph.graph.output),
    ):
        declared = {value.name: _declared(value) for value in values}
        promised = {spec.name: spec.declared() for spec in specs}
        if declared != promised:
            raise ExportFailed(
                f"the graph of {name!r} declares other tensors than its signature",
                got=declared,
                expected=promised,
                fix="an axis that became a number was frozen at the example's size",
            )
        found |= declared
    return found


def _declared(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{dtype}[{', '.join(str(d.dim_param or d.dim_value) for d in tensor.shape.dim)}]"


def _check_answers(path: Path, signature: Signature, cases: list[Case], name: str) -> None:
    """Run the graph, unoptimised, on every case: what was traced must hold at every shape."""
    run = unoptimised(path)
    limits = derive_limits(cases)
    findings = replay(run, cases, limits) + replay_sequences(run, signature, cases, limits)
    for finding in findings:
        if not finding.passed:
            raise ExportFailed(
                f"the graph of {name!r} does not answer as the module does: output "
                f"{finding.output!r} at {finding.case}",
                got=finding.note or f"error {finding.error:.1e} of its scale",
                expected=f"{finding.limit:.1e} or less",
                fix="something in the module depends on a size or value that tracing froze",
            )


def _opset(graph: onnx.ModelProto) -> int:
    return next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; it speaks of no fault of the model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
