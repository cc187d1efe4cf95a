"""Recorded cases: inputs at every promised shape, and what the original module answers to them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from models.errors import TamperedFile
from models.recurrence import state_names
from models.signature import BATCH, Arrays, Signature, Sizes, TensorSpec
from pipeline.artifacts import canonical_json, pack, write_bytes

_CALLS = 64  # at most, in which every integer is asked
CASES_FILE = "cases.safetensors.gz"  # tables of state are mostly zeros

HELD_OUT = "held-out"
VALIDATION = "validation"  # rows that nodes of lower precision are chosen by
EDGE = "edge"
CARRIED = "carried"  # a long sequence, to be asked step by step
NONFINITE = "nonfinite"  # held-out rows, of which the first holds a value that is not a number
GREEDY = "greedy"  # a prompt, to be continued by the likeliest token again and again


@dataclass(frozen=True)
class Case:
    """One recorded call: its inputs, the fp32 module's answers, the fp64 module's answers."""

    name: str
    origin: str
    sizes: Sizes
    inputs: Arrays
    eager: Arrays = field(default_factory=dict)
    reference: Arrays = field(default_factory=dict)


def make_inputs(signature: Signature, samples: Mapping[str, np.ndarray]) -> list[Case]:
    """The cases to record: held-out samples at every corner, and edge inputs, without answers.

    Of inputs that are integers each value fills a row once: the row of a table that no sample asks
    for holds weights as well. Then come held-out samples with a value in their first row that is
    not finite. `samples` holds real rows for each input, the row axis first. Other axes are cut,
    or continued by repetition, to the size that the corner asks for. Without a batch axis a case is
    one row.
    """
    cases = []
    start = 0
    for sizes in signature.corners():
        inputs = {s.name: _fit(samples[s.name], s, sizes, start) for s in signature.inputs}
        name = " ".join(f"{axis}={size}" for axis, size in sizes.items()) or "fixed"
        cases.append(Case(name, HELD_OUT, sizes, inputs))
        start += sizes.get(BATCH, 1)
    sizes = {name: min(max(2, axis.min), axis.max) for name, axis in signature.axes.items()}
    for name in ("zeros", "low", "high", "middle", "alternating", "denormal"):
        inputs = {s.name: _edge(name, s, sizes) for s in signature.inputs}
        cases.append(Case(name, EDGE, sizes, inputs))
    cases += _every_integer(signature)
    given = [
        s.name for s in signature.inputs if s.floating and s.name not in state_names(signature)
    ]
    for name, value in (("nan", np.nan), ("infinity", np.inf)) if given else ():
        inputs = {s.name: _fit(samples[s.name], s, sizes, 0) for s in signature.inputs}
        for floats in given:
            array = inputs[floats] = inputs[floats].copy()
            array.reshape(-1)[0] = value
        cases.append(Case(name, NONFINITE, sizes, inputs))
    return cases


def _every_integer(signature: Signature) -> list[Case]:
    """Rows of the smallest sizes, each filled by one integer of the inputs' ranges.

    As many as are asked in `_CALLS` calls; of a larger range, integers at even distances.
    """
    states = state_names(signature)
    ranges = {
        spec.name: (int(spec.low), int(spec.high))
        for spec in signature.inputs
        if spec.dtype.startswith(("int", "uint")) and spec.name not in states
        if spec.low is not None and spec.high is not None
    }
    batch = signature.batch
    if not ranges or batch is None:
        return []
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    count = max(batch.min, min(high - low + 1, _CALLS * batch.max))
    integers = np.linspace(low, high, count).astype(np.int64)
    cases = []
    for some in np.array_split(integers, -(-count // batch.max)):
        sizes = {name: axis.min for name, axis in signature.axes.items()} | {BATCH: len(some)}
        inputs = {spec.name: _edge("zeros", spec, sizes) for spec in signature.inputs}
        for name, bounds in ranges.items():
            filled = np.empty_like(inputs[name])
            filled.T[...] = np.clip(some, *bounds)
            inputs[name] = filled
        cases.append(Case(f"integers {some[0]} to {some[-1]}", EDGE, sizes, inputs))
    return cases


def write_cases(cases: list[Case], folder: Path) -> None:
    """Write cases as safetensors; what is not an array goes into the file's metadata."""
    tensors: Arrays = {}
    index = []
    for number, case in enumerate(cases):
        index.append({"name": case.name, "origin": case.origin, "sizes": case.sizes})
        for part in ("inputs", "eager", "reference"):
            for name, array in getattr(case, part).items():
                tensors[f"{number}/{part}/{name}"] = array
    raw = pack(tensors, metadata={"cases": canonical_json(index).decode()})
    # Without a time the same cases give the same bytes.
    write_bytes(folder / CASES_FILE, gzip.compress(raw, compresslevel=1, mtime=0))


def read_cases(folder: Path) -> list[Case]:
    """Read cases back. Raises `TamperedFile` when the file is not one that we wrote."""
    path = folder / CASES_FILE
    try:
        raw = gzip.decompress(path.read_bytes())
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        index = json.loads(header["__metadata__"]["cases"])
        parts: list[dict[str, Arrays]] = [{} for _ in index]
        # Sorted, for a file is read in an order that differs from process to process.
        for key, array in sorted(load(raw).items()):
            number, part, name = key.split("/")
            parts[int(number)].setdefault(part, {})[name] = array
        return [
            Case(entry["name"], entry["origin"], entry["sizes"], **part)
            for entry, part in zip(index, parts, strict=True)
        ]
    except Exception as error:
        raise TamperedFile(
            f"{path} does not hold recorded cases", got=type(error).__name__, fix="export it again"
        ) from error


def _fit(rows: np.ndarray, spec: TensorSpec, sizes: Sizes, start: int) -> np.ndarray:
    if BATCH not in sizes:
        rows = rows[start % len(rows)]
    for axis, size in enumerate(spec.at(sizes)):
        first = start if axis == 0 and BATCH in sizes else 0
        rows = rows.take(range(first, first + size), axis=axis, mode="wrap")
    return np.ascontiguousarray(rows, dtype=spec.dtype)


def _edge(name: str, spec: TensorSpec, sizes: Sizes) -> np.ndarray:
    shape = spec.at(sizes)
    low = 0.0 if spec.low is None else spec.low
    high = 1.0 if spec.high is None else spec.high
    if name == "alternating":
        flat = np.where(np.arange(int(np.prod(shape))) % 2, high, low)
        return flat.reshape(shape).astype(spec.dtype)
    value = {
        "zeros": 0.0,
        "low": low,
        "high": high,
        "middle": (low + high) / 2,
        "denormal": 1e-40 if spec.floating else low,
    }[name]
    return np.full(shape, value).astype(spec.dtype)
