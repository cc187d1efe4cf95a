"""What training measured on the test split: metrics with intervals, and rows to look at."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from models.codec import Codec
from models.datasets import Dataset
from models.recipe import Recipe
from models.signature import Arrays
from pipeline.artifacts import pack, write_bytes, write_json
from pipeline.values import EVALUATION, EXHIBITS, GALLERY

_CONFIDENCE = 0.95
_RESAMPLES = 400
_ROWS = 24
_MAPS = 6

MASK = "mask"  # the target that gives each pixel its class
# Beside the inputs of a gallery of pictures: the class of each pixel, there and predicted.
ACTUAL = "actual"
PREDICTED = "predicted"

# Beside the titles of exhibits: their first row after some epochs, and the numbers of these.
EPOCHS = "epochs"
EPOCH_NUMBERS = "epoch numbers"
_EPOCHS = 10

Intervals = dict[str, tuple[float, float]]


def intervals(
    recipe: Recipe, outputs: Arrays, targets: Arrays, metrics: dict[str, float]
) -> Intervals:
    """The 95 % confidence interval of every metric over the test rows.

    An accuracy counts rows, so it has the score interval (Wilson 1927); of the others it is the
    percentile bootstrap over rows (Efron 1979). That is left out where a resample has no number,
    and where the value itself is outside: rows that come again move some metrics, such as a
    distance between distributions, to one side.
    """
    rows = len(next(iter(targets.values())))
    draws = np.random.default_rng(0).integers(0, rows, (_RESAMPLES, rows))
    resampled = [
        recipe.evaluate(
            {name: array[draw] for name, array in outputs.items()},
            {name: array[draw] for name, array in targets.items()},
        )
        for draw in draws
    ]
    tails = (50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE))
    found: Intervals = {}
    for name, value in metrics.items():
        if _counts_rows(name, value, rows):
            found[name] = wilson(round(value * rows), rows)
            continue
        values = np.array([again[name] for again in resampled])
        if np.isfinite(values).all():
            low, high = np.percentile(values, tails)
            if low <= value <= high:
                found[name] = (float(low), float(high))
    return found


def _counts_rows(name: str, value: float, rows: int) -> bool:
    """Whether a metric is the share of rows that were answered right."""
    hits = value * rows
    return (
        ("accuracy" in name or "exact" in name)
        and 0 <= value <= 1
        and math.isclose(hits, round(hits))
    )


def wilson(hits: float, rows: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = hits / rows
    centre = share + z * z / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    whole = 1 + z * z / rows
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def choose_rows(dataset: Dataset, codec: Codec, measured: Arrays) -> np.ndarray:
    """The test rows that a report shows: of a classifier the surest mistakes first."""
    if "label" not in dataset.test.targets or not (codec.scores or codec.sign):
        most = _MAPS if codec.pixels else _ROWS
        return np.arange(min(most, len(dataset.test)))
    actual = dataset.test.targets["label"]
    predicted, sureness = _said(codec, measured)
    wrong = np.flatnonzero(predicted != actual)
    wrong = wrong[np.argsort(-sureness[wrong], kind="stable")][: _ROWS // 2]
    right = np.flatnonzero(predicted == actual)[: _ROWS - len(wrong)]
    return np.concatenate([wrong, right])


def write_evaluation(
    dataset: Dataset,
    codec: Codec,
    measured: Arrays,
    metrics: dict[str, float],
    shown: np.ndarray,
    outputs: Arrays,
    out: Path,
) -> None:
    """What a report shows of the test split: numbers, and the `shown` rows with their outputs."""
    facts: dict[str, Any] = {
        "metrics": metrics,
        "rows": len(dataset.test),
        "gallery": shown.tolist(),
    }
    if "label" in dataset.test.targets and (codec.scores or codec.sign):
        predicted, sureness = _said(codec, measured)
        if codec.scores:
            facts["confidence"] = [round(float(share), 6) for share in sureness]
        facts |= {
            "classes": list(codec.classes),
            "actual": dataset.test.targets["label"].tolist(),
            "predicted": predicted.tolist(),
        }
    inputs = {name: array[shown] for name, array in dataset.test.inputs.items()}
    if codec.text:
        facts["texts"] = [" ".join(codec.text.decode(row)) for row in inputs[codec.text.name]]
    if codec.pixels:
        facts["legend"] = dict(zip(codec.classes, codec.colours, strict=True))
        masks = dataset.test.targets[MASK][shown]
        predicted = outputs[codec.pixels].argmax(1)
        inputs |= {ACTUAL: masks.astype(np.uint8), PREDICTED: predicted.astype(np.uint8)}
    write_json(out / EVALUATION, facts)
    write_bytes(out / GALLERY, pack(inputs))


def write_exhibits(exhibits: Arrays, shown: Arrays, out: Path) -> None:
    """Pictures to look at, by title, and under `EPOCHS` a row of them for each epoch.

    Of a long training, evenly chosen epochs are kept, the last among them.
    """
    count = len(shown)
    chosen = np.unique(np.linspace(count, 1, min(count, _EPOCHS)).round().astype(int))
    rows = {EPOCHS: np.stack([shown[str(epoch)] for epoch in chosen]), EPOCH_NUMBERS: chosen}
    # In the order in which the recipe gave them, which a file of tensors does not keep.
    titled = {f"{place:02} {title}": array for place, (title, array) in enumerate(exhibits.items())}
    write_bytes(out / EXHIBITS, pack(titled | rows))


def read_exhibits(folder: Path) -> tuple[Arrays, np.ndarray, np.ndarray] | None:
    """Exhibits by title, pictures [epochs, columns, ...], and the numbers of these epochs."""
    if not (folder / EXHIBITS).is_file():
        return None
    arrays = dict(sorted(load_file(folder / EXHIBITS).items()))
    epochs, numbers = arrays.pop(EPOCHS), arrays.pop(EPOCH_NUMBERS)
    return {name[3:]: array for name, array in arrays.items()}, epochs, numbers


def _said(codec: Codec, measured: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the predicted class, and how sure the classifier is of it."""
    if codec.scores:
        return measured[codec.scores].argmax(1), measured[codec.scores].max(1)
    margin = measured[str(codec.sign)][:, 0]
    return (margin > 0).astype(np.int64), np.abs(margin)
