"""Diverge: where an engine that failed first goes another way than its graph or module."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import first_line
from models.signature import Arrays
from pipeline.backends import backend
from pipeline.backends import target as find_target
from pipeline.blame import blame
from pipeline.cases import EDGE, HELD_OUT, NONFINITE, Case
from pipeline.compare import BOUNDS, Run
from pipeline.intermediates import (
    INTERMEDIATES,
    Open,
    declared,
    expose,
    read_intermediates,
    run_exposed,
    tensors,
    unoptimised,
)
from pipeline.matching import Reference, dequantised, differs, frontier, inputs_of
from pipeline.values import MODEL, Diagnosis, Engine, Finding, OnnxModel

if TYPE_CHECKING:
    import onnx

# The check that asks the cases of each origin; what is carried from call to call is none of them.
_CHECKS = {HELD_OUT: "samples", EDGE: "edges", NONFINITE: NONFINITE}
_CASES = 4  # that failed and are tried, the smallest first
_SECONDS = 30.0  # for finding the tensor that has to be exposed


@dataclass(frozen=True)
class Divergence:
    """A diagnosis with what shows it: see `pipeline.kit`.

    `known` are the engine's tensors that the reference computes too, `expected` what its others
    should be where that is known, `values` what they are; `limits` are those of its outputs, and
    `tolerance` is what tells tensors apart.
    """

    diagnosis: Diagnosis
    graph: onnx.ModelProto
    options: Mapping[str, Any]
    case: Case
    limits: Mapping[str, float]
    tolerance: float
    known: frozenset[str] = frozenset()
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    expected: Mapping[str, np.ndarray] = field(default_factory=dict)


def diagnose(
    engine: Engine, model: OnnxModel, cases: list[Case], findings: list[Finding]
) -> Diagnosis | None:
    """The first node of the engine's graph whose answer is in no place of the reference.

    The reference is `model.onnx` run node by node, or, where the model's folder holds it and
    `apart` names it, INTERMEDIATES: what a module computed itself, by `pipeline.recording`'s
    `intermediates`. None when no case fails by its values, no node is found, the engine is no graph
    or onnx is not installed.
    """
    found = diverge(engine, model, cases, findings)
    return found.diagnosis if found else None


def diverge(
    engine: Engine, model: OnnxModel, cases: list[Case], findings: list[Finding]
) -> Divergence | None:
    """A diagnosis as `diagnose` makes it, with what `pipeline.kit.write_kit` shows of it."""
    try:
        import onnx
    except ModuleNotFoundError:  # a machine that only serves
        return None
    file = next((name for name in engine.files if name.endswith(".onnx")), None)
    if file is None:
        return None
    graph = onnx.load_model(engine.folder / file)
    promised = _declared(graph, model)
    ceiling = BOUNDS[find_target(engine.target).precision].ceiling
    for case in _failed(cases, findings):
        limits = _limits(case, findings, ceiling)
        found = _at(case, graph, file, engine, model, limits, promised)
        if found:
            return found
    if promised is None:
        return None
    name, note = promised
    diagnosis = Diagnosis(
        kind="declared", case="", node="", operator="", tensor=name, error=None, inputs=(),
        note=note,
    )  # fmt: skip
    return Divergence(diagnosis, graph, engine.options, cases[0], {}, 0.0)


def _at(
    case: Case,
    graph: onnx.ModelProto,
    file: str,
    engine: Engine,
    model: OnnxModel,
    limits: Mapping[str, float],
    promised: tuple[str, str] | None,
) -> Divergence | None:
    """Where the engine diverges on one case; None if it does not, or is not meant for its sizes."""
    opened = _opener(engine, file)
    inputs = _only(graph, case.inputs)
    ceiling = BOUNDS[find_target(engine.target).precision].ceiling
    answers, reason = {}, ""
    try:
        answers = opened(graph)(inputs)
    except Exception as error:  # whatever a backend raises
        reason = first_line(error)
        if promised and promised[0] in case.inputs:
            return None
    reference = _reference(model, case)
    if reference is None or not _wrong(case, answers, limits):
        return None
    reference = reference.of(tensors(graph))
    values, stopped = run_exposed(graph, inputs, opened)

    def evidence(diagnosis: Diagnosis, known: Iterable[str], tolerance: float) -> Divergence:
        return Divergence(
            diagnosis, graph, engine.options, case, limits, tolerance,
            frozenset(known), values, {**reference.named, **case.reference},
        )  # fmt: skip

    if stopped is None:
        wrong = _wrong(case, values, limits)
        if not wrong:
            return evidence(_hidden(graph, opened, case, limits, values), (), ceiling)
    else:
        wrong = [name for name in inputs_of(stopped) if name in values]
    meant = dequantised(graph, values)
    for tolerance in (ceiling, min([ceiling, *limits.values()])):
        found = locate(graph, meant, reference, wrong, tolerance, case.name)
        # An output may be wrong by less than the first tolerance, and then its node is not first.
        if found and (found[0].error is None or found[0].error > tolerance):
            return evidence(*found, tolerance)
    if found:
        return evidence(*found, tolerance)
    if stopped is None:
        return None
    found = locate(graph, meant, replace(reference, strict=True), wrong, ceiling, case.name)
    if found:
        return evidence(*found, ceiling)
    diagnosis = Diagnosis(
        case=case.name, node=stopped.name or stopped.output[0], operator=stopped.op_type,
        tensor=stopped.output[0], error=None, inputs=tuple(wrong), note=reason,
    )  # fmt: skip
    return evidence(diagnosis, values, ceiling)


def locate(
    graph: onnx.ModelProto,
    values: Mapping[str, np.ndarray],
    reference: Reference,
    wrong: Iterable[str],
    tolerance: float,
    case: str = "",
) -> tuple[Diagnosis, list[str]] | None:
    """The first node on the way to `wrong` tensors whose output the reference does not hold.

    `values` are what the nodes computed. With it the tensors that the reference holds.
    """
    found = frontier(graph, values, reference, set(wrong), tolerance)
    if found is None:
        return None
    name, operator, note = blame(graph, found, values, reference, tolerance)
    diagnosis = Diagnosis(
        case=case,
        node=name,
        operator=operator,
        tensor=found.tensor,
        error=reference.error(found.tensor, values[found.tensor]),
        inputs=tuple(dict.fromkeys(n for n in found.node.input if found.matches.get(n))),
        note=note,
    )
    return diagnosis, [name for name in found.matches if name in values]


def _hidden(
    graph: onnx.ModelProto, opened: Open, case: Case, limits: Mapping[str, float], values: Arrays
) -> Diagnosis:
    """Of an engine that is right when every tensor is exposed: the tensor that has to be."""

    def right(names: Sequence[str]) -> bool:
        try:
            answers = opened(expose(graph, names))(_only(graph, case.inputs))
        except Exception:  # whatever a backend raises
            return False
        return not _wrong(case, answers, limits)

    names = tensors(graph)
    tensor = names[healing(len(names), lambda count: right(names[:count])) - 1]
    node = next(node for node in graph.graph.node if tensor in node.output)
    after = [n.name or n.output[0] for n in graph.graph.node if tensor in inputs_of(n)]
    return Diagnosis(
        kind="optimiser",
        case=case.name,
        node=node.name or tensor,
        operator=node.op_type,
        tensor=tensor,
        error=None,
        inputs=tuple(name for name in node.input if name in values),
        note="right when this tensor is exposed, so wrong is what the runtime makes of this node "
        f"and of {' and '.join(after) or 'nothing after it'} together",
    )


def healing(count: int, right: Callable[[int], bool], seconds: float = _SECONDS) -> int:
    """The fewest of `count` tensors, in order, whose exposure heals, by bisection; all of them do.

    After so many seconds the fewest that were found.
    """
    until = time.monotonic() + seconds
    wrong = 0
    while count - wrong > 1 and time.monotonic() < until:
        middle = (wrong + count) // 2
        wrong, count = (wrong, middle) if right(middle) else (middle, count)
    return count


def _failed(cases: list[Case], findings: list[Finding]) -> list[Case]:
    """Cases of which a comparison failed: real samples first, and the smallest of them.

    Axes of size 1 come last, for with them many tensors look alike. Without any finding the engine
    did not run, and any case will do.
    """
    names = {finding.case for finding in findings if not finding.passed}
    failed = [c for c in cases if c.origin in _CHECKS and (c.name in names or not findings)]

    def order(case: Case) -> tuple[bool, bool, int]:
        size = sum(array.size for array in case.inputs.values())
        return case.origin != HELD_OUT, 1 in case.sizes.values(), size

    return sorted(failed, key=order)[:_CASES]


def _limits(case: Case, findings: list[Finding], ceiling: float) -> dict[str, float]:
    """The limit of each output at a case."""
    here = (case.name, _CHECKS[case.origin])
    found = {f.output: f.limit for f in findings if (f.case, f.check) == here}
    return found if findings else dict.fromkeys(case.reference, ceiling)


def _wrong(case: Case, answers: Arrays, limits: Mapping[str, float]) -> list[str]:
    """The outputs that are not the module's; of a row that holds NaN it may say what it likes."""
    rows = slice(1 if case.origin == NONFINITE else 0, None)
    return [
        name
        for name, most in limits.items()
        if name not in answers or differs(answers[name][rows], case.reference[name][rows], most)
    ]


def _reference(model: OnnxModel, case: Case) -> Reference | None:
    """What is computed of a case on the way to its answer; None when nobody knows."""
    import onnx

    if INTERMEDIATES in model.apart and (model.folder / INTERMEDIATES).is_file():
        arrays = read_intermediates(model.folder, case.name)
        return Reference(arrays | case.reference) if arrays else None
    if MODEL not in model.files:
        return None
    graph = onnx.load_model(model.folder / MODEL)
    values, stopped = run_exposed(graph, case.inputs, unoptimised)
    return None if stopped is not None else Reference(values, graph)


def _opener(engine: Engine, file: str) -> Open:
    """Opens a changed graph exactly as the engine is opened."""
    import onnx

    tools = backend(find_target(engine.target))

    def opened(graph: onnx.ModelProto) -> Run:
        with tempfile.TemporaryDirectory() as scratch:
            onnx.save_model(graph, Path(scratch) / file)
            return tools.open(Path(scratch), engine.files, engine.options).run

    return opened


def _only(graph: onnx.ModelProto, inputs: Arrays) -> Arrays:
    given = {value.name for value in graph.graph.input}
    return {name: array for name, array in inputs.items() if name in given}


def _declared(graph: onnx.ModelProto, model: OnnxModel) -> tuple[str, str] | None:
    """The first tensor that the engine declares otherwise than its signature, and how."""
    promised = {s.name: s.declared() for s in model.signature.inputs + model.signature.outputs}
    written = {value.name: declared(value) for value in (*graph.graph.input, *graph.graph.output)}
    said = {n: model.spelled.get(n, {}).get(text, text) for n, text in written.items()}
    for name in promised | said:
        if said.get(name) != promised.get(name):
            return name, f"declared {said.get(name)}, expected {promised.get(name)}"
    return None
