"""Multilayer perceptrons on the pixels of a digit: plain, with dropout, with batch norm."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from models.choices import ACTIVATIONS, Activation, Count, Dropout
from models.digits import CLASSES, DIGITS, SIZE, digit_codec
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature


class MLP(nn.Module):
    """`inputs`-`hidden`-...-`outputs`: [batch, ...] to [batch, outputs], after flattening.

    Each of the `layers` hidden layers is dense, then batch normalisation where it is asked for,
    the activation, and dropout: scaled by 1 / (1 - dropout) in training, nothing at inference
    (Srivastava 2014).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 512,
        layers: int = 1,
        activation: Activation = "relu",
        batchnorm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.ModuleList()
        for index in range(layers):
            parts: list[nn.Module] = [nn.Linear(hidden if index else inputs, hidden)]
            if batchnorm:
                parts.append(nn.BatchNorm1d(hidden))
            parts.append(ACTIVATIONS[activation]())
            if dropout:
                parts.append(nn.Dropout(dropout))
            self.hidden.append(nn.Sequential(*parts))
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(x)
        for layer in self.hidden:
            x = layer(x)
        return self.output(x)


def network(
    hidden: Count = 512,
    layers: Count = 1,
    activation: Activation = "relu",  # deviation: not sigmoid
    batchnorm: bool = False,
    dropout: Dropout = 0.0,
) -> MLP:
    return MLP(SIZE * SIZE, len(CLASSES), hidden, layers, activation, batchnorm, dropout)


def network_dropout(
    hidden: Count = 512,
    layers: Count = 2,
    activation: Activation = "relu",
    batchnorm: bool = False,
    dropout: Dropout = 0.5,
) -> MLP:
    return network(hidden, layers, activation, batchnorm, dropout)


def network_batchnorm(
    hidden: Count = 100,
    layers: Count = 3,
    activation: Activation = "sigmoid",
    batchnorm: bool = True,
    dropout: Dropout = 0.0,
) -> MLP:
    return network(hidden, layers, activation, batchnorm, dropout)


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def signature(max_batch: Count = 64) -> Signature:
    return image_classes(channels=1, size=SIZE, classes=len(CLASSES), max_batch=max_batch)


MLP_784_512_10 = Recipe(
    name="mlp",
    kind="classification",
    title="Multilayer perceptron 784-512-10",
    paper="Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors",
    network=network,
    served=served,
    signature=signature,
    data=DIGITS,
    loss=classification_loss,  # deviation: not the squared error
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.977},
    training={
        "embedded": Training(epochs=30, batch_size=32, optimizer="rmsprop", learning_rate=5e-4),
        "full": Training(epochs=5, batch_size=128, optimizer="rmsprop", learning_rate=1e-3),
    },
    codec=digit_codec,
    prepare=standardise,
    deviations=("ReLU and softmax cross-entropy instead of sigmoid units and squared error",),
)

MLP_DROPOUT = replace(
    MLP_784_512_10,
    name="mlp-dropout",
    title="Multilayer perceptron 784-512-512-10 with dropout",
    paper="Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, "
    "Dropout: a simple way to prevent neural networks from overfitting",
    network=network_dropout,  # deviation: no dropout on the pixels
    floor={"embedded": 0.95, "full": 0.979},
    training={  # deviation: no bound on each unit's weight norm, no momentum
        "embedded": Training(epochs=50, batch_size=32, optimizer="rmsprop", learning_rate=5e-4),
        # Dropout needs about twice the epochs.
        "full": Training(
            epochs=12, batch_size=128, optimizer="rmsprop", learning_rate=1e-3, schedule="cosine"
        ),
    },
    deviations=(
        "no dropout on the pixels, which the paper's best nets have at 0.2",
        "RMSprop instead of momentum with a bound on each unit's weight norm",
    ),
)

MLP_BATCHNORM = replace(
    MLP_784_512_10,
    name="mlp-batchnorm",
    title="Multilayer perceptron 784-100-100-100-10 with batch normalisation",
    paper="Ioffe, Szegedy 2015, Batch normalization: accelerating deep network training by "
    "reducing internal covariate shift",
    network=network_batchnorm,
    floor={"embedded": 0.94, "full": 0.970},
    training={  # deviation: Adam with a cosine schedule, not plain gradient descent
        "embedded": Training(epochs=30, batch_size=32, learning_rate=3e-3, schedule="cosine"),
        "full": Training(epochs=10, batch_size=60, learning_rate=3e-3, schedule="cosine"),
    },
    deviations=("Adam with a cosine schedule instead of plain gradient descent",),
)
