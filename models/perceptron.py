"""Rosenblatt's perceptron: one linear unit with a step, trained by his rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from models.codec import Codec
from models.datasets import Dataset, split_rows
from models.logic import logical_and, logical_or, logical_xor
from models.metrics import classification
from models.recipe import Recipe, Tensors, Training
from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec


class Perceptron(nn.Module):
    """w x + b of features [batch, features] as `score` [batch, 1]; its step is the class."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.unit = nn.Linear(features, 1)
        nn.init.zeros_(self.unit.weight)
        nn.init.zeros_(self.unit.bias)

    def forward(self, features: Tensor) -> Tensors:
        # deviation: the measures themselves, not random projections of a retina
        return {"score": self.unit(features)}


def rosenblatt(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
    """The perceptron rule w += (t - y) x, b += t - y, summed over the rows; the share of mistakes.

    Written as the negative gradient, so that plain gradient descent of rate 1 over batches of one
    row is the rule to the letter. A step has no derivative to back-propagate.
    """
    unit = module.get_submodule("unit")
    assert isinstance(unit, nn.Linear)
    x, t = inputs["features"], targets["label"][:, None]
    y = unit(x) > 0
    error = t.to(x.dtype) - y.to(x.dtype)
    unit.weight.grad = -(error.T @ x).detach()
    unit.bias.grad = -error.sum(0).detach()
    return error.detach().abs().mean()


def mistakes(outputs: Tensors, targets: Tensors) -> Tensor:
    """The share of rows on the wrong side."""
    return ((outputs["score"][:, 0] > 0) != targets["label"].bool()).float().mean()


def evaluate(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """As every classifier's, without the log loss: a score is no logit of a probability."""
    metrics = classification({"logits": outputs["score"]}, targets)
    return {name: metrics[name] for name in ("accuracy", "macro_f1")}


def iris_pair(features: int = 2) -> Dataset:
    """Setosa against versicolor: 50 real flowers each, by their first `features` measures."""
    from sklearn.datasets import load_iris

    data: Any = load_iris()
    rows = np.flatnonzero(data.target < 2)
    splits = split_rows(
        {"features": np.asarray(data.data[rows, :features], np.float32)},
        {"label": np.asarray(data.target[rows], np.int64)},
        {"train": 0, "validation": 15, "test": 25},
    )
    return Dataset(
        name="iris setosa, versicolor",
        source="scikit-learn's load_iris: the first two of Fisher's species, in centimetres",
        licence="CC BY 4.0 (Fisher 1936, UCI)",
        classes=tuple(str(name) for name in data.target_names[:2]),
        **splits,
    )


def separable(dataset: Dataset) -> bool:
    """Whether a hyperplane parts the two classes of the training rows: a linear program decides.

    It looks for w and b with s (w x + b) >= 1 for every row, where s is 1 or -1 by class.
    """
    from scipy.optimize import linprog

    x = dataset.train.inputs["features"].astype(np.float64)
    s = 2.0 * dataset.train.targets["label"][:, None] - 1
    rows = -s * np.hstack([x, np.ones((len(x), 1))])
    found = linprog(
        np.zeros(rows.shape[1]), A_ub=rows, b_ub=-np.ones(len(rows)), bounds=(None, None)
    )
    return found.status == 0


def remarks(dataset: Dataset, metrics: dict[str, float]) -> tuple[str, ...]:
    if separable(dataset):
        return ()
    return (
        f"the data is not linearly separable (by a linear program no hyperplane parts "
        f"{dataset.classes[0]!r} from {dataset.classes[1]!r}), so no perceptron learns it",
    )


def signature(features: int = 2) -> Signature:
    batch = Axis(BATCH, 1, 8, 64)
    return Signature(
        (TensorSpec("features", "float32", (batch, features), 0.0),),
        (TensorSpec("score", "float32", (batch, 1)),),
    )


def codec(dataset: Dataset) -> Codec:
    return Codec(classes=dataset.classes, sign="score")


PERCEPTRON = Recipe(
    name="perceptron",
    kind="classification",
    title="Rosenblatt's perceptron",
    paper="Rosenblatt 1958, The perceptron: a probabilistic model for information storage and "
    "organization in the brain",
    network=Perceptron,
    signature=signature,
    data={
        "embedded": iris_pair,
        "and": logical_and,
        "or": logical_or,
        "xor": logical_xor,
    },
    presets={"embedded": {"features": 4}},
    loss=mistakes,
    gradients=rosenblatt,
    evaluate=evaluate,
    metric="accuracy",
    floor={"embedded": 1.0, "and": 1.0, "or": 1.0, "xor": 1.0},
    training=dict.fromkeys(
        ("embedded", "and", "or", "xor"),
        Training(epochs=20, batch_size=1, optimizer="sgd", learning_rate=1.0),
    ),
    codec=codec,
    remarks=remarks,
    deviations=("the inputs are the measures themselves, not random projections of a retina",),
)
