"""The error budget: each step's error, the total, and who spends it when something is broken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.signature import Arrays
from pipeline.budget import spend
from pipeline.cases import Case
from pipeline.compare import derive_limits
from pipeline.values import MODEL, Edge, OnnxModel
from tests.pipeline.diverging import Tagger, exported


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, list[Case]]:
    model, cases, _ = exported(Tagger, tmp_path_factory.mktemp("tagger"))
    return model, cases


def spent(model: OnnxModel, cases: list[Case], added: float = 0.0) -> list[Edge]:
    """The budget of an engine that answers as the fp64 module does, and adds this much."""
    answers = {c.inputs["x"].tobytes(): c.reference["y"] for c in cases if c.reference}

    def run(inputs: Mapping[str, Any]) -> Arrays:
        return {"y": answers[inputs["x"].tobytes()] + added}

    return spend(run, model, cases, derive_limits(cases))


def test_every_edge_is_there_and_small(tagger: tuple[OnnxModel, list[Case]]) -> None:
    edges = spent(*tagger)
    steps = [(edge.start, edge.end) for edge in edges]
    assert steps == [
        ("fp64 module", "fp32 module"), ("fp32 module", "graph"), ("graph", "engine"),
    ]  # fmt: skip
    errors = [edge.error for edge in edges]
    assert all(error is not None and 0 < error < edges[0].limit for error in errors)
    assert edges[-1].total == 0  # the engine is the module itself


def test_the_step_that_adds_the_error_is_the_one_that_spends_it(
    tagger: tuple[OnnxModel, list[Case]],
) -> None:
    model, cases = tagger
    added = 0.01
    before, after = spent(model, cases), spent(model, cases, added)
    assert before[:2] == after[:2]
    scale = derive_limits(cases)["y"].scale
    assert after[2].total == pytest.approx(added / scale, rel=1e-6)
    assert after[2].error == pytest.approx(added / scale, rel=1e-3)


def test_a_total_is_no_more_than_its_steps(tagger: tuple[OnnxModel, list[Case]]) -> None:
    most = 0.0
    for edge in spent(*tagger, 1e-6):
        assert edge.error is not None
        assert edge.total is not None
        most += edge.error
        assert edge.total <= most * (1 + 1e-9)


def test_a_damaged_graph_is_told_from_its_engine(
    tagger: tuple[OnnxModel, list[Case]], tmp_path: Path
) -> None:
    model, cases = tagger
    graph = onnx.load_model(model.folder / MODEL)
    bias = next(t for t in graph.graph.initializer if t.name == "last.bias")
    zeros = np.zeros_like(numpy_helper.to_array(bias))
    bias.CopyFrom(numpy_helper.from_array(zeros, bias.name))
    onnx.save_model(graph, tmp_path / MODEL)
    damaged = model.model_copy(update={"folder": tmp_path})
    edge = spent(damaged, cases)[1]
    assert edge.error is not None
    assert edge.error > 100 * edge.limit


def test_a_graph_that_does_not_run_has_no_error(
    tagger: tuple[OnnxModel, list[Case]], tmp_path: Path
) -> None:
    model, cases = tagger
    (tmp_path / MODEL).write_bytes(b"no graph")
    edges = spent(model.model_copy(update={"folder": tmp_path}), cases)
    assert [edge.error is None for edge in edges] == [False, True, True]
    assert [edge.total is None for edge in edges] == [False, True, False]


def test_without_a_graph_the_module_leads_to_the_engine(
    tagger: tuple[OnnxModel, list[Case]],
) -> None:
    model, cases = tagger
    foreign = model.model_copy(update={"files": {}})
    assert [(e.start, e.end) for e in spent(foreign, cases)] == [
        ("fp64 module", "fp32 module"), ("fp32 module", "engine"),
    ]  # fmt: skip


def test_integers_are_right_or_wrong(tagger: tuple[OnnxModel, list[Case]]) -> None:
    model, cases = tagger
    limits = derive_limits(cases)
    whole = [
        Case(
            c.name, c.origin, c.sizes, c.inputs,
            {"y": c.eager["y"].argmax(-1)}, {"y": c.reference["y"].argmax(-1)},
        )
        for c in cases
    ]  # fmt: skip
    foreign = model.model_copy(update={"files": {}})
    right = {c.inputs["x"].tobytes(): c.reference for c in whole}
    same = spend(lambda inputs: right[inputs["x"].tobytes()], foreign, whole, limits)
    other = spend(
        lambda inputs: {"y": right[inputs["x"].tobytes()]["y"] + 1}, foreign, whole, limits
    )
    assert [edge.error for edge in same] == [0, 0]
    assert [edge.error for edge in other] == [0, 1]
