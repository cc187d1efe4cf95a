"""Vanishing gradients: a deep perceptron of sigmoids, of ReLUs, and of sigmoids with batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.experiments import (
    Experiment,
    Outcome,
    Setup,
    common_settings,
    read_history,
    trained,
)
from flows.experiments.trainings import curves, gradients_by_depth, norms_by_layer
from models.mlp import MLP_784_512_10

_NETS: dict[str, dict[str, Any]] = {
    "sigmoid": {"activation": "sigmoid", "batchnorm": False},
    "ReLU": {"activation": "relu", "batchnorm": False},
    "sigmoid, batch norm": {"activation": "sigmoid", "batchnorm": True},
}
_SIGMOID, _RELU, _NORM = _NETS
_VANISHED = 0.01  # of the last layer's gradient norm
_LEARNED = 0.5  # of the training loss of the net that does not learn


def run(setup: Setup) -> Outcome:
    """Three nets that differ in their units alone."""
    models = {
        label: trained(
            setup, MLP_784_512_10, label, **units,
            layers=6, hidden=64, epochs=15, batch_size=64, optimizer="momentum",
            learning_rate=0.05, schedule="constant",
        )
        for label, units in _NETS.items()
    }  # fmt: skip
    norms = {label: norms_by_layer(model) for label, model in models.items()}
    losses = {label: read_history(model)[-1]["loss"] for label, model in models.items()}
    verdict, holds = judge(norms, losses)
    rows = [
        {
            "net": label,
            "weight layers": len(norms[label]),
            "first layer's gradient norm": norms[label][0],
            "last layer's gradient norm": norms[label][-1],
            "first / last": _share(norms[label]),
            "training loss at the end": losses[label],
            "validation accuracy": max(e["validation"]["accuracy"] for e in read_history(model)),
        }
        for label, model in models.items()
    ]
    figures = [
        gradients_by_depth(norms),
        curves(
            "training loss",
            {label: [model] for label, model in models.items()},
            "Training loss over the epochs.",
        ),
    ]
    return Outcome(verdict, holds, rows, figures, common_settings(models.values()))


def judge(norms: Mapping[str, list[float]], losses: Mapping[str, float]) -> tuple[str, bool]:
    """The verdict, from each net's gradient norms by layer and its training loss at the end."""
    share = {label: _share(values) for label, values in norms.items()}
    vanished = share[_SIGMOID] < _VANISHED
    kept = all(share[label] >= _VANISHED for label in (_RELU, _NORM))
    learned = all(losses[label] < _LEARNED * losses[_SIGMOID] for label in (_RELU, _NORM))
    verdict = (
        f"In the first epoch the gradient of the first of {len(norms[_SIGMOID])} weight layers is "
        f"{share[_SIGMOID]:.2g} of the last one's with sigmoids, {share[_RELU]:.2g} with ReLUs and "
        f"{share[_NORM]:.2g} with sigmoids and batch norm (vanished means below {_VANISHED:g}). "
        f"The training loss ends at {losses[_SIGMOID]:.3g}, {losses[_RELU]:.3g} and "
        f"{losses[_NORM]:.3g} (learned means below {_LEARNED:g} of the first)."
    )
    return verdict, vanished and kept and learned


def _share(norms: list[float]) -> float:
    return norms[0] / norms[-1] if norms[-1] else 0.0


EXPERIMENT = Experiment(
    name="vanishing",
    title="Vanishing gradients in a deep perceptron",
    claim="In a deep net of sigmoids the gradient shrinks from layer to layer towards the input, "
    "so that the first layers do not learn; with ReLUs, or with batch norm, it does not.",
    paper="Glorot, Bengio 2010, Understanding the difficulty of training deep feedforward neural "
    "networks; Ioffe, Szegedy 2015, Batch normalization",
    run=run,
    varied=("activation", "batchnorm", "patience"),
)
