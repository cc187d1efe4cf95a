"""Multilayer perceptron: one hidden layer of 512 on the pixels of a 28x28 digit."""

from __future__ import annotations

from torch import Tensor, nn

from models.digits import CLASSES, DIGITS, SIZE, digit_codec
from models.losses import cross_entropy
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature


class MLP(nn.Module):
    """784-`hidden`-10 with ReLU: [batch, 1, 28, 28] to logits [batch, 10]."""

    def __init__(self, hidden: int = 512) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(SIZE * SIZE, hidden)
        self.relu = nn.ReLU()
        self.output = nn.Linear(hidden, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.relu(self.hidden(self.flatten(x))))


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def signature() -> Signature:
    return image_classes(channels=1, size=SIZE, classes=len(CLASSES))


MLP_784_512_10 = Recipe(
    name="mlp",
    kind="classification",
    title="Multilayer perceptron 784-512-10",
    paper="Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors",
    network=MLP,
    served=served,
    signature=signature,
    data=DIGITS,
    loss=cross_entropy,
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
