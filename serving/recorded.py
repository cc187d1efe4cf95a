"""Real rows that a bundle recorded, to begin with in the playground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from models.codec import Codec
from models.signature import BATCH, Arrays, Signature
from pipeline.bundle import CASES, Bundle
from pipeline.cases import CASES_FILE, HELD_OUT, read_cases

_MOST = 64  # rows
_FEW = 6  # of large ones
_LARGEST = 4096  # numbers of a row that is not large
_TOLD = 65_536  # numbers that are told as lists
_INK = 0.3  # how far from the ground a pixel is drawn on


@dataclass(frozen=True)
class Frame:
    """How drawings lie in their pictures: the share of the side they fill, and on what ground."""

    share: float
    light: bool


def recorded(bundle: Bundle) -> list[Arrays]:
    """Held-out rows of usual sizes by input, a few; none where no such case is recorded."""
    file = f"{CASES}/{CASES_FILE}"
    signature = bundle.manifest.signature
    sizes = tuple((name, axis.opt) for name, axis in signature.axes.items() if name != BATCH)
    rows = _rows(bundle.folder / CASES, bundle.manifest.files[file], sizes, signature.batch is None)
    return list(rows)


def as_lists(rows: list[Arrays], signature: Signature) -> list[dict[str, list[object]]]:
    """The rows as nested lists, unless they are too large to be changed by hand."""
    size = sum(array.size for array in rows[0].values()) if rows else 0
    names = [spec.name for spec in signature.inputs]
    count = _TOLD // size if 0 < size <= _LARGEST else 0
    return [{n: row[n].tolist() for n in names} for row in rows[:count]]


def sources(rows: list[Arrays], codec: Codec) -> list[str]:
    """The texts that a model which answers a source was asked."""
    source = codec.generation.source if codec.generation else None
    if source is None:
        return []
    return [source.decode(row[source.name].tolist()) for row in rows[:_FEW]]


def picture_name(codec: Codec) -> str | None:
    """The input that holds a picture, of a model that is asked with one."""
    read = codec.image or codec.tiled
    return read.name if read else None


def frame(rows: list[Arrays], name: str) -> Frame | None:
    """Where the recorded pictures have their ink, of the usual one."""
    shares, lights = [], []
    for row in rows:
        grey = row[name].mean(0)
        edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        lights.append(np.median(edge) > 0.5)
        tall, wide = (np.flatnonzero((abs(grey - np.median(edge)) > _INK).any(a)) for a in (1, 0))
        if tall.size:
            extent = max(np.ptp(tall) / grey.shape[0], np.ptp(wide) / grey.shape[1])
            shares.append(min(1.0, float(extent) + 1 / grey.shape[0]))
    return Frame(float(np.median(shares)), bool(np.mean(lights) > 0.5)) if shares else None


@lru_cache(maxsize=4)
def _rows(
    folder: Path, digest: str, sizes: tuple[tuple[str, int], ...], single: bool
) -> tuple[Arrays, ...]:
    """Of a file, which its digest tells from a later one at the same place."""
    rows: list[Arrays] = []
    for case in read_cases(folder):
        if case.origin != HELD_OUT or not set(sizes) <= set(case.sizes.items()):
            continue
        count = 1 if single else case.sizes.get(BATCH, 1)
        most = _MOST if sum(a.size for a in case.inputs.values()) <= _LARGEST * count else _FEW
        for place in range(min(count, most - len(rows))):
            # Copied: a view would keep the whole file.
            rows.append({n: (a if single else a[place]).copy() for n, a in case.inputs.items()})
    return tuple(rows)
