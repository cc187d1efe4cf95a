"""Task drift: sound engines pass, changed answers are counted, and what has no number fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import Anomaly, Characters, Codec, Generation
from models.signature import Arrays
from pipeline.drift import check_drift
from pipeline.evaluation import wilson
from pipeline.values import Limit
from tests.pipeline.answering import LIMIT, ROWS, Kind, kinds

PRECISIONS = ("fp32", "int8")
NAMES = tuple(kinds())
# Whose answers are an argmax, and along which axis.
CHOICES = {"scores": 1, "pixels": 1, "tokens": -1, "actions": -1}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_answers_the_same_has_no_drift(name: str, precision: str) -> None:
    kind = kinds()[name]
    for answers in (kind.reference, kind.reference.astype(np.float32)):
        found = kind.drift(answers, precision)
        assert found.passed
        assert (found.changed, found.ties, found.leads) == (0, 0, ())
        assert found.allowed == (0 if precision == "fp32" else 0.01)
        assert found.interval == pytest.approx(wilson(0, ROWS))  # however many answers a row has
        assert found.answers == {
            "pixels": ROWS * 42, "tokens": ROWS * 6, "pictures": ROWS * 25
        }.get(name, ROWS)  # fmt: skip
        assert found.measures
        for module, engine, low, high in found.measures.values():
            assert engine == pytest.approx(module, abs=1e-6, rel=1e-6)
            assert low <= engine - module <= high
            assert high - low < 0.2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "broken",
    [
        lambda a: np.where(a == a.flat[0], np.nan, a),
        lambda a: np.where(a == a.flat[0], np.inf, a),
        lambda a: a[:, None],
        lambda a: np.concatenate([a, a], -1),
        lambda a: np.zeros_like(a, dtype=object),
    ],
    ids=["nan", "infinite", "deeper", "wider", "no numbers"],
)
def test_what_cannot_be_compared_fails_whatever_is_allowed(
    broken: Callable[[np.ndarray], np.ndarray], name: str, precision: str
) -> None:
    kind = kinds()[name]

    def run(inputs: Mapping[str, Any]) -> Arrays:
        return {kind.output: broken(kind.reference[inputs["row"]])}

    found = kind.ask(run, precision, allowed=0.99)
    assert not found.passed
    assert (found.answers, found.changed, found.interval) == (0, 1, (0, 1))
    assert found.note


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_a_missing_output_and_missing_rows_fail(name: str) -> None:
    kind = kinds()[name]

    def crash(inputs: Mapping[str, Any]) -> Arrays:
        if 39 in inputs["row"]:
            raise RuntimeError("the last row\nis too much")
        return {kind.output: kind.reference[inputs["row"]]}

    def fewer(inputs: Mapping[str, Any]) -> Arrays:
        return {kind.output: kind.reference[inputs["row"]][1:]}

    assert kind.ask(crash, "int8").note == "the last row"
    assert kind.ask(lambda inputs: {}, "fp32").note == "the engine has no such output"
    assert "shape" in kind.ask(fewer, "fp32").note
    for run in (crash, fewer, lambda inputs: {}):
        assert not kind.ask(run, "int8", allowed=0.99).passed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_compared_fails(name: str) -> None:
    kind = kinds()[name]
    none = {n: a[:0] for n, a in kind.inputs.items()}
    empty = replace(kind, reference=kind.reference[:0], targets={}, inputs=none)
    assert not empty.drift(empty.reference, "int8", allowed=0.99).passed
    samples = replace(kind.samples, reference={})
    run = {kind.output: kind.reference}
    (found,) = check_drift(lambda _: run, samples, kind.signature, kind.codec, {}, "int8", 0.99)
    assert not found.passed


def test_a_threshold_that_nothing_is_above_fails() -> None:
    kind = kinds()["anomaly"]
    codec = Codec(anomaly=Anomaly(error="error", threshold=float("nan")))
    found = replace(kind, codec=codec).drift(kind.reference)
    assert not found.passed
    assert "threshold" in found.note


def test_no_task_no_drift() -> None:
    kind = kinds()["scores"]
    assert check_drift(lambda _: {}, kind.samples, kind.signature, Codec(), {}, "fp32", 0.0) == []


def test_a_codec_with_several_answers_has_a_drift_for_each() -> None:
    kind = kinds()["pictures"]
    error = np.random.default_rng(3).random(ROWS)
    codec = kind.codec.model_copy(update={"anomaly": Anomaly(error="error", threshold=0.5)})
    samples = replace(kind.samples, reference={"again": kind.reference, "error": error})
    limit = Limit(scale=1.0, noise_floor=0.0, limit=LIMIT)
    limits = {"again": limit, "error": limit}

    def run(inputs: Mapping[str, Any]) -> Arrays:
        return {"again": kind.reference[inputs["row"]], "error": 1 - error[inputs["row"]]}

    drawn, anomaly = check_drift(run, samples, kind.signature, codec, limits, "int8", 0.01)
    assert drawn.passed
    assert (anomaly.output, anomaly.passed, anomaly.changed) == ("error", False, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_row_of_many_fails_in_fp32_and_counts_below_it(name: str) -> None:
    kind = kinds()[name]
    answers = kind.reference.copy()
    answers[7] = -answers[7] if name in ("sign", "values") else 1 - answers[7]
    if name in CHOICES:
        answers[7] = -kind.reference[7]
    found = kind.drift(answers)
    assert not found.passed
    assert 0 < found.changed <= 1 / ROWS
    low, high = found.interval
    assert low <= found.changed <= high
    below = kind.drift(answers, "int8", allowed=found.changed)
    assert below.passed
    assert below.changed == found.changed
    assert not kind.drift(answers, "int8", allowed=0.99 * found.changed).passed
    assert kind.drift(answers) == found  # to the bit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a[:, ::-1],
        lambda a: a[:, [1, 0, *range(2, a.shape[1])]],
        np.negative,
        np.zeros_like,
        lambda a: a[::-1],
        lambda a: a + np.eye(a.shape[1])[0].reshape(-1, *[1] * (a.ndim - 2)) * 0.5,
        np.round,
        lambda a: np.roll(a, 1, -1),
    ],
    ids=["turned", "swapped", "sign", "constant", "rows", "bias", "coarse", "moved"],
)
def test_a_damaged_engine_fails(
    damage: Callable[[np.ndarray], np.ndarray], name: str, precision: str
) -> None:
    kind, axis = kinds()[name], CHOICES[name]
    answers = np.moveaxis(damage(np.moveaxis(kind.reference, axis, 1)), 1, axis)
    found = kind.drift(answers, precision)
    assert not found.passed
    assert found.leads
    assert found.interval[0] > found.allowed


@pytest.mark.parametrize("name", NAMES)
def test_drift_is_the_same_from_either_side(name: str) -> None:
    kind = kinds()[name]
    noisy = kind.reference + 0.2 * np.random.default_rng(2).normal(0, 1, kind.reference.shape)
    there = kind.drift(noisy, "int8")
    back = replace(kind, reference=noisy).drift(kind.reference, "int8")
    assert not there.passed
    assert (there.changed, there.interval) == (back.changed, back.interval)
    for measure in there.measures.keys() - {"IoU with the module's masks", "regret"}:
        a, b, low, high = there.measures[measure]
        if a in (0, 1):  # what is its own reference
            assert back.measures[measure] == pytest.approx((a, b, low, high))
        else:
            assert back.measures[measure] == pytest.approx((b, a, -high, -low))


@pytest.mark.parametrize("name", CHOICES)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_an_engine_within_its_limit_never_fails_in_fp32(name: str, seed: int, close: float) -> None:
    kind, axis = kinds()[name], CHOICES[name]
    random = np.random.default_rng(seed)
    best = kind.reference.max(axis, keepdims=True)
    # As near to the best as `close` says, so that many answers are ties.
    reference = kind.reference + (best - kind.reference) * (1 - close * LIMIT)
    allowed = 0.99 * LIMIT * max(1.0, float(np.abs(reference).max()))
    answers = reference + random.uniform(-allowed, allowed, reference.shape)
    found = replace(kind, reference=reference).drift(answers)
    assert found.passed
    assert found.changed == 0
    assert len(found.leads) == min(found.ties, 1000)
    assert all(lead <= found.tie for lead in found.leads)


@settings(max_examples=50)
@given(st.floats(0, 1.5), st.sampled_from(["sign", "anomaly"]))
def test_a_threshold_is_a_tie_within_one_limit(lead: float, name: str) -> None:
    kind = kinds()[name]
    middle = 0.7 if name == "anomaly" else 0.0
    scale = max(1.0, float(np.abs(kind.reference).max()))
    reference, answers = kind.reference.copy(), kind.reference.copy()
    reference[0], answers[0] = middle + lead * LIMIT * scale, middle - LIMIT
    found = replace(kind, reference=reference).drift(answers)
    flipped = reference.flat[0] > middle
    assert found.ties + round(found.changed * ROWS) == flipped
    if abs(lead - 1) > 1e-6:
        assert found.passed == (lead < 1 or not flipped)
    assert found.tie == pytest.approx(LIMIT)


def test_ties_are_told_and_only_equal_values_are_ties_below_fp32() -> None:
    reference = np.array([[2.0, 2.0 - 1e-6], [2.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    kind = Kind(Codec(scores="s", classes=("a", "b")), "s", reference)
    answers = reference[:, ::-1].copy()
    answers[2:] = reference[2:]
    answers[1] = [2.0, 2.5]
    exact, below = kind.drift(answers), kind.drift(answers, "int8")
    assert (exact.passed, exact.changed, exact.ties) == (True, 0.0, 2)
    assert (below.passed, below.changed, below.ties) == (False, 0.25, 1)
    assert exact.leads == below.leads == pytest.approx((0, 0.5e-6))
    assert (exact.tie, below.tie) == (2 * LIMIT, 0)


def test_of_many_leads_a_thousand_are_kept_the_ends_among_them() -> None:
    random = np.random.default_rng(0)
    leads = np.sort(random.random(5000)).reshape(50, 100)
    reference = np.stack([leads, np.zeros_like(leads)], -1)
    tokens = Characters(name="row", alphabet=("a",))
    codec = Codec(generation=Generation(tokens=tokens, logits="l"))
    following = np.ones((50, 100), np.int64)
    kind = Kind(codec, "l", reference, {"next": following})
    found = kind.drift(-reference)
    assert found.changed == 1
    assert len(found.leads) == 1000
    assert list(found.leads) == sorted(found.leads)
    assert found.leads[0] == leads.min()
    assert found.leads[-1] == leads.max()
    assert np.median(found.leads) == pytest.approx(np.median(leads), abs=0.01)


def test_padding_does_not_count() -> None:
    kind = kinds()["tokens"]
    answers = kind.reference.copy()
    answers[:, 6:] = -answers[:, 6:]
    assert kind.drift(answers).passed
    unknown = replace(kind, targets={})  # then every token that is given counts
    assert unknown.drift(answers).changed == pytest.approx(2 / 8)
    assert unknown.drift(answers).measures == {}
    tokens = kind.inputs["tokens"].copy()
    tokens[:, 6:] = 0
    padded = replace(kind, targets={}, inputs={"tokens": tokens})
    assert padded.drift(answers).passed
    assert padded.drift(answers).answers == ROWS * 6
