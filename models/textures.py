"""Generated textures in colour, and a small VGG that tells them apart: features of any picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from models.choices import Count, Dropout
from models.datasets import Dataset, split_rows
from models.fcn import CONVOLUTIONS, stage
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature

# Two coordinates [height, width], in units of the pattern, to values [height, width] of [0, 1].
Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

SIDE = 32
STAGES = 3  # of VGG-16's five
_HELD_OUT = {"validation": 400, "test": 600}


def stripes(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Lines side by side, one a unit."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * u)


def waves(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Stripes that are bent."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (u + 1.2 * clouds(u, v, chance)))


def checks(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A board of squares."""
    return (np.sin(np.pi * u) * np.sin(np.pi * v) > 0).astype(np.float64)


def bricks(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Rows of bricks, each of its own tone, and mortar between."""
    row = np.floor(v)
    along = u / 2 + row % 2 / 2
    tone = 0.6 + 0.4 * np.sin(13 * row + 78 * np.floor(along))
    return np.where((along % 1 < 0.1) | (v % 1 < 0.2), 0, tone)


def dots(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Discs on a square grid."""
    away = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    return (chance.uniform(0.22, 0.36) - away) * 12 + 0.5


def rings(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Circles about the points of a wide grid."""
    return 0.5 + 0.5 * np.sin(6 * np.pi * np.hypot(u / 3 % 1 - 0.5, v / 3 % 1 - 0.5))


def cells(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Cells about strewn points, dark where two meet."""
    nearest, second, _ = _strewn(u, v, chance)
    return (second - nearest) * 4


def mosaic(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Cells about strewn points, each of its own tone."""
    _, _, which = _strewn(u, v, chance)
    return chance.random(which.max() + 1)[which]


def clouds(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A few plane waves of all directions."""
    angle, phase = chance.uniform(0, 2 * np.pi, (2, 5, 1, 1))
    speed = chance.uniform(0.2, 0.45, (5, 1, 1))
    along = speed * (u * np.cos(angle) + v * np.sin(angle))
    return 0.5 + np.sin(2 * np.pi * along + phase).sum(0) / 5


def grain(u: np.ndarray, v: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Every pixel for itself."""
    return chance.random(u.shape)


PATTERNS: tuple[Pattern, ...] = (
    stripes, waves, checks, bricks, dots, rings, cells, mosaic, clouds, grain,
)  # fmt: skip


def _strewn(
    u: np.ndarray, v: np.ndarray, chance: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points that are strewn one a unit, the distances of the two nearest, and which is it."""
    lows, highs = (np.array([edge(u), edge(v)]) for edge in (np.min, np.max))
    size = highs - lows + 2
    points = lows - 1 + size * chance.random((int(size.prod()) + 2, 2))
    away = np.hypot(u[..., None] - points[:, 0], v[..., None] - points[:, 1])
    nearest = np.partition(away, 1, axis=-1)
    return nearest[..., 0], nearest[..., 1], away.argmin(-1)


def paint(
    pattern: Pattern,
    colours: np.ndarray,
    size: tuple[int, int],
    scale: float,
    angle: float,
    chance: np.random.Generator,
) -> np.ndarray:
    """A picture float32 [3, height, width] in [0, 1] of a pattern `scale` pixels wide, turned.

    Its values run through the `colours` [n, 3], from the first to the last.
    """
    y, x = np.indices(size) + chance.uniform(0, 99, (2, 1, 1))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    values = pattern(u / scale, v / scale, chance).clip(0, 1) * (len(colours) - 1)
    places = np.arange(len(colours))
    return np.stack([np.interp(values, places, c) for c in colours.T]).astype(np.float32)


def textures(rows: Count = 3000) -> Dataset:
    """`rows` training rows of ten patterns at any angle, 4 to 11 pixels wide, in three colours.

    Normal noise of 0.02 is added to every pixel.
    """
    chance = np.random.default_rng(0)
    count = rows + sum(_HELD_OUT.values())
    labels = np.arange(count) % len(PATTERNS)
    images = np.stack(
        [
            paint(
                PATTERNS[label], chance.random((3, 3)), (SIDE, SIDE), chance.uniform(4, 11),
                chance.uniform(0, np.pi), chance,
            )
            for label in labels
        ]
    )  # fmt: skip
    images += chance.normal(0, 0.02, images.shape).astype(np.float32)
    splits = split_rows(
        {"image": images.clip(0, 1)}, {"label": labels.astype(np.int64)}, {"train": 0, **_HELD_OUT}
    )
    return Dataset(
        name="textures (synthetic)",
        source="drawn by this program, from a fixed seed",
        licence="none needed: synthetic",
        classes=tuple(pattern.__name__ for pattern in PATTERNS),
        **splits,
    )


class TextureNet(nn.Module):
    """Pictures [batch, 3, height, width] of any size to logits [batch, 10].

    VGG-16's first three stages with batch norm, the mean of every map, one dense layer.
    """

    def __init__(self, width: Count = 64, dropout: Dropout = 0.0) -> None:
        super().__init__()
        widths = [width << place for place in range(STAGES)]
        self.stages = nn.ModuleList(
            # deviation: batch norm, which the paper has none of
            stage(before, after, count, batchnorm=True)
            for before, after, count in zip([3, *widths], widths, CONVOLUTIONS, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        # deviation: three stages of five, and no dense layers between
        self.output = nn.Linear(widths[-1], len(PATTERNS))

    def forward(self, x: Tensor) -> Tensor:
        for convolutions in self.stages:
            x = convolutions(x)
        return self.output(self.dropout(x.mean((2, 3))))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The rectified maps of each convolution as the paper calls it: conv1_1 is the first.

        They are pooled by the mean, by which a picture's gradient reaches every pixel (Gatys 2016).
        """
        found: dict[str, Tensor] = {}
        for number, layers in enumerate(self.stages, 1):
            place = 0
            for layer in layers.children():
                pools = isinstance(layer, nn.MaxPool2d)
                x = functional.avg_pool2d(x, 2) if pools else layer(x)
                if isinstance(layer, nn.ReLU):
                    place += 1
                    found[f"conv{number}_{place}"] = x
        return found


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def signature() -> Signature:
    return image_classes(channels=3, size=SIDE, classes=len(PATTERNS))


TEXTURES = Recipe(
    name="textures",
    kind="classification",
    title="Three stages of VGG-16 on generated textures",
    paper="Simonyan, Zisserman 2015, Very deep convolutional networks for large-scale image "
    "recognition",
    network=TextureNet,
    served=served,
    signature=signature,
    data={"embedded": textures},
    presets={"embedded": {"width": 24}},
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.9},
    training={  # deviation: Adam with a one-cycle rate, not momentum
        "embedded": Training(epochs=7, batch_size=32, learning_rate=4e-3, schedule="one-cycle")
    },
    prepare=standardise,
    deviations=(
        "three stages of five and one dense layer on the maps' means, on textures of 32x32",
        "batch norm after each convolution",
        "Adam with a one-cycle rate instead of momentum",
    ),
)
