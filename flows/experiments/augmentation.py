"""Drawn digits as more training data: a classifier of few real ones, with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from flows import stages
from flows.console import listener
from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings
from flows.stages import Job
from models.augment import augment
from models.datasets import Split
from models.digits import CLASSES, PICTURED_DIGITS
from models.judge import judge
from models.recipe import Training
from pipeline import plots
from pipeline.pictures import Tile, grid
from pipeline.train import load_module
from pipeline.values import TrainedModel

PER_CLASS = (5, 10, 20, 50)
SEEDS = range(5)
# Student's t at 95 %, two-sided, of five pairs.
SURE = 2.776

ALONE, DRAWN, MOVED, BOTH = "real alone", "and drawn", "and moved", "and drawn and moved"
# What is done to copies of the real digits: the classical augmentation.
MOVES = Training(rotate=15, shift=0.1, scale=0.1)

EXTRA = 100  # digits of each class that are added
GAN_UPDATES = 500
UPDATES = 400  # of a classifier
_BATCH = 50

Rows = tuple[Tensor, Tensor]  # images [n, 1, 28, 28], labels [n]


@dataclass(frozen=True)
class Trial:
    """The test accuracy by what was added to so many real digits of each class, drawn by a seed.

    `sound` is the share of drawn digits in which a judge that has seen all train digits sees the
    class that they were drawn for. It measures, and teaches no one.
    """

    per_class: int
    seed: int
    accuracy: Mapping[str, float]
    sound: float

    @property
    def gain(self) -> float:
        return self.accuracy[DRAWN] - self.accuracy[ALONE]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of five values (Student 1908)."""
    half = SURE * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def decide(trials: Sequence[Trial]) -> tuple[str, bool]:
    """What drawn digits gained at each number of real ones; it holds if each gain is above 0."""
    sentences, gained = [], []
    for count, some in _by_count(trials).items():
        gains = [trial.gain for trial in some]
        low, high = interval(gains)
        gained.append(low > 0)
        means = {name: fmean(t.accuracy[name] for t in some) for name in some[0].accuracy}
        sentences.append(
            f"Of {count} real digits per class the test accuracy is {means[ALONE]:.1%}, with drawn "
            f"ones {means[DRAWN]:.1%} (gain {100 * fmean(gains):+.1f} points, 95 % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}), with moved ones {means[MOVED]:.1%} and with "
            f"both {means[BOTH]:.1%}; {fmean(t.sound for t in some):.0%} of the drawn ones look "
            f"like their class."
        )
    return " ".join(sentences), all(gained)


def run(setup: Setup) -> Outcome:
    """A conditional GAN and four classifiers for each number of real digits and each seed."""
    models: list[TrainedModel] = []
    trials: list[Trial] = []
    shown: dict[int, tuple[Rows, Rows]] = {}
    expert = judge(*_rows(PICTURED_DIGITS[setup.data]().train))
    for count in PER_CLASS:
        for seed in SEEDS:
            job, model = _trained(setup, count, seed)
            models.append(model)
            real, test = _rows(job.dataset.train), _rows(job.dataset.test)
            drawn = _draw(job, model, seed)
            told = listener.get()(f"{count} per class, seed {seed}", "classify")
            accuracy = classify(real, drawn, test, seed)
            told(1, 1, f"{DRAWN} {accuracy[DRAWN]:.4f}, {ALONE} {accuracy[ALONE]:.4f}")
            trials.append(Trial(count, seed, accuracy, expert.accuracy(*drawn)))
            shown.setdefault(count, (real, drawn))
    said, holds = decide(trials)
    rows = [
        {"real per class": t.per_class, "seed": t.seed}
        | {f"accuracy, {name}": value for name, value in t.accuracy.items()}
        | {"gain by drawn": t.gain, "drawn that look like their class": t.sound}
        for t in trials
    ]
    return Outcome(said, holds, rows, _figures(trials, shown), common_settings(models))


def classify(real: Rows, drawn: Rows, test: Rows, seed: int) -> dict[str, float]:
    """Test accuracies of LeNet-5 by what is added to the real digits, after as many updates.

    Whatever is added is half of what a net is shown: the real digits again, or others.
    """
    count = len(drawn[1])
    images, labels = (
        rows.repeat(-(-count // len(rows)), *[1] * (rows.ndim - 1))[:count] for rows in real
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        moved, drawn_moved = augment(images, MOVES), augment(drawn[0], MOVES)
    half = count // 2
    added = {
        ALONE: (images, labels),
        DRAWN: drawn,
        MOVED: (moved, labels),
        BOTH: (
            torch.cat([moved[:half], drawn_moved[half:]]),
            torch.cat([labels[:half], drawn[1][half:]]),
        ),
    }
    return {
        name: judge(
            torch.cat([images, others]), torch.cat([labels, theirs]), updates=UPDATES, seed=seed
        ).accuracy(*test)
        for name, (others, theirs) in added.items()
    }


def _trained(setup: Setup, count: int, seed: int) -> tuple[Job, TrainedModel]:
    """A conditional GAN of these digits alone, after its last update.

    It has one epoch of many passes, so nothing is chosen by the validation rows.
    """
    own = {
        "floor": "none", "per_class": count, "draw": seed, "seed": seed, "epochs": 1,
        "batch_size": _BATCH, "repeat": max(1, GAN_UPDATES * _BATCH // (count * len(CLASSES))),
    }  # fmt: skip
    job = Job(
        "models.cgan:CGAN", setup.data, changes=own | dict(setup.changes), out=setup.out,
        device=setup.device,
    )  # fmt: skip
    model = stages.train(job, listener.get()(f"{count} per class, seed {seed}", "train"))
    return job, model


@torch.inference_mode()
def _draw(job: Job, model: TrainedModel, seed: int) -> Rows:
    """As many digits of each class as are added, from latents of that seed."""
    labels = torch.arange(len(CLASSES)).repeat(EXTRA)
    latents = job.dataset.test.inputs["latent"].shape[1]
    noise = torch.randn(len(labels), latents, generator=torch.Generator().manual_seed(seed))
    return load_module(job.recipe, model)(noise, labels)["image"], labels


def _rows(split: Split) -> Rows:
    targets = split.targets
    return torch.from_numpy(targets["image"]), torch.from_numpy(targets["label"])


def _by_count(trials: Sequence[Trial]) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.per_class, []).append(trial)
    return found


def _figures(trials: Sequence[Trial], shown: Mapping[int, tuple[Rows, Rows]]) -> list[Figure]:
    by_count = _by_count(trials)
    counts = list(by_count)
    accuracy = {
        name: (counts, [fmean(t.accuracy[name] for t in some) for some in by_count.values()])
        for name in trials[0].accuracy
    }
    gains = [[100 * t.gain for t in some] for some in by_count.values()]
    ends = [interval(some) for some in gains]
    gain = {
        "mean gain": (counts, [fmean(some) for some in gains]),
        "95 %, low": (counts, [low for low, _ in ends]),
        "95 %, high": (counts, [high for _, high in ends]),
    }
    label = "real digits per class"
    return [
        Figure(
            "Test accuracy by what a classifier of few real digits was shown besides them, mean "
            "over the seeds.",
            plots.lines(
                "accuracy", accuracy, f"Test accuracy over {label}, by what was added",
                xlabel=label, ylabel="test accuracy", log_x=True,
            ),
        ),
        Figure(
            "What drawn digits gain over the real ones alone, in points of test accuracy: the mean "
            "over the seeds and its 95 % confidence interval.",
            plots.lines(
                "gain", gain, f"Gain by drawn digits over {label}, with its interval",
                xlabel=label, ylabel="gain, points", log_x=True,
            ),
        ),
        _pictures(shown),
    ]  # fmt: skip


def _pictures(shown: Mapping[int, tuple[Rows, Rows]]) -> Figure:
    """Of the first seed a real digit of each class, and drawn ones below it."""
    rows: list[list[Tile]] = []
    names: list[str] = []
    for count, (real, drawn) in shown.items():
        first = [real[0][real[1] == c][0] for c in range(len(CLASSES))]
        lines = {f"{count}, real": first, f"{count}, drawn": drawn[0][: len(CLASSES)]}
        lines[""] = drawn[0][len(CLASSES) : 2 * len(CLASSES)]
        for name, images in lines.items():
            names.append(name)
            rows.append([Tile(plots.picture(image.numpy(), 0.0, 1.0)) for image in images])
    return Figure(
        "Real digits and drawn ones, a class to a column, by how many real digits of each class "
        "the conditional GAN was shown.",
        grid(rows, f"Real and drawn digits at {len(shown)} numbers of real ones", names=names),
    )


EXPERIMENT = Experiment(
    name="augmentation",
    title="Drawn digits as training data",
    claim="A classifier trained on few real digits is right on more unseen ones when digits are "
    "added that a conditional GAN draws, which was shown those same few alone.",
    paper="Mirza, Osindero 2014, Conditional generative adversarial nets; Antoniou, Storkey, "
    "Edwards 2017, Data augmentation generative adversarial networks",
    run=run,
    varied=("per_class", "draw", "seed", "epochs", "repeat", "batch_size"),
)
