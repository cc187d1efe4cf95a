"""Sequences whose state an engine carries: sound engines pass, each broken one is caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.recurrence import Recurrence, State, advance, capacity, start, state_names, step_names
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.carrying import (
    carried_inputs,
    decode_greedily,
    prompt,
    replay_sequences,
    run_carried,
    uneven_cuts,
)
from pipeline.cases import CARRIED, GREEDY, HELD_OUT, Case
from pipeline.compare import derive_limits
from pipeline.invariance import invariances

Run = Callable[[Mapping[str, Any]], Arrays]

BATCH = Axis("batch", 1, 2, 4)
LENGTH = Axis("length", 1, 4, 8)
TOKENS = TensorSpec("tokens", "int64", (BATCH, LENGTH), 0, 6)
LOGITS = TensorSpec("logits", "float32", (BATCH, LENGTH, 7))
HIDDEN = Signature(
    inputs=(TOKENS, TensorSpec("hidden", "float32", (BATCH, 5), -1, 1)),
    outputs=(LOGITS, TensorSpec("next_hidden", "float32", (BATCH, 5))),
    recurrence=Recurrence("length", (State("hidden", "next_hidden"),)),
)
TABLE = Signature(
    inputs=(
        TOKENS,
        TensorSpec("cache", "float32", (BATCH, 1, 40, 5), -1, 1),
        TensorSpec("position", "int64", (BATCH,), 0, 39),
    ),
    outputs=(LOGITS, TensorSpec("rows", "float32", (BATCH, 1, LENGTH, 5))),
    recurrence=Recurrence("length", (State("cache", "rows", "position"),)),
)
SIGNATURES = pytest.mark.parametrize("signature", [HIDDEN, TABLE], ids=["hidden", "table"])

_RANDOM = np.random.default_rng(3)
_WORDS = _RANDOM.normal(0, 1, (7, 5))
_INNER = _RANDOM.normal(0, 0.3, (5, 5))
_HEAD = _RANDOM.normal(0, 1, (5, 7))


def engine(signature: Signature, dtype: Any = np.float32, gain: float = 1.0) -> Run:
    """h_t = tanh(W h_{t-1} + x_t), or the mean of all words so far; the reference in numpy."""
    words, inner, head = (array.astype(dtype) for array in (_WORDS, _INNER, _HEAD))

    def hidden(inputs: Mapping[str, Any]) -> Arrays:
        h, said = inputs["hidden"].astype(dtype), []
        for token in inputs["tokens"].T:
            h = np.tanh(h @ inner + dtype(gain) * words[token])
            said.append(h @ head)
        return {"logits": np.stack(said, 1), "next_hidden": h}

    def table(inputs: Mapping[str, Any]) -> Arrays:
        new = words[inputs["tokens"]]
        logits = np.zeros((*new.shape[:2], 7), dtype)
        for row, place in enumerate(inputs["position"]):
            past = inputs["cache"][row, 0, :place].astype(dtype)
            for step in range(new.shape[1]):
                seen = np.concatenate([past, new[row, : step + 1]])
                logits[row, step] = dtype(gain) * seen.mean(0) @ head
        return {"logits": logits, "rows": new[:, None]}

    return hidden if signature is HIDDEN else table


def recorded(signature: Signature) -> list[Case]:
    """What `export` records of a module, here of the numpy one in fp32 and fp64."""
    samples = {"tokens": np.random.default_rng(5).integers(0, 7, (12, 8))}
    inputs = carried_inputs(signature, samples)
    states = {state.output for state in (signature.recurrence or Recurrence("", ())).states}
    begun, count = prompt(signature, inputs, "tokens")
    carried, greedy = [], []
    for dtype in (np.float32, np.float64):
        run, wide = engine(signature, dtype), dtype is np.float64
        said = run_carried(run, signature, inputs, range(400), wide=wide)
        carried.append({name: a for name, a in said.items() if name not in states})
        ids, margins = decode_greedily(run, signature, begun, "tokens", "logits", count, wide=wide)
        greedy.append({"tokens": ids, "logits": margins})
    call = {"tokens": samples["tokens"][:4]} | start(signature, 4)
    plain = [engine(signature, dtype)(call) for dtype in (np.float32, np.float64)]
    return [
        Case("plain", HELD_OUT, {"batch": 4, "length": 8}, call, *plain),
        Case("carried", CARRIED, {}, inputs, *carried),
        Case("greedy", GREEDY, {}, begun, *greedy),
    ]


@SIGNATURES
def test_a_sound_engine_passes_over_hundreds_of_steps(signature: Signature) -> None:
    cases = recorded(signature)
    findings = replay_sequences(engine(signature), signature, cases, derive_limits(cases))
    assert all(finding.passed for finding in findings)
    steps = [f.case for f in findings if f.check == CARRIED]
    assert steps[0] == "step 1"
    assert steps[-1] == ("step 256" if signature is HIDDEN else "step 40")
    assert [f.note for f in findings if f.check == GREEDY] == [
        f"{2 * 128} of {2 * 128} tokens are those of the fp64 module"
        if signature is HIDDEN
        else f"{2 * 33} of {2 * 33} tokens are those of the fp64 module"
    ]


def _forgets(run: Run) -> Run:
    """State that is dropped at every call."""
    return lambda inputs: run(
        {n: np.zeros_like(a) if n in ("hidden", "cache") else a for n, a in inputs.items()}
    )


def _stale(run: Run) -> Run:
    """The new state is not written: what came in comes out."""

    def stale(inputs: Mapping[str, Any]) -> Arrays:
        said = run(inputs)
        same = {"next_hidden": "hidden", "rows": "cache"}
        kept = {n: inputs[same[n]] for n in said if n in same}
        if "rows" in kept:
            kept["rows"] = np.zeros_like(said["rows"])
        return said | kept

    return stale


def _nan(run: Run) -> Run:
    def nan(inputs: Mapping[str, Any]) -> Arrays:
        return {n: a * np.float32(np.nan) for n, a in run(inputs).items()}

    return nan


def _crashes(run: Run) -> Run:
    def crash(inputs: Mapping[str, Any]) -> Arrays:
        raise RuntimeError("the engine is gone")

    return crash


def _swapped(run: Run) -> Run:
    """The rows of a batch take one another's state."""

    def swapped(inputs: Mapping[str, Any]) -> Arrays:
        said = run(inputs)
        return {n: a[::-1] if n in ("next_hidden", "rows") else a for n, a in said.items()}

    return swapped


@SIGNATURES
@pytest.mark.parametrize("broken", [_forgets, _stale, _nan, _crashes, _swapped])
def test_an_engine_that_loses_its_state_is_caught(
    signature: Signature, broken: Callable[[Run], Run]
) -> None:
    cases = recorded(signature)
    run = broken(engine(signature))
    findings = replay_sequences(run, signature, cases, derive_limits(cases))
    assert not all(finding.passed for finding in findings if finding.check == CARRIED)


@pytest.mark.parametrize("broken", [_forgets, _stale, _nan, _swapped])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_in_lower_precision_the_limit_is_that_of_the_module_in_it(
    precision: str, broken: Callable[[Run], Run]
) -> None:
    """Engines whose state is rounded to so many bits; broken ones are caught there as well."""
    cases, signature = recorded(HIDDEN), HIDDEN
    bits = {"fp16": 11, "bf16": 8, "tf32": 11}[precision]

    def rounded(inputs: Mapping[str, Any]) -> Arrays:
        said = engine(signature)(inputs)
        return {name: _round(array, bits) for name, array in said.items()}

    fp32 = derive_limits(cases)
    assert not all(finding.passed for finding in replay_sequences(rounded, HIDDEN, cases, fp32))
    own = {HELD_OUT: 2.0**-bits, CARRIED: 2.0**-bits}
    limits = derive_limits(cases, precision, {"logits": own, "next_hidden": own})
    assert limits["logits"].carried is not None
    findings = replay_sequences(rounded, signature, cases, limits)
    assert all(finding.passed for finding in findings), findings
    findings = replay_sequences(broken(rounded), signature, cases, limits)
    assert not all(finding.passed for finding in findings if finding.check == CARRIED)
    without = derive_limits(cases, precision, {"logits": {HELD_OUT: 2.0**-bits}})
    assert without["logits"].carried is None


def _round(array: np.ndarray, bits: int) -> np.ndarray:
    """To so many bits of significand."""
    fraction, exponent = np.frexp(array)
    return np.ldexp(np.rint(fraction * 2.0**bits) / 2.0**bits, exponent).astype(array.dtype)


@SIGNATURES
def test_a_slightly_wrong_weight_is_caught(signature: Signature) -> None:
    cases = recorded(signature)
    run = engine(signature, gain=1.0005)
    findings = replay_sequences(run, signature, cases, derive_limits(cases))
    assert not any(f.passed for f in findings if f.check == CARRIED)


@SIGNATURES
def test_other_words_than_the_modules_are_caught(signature: Signature) -> None:
    """An engine whose logits for two tokens are swapped."""
    cases = recorded(signature)
    sound = engine(signature)
    first, second = np.unique(cases[2].reference["tokens"])[[0, -1]]

    def run(inputs: Mapping[str, Any]) -> Arrays:
        said = sound(inputs)
        order = np.arange(7)
        order[[first, second]] = second, (first if first != second else (first + 1) % 7)
        return said | {"logits": said["logits"][..., order]}

    findings = replay_sequences(run, signature, cases, derive_limits(cases))
    assert not all(f.passed for f in findings if f.check == GREEDY)


@SIGNATURES
def test_a_tie_may_be_decided_either_way(signature: Signature) -> None:
    cases = recorded(signature)
    greedy = cases[2]
    tokens = greedy.reference["tokens"].copy()
    margins = greedy.reference["logits"].copy()
    tokens[0, 3:] = (tokens[0, 3:] + 1) % 7
    margins[0, 3] = 1e-9
    tied = Case(
        "greedy", GREEDY, {}, greedy.inputs, greedy.eager, {"tokens": tokens, "logits": margins}
    )
    (finding,) = replay_sequences(engine(signature), signature, [tied], derive_limits(cases))
    assert finding.passed
    count = tokens.shape[1]
    assert finding.note.startswith(f"{count + 3} of {2 * count} ")


@SIGNATURES
@given(cuts=st.sets(st.integers(1, 7)))
def test_however_a_sequence_is_cut_it_is_answered_the_same(
    signature: Signature, cuts: set[int]
) -> None:
    inputs = {"tokens": np.arange(16).reshape(2, 8) % 7}
    run = engine(signature, np.float64)
    whole = run_carried(run, signature, inputs, [], wide=True)
    parts = run_carried(run, signature, inputs, cuts, wide=True)
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


@SIGNATURES
@pytest.mark.parametrize("broken", [_forgets, _stale, _swapped])
def test_the_law_of_cuts_needs_no_reference(
    signature: Signature, broken: Callable[[Run], Run]
) -> None:
    cases = recorded(signature)
    limits = derive_limits(cases)

    def findings(run: Run) -> list[bool]:
        every = invariances(run, lambda: run, signature, cases, limits)
        return [finding.passed for finding in every if finding.check == "cut"]

    assert all(findings(engine(signature)))
    assert not all(findings(broken(engine(signature))))


def test_uneven_cuts_lie_inside() -> None:
    assert uneven_cuts(8) == [1, 3, 7, 15]


def test_what_a_sequence_carries() -> None:
    assert state_names(HIDDEN) == ("hidden",)
    assert state_names(TABLE) == ("cache", "position")
    assert step_names(TABLE) == ("tokens",)
    assert (capacity(HIDDEN), capacity(TABLE)) == (None, 40)
    states = start(TABLE, 2)
    states["position"][:] = 3, 7
    new = np.arange(20, dtype=np.float32).reshape(2, 1, 2, 5)
    after = advance(TABLE, states, {"rows": new}, 2)
    np.testing.assert_array_equal(after["position"], [5, 9])
    np.testing.assert_array_equal(after["cache"][0, 0, 3:5], new[0, 0])
    np.testing.assert_array_equal(after["cache"][1, 0, 7:9], new[1, 0])
    assert np.count_nonzero(after["cache"]) == np.count_nonzero(new)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State("hidden", "logits"), "its output 'logits' is"),
        (State("nothing", "next_hidden"), "names no input and output"),
        (State("hidden", "next_hidden", "tokens"), "its output 'next_hidden' is"),
    ],
)
def test_a_state_that_cannot_be_carried_is_refused(state: State, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Signature(HIDDEN.inputs, HIDDEN.outputs, Recurrence("length", (state,)))
