"""Multilayer perceptrons on tables: classes of tumours or wines, and a number for diabetes."""

from __future__ import annotations

from torch import nn

from models.choices import Activation, Count, Dropout
from models.logic import class_codec
from models.losses import classification_loss, squared_error
from models.metrics import classification, regression
from models.mlp import MLP
from models.recipe import Recipe, Training
from models.served import (
    VectorClassifier,
    VectorRegressor,
    standardise_features,
    vector_classes,
    vector_values,
)
from models.signature import Signature
from models.tabular import (
    breast_cancer,
    diabetes,
    linear_r2,
    logistic_accuracy,
    value_codec,
    wine,
)

FEATURES = 10  # of the diabetes table

_PAPER = "Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors"


def classifier(
    features: Count = 30,
    classes: Count = 2,
    hidden: Count = 32,
    layers: Count = 1,
    activation: Activation = "relu",  # deviation: not sigmoid
    batchnorm: bool = False,
    dropout: Dropout = 0.0,
) -> MLP:
    return MLP(features, classes, hidden, layers, activation, batchnorm, dropout)


def served_classifier(network: nn.Module, features: Count = 30) -> VectorClassifier:
    return VectorClassifier(network, features)


def classifier_signature(
    features: Count = 30, classes: Count = 2, max_batch: Count = 64
) -> Signature:
    return vector_classes(features, classes, max_batch)


def regressor(
    hidden: Count = 32,
    layers: Count = 1,
    activation: Activation = "relu",  # deviation: not sigmoid
    batchnorm: bool = False,
    dropout: Dropout = 0.0,
) -> MLP:
    return MLP(FEATURES, 1, hidden, layers, activation, batchnorm, dropout)


def served_regressor(network: nn.Module) -> VectorRegressor:
    return VectorRegressor(network, FEATURES)


def regressor_signature(max_batch: Count = 64) -> Signature:
    return vector_values(FEATURES, max_batch)


MLP_TABULAR = Recipe(
    name="mlp-tabular",
    kind="classification",
    title="Multilayer perceptron on a table",
    paper=_PAPER,
    network=classifier,
    served=served_classifier,
    signature=classifier_signature,
    data={"embedded": breast_cancer, "wine": wine},
    presets={"wine": {"features": 13, "classes": 3}},
    loss=classification_loss,  # deviation: not the squared error
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.94, "wine": 0.92},
    training={
        "embedded": Training(epochs=60, batch_size=32, learning_rate=3e-3, patience=20),
        "wine": Training(epochs=150, batch_size=32, learning_rate=3e-3),
    },
    codec=class_codec,
    prepare=standardise_features,
    baseline=logistic_accuracy,
    deviations=("ReLU and softmax cross-entropy instead of sigmoid units and squared error",),
)

MLP_REGRESSION = Recipe(
    name="mlp-regression",
    kind="classification",  # the kind names the service, which answers numbers as well
    title="Multilayer perceptron for a number",
    paper=_PAPER,
    network=regressor,
    served=served_regressor,
    signature=regressor_signature,
    data={"embedded": diabetes},
    loss=squared_error,
    evaluate=regression,
    metric="r2",
    floor={"embedded": 0.32},
    training={
        "embedded": Training(
            epochs=150, batch_size=32, learning_rate=3e-3, weight_decay=3e-2, optimizer="adamw",
            patience=40,
        ),
    },
    codec=value_codec("progression after one year"),
    prepare=standardise_features,
    baseline=linear_r2,
    deviations=("ReLU instead of sigmoid units",),
)  # fmt: skip
