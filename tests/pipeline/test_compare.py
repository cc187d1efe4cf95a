"""Laws of the comparison: it passes what is equal, and nothing that is not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mean_squared_error

from models.signature import BATCH
from pipeline.cases import EDGE, HELD_OUT, VALIDATION, Case
from pipeline.compare import (
    BOUNDS,
    compare,
    derive_limits,
    deviation,
    ratio,
    relative_error,
    replay,
    worst_ratio,
)
from pipeline.values import Finding, Limit

finite = hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6))


def case(origin: str, eager: np.ndarray, reference: np.ndarray) -> Case:
    return Case("c", origin, {}, {"x": eager}, {"y": eager}, {"y": reference})


@given(finite, st.floats(1e-3, 1e6))
def test_an_array_equals_itself(array: np.ndarray, scale: float) -> None:
    assert relative_error(array, array, scale) == 0


@given(finite, finite, st.floats(1.0, 1e6))
def test_error_is_the_largest_difference_over_the_scale(
    actual: np.ndarray, expected: np.ndarray, scale: float
) -> None:
    wide = np.abs(actual - expected).max() / max(scale, np.abs(expected).max())
    assert relative_error(actual, expected, scale) == pytest.approx(wide)


@given(finite, finite)
def test_by_row_it_is_the_largest_root_mean_square(
    actual: np.ndarray, expected: np.ndarray
) -> None:
    limit = Limit(scale=1.0, noise_floor=0.0, limit=1.0, by_row=True)
    mean_squares = [mean_squared_error(a, e) for a, e in zip(actual, expected, strict=True)]
    scale = max(1.0, np.abs(expected).max())
    wanted = max(mean_squares) ** 0.5 / scale
    assert deviation(actual, expected, limit, {BATCH: 3}) == pytest.approx(wanted)
    whole = mean_squared_error(actual.ravel(), expected.ravel()) ** 0.5 / scale
    assert deviation(actual, expected, limit, {}) == pytest.approx(whole)
    largest = limit.model_copy(update={"by_row": False})
    assert deviation(actual, expected, largest, {BATCH: 3}) == relative_error(actual, expected, 1.0)


@given(finite, st.tuples(st.integers(0, 2), st.integers(0, 3)), st.sampled_from([np.nan, np.inf]))
def test_what_is_not_finite_never_compares(
    array: np.ndarray, place: tuple[int, int], value: float
) -> None:
    bad = array.copy()
    bad[place] = value
    assert relative_error(bad, array, 1.0) is None


def test_infinity_compares_where_it_is_expected() -> None:
    expected = np.array([1.0, np.inf])
    assert relative_error(np.array([1.0, np.inf]), expected, 1.0) == 0
    assert relative_error(np.array([1.0, -np.inf]), expected, 1.0) is None
    assert relative_error(np.array([1.0, 2.0]), expected, 1.0) is None


def test_shapes_and_nothing_do_not_compare() -> None:
    assert relative_error(np.zeros((2, 1)), np.zeros((1, 2)), 1.0) is None
    assert relative_error(np.zeros(0), np.zeros(0), 1.0) is None


def test_integers_are_equal_or_not() -> None:
    assert relative_error(np.array([1, 2]), np.array([1, 2]), 1.0) == 0
    assert relative_error(np.array([1, 3]), np.array([1, 2]), 1.0) == 1


@given(st.floats(0, 1e-2))
def test_the_limit_follows_the_noise_floor_between_its_bounds(noise: float) -> None:
    reference = np.array([1.0, -2.0])
    limit = derive_limits([case(HELD_OUT, reference + 2 * noise, reference)])["y"]
    assert limit.scale == 2
    assert limit.noise_floor == pytest.approx(noise, abs=1e-15)
    allowed = BOUNDS["fp32"]
    wanted = min(max(allowed.multiple * limit.noise_floor, allowed.smallest), allowed.ceiling)
    assert limit.limit == wanted


@given(st.floats(0, 1), st.floats(0, 1))
def test_lower_precision_has_the_floor_of_its_own_and_edges_that_cost_more_theirs(
    held_out: float, edge: float
) -> None:
    answers = np.array([1.0, -2.0])
    cases = [case(HELD_OUT, answers, answers), case(EDGE, answers, answers)]
    floors = {"y": {HELD_OUT: held_out, EDGE: edge}}
    limit = derive_limits(cases, "int8", floors)["y"]
    allowed = BOUNDS["int8"]
    assert limit.noise_floor == held_out
    wanted = min(max(allowed.multiple * held_out, allowed.smallest), allowed.ceiling)
    assert limit.limit == wanted
    assert limit.edges == (allowed.multiple * edge if allowed.multiple * edge > wanted else None)
    (finding,) = compare("edges", cases[1], {"y": answers}, {"y": answers}, {"y": limit})
    assert finding.limit == max(wanted, allowed.multiple * edge)


@given(st.floats(0, 1), st.floats(0, 1))
def test_rows_to_choose_by_are_allowed_what_the_worse_of_both_floors_says(
    held_out: float, validation: float
) -> None:
    answers = np.array([1.0, -2.0])
    floors = {"y": {HELD_OUT: held_out, VALIDATION: validation}}
    cases = [case(HELD_OUT, answers, answers)]
    limit = derive_limits(cases, "int8", floors, VALIDATION)["y"]
    assert limit.noise_floor == max(held_out, validation)
    assert derive_limits(cases, "int8", floors)["y"].noise_floor == held_out


def test_edge_inputs_do_not_set_the_limit() -> None:
    sound = case(HELD_OUT, np.ones(2), np.ones(2))
    wild = case(EDGE, np.full(2, 1e9), np.zeros(2))
    assert derive_limits([sound, wild]) == derive_limits([sound])
    assert derive_limits([wild]) == {}


def test_replay_reports_a_crash_and_a_missing_output_as_failures() -> None:
    sound = case(HELD_OUT, np.ones(2), np.ones(2))
    limits = derive_limits([sound])

    def crash(inputs: object) -> dict[str, np.ndarray]:
        raise RuntimeError("first line\nsecond line")

    (finding,) = replay(crash, [sound], limits)
    assert not finding.passed
    assert finding.note == "first line"
    (finding,) = replay(lambda inputs: {}, [sound], limits)
    assert not finding.passed
    assert worst_ratio([finding]) is None
    (finding,) = replay(lambda inputs: {"y": np.ones(2)}, [sound], limits)
    assert finding.passed
    assert worst_ratio([finding]) == 0


def test_the_worst_ratio_is_none_when_anything_was_not_compared() -> None:
    def of(error: float | None, limit: float) -> Finding:
        return Finding(
            check="samples", case="c", sizes={}, output="y", error=error, limit=limit, passed=False
        )

    assert ratio(of(2e-6, 1e-6)) == pytest.approx(2)
    assert ratio(of(0.0, 0.0)) == 0
    assert ratio(of(1e-9, 0.0)) == math.inf
    assert ratio(of(None, 1e-6)) is None
    assert ratio(of(math.nan, 1e-6)) is None
    assert worst_ratio([of(1e-7, 1e-6), of(2e-6, 1e-6)]) == pytest.approx(2)
    assert worst_ratio([of(1e-7, 1e-6), of(None, 1e-6)]) is None
    assert worst_ratio([]) is None
