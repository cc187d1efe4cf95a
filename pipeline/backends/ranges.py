"""Ranges: between which values each tensor of a graph lies on calibration rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from models.errors import BuildFailed
from models.signature import Signature
from pipeline.artifacts import write_json
from pipeline.intermediates import expose, unoptimised
from pipeline.samples import CALIBRATION_ROWS, Samples, read_samples

_ROWS = 64  # that ranges are observed of
_CALL = 8  # rows a call, for every tensor of a call is in memory at once


@dataclass(frozen=True)
class Range:
    """The least and the greatest finite value of a tensor, and how many it has for a row."""

    low: float
    high: float
    size: float

    @property
    def reach(self) -> float:
        """The greatest magnitude."""
        return max(-self.low, self.high)


def observe(model: Path, signature: Signature, cache: Path | None = None) -> dict[str, Range]:
    """The range of each float32 tensor that nodes read or give, by the rows beside `model`.

    `cache` is a file for them: read when it is there, else written. The graph is run node by node,
    as it is written, so nothing is fused away. Raises `BuildFailed` without rows.
    """
    if cache and cache.is_file():
        return {name: Range(**one) for name, one in json.loads(cache.read_bytes()).items()}
    rows = model.parent / CALIBRATION_ROWS
    if not rows.is_file():
        raise BuildFailed(
            f"lower precision needs rows to calibrate with beside {model.name}",
            got=f"no {CALIBRATION_ROWS}",
            fix="build it where the model was exported, or export it again",
        )
    found = _observe(onnx.load_model(model), signature, read_samples(rows))
    if cache:
        write_json(cache, {name: asdict(one) for name, one in found.items()})
    return found


def _observe(graph: onnx.ModelProto, signature: Signature, rows: Samples) -> dict[str, Range]:
    names = [name for node in graph.graph.node for name in node.output if name]
    run = unoptimised(expose(graph, names))
    few = Samples({name: array[:_ROWS] for name, array in rows.inputs.items()})
    found: dict[str, Range] = {}
    for inputs in few.batches(signature, _CALL):
        count = len(next(iter(inputs.values()))) if signature.batch else 1
        for name, array in (inputs | run(inputs)).items():
            if array.dtype == np.float32:
                here = range_of(array, count)
                seen = found.get(name, here)
                found[name] = Range(
                    min(here.low, seen.low), max(here.high, seen.high), max(here.size, seen.size)
                )
    return found


def range_of(array: np.ndarray, rows: int = 1) -> Range:
    """The range of what is seen of a tensor, infinities apart."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Range(0.0, 0.0, array.size / rows)
    return Range(float(finite.min()), float(finite.max()), array.size / rows)
