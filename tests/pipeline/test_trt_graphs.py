"""CUDA graphs of calls, on doubles: used where they pay, bounded, and off when a capture fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ServingFailed
from pipeline.backends import trt_graphs
from pipeline.backends.trt_run import PlanSession
from tests.pipeline.device_double import HostDevice
from tests.pipeline.engine_double import Log, make_library, make_plan
from tests.pipeline.test_trt_run import GRAPH, LONG, WIDE, check, opened


def test_graphs_are_used_where_they_pay() -> None:
    with opened(cuda_graphs=True, contexts=1, device=HostDevice(graph_cost=2)) as (session, device):
        # A call puts two copies, the engine and two copies on its stream: five launches. To capture
        # one takes such a call, two copies over its answers, and the graph: nine, saved by three.
        facts = {"used": [0], "times_as_fast": {"0": 2.5}, "after": {"0": 3}, "why_not": None}
        assert session.facts["graphs"] == facts
        before = device.made["launches"]
        # A graph is launched once before it is used, to see whether it answers as launches do.
        for calls, launched in ((2, 0), (1, 2), (3, 3)):
            for _ in range(calls):
                check(session, 7)
            assert device.made["launches"] - before == launched
            before = device.made["launches"]


@settings(max_examples=30)
@given(rows=st.lists(st.integers(1, 12), max_size=120), quarters=st.integers(1, 16))
def test_capturing_never_takes_longer_than_the_launches_that_were_waited_through(
    rows: list[int], quarters: int
) -> None:
    """Whatever comes, with fewer graphs kept than there are shapes."""
    cost = quarters / 4  # whose sums are exact
    device = HostDevice(graph_cost=cost)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt_graphs, "KEPT", 3)
        with opened(cuda_graphs=True, contexts=1, device=device) as (session, _):
            made, start = device.made["graphs"], device.clock
            for count in rows:
                check(session, count)
            captured = device.made["graphs"] - made
            assert len(device.graphs) <= 3
            calls, capture, saved = 5 * len(rows), 7 + cost, 5 - cost
            assert device.clock - start <= calls + captured * capture
            # Each was waited for by so many launches of its shape that a graph would have saved it.
            assert captured * capture <= saved * len(rows)


def test_graphs_that_do_not_pay_are_not_used() -> None:
    with opened(cuda_graphs=True, contexts=1, device=HostDevice(graph_cost=5)) as (session, device):
        before = device.made["launches"]
        for _ in range(4):
            check(session, 4)
        assert device.made["launches"] == before
        assert session.facts["graphs"]["used"] == []
    with opened(contexts=1) as (session, device):
        check(session, 4)
        assert device.made["graphs"] == 0
        assert session.facts["graphs"]["why_not"] == "not asked for"


def test_graphs_are_bounded_and_the_least_recently_used_goes() -> None:
    device = HostDevice(graph_cost=1)  # so that the second call of a shape captures it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt_graphs, "KEPT", 3)
        patch.setattr(trt_graphs, "COUNTED", 5)
        with opened(cuda_graphs=True, contexts=1, device=device) as (session, _):
            assert session.facts["graphs"]["after"] == {"0": 2}

            def captured(*rows: int) -> int:
                before = device.made["graphs"]
                for count in rows:
                    check(session, count)
                return device.made["graphs"] - before

            assert captured(1, 2, 3, 1, 2, 3) == 3
            assert captured(1, 2, 3) == 0
            assert captured(4, 4) == 1  # which puts out the one of one row
            assert len(device.graphs) == 3
            assert captured(2, 3, 4) == 0
            assert captured(1) == 0  # it begins anew
            assert captured(1) == 1
            assert captured(5, 6, 7, 8, 9, 10, 5) == 0  # five shapes ago is forgotten
            assert captured(10) == 1


def test_a_capture_that_fails_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = HostDevice(graph_cost=1)

    def refuse(work: Callable[[], object], stream: int) -> int:
        raise ServingFailed("a legacy stream depends on a capturing one")

    monkeypatch.setattr(device, "capture", refuse)
    with opened(device=device, cuda_graphs=True) as (session, _):
        for _ in range(3):
            check(session, 4)
        assert session.facts["graphs"]["used"] == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "capture failed: a legacy stream" in record.getMessage()


def test_a_graph_that_answers_otherwise_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = HostDevice(graph_cost=1)
    with opened(device=device, cuda_graphs=True, contexts=1) as (session, _):
        capture = device.capture

        def without_the_engine(work: Callable[[], object], stream: int) -> int:
            """The third step of a call, after its two copies."""
            graph = capture(work, stream)
            del device.graphs[graph][2]
            return graph

        monkeypatch.setattr(device, "capture", without_the_engine)
        for _ in range(4):
            check(session, 7)
        assert device.graphs == {}
    (record,) = caplog.records
    assert record.getMessage() == "no CUDA graphs: a graph answers otherwise than launches: y, b"


def test_a_graph_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = HostDevice(graph_cost=1)

    def refuse(graph: int, stream: int) -> None:
        raise ServingFailed("cudaErrorIllegalState")

    with opened(device=device, cuda_graphs=True, contexts=1) as (session, _):
        monkeypatch.setattr(device, "launch", refuse)
        for _ in range(4):
            check(session, 7)
        assert device.graphs == {}
    (record,) = caplog.records
    assert record.getMessage() == "no CUDA graphs: a graph failed: cudaErrorIllegalState"


def test_a_capture_that_fails_later_turns_graphs_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(device=HostDevice(graph_cost=1), cuda_graphs=True) as (session, device):
        check(session, 3)
        device.capacity -= device.free_bytes()
        monkeypatch.setattr(session._lanes[1], "_new_context", lambda profile: device.allocate(1))
        monkeypatch.setattr(session._lanes[0], "_new_context", lambda profile: device.allocate(1))
        for _ in range(3):
            check(session, 3)
        monkeypatch.undo()
    assert "out of memory" in caplog.text
    assert len(caplog.records) == 1


def test_contexts_of_graphs_too_have_the_kernels_that_were_certified() -> None:
    """TensorRT for RTX would go over to others while it serves; all contexts share what it has."""
    device = HostDevice(graph_cost=1)
    trt = make_library(device, [], rtx=True)
    plan = make_plan(GRAPH, [WIDE, LONG])
    with closing(PlanSession(plan, trt, Log(), device, {"cuda_graphs": True})) as session:
        for rows in (3, 3, 20, 20):
            check(session, rows)
        used = session._lanes[0]._engine.settings
        assert len(used) > 4  # of two lanes and two profiles, and a graph
        (settings,) = {id(one): one for one in used}.values()
        kernels = settings.dynamic_shapes_kernel_specialization_strategy
        assert kernels is trt.DynamicShapesKernelSpecializationStrategy.NONE
        assert settings.cache is not None
    assert device.held == 0
