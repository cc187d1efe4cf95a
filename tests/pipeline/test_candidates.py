"""Candidates: the usual way stays unless another is much faster everywhere and certified."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import stages
from flows.stages import Job
from models.signature import Arrays
from pipeline.artifacts import digest_file
from pipeline.backends import ort
from pipeline.candidates import Way, calls, mean, measure, settle
from pipeline.cases import read_cases
from pipeline.optimize import optimize
from pipeline.values import CANDIDATES, Candidate, Engine, OnnxModel
from tests.conftest import TINY

ROWS = (1, 8, 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    job = Job("mlp", changes=TINY, out=tmp_path_factory.mktemp("candidates"))
    return stages.export(job, stages.train(job))


def way(name: str, seconds: float = 0.0) -> Way:
    def run(inputs: Mapping[str, Any]) -> Arrays:
        time.sleep(seconds)
        return {}

    return Way(name, "fp32", {}, run)


def test_a_slower_way_takes_longer_at_every_number_of_rows() -> None:
    quick, slow = measure([way("quick", 1e-3), way("slow", 5e-3)], {1: {}, 8: {}})
    assert quick.keys() == slow.keys() == {1, 8}
    assert all(1 <= quick[rows] < slow[rows] for rows in quick)
    assert all(slow[rows] >= 5 for rows in slow)


times = st.tuples(*[st.floats(0.01, 100) for _ in ROWS]).map(
    lambda some: dict(zip(ROWS, some, strict=True))
)


@given(st.lists(st.tuples(times, st.booleans()), min_size=1, max_size=6))
def test_what_is_kept_is_certified_and_much_faster_or_it_is_the_usual_way(
    measured: list[tuple[dict[int, float], bool]],
) -> None:
    ways = [way(str(place)) for place in range(len(measured))]
    milliseconds = [one for one, _ in measured]
    sound = {str(place): certified for place, (_, certified) in enumerate(measured)}
    found = settle(ways, milliseconds, lambda way: "" if sound[way.name] else "it is wrong")
    assert [candidate.name for candidate in found] == [way.name for way in ways]
    (kept,) = [candidate for candidate in found if candidate.kept]
    usual = milliseconds[0]
    may_be_kept = [
        candidate
        for candidate in found[1:]
        if sound[candidate.name]
        and all(usual[n] >= 1.25 * candidate.milliseconds[n] for n in ROWS)
        and usual[max(ROWS)] - candidate.milliseconds[max(ROWS)] >= 5
    ]
    fastest = min(may_be_kept, key=lambda c: mean(c.milliseconds), default=found[0])
    assert mean(kept.milliseconds) == mean(fastest.milliseconds)
    assert (kept is found[0]) == (not may_be_kept)


def test_one_row_that_gains_nothing_keeps_the_usual_way() -> None:
    """More threads help large batches of a small net, in some runs more than in others."""
    found = settle(
        [way("one thread"), way("two threads")],
        [{1: 1.0, 64: 10.0}, {1: 1.0, 64: 5.0}],
        lambda way: "",
    )
    assert found[0].kept
    assert "not enough" in found[1].outcome


def test_what_spares_no_time_to_speak_of_keeps_the_usual_way() -> None:
    """Beside other work a call of a fraction of a millisecond measures as anything."""
    found = settle(
        [way("one thread"), way("two threads")], [{1: 0.4, 64: 4.0}, {1: 0.1, 64: 1.0}],
        lambda way: "",
    )  # fmt: skip
    assert found[0].kept
    many = settle(
        [way("one thread"), way("two threads")], [{1: 0.4, 64: 9.0}, {1: 0.1, 64: 1.0}],
        lambda way: "",
    )  # fmt: skip
    assert many[1].kept


def test_the_calls_are_recorded_ones_of_one_row_the_usual_and_the_most(exported: OnnxModel) -> None:
    batch = exported.signature.batch
    assert batch
    found = calls(exported.signature, read_cases(exported.folder))
    assert list(found) == [1, batch.opt, batch.max]
    for rows, inputs in found.items():
        assert {len(array) for array in inputs.values()} == {rows}


def test_the_ways_of_a_backend_begin_with_the_usual_and_differ() -> None:
    providers = ["CPUExecutionProvider"]
    usual = {"providers": providers, "intra_op_threads": 1, "optimization_level": "ALL", "other": 5}
    ways = list(ort.ways(usual).values())
    assert ways[0] == usual
    assert len({json.dumps(one, sort_keys=True) for one in ways}) == len(ways) >= 2
    assert {one["other"] for one in ways} == {5}


def test_two_runs_give_the_same_engine_and_the_times_lie_beside_it(
    exported: OnnxModel, tmp_path: Path
) -> None:
    engines = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        engine = optimize(exported, "ort-cpu-fp32", tmp_path / name)
        assert isinstance(engine, Engine)
        engines.append(engine)
    one, two = engines
    assert one.digest == two.digest
    assert one.files == two.files
    for name in ("engine.json", "engine.onnx"):
        assert digest_file(one.folder / name) == digest_file(two.folder / name)
    assert CANDIDATES not in one.files
    measured = [
        Candidate.model_validate(entry)
        for entry in json.loads((one.folder / CANDIDATES).read_bytes())
    ]
    (kept,) = [candidate for candidate in measured if candidate.kept]
    assert kept.options == one.options
    assert all(np.isfinite(list(c.milliseconds.values())).all() for c in measured)
