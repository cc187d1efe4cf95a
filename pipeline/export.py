"""Export: the trained module becomes a self-contained ONNX graph, and cases are recorded of it."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from models.codec import Generation
from models.datasets import Dataset
from models.errors import ExportFailed
from models.recipe import Recipe
from models.recurrence import advance, capacity, start, step_names
from models.signature import BATCH, Arrays, Axis, Signature
from pipeline.artifacts import digest_files, save
from pipeline.carrying import (
    PROMPT,
    carried_inputs,
    decode_greedily,
    prompt,
    replay_sequences,
    run_carried,
)
from pipeline.cases import CARRIED, CASES_FILE, GREEDY, Case, make_inputs, write_cases
from pipeline.compare import derive_limits, replay
from pipeline.progress import Progress, silent
from pipeline.train import load_module
from pipeline.values import MODEL, MODEL_VALUE, OnnxModel, TrainedModel
from pipeline.versions import libraries

# What dynamo writes by itself; 17 to 20 is what every engine builder takes, so it is read back.
_OPSET = 18
_OPSETS = range(17, 21)
_STATES = 64  # rows whose state is computed for the cases


def export(
    recipe: Recipe,
    dataset: Dataset,
    trained: TrainedModel,
    out: Path,
    *,
    progress: Progress = silent,
) -> OnnxModel:
    """Write model.onnx and the recorded cases into `out`.

    The graph's declared axes must equal the signature, and the graph as written must answer
    every recorded case as the module does. Cases are held-out test rows at every corner of the
    signature and edge inputs, with the answers of the module in fp32 and in fp64.

    Raises `ExportFailed`.
    """
    signature = recipe.make_signature()
    module = load_module(recipe, trained)
    steps = 4
    progress(1, steps, f"tracing with {recipe.exporter}")
    graph = _trace(recipe, module, signature)
    progress(2, steps, "checking the graph's axes")
    _check_declared(graph, signature, recipe.name)
    onnx.save_model(graph, out / MODEL)
    progress(3, steps, "recording cases")
    cases = record(module, signature, dataset.test.inputs)
    if signature.recurrence:
        generation = recipe.make_codec(dataset).generation
        cases += record_sequences(module, signature, dataset.test.inputs, generation)
    write_cases(cases, out)
    progress(4, steps, "running the graph on every case")
    _check_answers(out / MODEL, signature, cases, recipe.name)
    value = OnnxModel(
        folder=out,
        recipe=recipe.name,
        parent=trained.digest,
        signature=signature,
        opset=_opset(graph),
        exporter=recipe.exporter,
        libraries=libraries("torch", "onnx", "onnxscript"),
        files=digest_files(out, [MODEL, CASES_FILE]),
    )
    save(value, out, MODEL_VALUE)
    return value


def record(module: nn.Module, signature: Signature, samples: Arrays) -> list[Case]:
    """Cases with the answers of the module in fp32 and, on the same inputs, in fp64.

    Raises `ExportFailed` when the module's answers are not what the signature declares.
    """
    exact = copy.deepcopy(module).double()
    cases = []
    for case in make_inputs(signature, _with_states(module, signature, samples)):
        eager = _answer(module, case.inputs)
        _check_outputs(signature, case, eager)
        cases.append(replace(case, eager=eager, reference=_answer(exact, case.inputs, wide=True)))
    return cases


def record_sequences(
    module: nn.Module, signature: Signature, samples: Arrays, generation: Generation | None
) -> list[Case]:
    """Long sequences, asked step by step, and what the module writes greedily after a prompt.

    Both by the fp32 and by the fp64 module, each with the state that it carried itself.
    """
    assert signature.recurrence is not None
    exact = copy.deepcopy(module).double()
    inputs = carried_inputs(signature, samples)
    states = {state.output for state in signature.recurrence.states}

    def run(arrays: Mapping[str, np.ndarray], wide: bool = False) -> Arrays:
        return _answer(exact if wide else module, dict(arrays), wide)

    answers = []
    rows, length = inputs[step_names(signature)[0]].shape[:2]
    for wide in (False, True):
        said = run_carried(
            lambda arrays, wide=wide: run(arrays, wide), signature, inputs, range(length), wide=wide
        )
        answers.append({name: array for name, array in said.items() if name not in states})
    sizes = {BATCH: rows, signature.recurrence.axis: length}
    cases = [Case("carried", CARRIED, sizes, inputs, *answers)]
    if generation:
        tokens, logits = generation.tokens.name, generation.logits
        # An answer begins at its mark; a text that is continued has some words already.
        begun, count = prompt(signature, inputs, tokens, PROMPT if generation.source is None else 1)
        answers = []
        for wide in (False, True):
            chosen, margins = decode_greedily(
                lambda arrays, wide=wide: run(arrays, wide),
                signature, begun, tokens, logits, count, wide=wide,
            )  # fmt: skip
            answers.append({tokens: chosen, logits: margins})
        sizes = {BATCH: rows, signature.recurrence.axis: count}
        cases.append(Case("greedy", GREEDY, sizes, begun, *answers))
    return cases


def _with_states(module: nn.Module, signature: Signature, samples: Arrays) -> Arrays:
    """The samples, with state as it is after the row before; every fourth row begins anew.

    A table holds a part of that row, some of them nearly all that fits.
    """
    if signature.recurrence is None:
        return samples
    timed = step_names(signature)
    few = {name: array[:_STATES] for name, array in samples.items()}
    rows = len(few[timed[0]])
    room = capacity(signature)
    before = {name: np.roll(array, 1, axis=0) for name, array in few.items()}
    if room is not None:
        before |= {name: np.resize(before[name], (rows, room)) for name in timed}
    outputs = _answer(module, before | start(signature, rows))
    states = advance(signature, start(signature, rows), outputs, before[timed[0]].shape[1])
    longest = signature.axes[signature.recurrence.axis].max
    for state in signature.recurrence.states:
        array = np.array(states[state.input])
        states[state.input] = array
        if state.position is None:
            array[::4] = 0
            continue
        assert room is not None
        held = np.arange(rows) * 7 % min(room - longest + 1, 33)
        held[3::8] = room - longest
        states[state.position] = held
        for row, written in enumerate(held):
            array[row, :, written:] = 0
    return few | states


@torch.inference_mode()
def _answer(module: nn.Module, inputs: Arrays, wide: bool = False) -> Arrays:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if wide:
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    return {name: tensor.numpy() for name, tensor in module(**tensors).items()}


def _check_outputs(signature: Signature, case: Case, answers: Arrays) -> None:
    declared = {spec.name: spec for spec in signature.outputs}
    if answers.keys() != declared.keys():
        raise ExportFailed(
            "the module's outputs are not the signature's",
            got=", ".join(answers),
            expected=", ".join(declared),
        )
    for name, array in answers.items():
        wanted = (declared[name].dtype, declared[name].at(case.sizes))
        if (array.dtype.name, array.shape) != wanted:
            raise ExportFailed(
                f"output {name!r} at {case.name} is not what the signature declares",
                got=f"{array.dtype.name}{list(array.shape)}",
                expected=f"{wanted[0]}{list(wanted[1])}",
            )


def _trace(recipe: Recipe, module: nn.Module, signature: Signature) -> onnx.ModelProto:
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
                graph = _trace_dynamo(module, signature, example, inputs, outputs)
            else:
                graph = _trace_torchscript(module, signature, example, inputs, outputs)
    except ExportFailed:
        raise
    except Exception as error:
        raise ExportFailed(
            f"torch.onnx cannot export {recipe.name!r}: {str(error).strip().splitlines()[0]}",
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
    return graph


def _trace_dynamo(
    module: nn.Module,
    signature: Signature,
    example: dict[str, torch.Tensor],
    inputs: list[str],
    outputs: list[str],
) -> onnx.ModelProto:
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
    ranges = sorted(
        (int(r.lower), int(r.upper)) for r in program.exported_program.range_constraints.values()
    )
    promised = sorted((a.min, a.max) for a in signature.axes.values() if a.min < a.max)
    if ranges != promised:
        raise ExportFailed(
            "the exporter's range constraints are not the signature's axes",
            got=ranges,
            expected=promised,
            fix="remove what depends on a size in Python, or narrow the axis",
        )
    return program.model_proto


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


def _check_declared(graph: onnx.ModelProto, signature: Signature, name: str) -> None:
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


def _declared(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{dtype}[{', '.join(str(d.dim_param or d.dim_value) for d in tensor.shape.dim)}]"


def _check_answers(path: Path, signature: Signature, cases: list[Case], name: str) -> None:
    """Run the graph, unoptimised, on every case: what was traced must hold at every shape."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Any]) -> Arrays:
        answers = session.run(names, dict(inputs))
        return {n: np.asarray(a) for n, a in zip(names, answers, strict=True)}

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
