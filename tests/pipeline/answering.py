"""Tasks of every kind with known answers, and engines that answer from a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from models.codec import (
    Actions,
    Anomaly,
    Characters,
    Codec,
    Generation,
    ImageInput,
    Pictures,
)
from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec
from pipeline.drift import check_drift
from pipeline.samples import Samples
from pipeline.values import Drift, Limit

LIMIT = 1e-6
ROWS = 40
BATCH_AXIS = Axis(BATCH, 1, 4, 16)


@dataclass(frozen=True)
class Kind:
    """A task with what the fp64 module answers to each row; the only input is a row's number."""

    codec: Codec
    output: str
    reference: np.ndarray
    targets: Arrays = field(default_factory=dict)
    inputs: Arrays = field(default_factory=dict)

    @property
    def samples(self) -> Samples:
        inputs = {"row": np.arange(len(self.reference)), **self.inputs}
        return Samples(inputs, self.targets, {self.output: self.reference})

    @property
    def signature(self) -> Signature:
        said = TensorSpec(self.output, "float32", (BATCH_AXIS, *self.reference.shape[1:]))
        return Signature((TensorSpec("row", "int64", (BATCH_AXIS,)),), (said,))

    def drift(self, answers: np.ndarray, precision: str = "fp32", allowed: float = 0.01) -> Drift:
        """Drift of an engine that answers `answers` [rows, ...]."""
        return self.ask(lambda inputs: {self.output: answers[inputs["row"]]}, precision, allowed)

    def ask(
        self, run: Callable[[Mapping[str, Any]], Arrays], precision: str, allowed: float = 0.01
    ) -> Drift:
        limits = {self.output: Limit(scale=1.0, noise_floor=0.0, limit=LIMIT)}
        (found,) = check_drift(
            run, self.samples, self.signature, self.codec, limits, precision, allowed
        )
        return found


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis, keepdims=True))
    return exponents / exponents.sum(axis, keepdims=True)


def labels(answers: np.ndarray, count: int) -> np.ndarray:
    """Targets that are the answers in most places."""
    random = np.random.default_rng(1)
    return np.where(random.random(answers.shape) < 0.8, answers, random.integers(0, count, 1))


@cache
def kinds() -> dict[str, Kind]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 1, (ROWS, *shape))

    scores, maps = softmax(3 * normal(5), 1), softmax(3 * normal(3, 6, 7), 1)
    signs, numbers, worth = normal(1), normal(1), normal(4)
    logits, drawn, errors = 3 * normal(8, 10), random.random((ROWS, 1, 5, 5)), random.random(ROWS)
    following = random.integers(1, 10, (ROWS, 8))
    following[:, 6:] = 0
    tokens = Characters(name="tokens", alphabet=tuple("abcdefg"))
    image = ImageInput(name="image", height=5, width=5)
    pictures = Pictures(latent="latent", drawn="drawn", decoder="decoder", reconstruction="again")
    names = ("a", "b", "c")
    return {
        "scores": Kind(
            Codec(scores="scores", classes=("a", "b", "c", "d", "e")),
            "scores", scores, {"label": labels(scores.argmax(1), 5)},
        ),
        "sign": Kind(
            Codec(sign="sign", classes=("a", "b")),
            "sign", signs, {"label": labels((signs[:, 0] > 0).astype(np.int64), 2)},
        ),
        "values": Kind(
            Codec(values="value"), "value", numbers, {"value": numbers + 0.3 * normal(1)}
        ),
        "pixels": Kind(
            Codec(pixels="map", classes=names, colours=("#000000", "#ffffff", "#ff0000")),
            "map", maps, {"mask": labels(maps.argmax(1), 3)},
        ),
        "tokens": Kind(
            Codec(generation=Generation(tokens=tokens, logits="logits")),
            "logits", logits, {"next": following}, {"tokens": random.integers(1, 10, (ROWS, 8))},
        ),
        "pictures": Kind(
            Codec(image=image, pictures=pictures),
            "again", drawn, {}, {"image": np.clip(drawn + 0.1 * normal(1, 5, 5), 0, 1)},
        ),
        "anomaly": Kind(Codec(anomaly=Anomaly(error="error", threshold=0.7)), "error", errors),
        "actions": Kind(
            Codec(actions=Actions(observation="seen", values="worth", names=("a", "b", "c", "d"))),
            "worth", worth,
        ),
    }  # fmt: skip
