"""How well the single numbers of a code follow the factors that made the pictures."""

from __future__ import annotations

import numpy as np

_BINS = 10


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray) -> float:
    """MIG (Chen, Li, Grosse, Duvenaud 2018): 1 where each factor has one latent to itself.

    Of codes [rows, latents] and factors [rows, k]: for each factor the mutual
    information with the latent that tells most of it, less that with the next one, as a share of
    the factor's entropy; the mean over factors. A factor that two latents tell equally well counts
    0, and so does one that none tells.

    Every column is cut into 10 bins of equally many rows, so that the score asks nothing of the
    scale or the shape of a latent. Chance adds about 81 / (2 rows) nats to each information; the
    difference takes most of it away again. The paper draws codes from q(z|x); of their means, as in
    Locatello and others 2019, the score does not fall with how finely a latent is read.
    """
    latents, causes = _binned(codes), _binned(factors)
    shares = []
    for cause in causes.T:
        told = sorted(mutual_information(latent, cause) for latent in latents.T)
        second = told[-2] if len(told) > 1 else 0.0
        shares.append((told[-1] - second) / mutual_information(cause, cause))
    return float(np.mean(shares))


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """I(one; other) in nats of two columns of bins [rows], by their counts."""
    counts = np.bincount(one * _BINS + other, minlength=_BINS**2).reshape(_BINS, _BINS)
    joint = counts / len(one)
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def _binned(columns: np.ndarray) -> np.ndarray:
    """The bin of each value among those of its column: int64, as the columns."""
    ranks = columns.argsort(0, kind="stable").argsort(0, kind="stable")
    return ranks * _BINS // len(columns)
