"""Long sequences in several calls: the state carried between them, tokens chosen one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from models.recurrence import advance, capacity, start, state_names, step_names
from models.signature import BATCH, Arrays, Signature
from pipeline.cases import CARRIED, GREEDY, Case
from pipeline.compare import Run, crashed, limit_of, relative_error
from pipeline.values import Finding, Limit

STEPS = 256  # of a carried case, where no table ends it before
CHOSEN = 128  # tokens of a greedy case, likewise
PROMPT = 16
ROWS = 2


def carried_inputs(signature: Signature, samples: Mapping[str, np.ndarray]) -> Arrays:
    """Real steps in the order of the rows, as many as a table takes, without state inputs.

    Sequences that are longer than a row go on in the rows after it.
    """
    steps = capacity(signature) or STEPS
    count = min(ROWS, signature.batch.max if signature.batch else 1)
    inputs: Arrays = {}
    for spec in signature.inputs:
        if spec.name in state_names(signature):
            continue
        rows = samples[spec.name]
        first = [row * len(rows) // count for row in range(count)]
        if spec.name in step_names(signature):
            inputs[spec.name] = np.stack([_joined(rows, row, steps) for row in first])
        else:
            inputs[spec.name] = rows[first]
    shortest = min(inputs[name].shape[1] for name in step_names(signature))
    return inputs | {name: inputs[name][:, :shortest] for name in step_names(signature)}


def _joined(rows: np.ndarray, first: int, steps: int) -> np.ndarray:
    """One sequence of at most `steps`, from row `first` on; it wraps around at the last row."""
    some = -(-steps // rows.shape[1])
    return rows.take(range(first, first + some), axis=0, mode="wrap").reshape(-1)[:steps]


def run_carried(
    run: Run, signature: Signature, inputs: Arrays, cuts: Iterable[int], *, wide: bool = False
) -> Arrays:
    """What `run` answers to a sequence that is cut at `cuts`: steps joined, states as at the end.

    `inputs` may hold the state to begin with. `wide` keeps states in float64.
    """
    timed = step_names(signature)
    length = inputs[timed[0]].shape[1]
    rows = len(inputs[timed[0]])
    begun = {name: inputs[name].copy() for name in state_names(signature) if name in inputs}
    states = _widened(start(signature, rows) | begun, wide)
    constant = {n: a for n, a in inputs.items() if n not in timed and n not in states}
    ends = [*sorted({cut for cut in cuts if 0 < cut < length}), length]
    parts: list[Arrays] = []
    begin = 0
    for end in ends:
        piece = {name: np.ascontiguousarray(inputs[name][:, begin:end]) for name in timed}
        parts.append(run({**constant, **piece, **states}))
        states = advance(signature, states, parts[-1], end - begin)
        begin = end
    axis = signature.recurrence.axis if signature.recurrence else ""
    joined = {}
    for spec in signature.outputs:
        place = next((i for i, a in enumerate(spec.shape) if getattr(a, "name", "") == axis), None)
        if spec.name not in parts[-1]:
            continue
        values = [part[spec.name] for part in parts]
        joined[spec.name] = values[-1] if place is None else np.concatenate(values, axis=place)
    return joined


def _widened(states: Arrays, wide: bool) -> Arrays:
    """Floats in float64 where `wide`."""
    if not wide:
        return states
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in states.items()}


def decode_greedily(
    run: Run, signature: Signature, inputs: Arrays, tokens: str, logits: str, count: int,
    *, wide: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The likeliest token `count` times over, and by how much its logit leads, [rows, count] each.

    Begins with what `inputs` holds, of which `tokens` is continued.
    """
    timed = inputs[tokens]
    states = _widened(start(signature, len(timed)), wide)
    constant = {name: array for name, array in inputs.items() if name != tokens}
    chosen, margins = [], []
    for _ in range(count):
        answer = run({**constant, tokens: timed, **states})
        states = advance(signature, states, answer, timed.shape[1])
        last = answer[logits][:, -1].astype(np.float64)
        best = np.sort(last, axis=1)[:, -2:]
        chosen.append(last.argmax(1))
        margins.append(best[:, 1] - best[:, 0])
        timed = chosen[-1][:, None]
    return np.stack(chosen, 1), np.stack(margins, 1)


def prompt(
    signature: Signature, inputs: Arrays, tokens: str, longest: int = PROMPT
) -> tuple[Arrays, int]:
    """The beginning of carried inputs, to be continued, and how many tokens then fit."""
    axis = signature.axes[signature.recurrence.axis] if signature.recurrence else None
    most = axis.max if axis else longest
    length = min(longest, most, max(1, inputs[tokens].shape[1] // 4))
    room = capacity(signature)
    count = CHOSEN if room is None else min(CHOSEN, room - length + 1)
    return inputs | {tokens: inputs[tokens][:, :length]}, count


def step_by_step(run: Run, case: Case, signature: Signature) -> Arrays:
    """What `run` answers to a recorded sequence one step at a time, its own state carried."""
    length = case.inputs[step_names(signature)[0]].shape[1]
    return run_carried(run, signature, case.inputs, range(1, length))


def errors_by_steps(
    actual: np.ndarray, expected: np.ndarray, scale: float, rows: int | None = None
) -> Iterator[tuple[int, float | None]]:
    """Each doubling of the number of steps, with the worst error since the one before.

    An error is that of `relative_error`.
    """
    length = expected.shape[1]
    marks = [*(1 << n for n in range(length.bit_length()) if 1 << n < length), length]
    for before, mark in zip([0, *marks], marks, strict=False):
        steps = slice(before, mark)
        yield mark, relative_error(actual[:, steps], expected[:, steps], scale, rows)


def check_carried(
    run: Run, case: Case, signature: Signature, limits: Mapping[str, Limit]
) -> list[Finding]:
    """A sequence one step at a time: how the error grows, a finding for each of its marks."""
    actual = step_by_step(run, case, signature)
    findings = []
    for name, expected in case.reference.items():
        own, lower = limit_of(case.eager[name], expected), limits[name].carried
        rows = len(expected) if lower is not None and limits[name].by_row else None
        allowed = own.limit if lower is None else max(own.limit, lower)
        for mark, error in errors_by_steps(actual[name], expected, own.scale, rows):
            findings.append(
                Finding(
                    check=CARRIED, case=f"step {mark}", sizes={BATCH: len(expected)}, output=name,
                    error=error, limit=allowed, passed=error is not None and error <= allowed,
                    note="" if error is not None else "not a number",
                )
            )  # fmt: skip
    return findings


def check_greedy(
    run: Run, case: Case, signature: Signature, limits: Mapping[str, Limit]
) -> list[Finding]:
    """Greedy decoding by the engine against the fp64 module's: the same tokens.

    Another token is excused where the two best logits were as good as equal; what follows it is
    then not compared. The error is the lead that a token was given up against, over the scale;
    two logits may each be off by the limit.
    """
    (logits,) = case.reference.keys() - case.inputs.keys()
    (tokens,) = case.reference.keys() & case.inputs.keys()
    expected, margins = case.reference[tokens], case.reference[logits]
    scale = limits[logits].scale
    own = limit_of(case.eager[logits], margins, scale).limit
    limit = 2 * max(own, limits[logits].carried or 0.0)
    chosen, _ = decode_greedily(run, signature, case.inputs, tokens, logits, expected.shape[1])
    error, same = 0.0, 0
    for row, wanted, lead in zip(chosen, expected, margins, strict=True):
        other = np.flatnonzero(row != wanted)
        same += int(other[0]) if len(other) else len(wanted)
        if len(other):
            error = max(error, float(lead[other[0]]) / scale)
    return [
        Finding(
            check=GREEDY, case=f"{expected.shape[1]} tokens", sizes={BATCH: len(expected)},
            output=logits, error=error, limit=limit, passed=error <= limit,
            note=f"{same} of {expected.size} tokens are those of the fp64 module",
        )
    ]  # fmt: skip


def uneven_cuts(length: int) -> Sequence[int]:
    """Uneven places to cut a sequence: 1, 3, 7, 15 and so on."""
    return [(1 << n) - 1 for n in range(1, length.bit_length() + 1)]


def replay_sequences(
    run: Run, signature: Signature, cases: Iterable[Case], limits: Mapping[str, Limit]
) -> list[Finding]:
    """Ask every recorded sequence again: step by step, and decoded greedily."""
    findings: list[Finding] = []
    for case in cases:
        if case.origin not in (CARRIED, GREEDY):
            continue
        try:
            if case.origin == CARRIED:
                findings += check_carried(run, case, signature, limits)
            else:
                findings += check_greedy(run, case, signature, limits)
        except Exception as error:  # whatever a backend raises is a failed comparison
            findings += crashed(case.origin, case, limits, error)
    return findings
