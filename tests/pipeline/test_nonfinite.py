"""Input that is not a number: other rows do not see it, and what becomes of it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec
from pipeline.cases import HELD_OUT, NONFINITE, Case, make_inputs
from pipeline.compare import derive_limits
from pipeline.nonfinite import check_nonfinite

ROWS = Axis(BATCH, 1, 2, 4)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (ROWS, 3)),), (TensorSpec("y", "float32", (ROWS, 3)),)
)
SAMPLES = {"x": np.random.default_rng(0).random((8, 3)).astype(np.float32) + 1}


def double(inputs: Mapping[str, Any]) -> Arrays:
    return {"y": 2 * inputs["x"]}


def recorded() -> list[Case]:
    return [
        Case(c.name, c.origin, c.sizes, c.inputs, double(c.inputs), double(c.inputs))
        for c in make_inputs(SIGNATURE, SAMPLES)
    ]


def test_two_cases_hold_one_value_each_that_is_not_a_number() -> None:
    cases = [case for case in recorded() if case.origin == NONFINITE]
    assert [case.name for case in cases] == ["nan", "infinity"]
    for case in cases:
        assert (~np.isfinite(case.inputs["x"])).sum() == 1
        assert not np.isfinite(case.inputs["x"][0, 0])


def test_integers_and_states_have_no_such_case() -> None:
    tokens = Signature(
        (TensorSpec("t", "int64", (ROWS, 3), 0, 5),), (TensorSpec("y", "float32", (ROWS, 3)),)
    )
    cases = make_inputs(tokens, {"t": np.zeros((8, 3), np.int64)})
    assert not [case for case in cases if case.origin == NONFINITE]


def test_an_engine_like_its_module_passes_and_both_propagate() -> None:
    cases = recorded()
    findings, swallowed = check_nonfinite(double, cases, derive_limits(cases))
    assert [finding.passed for finding in findings] == [True, True]
    assert {one.module for one in swallowed} == {one.engine for one in swallowed} == {2 / 3}


def test_a_number_made_of_nan_is_told_and_does_not_fail_by_itself() -> None:
    def clean(inputs: Mapping[str, Any]) -> Arrays:
        return {"y": np.nan_to_num(double(inputs)["y"], posinf=0)}

    cases = recorded()
    findings, swallowed = check_nonfinite(clean, cases, derive_limits(cases))
    assert all(finding.passed for finding in findings)
    assert [(one.case, one.engine) for one in swallowed] == [("nan", 1.0), ("infinity", 1.0)]


def test_a_row_that_sees_its_neighbours_nan_fails() -> None:
    def leaking(inputs: Mapping[str, Any]) -> Arrays:
        return {"y": 2 * inputs["x"] + 0 * inputs["x"].sum()}

    cases = recorded()
    limits = derive_limits(cases)
    assert all(c.origin != HELD_OUT or np.isfinite(leaking(c.inputs)["y"]).all() for c in cases)
    findings, _ = check_nonfinite(leaking, cases, limits)
    assert [finding.passed for finding in findings] == [False, False]
    assert "NaN" in findings[0].note


def test_a_crash_is_a_failure() -> None:
    def crash(inputs: Mapping[str, Any]) -> Arrays:
        raise RuntimeError("no")

    cases = recorded()
    findings, swallowed = check_nonfinite(crash, cases, derive_limits(cases))
    assert [finding.note for finding in findings] == ["no", "no"]
    assert swallowed == []
