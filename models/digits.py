"""Handwritten digits: scikit-learn's small set, embedded, and the whole of MNIST."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.codec import Codec, ImageInput
from models.datasets import Dataset, RemoteFile, Split, fetch, split_rows

SIZE = 28
CLASSES = tuple("0123456789")

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_DIGESTS = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def embedded_digits() -> Dataset:
    """scikit-learn's digits at 28x28, one channel."""
    return _small_digits(SIZE, 1)


def mnist() -> Dataset:
    """MNIST as it is: 28x28, one channel."""
    return _mnist_digits(SIZE, 1)


DIGITS: dict[str, Callable[..., Dataset]] = {"embedded": embedded_digits, "full": mnist}


def digits_at(image: int, channels: int) -> dict[str, Callable[..., Dataset]]:
    """`DIGITS` for a net whose picture size is a setting; these are the published values."""

    def embedded(image: int = image, channels: int = channels) -> Dataset:
        return _small_digits(image, channels)

    def full(image: int = image, channels: int = channels) -> Dataset:
        return _mnist_digits(image, channels)

    return {"embedded": embedded, "full": full}


def _small_digits(image: int, channels: int) -> Dataset:
    """1,797 real 8x8 digits that come with scikit-learn, resized bilinearly to `image` squared.

    They are not MNIST: other writers, 16 grey levels, a fortieth of the rows. 1,257 train,
    180 validation, 360 test, drawn at random. More than one channel repeats the first.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
    small = np.asarray(pixels, np.float32).reshape(-1, 8, 8) / 16
    images = _resize(small, image, channels)
    splits = split_rows(
        {"image": images},
        {"label": np.asarray(labels, np.int64)},
        {"train": 0, "validation": 180, "test": 360},
    )
    return Dataset(
        name="digits",
        source="scikit-learn's load_digits: UCI Optical Recognition of Handwritten Digits, "
        f"test part, 8x8, resized to {image}x{image}",
        licence="CC BY 4.0 (Alpaydin, Kaynak 1998)",
        classes=CLASSES,
        **splits,
    )


def _mnist_digits(image: int, channels: int) -> Dataset:
    """MNIST: 55,000 rows to train, 5,000 of its training rows to validate, its 10,000 to test.

    Resized bilinearly to `image` squared; more than one channel repeats the first.
    """
    images, labels = {}, {}
    for part in ("train", "t10k"):
        pixels = _mnist(f"{part}-images").astype(np.float32) / 255
        images[part] = _resize(pixels, image, channels)
        labels[part] = _mnist(f"{part}-labels").astype(np.int64)
    splits = split_rows(
        {"image": images["train"]}, {"label": labels["train"]}, {"train": 0, "validation": 5000}
    )
    test = split_rows({"image": images["t10k"]}, {"label": labels["t10k"]}, {"test": 0})
    return Dataset(
        name="mnist",
        source="MNIST, four IDX files, digests of the decompressed bytes checked",
        licence="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
        classes=CLASSES,
        **splits,
        **test,
    )


def pictured(dataset: Dataset) -> Dataset:
    """Digits whose target `image` is the picture itself, beside their label."""
    return _each(dataset, lambda split: replace(split, targets=split.targets | split.inputs))


def pictured_digits() -> Dataset:
    return pictured(embedded_digits())


def pictured_mnist() -> Dataset:
    return pictured(mnist())


PICTURED_DIGITS: dict[str, Callable[..., Dataset]] = {
    "embedded": pictured_digits,
    "full": pictured_mnist,
}


def noisy(dataset: Dataset, deviation: float) -> Dataset:
    """`pictured` digits with normal noise on the inputs of validation and test, cut to [0, 1].

    Training rows stay clean, for theirs is drawn anew every time.
    """
    rng = np.random.default_rng(0)

    def add(split: Split) -> Split:
        image = split.inputs["image"]
        noise = rng.standard_normal(image.shape, np.float32)
        return replace(split, inputs={"image": (image + deviation * noise).clip(0, 1)})

    clean = pictured(dataset)
    return replace(clean, validation=add(clean.validation), test=add(clean.test))


def without(dataset: Dataset, digit: int) -> Dataset:
    """`pictured` digits of which one is only in the test rows, where the target `anomaly` is 1."""

    def mark(split: Split) -> Split:
        anomaly = (split.targets["label"] == digit).astype(np.int64)
        return replace(split, targets=split.targets | {"anomaly": anomaly})

    def drop(split: Split) -> Split:
        kept = np.flatnonzero(split.targets["anomaly"] == 0)
        return Split(
            {name: array[kept] for name, array in split.inputs.items()},
            {name: array[kept] for name, array in split.targets.items()},
        )

    marked = _each(pictured(dataset), mark)
    return replace(marked, train=drop(marked.train), validation=drop(marked.validation))


def _each(dataset: Dataset, change: Callable[[Split], Split]) -> Dataset:
    return replace(
        dataset,
        train=change(dataset.train),
        validation=change(dataset.validation),
        test=change(dataset.test),
    )


def digit_codec(dataset: Dataset) -> Codec:
    """An uploaded picture of one light digit on a dark ground, answered by class name."""
    _, channels, height, width = dataset.test.inputs["image"].shape
    return Codec(
        image=ImageInput(name="image", height=height, width=width, channels=channels),
        classes=dataset.classes,
        scores="probabilities",
    )


def _mnist(part: str) -> np.ndarray:
    name = f"{part}-idx{3 if part.endswith('images') else 1}-ubyte.gz"
    return _idx(fetch(RemoteFile(f"mnist/{name}", _MIRROR + name, _DIGESTS[part])))


def _idx(data: bytes) -> np.ndarray:
    """An IDX array: two zero bytes, the type (8: uint8), the rank, big-endian sizes, the values."""
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _resize(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Bilinear, with pixel centres aligned: [n, h, w] to [n, channels, size, size]."""
    for axis in (1, 2):
        old = images.shape[axis]
        if old == size:
            continue
        at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).astype(np.float32)
        share = share.reshape([-1 if i == axis else 1 for i in range(3)])
        images = images.take(low, axis) * (1 - share) + images.take(high, axis) * share
    return np.repeat(images[:, None], channels, axis=1)
