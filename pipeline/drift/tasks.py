"""What each task's answers are, which of them changed, and what the task is measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from models.codec import PADDING, Codec, Generation
from pipeline.drift.paired import (
    Measure,
    accuracies,
    bootstrap,
    discordant,
    mcnemar,
    rank_correlation,
)
from pipeline.evaluation import MASK
from pipeline.samples import Samples

# Targets that are no output's: the class of a row, and the token that truly follows each.
_LABEL = "label"
_NEXT = "next"

_STEP = 0.5 / 255  # of a picture in [0, 1]: half a grey level
# A number that moved by a tenth of the targets' deviation: if all did, R2 lost 0.01.
_DEVIATIONS = 0.1
_NATS = 700.0  # of which the exponential is a number


@dataclass(frozen=True)
class Pair:
    """One output over all rows: the fp64 module's values, the engine's, and what is between them.

    `limit` and `scale` are in the output's unit. `exact`: no answer may change but for ties.
    """

    module: np.ndarray
    engine: np.ndarray
    samples: Samples
    limit: float
    scale: float
    exact: bool


@dataclass(frozen=True)
class Change:
    """Which answers [rows, ...] are others, of those that count, and by what the module's led.

    A flip may be a tie where the lead is at most `reach` times the limit: that is how many values
    are compared, each of which may be off by it.
    """

    other: np.ndarray
    leads: np.ndarray | None = None
    reach: int = 2
    counted: np.ndarray | None = None
    measures: dict[str, Measure] = field(default_factory=dict)
    note: str = ""


Task = Callable[[Pair], Change]


def tasks_of(codec: Codec) -> Iterator[tuple[str, str, Task]]:
    """The answers that are made of outputs: what they are, of which one, and how to compare it."""
    if codec.scores:
        yield "class", codec.scores, _classes
    if codec.sign:
        yield "class", codec.sign, _signs
    if (values := codec.values) is not None:
        yield "value", values, lambda pair: _values(pair, values)
    if codec.pixels:
        yield "class of a pixel", codec.pixels, _pixels
    if (generation := codec.generation) is not None:
        yield "next token", generation.logits, lambda pair: _tokens(pair, generation)
    if (pictures := codec.pictures) is not None:
        original = codec.image.name if codec.image and pictures.reconstruction else None
        # A decoder that is a part is compared as such; the whole shows its picture here.
        shown = pictures.reconstruction if pictures.decoder else pictures.drawn
        if shown:
            yield "pixel of a picture", shown, lambda pair: _pictures(pair, original)
    if (anomaly := codec.anomaly) is not None:
        yield "anomaly", anomaly.error, lambda pair: _anomalies(pair, anomaly.threshold)
    if codec.actions:
        yield "greedy action", codec.actions.values, _actions


def by_row(values: np.ndarray) -> np.ndarray:
    """The sum of each row's values, [rows]."""
    return values.reshape(len(values), -1).sum(1)


def _terms(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Of each row the sum of its values and how many they are, [rows, 2]."""
    counts = by_row(np.ones(values.shape) if counted is None else counted)
    return np.stack([by_row(values), counts], 1)


def _mean(sums: np.ndarray) -> np.ndarray:
    """The mean of values from sums of their terms, [samples]."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def _distance(values: np.ndarray) -> Measure:
    """The mean of what is 0 for the module itself."""
    return bootstrap(_terms(np.zeros_like(values)), _terms(values), _mean)


def _compare(
    pair: Pair,
    terms: Callable[[np.ndarray], np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
) -> Measure:
    return bootstrap(terms(pair.module), terms(pair.engine), statistic)


def _target(pair: Pair, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A target where it is known. Raises `ValueError` where it is none of that shape."""
    target = pair.samples.targets.get(name)
    return None if target is None else target.reshape(shape)


def _chosen(pair: Pair, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The module's best along an axis, the engine's, and what the module gives up by that."""
    best, chosen = (values.argmax(axis) for values in (pair.module, pair.engine))
    taken = np.take_along_axis(pair.module, np.expand_dims(chosen, axis), axis).squeeze(axis)
    return best, chosen, pair.module.max(axis) - taken


def _accuracy(pair: Pair, best: np.ndarray, chosen: np.ndarray) -> tuple[dict[str, Measure], str]:
    label = _target(pair, _LABEL, best.shape)
    if label is None:
        return {}, ""
    right, still = best == label, chosen == label
    won, lost = int((still & ~right).sum()), int((right & ~still).sum())
    note = f"{lost} rows right no more, {won} only now; exact McNemar p = {mcnemar(won, lost):.3g}"
    return {"accuracy": accuracies(right, still)}, note


def _classes(pair: Pair) -> Change:
    best, chosen, leads = _chosen(pair, -1)
    measures, note = _accuracy(pair, best, chosen)
    return Change(best != chosen, leads, measures=measures, note=note)


def _signs(pair: Pair) -> Change:
    module, engine = (values.reshape(len(values)) for values in (pair.module, pair.engine))
    best, chosen = module > 0, engine > 0
    measures, note = _accuracy(pair, best, chosen)
    return Change(best != chosen, np.abs(module), 1, measures=measures, note=note)


def _actions(pair: Pair) -> Change:
    best, chosen, regret = _chosen(pair, -1)
    return Change(
        best != chosen,
        regret,
        measures={"regret": _distance(regret)},
        note=f"the worst regret is {regret.max():.2e}, in the unit of the values",
    )


def _values(pair: Pair, output: str) -> Change:
    """A number has changed that moved by more than the limit, or than a part of the deviation."""
    target = _target(pair, output, pair.module.shape)
    moved = np.abs(pair.engine - pair.module)
    measures = {"mean distance": _distance(moved)}
    if target is not None:
        measures["RMSE"] = _compare(
            pair,
            lambda values: _terms(np.square(values - target)),
            lambda sums: np.sqrt(_mean(sums)),
        )
    deviation = float(np.std(pair.module if target is None else target))
    step = pair.limit if pair.exact else max(pair.limit, _DEVIATIONS * deviation)
    return Change(moved > step, measures=measures)


def _pixels(pair: Pair) -> Change:
    best, chosen, leads = _chosen(pair, 1)
    classes = pair.module.shape[1]
    same, agreed = (_counts(best, mask, classes) for mask in (best, chosen))
    measures = {"IoU with the module's masks": bootstrap(same, agreed, _mean_iou)}
    mask = _target(pair, MASK, best.shape)
    if mask is not None:
        ours, theirs = (_counts(mask, mine, classes) for mine in (best, chosen))
        measures["mean IoU"] = bootstrap(ours, theirs, _mean_iou)
    return Change(best != chosen, leads, measures=measures)


def _counts(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Of each row how many pixels of a class were given which, [rows, actual, predicted]."""
    rows = len(actual)
    places = (np.arange(rows)[:, None, None] * classes + actual) * classes + predicted
    known = (actual >= 0) & (actual < classes)
    counts = np.bincount(places[known], minlength=rows * classes**2)
    return counts.reshape(rows, classes, classes).astype(float)


def _mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean intersection over union of the classes that are there or said, [samples]."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - hits
    return (hits / np.maximum(union, 1)).sum(1) / np.maximum((union > 0).sum(1), 1)


def _tokens(pair: Pair, generation: Generation) -> Change:
    """Each position is asked with what truly stands before it."""
    best, chosen, leads = _chosen(pair, -1)
    following = _target(pair, _NEXT, best.shape)
    given = pair.samples.inputs[generation.tokens.name] if following is None else following
    counted = given != PADDING
    measures = {}
    if following is not None:
        measures["perplexity"] = _compare(
            pair,
            lambda logits: _terms(_nats(logits, following) * counted, counted),
            lambda sums: np.exp(np.minimum(_mean(sums), _NATS)),
        )
    return Change(best != chosen, leads, counted=counted, measures=measures)


def _nats(logits: np.ndarray, following: np.ndarray) -> np.ndarray:
    """-log softmax of what follows, [rows, length]."""
    top = logits.max(-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(logits - top).sum(-1))
    return log_sum - np.take_along_axis(logits, following[..., None], -1)[..., 0]


def _pictures(pair: Pair, original: str | None) -> Change:
    """Pictures of the same codes and noise."""
    distance = np.abs(pair.engine - pair.module)
    measures = {"mean distance": _distance(distance)}
    if original is not None:
        known = _target(pair, original, pair.module.shape)
        known = pair.samples.inputs[original] if known is None else known
        measures["reconstruction MSE"] = _compare(
            pair, lambda values: _terms(np.square(values - known)), _mean
        )
    return Change(distance > _STEP, measures=measures)


def _anomalies(pair: Pair, threshold: float) -> Change:
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}, so nothing is an anomaly")
    module, engine = (values.reshape(len(values)) for values in (pair.module, pair.engine))
    swapped = discordant(module, engine)
    return Change(
        (module > threshold) != (engine > threshold),
        np.abs(module - threshold),
        1,
        measures={"rank correlation": rank_correlation(module, engine)},
        note=f"{swapped:.2%} of pairs of rows are in another order",
    )
