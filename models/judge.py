"""How digits look to the project's own LeNet-5, and a Frechet distance in its feature space.

The distance is not the FID of the literature, whose features are those of Inception.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from models.lenet5 import FIELD, LeNet5
from models.losses import classification_loss
from models.served import ImageClassifier, standardise

_BATCH = 64
_RATE = 2e-3  # at first; it falls to 0 along a cosine
_LOOKED = 1024  # pictures at once


@dataclass(frozen=True)
class Judge:
    """A trained LeNet-5 that only looks; being no module, it is in no other module's weights."""

    module: ImageClassifier

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen in images [n, 1, side, side]: features [n, 84], probabilities [n, 10].

        The features are the activations of F6, of which the classes are read.
        """
        features: list[Tensor] = []
        read = self.module.network.get_submodule("output")
        hook = read.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            seen = [self.module(image=some)["probabilities"] for some in images.split(_LOOKED)]
        finally:
            hook.remove()
        return torch.cat(features), torch.cat(seen)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images [n, 1, side, side] of which the likeliest class is the label [n]."""
        _, probabilities = self.look(images)
        return float((probabilities.argmax(1) == labels).double().mean())


def judge(images: Tensor, labels: Tensor, *, updates: int | None = None, seed: int = 0) -> Judge:
    """LeNet-5 trained on images [n, 1, side, side] in [0, 1] with labels [n] of ten classes.

    Without a number of `updates`, many rows get more of them than few. The same arguments give the
    same judge, whatever was drawn before, and leave torch's generator as it was. One process trains
    it once.
    """
    if updates is None:
        updates = 600 + len(images) // 16
    digest = hashlib.sha256(f"{images.device} {tuple(images.shape)}".encode())
    for rows in (images, labels):
        digest.update(np.ascontiguousarray(rows.cpu().numpy()).data)
    return _trained(_Rows(digest.hexdigest(), images, labels), updates, seed)


def frechet_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """The Frechet distance of two sets of features [n, k], each taken as a Gaussian.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), means m and covariances S (Dowson, Landau 1982).
    The trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2).
    """
    (mean1, spread1), (mean2, spread2) = _moments(real), _moments(drawn)
    shared = np.linalg.svd(_root(spread1) @ _root(spread2), compute_uv=False).sum()
    apart = ((mean1 - mean2) ** 2).sum() + np.trace(spread1) + np.trace(spread2) - 2 * shared
    return max(float(apart), 0.0)


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = rows.astype(np.float64)
    mean = rows.mean(0)
    rows -= mean
    return mean, rows.T @ rows / max(len(rows) - 1, 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


@dataclass(frozen=True)
class _Rows:
    """Training rows that equal others by their digest."""

    digest: str
    images: Tensor = field(compare=False)
    labels: Tensor = field(compare=False)


@lru_cache(maxsize=2)
def _trained(rows: _Rows, updates: int, seed: int) -> Judge:
    device, count = rows.images.device, len(rows.images)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(seed)
        images, labels = rows.images.clone(), rows.labels.clone()
        module = ImageClassifier(LeNet5(), pad=(FIELD - images.shape[-1]) // 2).to(device)
        standardise(module, {"image": images}, {})
        optimizer = torch.optim.Adam(module.parameters(), lr=_RATE)
        order = torch.empty(0, dtype=torch.int64)
        for update in range(updates):
            if len(order) < min(_BATCH, count):
                order = torch.randperm(count)
            some, order = order[:_BATCH].to(device), order[_BATCH:]
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 + math.cos(math.pi * update / updates)) / 2
            outputs = module(image=images[some])
            optimizer.zero_grad()
            classification_loss(outputs, {"label": labels[some]}).backward()
            optimizer.step()
    return Judge(module.eval().requires_grad_(False))
