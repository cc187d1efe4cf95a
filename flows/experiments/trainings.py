"""What a training left, to be judged: curves, gradient norms by layer, and how well it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from safetensors import safe_open

from flows.experiments import Figure, read_history
from models.datasets import Split
from models.recipe import Recipe
from pipeline import plots
from pipeline.batches import predict
from pipeline.train import load_module
from pipeline.values import WEIGHTS, TrainedModel


def norms_by_layer(model: TrainedModel, epochs: int = 1) -> list[float]:
    """The mean gradient norm of each weight tensor over the first epochs, from input to output.

    Biases and the vectors of batch norm are left out, so that layers are counted as in the paper.
    """
    history = read_history(model)[:epochs]
    with safe_open(model.folder / WEIGHTS, framework="numpy") as file:
        weights = [n for n in model.layers if len(file.get_slice(n).get_shape()) >= 2]
    return [sum(entry["gradient_norms"][n] for entry in history) / len(history) for n in weights]


def gradients_by_depth(norms: Mapping[str, list[float]], epochs: int = 1) -> Figure:
    """A line over the layers for each net; a norm of 0 is left out."""
    when = "the first epoch" if epochs == 1 else f"the first {epochs} epochs"
    markup = plots.lines(
        "gradients by depth",
        {name: (list(range(1, len(values) + 1)), values) for name, values in norms.items()},
        f"Gradient norm of each weight layer in {when}, for {len(norms)} nets",
        xlabel="weight layer, from input to output",
        ylabel="gradient norm (logarithmic)",
        log_y=True,
    )
    return Figure(f"Norm of the loss's gradient by each layer's weights, mean over {when}.", markup)


def curves(
    name: str,
    models: Mapping[str, Sequence[TrainedModel]],
    caption: str,
    *,
    validation: str | None = None,
) -> Figure:
    """The training loss over the epochs, or the named value of validation rows.

    A line for each label, the mean of its models, which have been trained equally long.
    """
    series = {}
    for label, some in models.items():
        values = [
            [e["validation"][validation] if validation else e["loss"] for e in read_history(model)]
            for model in some
        ]
        means = [fmean(epoch) for epoch in zip(*values, strict=True)]
        series[label] = (list(range(1, len(means) + 1)), means)
    log = validation in (None, "loss")
    markup = plots.lines(
        f"curves {name}",
        series,
        f"{name} of {len(models)} nets over the epochs",
        xlabel="epoch",
        ylabel=f"{name} (logarithmic)" if log else name,
        log_y=log,
    )
    return Figure(caption, markup)


def fit(recipe: Recipe, model: TrainedModel, split: Split) -> dict[str, float]:
    """Loss and metrics of the kept weights, those of the best epoch, in evaluation mode."""
    recipe = recipe.override(model.settings)
    inputs, targets = (
        {name: torch.from_numpy(array) for name, array in arrays.items()}
        for arrays in (split.inputs, split.targets)
    )
    outputs = predict(load_module(recipe, model), inputs)
    loss = float(recipe.compute_loss(outputs, targets))
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    return {"loss": loss} | recipe.evaluate(arrays, split.targets)
