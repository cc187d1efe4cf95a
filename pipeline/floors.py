"""Noise floors: what lower precision costs the module itself, on the samples an engine is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from models.signature import BATCH, Arrays, Signature
from pipeline.cases import EDGE, HELD_OUT, VALIDATION, Case
from pipeline.compare import array_scale, relative_error
from pipeline.quantised import quantised
from pipeline.recording import answer
from pipeline.samples import Samples

Floors = dict[str, dict[str, dict[str, float]]]  # precision, output, origin of the case

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
    fp16 and bf16 are torch's autocast, int8 is `pipeline.quantised`. Asked is every held-out and
    every edge case, of which the worst counts: one case alone is no measure of what the precision
    may cost. The scale is that of the held-out answers. Where a precision cannot answer,
    such as fp16 beyond its largest number, or an operator that torch lacks in it, is no floor.
    int8 has one of validation rows too, by which nodes are chosen that stay in fp32.
    """
    held_out = [case for case in cases if case.origin == HELD_OUT]
    asked = [*held_out, *(case for case in cases if case.origin == EDGE)]
    scales = {
        name: max(array_scale(case.reference[name]) for case in held_out)
        for name, array in held_out[0].reference.items()
        if array.dtype.kind == "f"
    }
    floors = {
        precision: _measure(partial(_autocast, module, dtype), asked, scales)
        for precision, dtype in _AUTOCAST.items()
    }
    if signature.recurrence is None:
        copy = quantised(module, calibration)
        rounded = partial(answer, copy)
        floors["int8"] = _measure(rounded, asked, scales)
        answers = validation.ask(rounded, signature)
        for name, scale in scales.items():
            error = relative_error(
                answers[name], validation.reference[name], scale, len(validation)
            )
            if error is not None:
                floors["int8"][name][VALIDATION] = error
    return floors


def _measure(
    way: Callable[[Arrays], Arrays], asked: list[Case], scales: Mapping[str, float]
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


def _autocast(module: nn.Module, dtype: torch.dtype, inputs: Arrays) -> Arrays:
    """No answers where torch has not implemented an operator in this precision."""
    try:
        with torch.autocast("cpu", dtype):
            return answer(module, inputs, single=True)
    except RuntimeError:
        return {}
