"""Noise floors: what lower precision costs the module itself, on the samples an engine is asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from models.signature import BATCH, Arrays, Signature
from pipeline.carrying import errors_by_steps, step_by_step
from pipeline.cases import CARRIED, EDGE, HELD_OUT, VALIDATION, Case
from pipeline.compare import array_scale, relative_error
from pipeline.quantised import quantised
from pipeline.recording import answer
from pipeline.samples import Samples

Way = Callable[[Arrays], Arrays]
Floors = dict[str, dict[str, dict[str, float]]]  # rounding, output, origin of the case

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def measure_floors(
    module: nn.Module,
    signature: Signature,
    cases: list[Case],
    calibration: Samples,
    validation: Samples,
) -> Floors:
    """The error y' - y64 of the module in each lower precision, by output and origin.

    The largest root mean square of a row, over the output's scale: of millions of pixels one is far
    off in any precision, which says little about an engine.
    fp16 and bf16 are torch's autocast, in tf32 layers read 10 bits of fraction, int8, fp8 and the
    symmetric int8 that TensorRT takes are `pipeline.quantised`. Asked is every held-out and every
    edge case, of which the worst counts: one case alone is no measure of what the precision may
    cost. The scale is that of the held-out answers. Where a precision cannot answer, such as fp16
    beyond its largest number, or an operator that torch lacks in it, is no floor.
    int8 has one of validation rows too, by which nodes are chosen that stay in fp32. What carries
    its state has one of long sequences, in the precisions that states are carried in.
    """
    held_out = [case for case in cases if case.origin == HELD_OUT]
    asked = [*held_out, *(case for case in cases if case.origin == EDGE)]
    scales = {
        name: max(array_scale(case.reference[name]) for case in held_out)
        for name, array in held_out[0].reference.items()
        if array.dtype.kind == "f"
    }
    ways: dict[str, Way] = {
        precision: partial(_autocast, module, dtype) for precision, dtype in _AUTOCAST.items()
    } | {"tf32": partial(answer, _in_tf32(module))}
    floors = {precision: _measure(way, asked, scales) for precision, way in ways.items()}
    for case in (case for case in cases if case.origin == CARRIED):
        for precision, way in ways.items():
            for name, error in _carried(way, signature, case).items():
                floors[precision][name][CARRIED] = error
    if signature.recurrence is None:
        fp8 = quantised(module, calibration, "fp8")
        floors["fp8"] = _measure(partial(answer, fp8), asked, scales)
        for rounding in ("int8", "int8-symmetric"):
            rounded = partial(answer, quantised(module, calibration, rounding))
            floors[rounding] = _measure(rounded, asked, scales)
            answers = validation.ask(rounded, signature)
            for name, scale in scales.items():
                error = relative_error(
                    answers[name], validation.reference[name], scale, len(validation)
                )
                if error is not None:
                    floors[rounding][name][VALIDATION] = error
    return floors


def _measure(
    way: Way, asked: list[Case], scales: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {} for name in scales}
    for case in asked:
        answers = way(case.inputs)
        for name, scale in scales.items():
            if name not in answers:
                continue
            rows = len(case.reference[name]) if BATCH in case.sizes else 1
            error = relative_error(answers[name], case.reference[name], scale, rows)
            if error is not None:
                found[name][case.origin] = max(error, found[name].get(case.origin, 0.0))
    return found


def _carried(way: Way, signature: Signature, case: Case) -> dict[str, float]:
    """The worst error of each output of floats over a sequence that is asked step by step."""
    try:
        answers = step_by_step(lambda inputs: way(dict(inputs)), case, signature)
    except KeyError:  # it cannot answer
        return {}
    found = {}
    for name, expected in case.reference.items():
        if expected.dtype.kind != "f":
            continue
        scale, rows = array_scale(expected), len(expected)
        errors = [error for _, error in errors_by_steps(answers[name], expected, scale, rows)]
        if None not in errors:
            found[name] = max(error for error in errors if error is not None)
    return found


def _autocast(module: nn.Module, dtype: torch.dtype, inputs: Arrays) -> Arrays:
    """No answers where torch has not implemented an operator in this precision."""
    try:
        with torch.autocast("cpu", dtype):
            return answer(module, inputs, single=True)
    except RuntimeError:
        return {}


def _in_tf32(module: nn.Module) -> nn.Module:
    """A copy whose layers read 10 bits of fraction, of what they are given and of their weights.

    Products of two activations read all bits.
    """
    rounded = copy.deepcopy(module)
    for layer in rounded.modules():
        weights = [p for p in layer.parameters(recurse=False) if p.ndim > 1]
        for weight in weights:
            weight.data = _fewer_bits(weight.data)
        if weights:
            layer.register_forward_pre_hook(lambda _, given: tuple(map(_fewer_bits, given)))
    return rounded


def _fewer_bits(given: Any) -> Any:
    """Of float32 the nearest with 10 bits of fraction in place of 23, as tensor cores take it."""
    if not (isinstance(given, torch.Tensor) and given.dtype == torch.float32):
        return given
    return ((given.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
