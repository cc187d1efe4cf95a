"""Accuracy under shifted, turned, scaled and noisy test digits, with and without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from flows.experiments import Experiment, Figure, Outcome, Setup, trained
from models.augment import add_noise, affine
from models.cnn import CNN_32_64_1024
from models.mlp import MLP_784_512_10
from models.recipe import Recipe
from pipeline import plots
from pipeline.batches import predict
from pipeline.train import load_module

# What augmented training draws from: up to this much either way, and noise of this deviation.
AUGMENTATION: dict[str, Any] = {"shift": 0.12, "rotate": 30.0, "scale": 0.2, "noise": 0.2}

MOST_ROWS = 1000  # of the test split, each of which is asked some 60 times


@dataclass(frozen=True)
class Disturbance:
    """One way to change pictures: `apply(images, strength)` gives every direction of it.

    Strength 0 changes nothing; the strength at `middle` is about the most that augmented training
    saw.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    middle: float
    apply: Callable[[Tensor, float], list[Tensor]]


@dataclass(frozen=True)
class Variant:
    """A recipe with settings, trained without and with augmentation."""

    label: str
    recipe: Recipe
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Test accuracy of one trained variant at each strength of one disturbance."""

    variant: str
    augmented: bool
    disturbance: Disturbance
    accuracy: tuple[float, ...]

    @property
    def middle(self) -> float:
        return self.accuracy[self.disturbance.strengths.index(self.disturbance.middle)]


def shifted(images: Tensor, pixels: float) -> list[Tensor]:
    """[n, c, h, w] moved by that many pixels to the right, left, bottom and top."""
    height, width = images.shape[2:]
    return [
        *(affine(images, shift_x=way * pixels / width) for way in (1, -1)),
        *(affine(images, shift_y=way * pixels / height) for way in (1, -1)),
    ]


def turned(images: Tensor, degrees: float) -> list[Tensor]:
    """[n, c, h, w] turned by that many degrees either way."""
    return [affine(images, degrees=way * degrees) for way in (1, -1)]


def scaled(images: Tensor, percent: float) -> list[Tensor]:
    """[n, c, h, w] made larger and smaller by that many percent."""
    return [affine(images, scale=1 + way * percent / 100) for way in (1, -1)]


def noisy(images: Tensor, percent: float) -> list[Tensor]:
    """[n, c, h, w] with normal noise, its deviation in percent of 1; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [add_noise(images, percent / 100)]


DISTURBANCES = (
    Disturbance("shift", "pixels", (0, 1, 2, 3, 4, 5, 6), 3, shifted),
    Disturbance("rotation", "degrees", (0, 10, 20, 30, 40, 50, 60), 30, turned),
    Disturbance("scale", "% larger or smaller", (0, 10, 20, 30, 40, 50, 60), 20, scaled),
    Disturbance("noise", "deviation in % of white", (0, 10, 20, 30, 40, 50, 60), 20, noisy),
)

# The two CNNs differ in what follows the convolutions: a dense layer that sees where a feature is,
# or each feature map's largest value wherever it is.
_CONVOLUTIONS = {"kernel": 5, "dropout": 0.0, "learning_rate": 3e-3}
MLP = Variant("MLP", MLP_784_512_10)
CNN = Variant("CNN", CNN_32_64_1024, {**_CONVOLUTIONS, "head": "dense"})
POOLED = Variant("pooled CNN", CNN_32_64_1024, {**_CONVOLUTIONS, "head": "global-max"})


def measure(
    module: nn.Module, images: Tensor, labels: Tensor, disturbance: Disturbance
) -> tuple[float, ...]:
    """Accuracy at each strength, the mean over its directions."""

    def accuracy(changed: Tensor) -> float:
        answers = predict(module, {"image": changed})["logits"].argmax(1)
        return float((answers == labels).double().mean())

    ways = (disturbance.apply(images, strength) for strength in disturbance.strengths)
    return tuple(fmean(map(accuracy, way)) for way in ways)


def judge(curves: Sequence[Curve], rows: int) -> tuple[str, bool]:
    """The verdict and whether the claim held, from what each disturbance's middle strength costs.

    It holds when the CNN loses less than the MLP, the globally pooled CNN less by shifts than the
    other, and each of the three less with augmentation.
    """
    lost = {(c.variant, c.augmented, c.disturbance.name): c.accuracy[0] - c.middle for c in curves}

    def mean(variant: Variant, augmented: bool) -> float:
        return fmean(lost[variant.label, augmented, d.name] for d in DISTURBANCES)

    shift = DISTURBANCES[0]
    variants = (MLP, CNN, POOLED)
    plain = {v.label: mean(v, False) for v in variants}
    better = {v.label: mean(v, True) for v in variants}
    by_shift = {v.label: lost[v.label, False, shift.name] for v in variants}
    reached = {(c.variant, c.augmented, c.disturbance.name): c.middle for c in curves}
    pairs = [(name, d.name) for name in plain for d in DISTURBANCES]
    unaided = [p for p in pairs if reached[p[0], True, p[1]] <= reached[p[0], False, p[1]]]
    middle = ", ".join(f"{d.name} {d.middle:g}" for d in DISTURBANCES)
    verdict = (
        f"Points of accuracy lost on {rows} test digits, on average over {middle}: "
        + "; ".join(
            f"{name} {_points(plain[name])}, augmented {_points(better[name])}" for name in plain
        )
        + f". A shift by {shift.middle:g} {shift.unit} alone costs, without augmentation, "
        + ", ".join(f"{name} {_points(cost)}" for name, cost in by_shift.items())
        + f". Augmentation raised the accuracy there in {len(pairs) - len(unaided)} of "
        + f"{len(pairs)} cases"
        + "".join(f", not of {name} under {disturbance}" for name, disturbance in unaided)
        + "."
    )
    holds = (
        plain[CNN.label] < plain[MLP.label]
        and by_shift[POOLED.label] < by_shift[CNN.label]
        and all(better[name] < plain[name] for name in plain)
    )
    return verdict, holds


def run(setup: Setup) -> Outcome:
    """Train each variant with and without augmentation, and disturb the test digits."""
    test = MLP_784_512_10.load(setup.data).test
    images = torch.from_numpy(test.inputs["image"][:MOST_ROWS])
    labels = torch.from_numpy(test.targets["label"][:MOST_ROWS])
    curves = []
    for variant in (MLP, CNN, POOLED):
        for augmented in (False, True):
            label = _label(variant.label, augmented)
            changes = variant.changes | (AUGMENTATION if augmented else {})
            model = trained(setup, variant.recipe, label, **changes)
            module = load_module(variant.recipe.override(model.settings), model)
            curves += [
                Curve(variant.label, augmented, d, measure(module, images, labels, d))
                for d in DISTURBANCES
            ]
    verdict, holds = judge(curves, len(labels))
    figures = [_figure(d, [c for c in curves if c.disturbance == d]) for d in DISTURBANCES]
    augmentation = {f"{name} of augmented training": v for name, v in AUGMENTATION.items()}
    return Outcome(verdict, holds, _rows(curves), figures, augmentation)


def _rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """For each trained net its accuracy undisturbed and at each disturbance's middle strength."""
    rows: dict[str, dict[str, Any]] = {}
    for curve in curves:
        label = _label(curve.variant, curve.augmented)
        row = rows.setdefault(label, {"net": label, "undisturbed": curve.accuracy[0]})
        row[f"{curve.disturbance.name} {curve.disturbance.middle:g}"] = curve.middle
    return list(rows.values())


def _figure(disturbance: Disturbance, curves: Sequence[Curve]) -> Figure:
    return Figure(
        f"Test accuracy over the strength of {disturbance.name}; augmented training saw it up to "
        "about the dashed line.",
        plots.lines(
            f"invariance {disturbance.name}",
            {
                _label(curve.variant, curve.augmented): (disturbance.strengths, curve.accuracy)
                for curve in curves
            },
            f"Test accuracy of {len(curves)} nets over {disturbance.name}",
            xlabel=f"{disturbance.name}, {disturbance.unit}",
            ylabel="test accuracy",
            mark=(disturbance.middle, "augmented up to here"),
        ),
    )


def _label(variant: str, augmented: bool) -> str:
    return f"{variant}, augmented" if augmented else variant


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


EXPERIMENT = Experiment(
    name="invariance",
    title="Invariance to shift, rotation, scale and noise",
    claim="A convolutional net keeps more of its accuracy than a multilayer perceptron when digits "
    "are disturbed, global pooling makes it less dependent on where a digit stands, and "
    "augmentation teaches every net what its architecture does not give.",
    paper="LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document "
    "recognition; Simard, Steinkraus, Platt 2003, Best practices for convolutional neural "
    "networks applied to visual document analysis",
    run=run,
    varied=("head", "shift", "rotate", "scale", "noise"),
)
