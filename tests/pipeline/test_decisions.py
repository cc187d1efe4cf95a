"""Greedy actions of an engine against the fp64 module's: sound engines pass, broken ones fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codec import Actions
from models.signature import Arrays
from pipeline.cases import EDGE, HELD_OUT, Case
from pipeline.compare import CEILING, SMALLEST, derive_limits
from pipeline.decisions import AGREEMENT, REGRET, check_decisions
from pipeline.evaluation import wilson
from pipeline.values import Finding, Limit

Run = Callable[[Mapping[str, Any]], Arrays]

ACTIONS = Actions(observation="observation", values="q_values", names=("left", "stay", "right"))
LIMIT = {"q_values": Limit(scale=10.0, noise_floor=0.0, limit=1e-6)}
ALLOWED = 2 * 1e-6 * 10.0


def network(observation: np.ndarray, dtype: Any) -> np.ndarray:
    random = np.random.default_rng(5)
    first, last = random.normal(0, 1, (4, 16)), random.normal(0, 1, (16, 3))
    hidden = np.maximum(observation.astype(dtype) @ first.astype(dtype), 0)
    return hidden @ last.astype(dtype)


def cases(batches: tuple[int, ...] = (1, 2, 5, 64)) -> list[Case]:
    found = []
    for number, rows in enumerate(batches):
        seen = np.random.default_rng(number).normal(0, 1, (rows, 4)).astype(np.float32)
        answers = ({"q_values": network(seen, kind)} for kind in (np.float32, np.float64))
        found.append(
            Case(f"batch={rows}", HELD_OUT, {"batch": rows}, {"observation": seen}, *answers)
        )
    return found


def sound(inputs: Mapping[str, Any]) -> Arrays:
    return {"q_values": network(inputs["observation"], np.float32)}


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Run:
    return lambda inputs: {"q_values": change(sound(inputs)["q_values"])}


def check(run: Run, some: list[Case]) -> tuple[Finding, Finding]:
    agreement, regret = check_decisions(run, some, ACTIONS, derive_limits(some) or LIMIT)
    assert (agreement.check, regret.check) == (AGREEMENT, REGRET)
    assert agreement.passed == regret.passed
    return agreement, regret


def one(wanted: list[list[float]], answered: list[list[float]]) -> tuple[Finding, Finding]:
    """Findings of rows whose values are given: the fp64 module's, and the engine's."""
    reference = {"q_values": np.array(wanted, np.float64)}
    seen = {"observation": np.zeros((len(wanted), 4), np.float32)}
    case = Case("c", HELD_OUT, {"batch": len(wanted)}, seen, reference, reference)
    answers = {"q_values": np.array(answered)}
    agreement, regret = check_decisions(lambda inputs: answers, [case], ACTIONS, LIMIT)
    return agreement, regret


def test_a_sound_engine_acts_as_the_module() -> None:
    agreement, regret = check(sound, cases())
    assert agreement.passed
    assert (agreement.error, agreement.limit) == (0, 0)
    assert agreement.sizes == {"batch": 72}
    low, high = wilson(72, 72)
    assert agreement.note.startswith("72 of 72 actions are the fp64 module's")
    assert f"(95 % interval {low:.2%} to {high:.2%})" in agreement.note
    assert regret.error == 0
    assert 2 * SMALLEST <= regret.limit <= 2 * CEILING


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values[:, ::-1],
        lambda values: values[:, [1, 0, 2]],
        np.negative,
        np.zeros_like,
        lambda values: values[::-1],
        lambda values: values + np.array([0.5, 0, 0]),
        lambda values: values[:, :2],
        lambda values: values.ravel(),
        lambda values: np.where(values > values.mean(), np.nan, values),
        lambda values: values * np.inf,
    ],
    ids=[
        "turned", "swapped", "sign", "constant", "rows", "bias", "an action less", "flat", "nan",
        "infinity",
    ],
)  # fmt: skip
def test_a_broken_engine_fails(change: Callable[[np.ndarray], np.ndarray]) -> None:
    agreement, regret = check(changed(change), cases())
    assert not agreement.passed
    for finding in (agreement, regret):
        assert finding.error is None or finding.error > finding.limit
        assert finding.note


def test_a_single_wrong_row_of_many_fails() -> None:
    right = [[1.0, 0.0, 0.0]] * 999
    agreement, regret = one([*right, [5.0, 0.0, 0.0]], [*right, [0.0, 5.0, 0.0]])
    assert not agreement.passed
    assert agreement.error == pytest.approx(1 / 1000)
    assert agreement.note.startswith("999 of 1000 actions")
    assert regret.error == pytest.approx(5.0 / 10.0)
    assert "mean 5.0e-03 and worst 5.0e+00" in regret.note


def test_a_tie_may_go_either_way_and_is_told() -> None:
    agreement, regret = one([[2.0, 2.0, 0.0]] * 4, [[2.0, 2.0 + 1e-5, 0.0]] * 4)
    assert agreement.passed
    assert agreement.note.startswith("0 of 4 actions")
    assert agreement.note.endswith("4 more are of equal worth within the limit")
    assert regret.error == 0
    for lead, passed in ((0.9 * ALLOWED, True), (1.1 * ALLOWED, False)):
        agreement, regret = one([[2.0, 2.0 - lead, 0.0]], [[2.0, 3.0, 0.0]])
        assert agreement.passed is regret.passed is passed
        assert regret.error == pytest.approx(lead / 10.0, rel=1e-6)


@given(
    st.lists(st.floats(-9, 9), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_an_engine_within_its_limit_never_fails(wanted: list[float], noise: list[float]) -> None:
    shifts = [0.99 * ALLOWED / 2 * share for share in noise]
    agreement, _ = one([wanted], [[a + b for a, b in zip(wanted, shifts, strict=True)]])
    assert agreement.passed


@pytest.mark.parametrize(
    "some", [[], [Case("c", EDGE, {}, {}, {}, {"q_values": np.zeros((2, 3))})], cases(())]
)
def test_nothing_compared_fails(some: list[Case]) -> None:
    for finding in check(sound, some):
        assert not finding.passed
        assert finding.error is None
        assert finding.note == "no held-out row was recorded"


def test_a_crash_and_a_missing_output_fail() -> None:
    def crash(inputs: object) -> Arrays:
        raise RuntimeError("first line\nsecond line")

    assert check(crash, cases())[0].note == "first line"
    assert check(lambda inputs: {}, cases())[0].note == "'q_values'"


def test_a_crash_of_one_case_fails_all() -> None:
    def large_only(inputs: Mapping[str, Any]) -> Arrays:
        if len(inputs["observation"]) == 1:
            raise RuntimeError("no batch of 1")
        return sound(inputs)

    assert not check(large_only, cases())[0].passed
