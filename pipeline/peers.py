"""Peers: what the checks of other tools say of an engine, each with its tool's own defaults.

Every peer is asked with one call at batch 1. That is what most of the tools do; where one asks
more, or does not fail on what it finds, its `says` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from models.signature import BATCH, Arrays, Signature, TensorSpec
from pipeline.compare import Run

RANDOM, ONES = "random", "ones"

# Whether an answer agrees with what is expected of it; shapes are the same.
Agrees = Callable[[np.ndarray, np.ndarray], bool]


@dataclass(frozen=True)
class Peer:
    """A check as a tool does it: its input, its comparison, and where its defaults stand."""

    name: str
    says: str
    agrees: Agrees
    asks: str = RANDOM
    tolerances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """The one call of a peer, and what the sound graph answers to it."""

    inputs: Arrays
    expected: Arrays


def _close(name: str, says: str, rtol: float, atol: float, equal_nan: bool = False) -> Peer:
    """|actual - expected| <= atol + rtol * |expected|, as `numpy.allclose`."""

    def agrees(actual: np.ndarray, expected: np.ndarray) -> bool:
        return bool(np.allclose(actual, expected, rtol=rtol, atol=atol, equal_nan=equal_nan))

    return Peer(name, says, agrees, tolerances={"rtol": rtol, "atol": atol})


def _within_either(actual: np.ndarray, expected: np.ndarray) -> bool:
    """No element exceeds both tolerances of 1e-5; what is not a number exceeds both."""
    difference = np.abs(actual.astype(np.float64) - expected)
    scale = np.where(expected == 0, 2e-16, np.abs(expected.astype(np.float64)))
    near = (difference <= 1e-5) | (difference / scale <= 1e-5)
    return bool(near.all())


def _finite(actual: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.isfinite(actual).all())


PEERS: tuple[Peer, ...] = (
    _close("numpy.allclose", "numpy's defaults", rtol=1e-5, atol=1e-8),
    _close(
        "torch assert_close",
        "torch.testing.assert_close for float32, as torch.onnx.testing.assert_onnx_program calls "
        "it on the example inputs (torch 2.13, read in its source)",
        rtol=1.3e-6, atol=1e-5, equal_nan=True,
    ),
    _close(
        "torch.onnx verify",
        "torch.onnx.verification.VerificationOptions (PyTorch's documentation), and the runner of "
        "ONNX's own backend tests (onnx 1.23, read in its source)",
        rtol=1e-3, atol=1e-7, equal_nan=True,
    ),
    _close(
        "PyTorch tutorial",
        "numpy.testing.assert_allclose as in PyTorch's tutorial on ONNX Runtime (quoted in "
        "pytorch/tutorials issue 1272)",
        rtol=1e-3, atol=1e-5, equal_nan=True,
    ),
    _close(
        "ORT transformers",
        "onnxruntime.transformers.onnx_exporter for float32 (onnxruntime 1.31, read in its source)",
        rtol=1e-4, atol=1e-4,
    ),
    _close(
        "Optimum",
        "validate_model_outputs: numpy.allclose with atol of ATOL_FOR_VALIDATION, 1e-5 unless a "
        "model has its own (optimum-onnx 0.1: the comparison read in its source, the default in "
        "that of optimum's exporters)",
        rtol=1e-5, atol=1e-5,
    ),
    Peer(
        "Polygraphy",
        "CompareFunc.simple: no element may exceed both tolerances (polygraphy 0.53, read in its "
        "source); its own input is uniform in [0, 1]",
        _within_either,
        tolerances={"rtol": 1e-5, "atol": 1e-5},
    ),
    Peer(
        "AITune",
        "shapes, NaN and infinity only (aitune 0.6, read in its source); Model Navigator, which it "
        "follows, measures differences too and fails on none (read in its source); its runs at the "
        "smallest and largest shapes are not made here",
        _finite,
    ),
    Peer(
        "Olive",
        "one input of ones; differences are reported, and no threshold is set by default "
        "(OnnxDiscrepancyCheck and DummyDataset of olive-ai 0.13, read in their source)",
        lambda actual, expected: True,
        asks=ONES,
    ),
)  # fmt: skip


def questions(signature: Signature, sound: Run, rng: np.random.Generator) -> dict[str, Question]:
    """What the peers ask, by their `asks`: one call at batch 1, the other axes as usual."""
    sizes = {name: axis.opt for name, axis in signature.axes.items()}
    if signature.batch:
        sizes[BATCH] = signature.batch.min
    found = {}
    for asks, make in ((RANDOM, _random), (ONES, _ones)):
        inputs = {s.name: make(s, s.at(sizes), rng) for s in signature.inputs}
        found[asks] = Question(inputs, sound(inputs))
    return found


def refusals(run: Run, asked: Mapping[str, Question]) -> dict[str, bool]:
    """Of each peer by name, whether it refuses the engine; one that cannot answer all refuse."""
    answers: dict[str, Arrays | None] = {}
    for asks, question in asked.items():
        try:
            answers[asks] = run(question.inputs)
        except Exception:  # whatever a backend raises, the engine did not run
            answers[asks] = None
    return {p.name: not _passes(p, answers[p.asks], asked[p.asks].expected) for p in PEERS}


def _passes(peer: Peer, answers: Arrays | None, expected: Arrays) -> bool:
    if answers is None or not expected.keys() <= answers.keys():
        return False
    with np.errstate(all="ignore"):
        return all(
            answers[name].shape == array.shape and peer.agrees(answers[name], array)
            for name, array in expected.items()
        )


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform over the declared range; without one standard normal, or whole numbers 0 and 1."""
    if not spec.floating:
        low = 0 if spec.low is None else int(spec.low)
        high = low + 1 if spec.high is None else int(spec.high)
        return rng.integers(low, high, shape, endpoint=True).astype(spec.dtype)
    if spec.low is None or spec.high is None:
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.uniform(spec.low, spec.high, shape).astype(spec.dtype)


def _ones(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.ones(shape, spec.dtype)
