"""LeNet-5 on 32x32 images: two convolutions, two poolings, three dense layers."""

from __future__ import annotations

from torch import Tensor, nn

from models.choices import ACTIVATIONS, POOLINGS, Activation, Dropout, Pooling
from models.digits import CLASSES, DIGITS, SIZE, digit_codec
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature

FIELD = 32  # the paper centres each 28x28 digit in a 32x32 field


class LeNet5(nn.Module):
    """[batch, 1, 32, 32] to logits [batch, 10]; layers carry the paper's names.

    Batch normalisation, where it is asked for, stands after both convolutions, dropout after both
    hidden dense layers; the paper has neither.
    """

    def __init__(
        self,
        activation: Activation = "tanh",
        pooling: Pooling = "average",
        batchnorm: bool = False,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        pool = POOLINGS[pooling]
        self.c1 = nn.Conv2d(1, 6, kernel_size=5)
        self.s2 = pool(2)  # deviation: no trainable coefficient and bias
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)  # deviation: every map sees every map
        self.s4 = pool(2)  # deviation: as s2
        self.flatten = nn.Flatten()
        self.c5 = nn.Linear(400, 120)  # a 5x5 convolution over a 5x5 map is a dense layer
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, len(CLASSES))  # deviation: logits, not RBF units
        self.act = ACTIVATIONS[activation]()  # deviation: not scaled to 1.7159 tanh(2/3 x)
        self.norm1 = nn.BatchNorm2d(6) if batchnorm else nn.Identity()
        self.norm3 = nn.BatchNorm2d(16) if batchnorm else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.s2(self.act(self.norm1(self.c1(x))))
        x = self.s4(self.act(self.norm3(self.c3(x))))
        x = self.dropout(self.act(self.c5(self.flatten(x))))
        return self.output(self.dropout(self.act(self.f6(x))))


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=(FIELD - SIZE) // 2)


def signature() -> Signature:
    return image_classes(channels=1, size=SIZE, classes=len(CLASSES))


LENET5 = Recipe(
    name="lenet5",
    kind="classification",
    title="LeNet-5, full C3 connectivity",
    paper="LeCun, Bottou, Bengio, Haffner 1998, "
    "Gradient-based learning applied to document recognition",
    network=LeNet5,
    served=served,
    signature=signature,
    data=DIGITS,
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.988},
    training={  # deviation: Adam, not stochastic Levenberg-Marquardt
        "embedded": Training(epochs=30, batch_size=32, learning_rate=2e-3, schedule="cosine"),
        "full": Training(epochs=12, batch_size=128, learning_rate=2e-3, schedule="cosine"),
    },
    codec=digit_codec,
    prepare=standardise,
    deviations=(
        "C3 sees all six maps, not the paper's table of connections (61,706 parameters)",
        "pooling has no trainable coefficient and bias",
        "tanh is not scaled; softmax cross-entropy instead of RBF output units",
        "Adam instead of stochastic Levenberg-Marquardt",
    ),
)
