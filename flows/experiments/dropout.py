"""Dropout: the same net with and without it, after equally many updates, from several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from flows.experiments import (
    Experiment,
    Outcome,
    Setup,
    common_settings,
    read_history,
    trained,
)
from flows.experiments.trainings import curves, fit
from models.datasets import Dataset
from models.mlp import MLP_DROPOUT
from pipeline.values import TrainedModel

_WITHOUT, _WITH = "without", "dropout 0.5"
_SHARES = {_WITHOUT: 0.0, _WITH: 0.5}
_SEEDS = range(5)
# Standard errors that a mean difference must exceed: Student's t at 95 %, one-sided, of five pairs.
SURE = 2.132


@dataclass(frozen=True)
class Fit:
    """How well a net does on rows that it has seen and on rows that it has not.

    `end` and `accuracy` are of the validation rows after the last update. `train` and `validation`
    are losses of the kept weights, those of the best epoch, both in evaluation mode: the loss that
    training minimises is of a net that lacks half of its units.
    """

    end: float
    accuracy: float
    train: float
    validation: float

    @property
    def gap(self) -> float:
        return self.validation - self.train


def run(setup: Setup) -> Outcome:
    """Pairs of trainings that differ in dropout alone, a pair for each seed."""
    models = {
        label: [
            trained(
                setup, MLP_DROPOUT, f"{label}, seed {seed}", dropout=share, seed=seed,
                # The paper's optimizer, and a rate that ends at 0: at a constant rate the loss of
                # the last epoch is mostly noise.
                epochs=50, batch_size=32, optimizer="momentum", learning_rate=0.02,
                schedule="cosine",
            )
            for seed in _SEEDS
        ]
        for label, share in _SHARES.items()
    }  # fmt: skip
    dataset = MLP_DROPOUT.override(models[_WITHOUT][0].settings).load(setup.data)
    fits = {label: [_fit(model, dataset) for model in some] for label, some in models.items()}
    verdict, holds = judge(fits[_WITHOUT], fits[_WITH])
    rows = [
        {
            "net": label,
            "seed": model.settings["seed"],
            "validation loss at the end": found.end,
            "validation accuracy at the end": found.accuracy,
            "training loss, kept weights": found.train,
            "validation loss, kept weights": found.validation,
            "gap": found.gap,
            "best epoch": model.best_epoch,
        }
        for label, some in models.items()
        for model, found in zip(some, fits[label], strict=True)
    ]
    figures = [
        curves(
            "training loss",
            models,
            "Training loss as it is minimised, mean over the seeds: with dropout it is of a net "
            "that lacks half of its units, so it is higher than the loss of the whole net.",
        ),
        curves(
            "validation loss",
            models,
            "Loss on the validation rows, mean over the seeds.",
            validation="loss",
        ),
        curves(
            "validation accuracy",
            models,
            "Accuracy on the validation rows, mean over the seeds.",
            validation=MLP_DROPOUT.metric,
        ),
    ]
    settings = common_settings(model for some in models.values() for model in some)
    return Outcome(verdict, holds, rows, figures, settings)


def judge(without: Sequence[Fit], dropped: Sequence[Fit]) -> tuple[str, bool]:
    """The verdict, from how well the nets of each pair fit."""
    end = [a.end - b.end for a, b in zip(without, dropped, strict=True)]
    gap = [a.gap - b.gap for a, b in zip(without, dropped, strict=True)]
    verdict = (
        f"After equally many updates the validation loss is {_mean(f.end for f in without)} "
        f"without dropout and {_mean(f.end for f in dropped)} with it, lower in "
        f"{sum(d > 0 for d in end)} of {len(end)} pairs (difference {_spread(end)}); the accuracy "
        f"is {_mean(f.accuracy for f in without)} and {_mean(f.accuracy for f in dropped)}. "
        f"The kept weights lose {_mean(f.gap for f in without)} more on validation than on "
        f"training rows without dropout and {_mean(f.gap for f in dropped)} more with it "
        f"(difference {_spread(gap)}). "
        f"A difference counts when it exceeds {SURE:.3g} standard errors."
    )
    return verdict, _is_positive(end) and _is_positive(gap)


def _is_positive(differences: Sequence[float]) -> bool:
    return fmean(differences) > SURE * _error(differences)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return stdev(values) / len(values) ** 0.5


def _spread(differences: Sequence[float]) -> str:
    return f"{fmean(differences):.2g} with standard error {_error(differences):.1g}"


def _mean(values: Iterable[float]) -> str:
    return f"{fmean(values):.3g}"


def _fit(model: TrainedModel, dataset: Dataset) -> Fit:
    last = read_history(model)[-1]["validation"]
    return Fit(
        end=last["loss"],
        accuracy=last[MLP_DROPOUT.metric],
        train=fit(MLP_DROPOUT, model, dataset.train)["loss"],
        validation=fit(MLP_DROPOUT, model, dataset.validation)["loss"],
    )


EXPERIMENT = Experiment(
    name="dropout",
    title="Dropout against overfitting",
    claim="After equally many updates a net trained with dropout has the lower loss on rows that "
    "it has not seen, and the smaller gap between those and the rows it was trained on.",
    paper="Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, Dropout: a simple way to "
    "prevent neural networks from overfitting",
    run=run,
    varied=("dropout", "seed", "patience"),  # a training that stops early has fewer updates
)
