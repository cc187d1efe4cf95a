"""Plans that run, on the real TensorRT and GPU: the laws that its double is held to elsewhere.

Not run by `make test`: on a GPU machine, `python -m pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from models.errors import BadInput, BuildFailed, TargetUnavailable
from models.signature import Arrays
from pipeline.backends.device_memory import ALIGNMENT, Cuda
from pipeline.backends.trt_build import PLAN
from pipeline.backends.trt_library import flags, library, make_log, missing_to_run
from pipeline.backends.trt_run import PlanSession
from tests.pipeline.test_trt_run import DEPENDENT, GRAPH, LONG, NARROW, WIDE, ask

# What the driver keeps for a process in which an engine was open.
ROOM = 64 << 20


@pytest.fixture(autouse=True)
def _needs() -> None:
    try:
        library()
    except TargetUnavailable as error:
        pytest.skip(str(error))
    if lacks := missing_to_run():
        pytest.skip(lacks[0])


def compile_plan(graph: bytes, profiles: Any) -> bytes:
    trt, log = library(), make_log()
    builder = trt.Builder(log)
    network = builder.create_network(flags(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        pytest.skip(f"this TensorRT refuses the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for bounds in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in bounds.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.said
    return bytes(memoryview(plan))


@contextmanager
def opened(*profiles: Any, graph: bytes = GRAPH, **options: Any) -> Iterator[PlanSession]:
    plan, device = compile_plan(graph, profiles or (WIDE,)), Cuda()
    with closing(PlanSession(plan, library(), make_log(), device, options)) as session:
        yield session


def check(session: PlanSession, rows: int, graph: bytes = GRAPH) -> Arrays:
    inputs, expected = ask(rows, graph)
    answers = session.run(inputs)
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        assert (answer.dtype, answer.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_allclose(answer, expected[name], rtol=1e-5, atol=1e-5)
    return answers


@pytest.mark.parametrize("graphs", [False, True])
def test_every_call_answers_as_the_graph_does(graphs: bool) -> None:
    with opened(WIDE, LONG, NARROW, cuda_graphs=graphs) as session:
        first = check(session, 5)
        copies = {name: answer.copy() for name, answer in first.items()}
        for rows in [0, 1, 4, 5, 12, 13, 20] * 4:
            check(session, rows)
        for name, answer in first.items():
            np.testing.assert_array_equal(answer, copies[name])


def test_graphs_answer_as_launches_do() -> None:
    """Used here whether they pay or not, so that they are compared."""
    with opened(cuda_graphs=True, contexts=1) as session:
        facts = session.facts["graphs"]
        assert facts["why_not"] is None, facts
        (lane,) = session._lanes
        lane._choice.times_as_fast[0], lane._choice.after[0] = 2.0, 2
        for rows in [3, 3, 3, 7, 7, 3, 7] * 3:
            check(session, rows)
        assert lane._graphs._graphs


def test_threads_share_an_engine_through_its_contexts() -> None:
    with opened(cuda_graphs=True) as session, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rows: check(session, rows), [1, 2, 3, 4, 12] * 40))


def test_what_no_profile_admits_is_a_bad_input() -> None:
    with opened(NARROW, LONG) as session:
        with pytest.raises(BadInput, match="out of the engine's range"):
            session.run(ask(5)[0])
        check(session, 4)


def test_outputs_whose_shape_the_data_decide() -> None:
    with opened(graph=DEPENDENT, contexts=1, cuda_graphs=True) as session:
        assert "places" in session.facts["graphs"]["why_not"]
        inputs, _ = ask(12, DEPENDENT)
        for found in (0, 7, 3, 12, 1):
            inputs["k"] = (np.arange(12) < found).astype(np.int64)
            assert session.run(inputs)["places"].tolist() == [list(range(found))]


def test_closing_gives_the_memory_back() -> None:
    device = Cuda()
    with opened():
        pass
    before = device.free_bytes()
    for _ in range(5):
        with opened(cuda_graphs=True) as session:
            check(session, 4)
            assert session.facts["device_bytes"] >= 0
    gc.collect()
    assert before - device.free_bytes() <= ROOM


def test_a_plan_that_is_none_is_refused() -> None:
    with pytest.raises(BuildFailed, match=PLAN):
        PlanSession(b"none" * 100, library(), make_log(), Cuda(), {})


def test_an_open_engine_tells_of_its_layers() -> None:
    with opened() as session:
        layers = session.inspect(ask(4)[0])
    assert layers
    assert any("product" in layer.get("Metadata", "") for layer in layers), layers


def test_memory_streams_copies_and_graphs_of_cuda() -> None:
    device = Cuda()
    stream, side = device.stream(), device.stream()
    address, there, back = device.allocate(5), device.pin(5), device.pin(5)
    assert address % ALIGNMENT == 0
    there[:] = range(5)

    def copy(stream: int) -> Callable[[], None]:
        def work() -> None:
            device.upload(address, there, stream)
            device.download(back, address, stream)

        return work

    copy(stream)()
    device.wait(stream)
    assert back.tolist() == [0, 1, 2, 3, 4]
    graph = device.capture(copy(side), side)
    there[:] = 7
    device.launch(graph, stream)
    device.wait(stream)
    assert back.tolist() == [7] * 5
    device.end_graph(graph)
    device.free(address)
    for array in (there, back):
        device.unpin(array)
    for number in (stream, side):
        device.end_stream(number)
    assert device.free_bytes() > 0
