"""What is exported around a segmentation network: any size in, the same size out, by mirroring."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.codec import Codec, TiledImage
from models.datasets import Dataset
from models.metrics import confusion
from models.segmentation_metrics import intersection_over_union
from models.signature import BATCH, Axis, Signature, TensorSpec

# Of the classes in an overlay, in their order.
COLOURS = ("#1f2430", "#f2a33c", "#3c8df2", "#5fbf5f", "#c95fc9", "#d9534f")


class Segmenter(nn.Module):
    """Pixels in [0, 1] to `logits` and `probabilities` of the same height and width.

    The network is given sizes that are `offset` more than a multiple of `multiple`, and answers
    what is left without `border` pixels on every side. What it needs beyond the picture is
    mirrored (Ronneberger 2015, figure 2); more than the border only below and to the right, so
    that the network's grid begins at the picture's first pixel.

    `mean` and `deviation` are scalars of the training pixels, set by `served.standardise`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, multiple: int, border: int = 0, offset: int = 0) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.border = border
        self.offset = offset
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[2:]
        pixels = (image - self.mean) / self.deviation
        for axis, size in ((2, height), (3, width)):
            pixels = pixels.index_select(axis, self._mirrored(size, image.device))
        # By narrow, because the exporter knows what size is left; a slice has the lesser of two.
        logits = self.network(pixels).narrow(2, 0, height).narrow(3, 0, width)
        return {"logits": logits, "probabilities": logits.softmax(dim=1)}

    def _mirrored(self, size: int, device: torch.device) -> Tensor:
        """Of each pixel that the network needs along an axis, which pixel it is a mirror of."""
        # Positive arithmetic only: the graph's division truncates, Python's rounds down.
        cells = (size + 2 * self.border - self.offset + self.multiple - 1) // self.multiple
        places = torch.arange(cells * self.multiple + self.offset, device=device)
        # There and back again; a tensor, for the exporter takes no remainder by a symbolic number.
        period = torch.full((1,), 2 * size, device=device)
        wave = (places + self.border * (period - 1)) % period
        return torch.minimum(wave, period - 1 - wave)


def segmentation_signature(
    channels: int, classes: int, smallest: int, usual: int, largest: int, max_batch: int
) -> Signature:
    """The signature of a `Segmenter` over pictures of any height and width in a range."""
    batch = Axis(BATCH, 1, min(2, max_batch), max_batch)
    height, width = (Axis(name, smallest, usual, largest) for name in ("height", "width"))
    return Signature(
        (TensorSpec("image", "float32", (batch, channels, height, width), 0.0, 1.0),),
        (
            TensorSpec("logits", "float32", (batch, classes, height, width)),
            TensorSpec("probabilities", "float32", (batch, classes, height, width), 0.0, 1.0),
        ),
    )


def segmentation_codec(dataset: Dataset, margin: int, multiple: int) -> Codec:
    """An uploaded picture of any size, cut into tiles, answered by the class of each pixel."""
    return Codec(
        tiled=TiledImage(
            name="image",
            channels=dataset.test.inputs["image"].shape[1],
            margin=margin,
            multiple=multiple,
        ),
        classes=dataset.classes,
        pixels="probabilities",
        colours=COLOURS[: len(dataset.classes)],
    )


def pixel_baseline(dataset: Dataset) -> dict[str, float]:
    """Mean IoU of naive Bayes on each pixel's value, blurred thrice: what a net has to beat."""
    from scipy.ndimage import gaussian_filter
    from sklearn.naive_bayes import GaussianNB

    def features(rows: np.ndarray) -> np.ndarray:
        blurred = [gaussian_filter(rows, (0, 0, s, s)) for s in (0, 1, 2, 4)]
        return np.concatenate(blurred, 1).transpose(0, 2, 3, 1).reshape(-1, 4 * rows.shape[1])

    train, test = dataset.train, dataset.test
    model = GaussianNB().fit(features(train.inputs["image"]), train.targets["mask"].ravel())
    predicted = model.predict(features(test.inputs["image"]))
    counts = confusion(predicted, test.targets["mask"].ravel(), len(dataset.classes))
    return {"naive Bayes mean_iou": float(intersection_over_union(counts).mean())}
