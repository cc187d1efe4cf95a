"""Fast-gradient-sign attacks on served engines, beside random noise of the same size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flows import stages
from flows.console import listener
from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings
from flows.stages import Job, Parts
from models.cnn import CNN_32_64_1024
from models.lenet5 import LENET5
from models.losses import classification_loss
from models.mlp import MLP_784_512_10
from models.recipe import Recipe
from pipeline import plots
from pipeline.backends import Session, backend
from pipeline.backends import target as find_target
from pipeline.pictures import Tile, grid
from pipeline.train import load_module
from pipeline.values import TrainedModel
from pipeline.verify import require

RECIPES = (MLP_784_512_10, CNN_32_64_1024, LENET5)
# How far each pixel of 0..1 is moved.
EPSILONS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

_PICTURES = 8
_BATCH = 64


@dataclass(frozen=True)
class Victim:
    """A trained module, and its certified engine opened as it is served."""

    trained: TrainedModel
    module: nn.Module
    session: Session

    def classify(self, images: Tensor) -> np.ndarray:
        """The engine's classes [n] of images [n, c, h, w]."""
        parts = [self.session.run({"image": part.numpy()}) for part in images.split(_BATCH)]
        return np.concatenate([part["logits"].argmax(1) for part in parts])


@dataclass(frozen=True)
class Curve:
    """One engine's test accuracy over `EPSILONS`, and what training reported of its module."""

    name: str
    reported: float
    attacked: tuple[float, ...]
    noisy: tuple[float, ...]

    @property
    def half(self) -> int | None:
        """The place in `EPSILONS` of the first attack that leaves less than half; None if none."""
        return next((i for i, share in enumerate(self.attacked) if share < 0.5), None)

    @property
    def place(self) -> int:
        """The place in `EPSILONS` to speak of: where less than half is left, else the last."""
        return len(EPSILONS) - 1 if self.half is None else self.half


@dataclass(frozen=True)
class Attack:
    """Where an attack moves each pixel, the engine's answers over `EPSILONS`, and its accuracy."""

    signs: Tensor
    answers: tuple[np.ndarray, ...]
    curve: Curve


def gradient_signs(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """sign of d loss / d pixel, -1, 0 or 1, of the cross-entropy: [n, c, h, w] as the images.

    Of the module in evaluation mode, in fp64, where no gradient of a sure answer underflows.
    """
    exact = copy.deepcopy(module).double().eval()
    signs = []
    for part, label in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        pixels = part.double().requires_grad_()
        loss = classification_loss(exact(image=pixels), {"label": label})
        signs.append(torch.autograd.grad(loss, pixels)[0].sign())
    return torch.cat(signs).to(images.dtype)


def step(images: Tensor, signs: Tensor, epsilon: float) -> Tensor:
    """The images, each pixel moved by epsilon where its sign points, and still in 0..1.

    Goodfellow, Shlens, Szegedy 2015: x + epsilon sign(grad_x loss).
    """
    return (images + epsilon * signs).clamp(0, 1)


def random_signs(images: Tensor) -> Tensor:
    """-1 or 1 for each pixel by chance: noise exactly as large as the attack, in any norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.randint_like(images, 2) * 2 - 1


def attack(victim: Victim, images: Tensor, labels: Tensor) -> Attack:
    """Ask the engine for every image at every epsilon, attacked and noisy."""
    signs, noise = gradient_signs(victim.module, images, labels), random_signs(images)
    answers, controls = (
        tuple(victim.classify(step(images, moves, epsilon)) for epsilon in EPSILONS)
        for moves in (signs, noise)
    )
    actual = labels.numpy()
    curve = Curve(
        name=victim.trained.recipe,
        reported=victim.trained.metrics["accuracy"],
        attacked=tuple(float((answer == actual).mean()) for answer in answers),
        noisy=tuple(float((answer == actual).mean()) for answer in controls),
    )
    return Attack(signs, answers, curve)


def judge(curves: Sequence[Curve]) -> tuple[str, bool]:
    """The verdict and whether the claim held.

    It holds when every engine answers undisturbed digits as reported, falls below half under
    attack, and loses less than half as much by noise of the same size.
    """
    sentences = []
    holds = True
    for curve in curves:
        at = curve.place
        lost, control = curve.attacked[0] - curve.attacked[at], curve.noisy[0] - curve.noisy[at]
        sentences.append(
            f"{curve.name} falls from {curve.attacked[0]:.1%} to {curve.attacked[at]:.1%} "
            f"at epsilon {EPSILONS[at]:g}"
            + (", never below half" if curve.half is None else "")
            + f", where random noise of the same size moves it by {-100 * control:+.1f} points"
        )
        same = curve.attacked[0] == curve.noisy[0] == curve.reported
        if not same:
            sentences[-1] += f" (its module was reported at {curve.reported:.1%})"
        holds = holds and same and curve.half is not None and control < lost / 2
    return "Test accuracy of the served engines: " + "; ".join(sentences) + ".", holds


def run(setup: Setup) -> Outcome:
    """Train, export and certify each net, then attack its engine with its module's gradients."""
    test = RECIPES[0].load(setup.data).test
    images = torch.from_numpy(test.inputs["image"])
    labels = torch.from_numpy(test.targets["label"])
    victims = [_victim(setup, recipe) for recipe in RECIPES]
    attacks = [attack(victim, images, labels) for victim in victims]
    curves = [one.curve for one in attacks]
    verdict, holds = judge(curves)
    rows = [
        {
            "net": curve.name,
            "epsilon": epsilon,
            "accuracy, fast gradient sign": curve.attacked[place],
            "accuracy, random noise": curve.noisy[place],
        }
        for curve in curves
        for place, epsilon in enumerate(EPSILONS)
    ]
    figures = [_plot(curves), _pictures(attacks, images, labels)]
    settings = common_settings(victim.trained for victim in victims)
    return Outcome(verdict, holds, rows, figures, settings)


def _victim(setup: Setup, recipe: Recipe) -> Victim:
    """Take a recipe to a certified engine, or find it, and open it as it is served."""
    changes = {"floor": "none", **setup.changes}
    job = Job(recipe.name, setup.data, changes=changes, out=setup.out, device=setup.device)
    parts = Parts()
    for stage in ("train", "export", "optimize", "verify"):
        parts = stages.advance(job, stage, parts, listener.get()(recipe.name, stage))
    assert parts.trained is not None
    engine = parts.engines[0]
    require(parts.certificates[0])
    tools = backend(find_target(engine.target))
    session = tools.open(engine.folder, engine.files, engine.options)
    return Victim(parts.trained, load_module(job.recipe, parts.trained), session)


def _plot(curves: Sequence[Curve]) -> Figure:
    series = {}
    for curve in curves:
        series[curve.name] = (EPSILONS, curve.attacked)
        series[f"{curve.name}, noise"] = (EPSILONS, curve.noisy)
    return Figure(
        "Test accuracy of the engines over epsilon, how far each pixel of 0..1 is moved: along the "
        "sign of the module's gradient, or as noise along a sign by chance.",
        plots.lines(
            "adversarial",
            series,
            f"Test accuracy of {len(curves)} engines over epsilon, attacked and noisy",
            xlabel="epsilon",
            ylabel="test accuracy",
        ),
    )


def _pictures(attacks: Sequence[Attack], images: Tensor, labels: Tensor) -> Figure:
    """Digits that every engine knew, attacked until it knows less than half of all."""
    actual = labels.numpy()
    known = np.all([one.answers[0] == actual for one in attacks], axis=0)
    chosen = np.flatnonzero(known)[:_PICTURES]
    rows = [[_tile(images[i], str(actual[i])) for i in chosen]]
    names = ["test digit"]
    for one in attacks:
        place = one.curve.place
        answer = one.answers[place]
        changed = step(images, one.signs, EPSILONS[place])
        rows.append([_tile(changed[i], str(answer[i]), answer[i] != actual[i]) for i in chosen])
        names.append(f"{one.curve.name} {EPSILONS[place]:g}")
    return Figure(
        "Test digits with their classes, and the same attacked for each net at the epsilon beside "
        "its name, with what its engine answers.",
        grid(
            rows, f"{len(chosen)} digits, clean and attacked for {len(attacks)} nets", names=names
        ),
    )


def _tile(image: Tensor, words: str, bad: Any = False) -> Tile:
    return Tile(plots.picture(image.numpy(), 0.0, 1.0), words, bool(bad))


EXPERIMENT = Experiment(
    name="adversarial",
    title="Adversarial digits by the fast gradient sign",
    claim="A step of a small epsilon along the sign of the loss's gradient on every pixel makes a "
    "net that is nearly always right wrong most of the time, while random noise of the same size "
    "costs it little.",
    paper="Goodfellow, Shlens, Szegedy 2015, Explaining and harnessing adversarial examples",
    run=run,
)
