"""Degradation: deeper plain nets train worse, deeper residual nets do not."""

from __future__ import annotations

from collections.abc import Mapping

from flows.experiments import (
    Experiment,
    Outcome,
    Setup,
    common_settings,
    read_history,
    trained,
)
from flows.experiments.trainings import curves, fit, gradients_by_depth, norms_by_layer
from models.resnet import PLAIN20, PLAIN56, RESNET20, RESNET56
from pipeline.card import percent

_NETS = {
    "plain-20": PLAIN20,
    "plain-56": PLAIN56,
    "residual-20": RESNET20,
    "residual-56": RESNET56,
}
_PLAIN, _DEEP_PLAIN, _RESIDUAL, _DEEP_RESIDUAL = _NETS


def run(setup: Setup) -> Outcome:
    """The four nets with equal settings; what counts is how well they fit the training rows.

    The training error is that of the kept weights, in evaluation mode.
    """
    models = {
        label: trained(
            setup, recipe, label,
            width=0.5, image=16, epochs=20, batch_size=64, optimizer="momentum",
            learning_rate=0.05, schedule="cosine", weight_decay=1e-4,
        )
        for label, recipe in _NETS.items()
    }  # fmt: skip
    norms = {label: norms_by_layer(model) for label, model in models.items()}
    dataset = RESNET20.override(models[_PLAIN].settings).load(setup.data)
    errors = {
        label: 1 - fit(_NETS[label], model, dataset.train)["accuracy"]
        for label, model in models.items()
    }
    verdict, holds = judge(errors)
    rows = [
        {
            "net": label,
            "parameters": model.parameters,
            "training error": errors[label],
            "training loss at the end": read_history(model)[-1]["loss"],
            "first layer's gradient norm": norms[label][0],
            "last layer's gradient norm": norms[label][-1],
            "validation accuracy": max(e["validation"]["accuracy"] for e in read_history(model)),
        }
        for label, model in models.items()
    ]
    figures = [
        curves(
            "training loss",
            {label: [model] for label, model in models.items()},
            "Training loss over the epochs: the mean of each epoch's batches, as it was minimised. "
            "The training error of the verdict is counted once, with the kept weights.",
        ),
        gradients_by_depth(norms),
    ]
    return Outcome(verdict, holds, rows, figures, common_settings(models.values()))


def judge(errors: Mapping[str, float]) -> tuple[str, bool]:
    """The verdict, from the share of training rows that each net gets wrong."""
    plain, deep_plain = errors[_PLAIN], errors[_DEEP_PLAIN]
    residual, deep_residual = errors[_RESIDUAL], errors[_DEEP_RESIDUAL]
    verdict = (
        f"Of the training rows the plain net of 20 layers gets {percent(plain)} wrong and that of "
        f"56 layers {percent(deep_plain)}; the residual net of 20 layers {percent(residual)} and "
        f"that of 56 layers {percent(deep_residual)}."
    )
    return verdict, deep_plain > plain and deep_residual <= residual


EXPERIMENT = Experiment(
    name="degradation",
    title="Degradation of deep plain nets, and its remedy",
    claim="A plain net of 56 layers has a higher training error than one of 20 layers, which is no "
    "overfitting; with shortcuts the net of 56 layers has none higher than that of 20.",
    paper="He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition",
    run=run,
    varied=("patience",),  # equal settings, and so equally many updates
)
