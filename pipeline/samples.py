"""Samples: rows of a split as one table, for what is measured over rows and not over shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from models.datasets import Split
from models.errors import TamperedFile
from models.recurrence import start, state_names
from models.signature import BATCH, Arrays, Signature, Sizes
from pipeline.artifacts import pack, write_bytes

# Beside the cases, and not in a bundle: held-out rows, validation rows to choose by, and training
# rows to calibrate with.
HELD_OUT_ROWS = "held_out.safetensors"
VALIDATION_ROWS = "validation.safetensors"
CALIBRATION_ROWS = "calibration.safetensors"

_BYTES = 16 << 20
_FEW = 128  # rows that are kept however large they are


@dataclass(frozen=True)
class Samples:
    """Rows of named arrays: inputs, what is known of them, and what the fp64 module answers.

    State inputs are not among them: every row begins anew.
    """

    inputs: Arrays
    targets: Arrays = field(default_factory=dict)
    reference: Arrays = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self, signature: Signature, most: int | None = None) -> list[Arrays]:
        """The inputs in calls that the signature takes, of at most `most` rows."""
        if signature.batch is None:
            return [{n: a[row] for n, a in self.inputs.items()} for row in range(len(self))]
        size = min(most or signature.batch.max, signature.batch.max)
        cuts = [slice(first, first + size) for first in range(0, len(self), size)]
        return [
            {n: a[cut] for n, a in self.inputs.items()}
            | start(signature, len(range(len(self))[cut]))
            for cut in cuts
        ]

    def ask(
        self, run: Callable[[Arrays], Arrays], signature: Signature, most: int | None = None
    ) -> Arrays:
        """One table of what is answered to every row, of the outputs that every call answered."""
        answers = [run(inputs) for inputs in self.batches(signature, most)]
        join = np.concatenate if signature.batch else np.stack
        names = set.intersection(*map(set, answers)) if answers else set()
        return {name: join([one[name] for one in answers]) for name in names}


def choose_samples(
    signature: Signature, split: Split, *, rows: int, answer_bytes: int = 0
) -> Samples:
    """The first rows of a split, as long as a row is and the signature allows.

    At most `rows`, and more than 128 only within 16 MiB with their answers of `answer_bytes` a row.
    Of rows that had to be cut or continued no target is known.
    """
    usual = {name: axis.opt for name, axis in signature.axes.items()}
    states = state_names(signature)
    known = [spec for spec in signature.inputs if spec.name not in states]
    whole = True
    inputs: Arrays = {}
    sizes: Sizes = dict(usual)
    for spec in known:
        own = split.inputs[spec.name].shape[1:]
        shape = spec.shape[1:] if signature.batch else spec.shape
        for size, wanted in zip(own, shape, strict=True):
            if not isinstance(wanted, int):
                sizes[wanted.name] = min(max(size, wanted.min), wanted.max)
                whole = whole and sizes[wanted.name] == size
    row_bytes = answer_bytes + sum(
        int(np.prod(spec.at({**sizes, BATCH: 1}))) * np.dtype(spec.dtype).itemsize for spec in known
    )
    there = [len(split.inputs[spec.name]) for spec in known]
    count = min(rows, max(_FEW, _BYTES // max(row_bytes, 1)), *there)
    for spec in known:
        array = split.inputs[spec.name][:count]
        shape = spec.at({**sizes, BATCH: count})
        for axis, size in enumerate(shape if signature.batch else (count, *shape)):
            array = array.take(range(size), axis=axis, mode="wrap")
        inputs[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
    targets = {n: np.ascontiguousarray(a[:count]) for n, a in split.targets.items()}
    return Samples(inputs, targets if whole else {})


def write_samples(samples: Samples, path: Path) -> None:
    """Write a table of rows as safetensors."""
    parts = {"inputs": samples.inputs, "targets": samples.targets, "reference": samples.reference}
    named = {f"{part}/{n}": a for part, some in parts.items() for n, a in some.items()}
    write_bytes(path, pack(named))


def read_samples(path: Path) -> Samples:
    """Read a table of rows back. Raises `TamperedFile` when the file is not one that we wrote."""
    parts: dict[str, Arrays] = {"inputs": {}, "targets": {}, "reference": {}}
    try:
        # Sorted, for a file is read in an order that differs from process to process.
        for key, array in sorted(load_file(path).items()):
            part, _, name = key.partition("/")
            parts[part][name] = array
        return Samples(**parts)
    except Exception as error:
        raise TamperedFile(
            f"{path} does not hold rows", got=type(error).__name__, fix="export it again"
        ) from error
