"""The doubles are as strict as what they stand for is documented to be, and have its interface."""

from __future__ import annotations

import ast
import inspect
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ServingFailed
from pipeline.backends import device_memory
from pipeline.backends.trt_lane import growing_output
from tests.pipeline import engine_double
from tests.pipeline.device_double import HostDevice
from tests.pipeline.engine_double import ExecutionContextAllocationStrategy, Log, make_library
from tests.pipeline.test_trt_names import PUBLISHED, published
from tests.pipeline.test_trt_run import DEPENDENT, GRAPH, NARROW, WIDE, make_plan

CLASSES = (
    "Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "IOutputAllocator",
    "TensorIOMode", "LayerInformationFormat", "ExecutionContextAllocationStrategy", "DataType",
)  # fmt: skip
# Of the double itself.
OWN = {
    "_fail", "answered", "device", "freed", "given", "head", "infer", "inferred", "log", "made",
    "nodes", "session", "settings",
}  # fmt: skip
# Of TensorRT for RTX alone.
RTX = ("DynamicShapesKernelSpecializationStrategy", "IRuntimeCache", "IRuntimeConfig")


class Bench:
    """A context of the double with what a call needs, each piece of which can be left out."""

    def __init__(self, graph: bytes = GRAPH, dependent: tuple[str, ...] = ()) -> None:
        self.device, self.log = HostDevice(), Log()
        trt = make_library(self.device, [])
        plan = make_plan(graph, [WIDE, NARROW], dependent)
        self.engine = trt.Runtime(self.log).deserialize_cuda_engine(plan)
        self.context = self.new_context()
        self.stream = self.device.stream()

    def new_context(self) -> Any:
        return self.engine.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)

    def ready(self, without: str = "") -> Any:
        context = self.context
        if without != "memory":
            context.set_device_memory(self.device.allocate(1000), 1000)
        for name, shape in (("x", (2, 3)), ("k", (2,))):
            if without != f"shape of {name}":
                assert context.set_input_shape(name, shape)
        for name in ("x", "k", "y", "b"):
            if without != f"address of {name}":
                address = 0 if without == f"null {name}" else self.device.allocate(256)
                assert context.set_tensor_address(name, address)
        return context


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("memory", "between layers"), ("shape of k", "no shape of"), ("address of b", "for b"),
        ("null x", "Address is not set for x"),
    ],
)  # fmt: skip
def test_a_call_that_lacks_something_is_refused(without: str, said: str) -> None:
    bench = Bench()
    context = bench.ready(without)
    assert context.infer_shapes() == (["k"] if without == "shape of k" else [])
    assert not context.execute_async_v3(bench.stream)
    assert said in bench.log.said[-1]
    assert bench.device.streams[bench.stream] == []


def test_a_whole_call_is_taken() -> None:
    bench = Bench()
    context = bench.ready()
    assert context.execute_async_v3(bench.stream)
    assert bench.log.said == []
    assert len(bench.device.streams[bench.stream]) == 1  # not yet done


def test_what_is_out_of_the_interface_is_refused() -> None:
    bench = Bench()
    context, device = bench.ready(), bench.device
    for done in (
        context.set_input_shape("x", (13, 3)), context.set_input_shape("x", (2, 2, 3)),
        context.set_input_shape("y", (2, 2)), context.set_tensor_address("z", 256),
        context.set_tensor_address("x", device.allocate(300) + 4),
        context.set_output_allocator("x", None),
        context.set_optimization_profile_async(2, bench.stream),
    ):  # fmt: skip
        assert not done
    assert len(bench.log.said) == 7
    assert context.set_optimization_profile_async(1, bench.stream)
    assert context.infer_shapes() == ["x", "k"]  # another profile forgets the shapes
    assert not context.set_input_shape("x", (5, 3))


def test_what_is_undefined_is_an_error_of_the_test() -> None:
    bench = Bench()
    context, device = bench.ready(), bench.device
    for stream in (0, 99):
        with pytest.raises(AssertionError, match="stream"):
            context.execute_async_v3(stream)
    device.claims.clear()
    assert context.execute_async_v3(bench.stream)
    with pytest.raises(AssertionError, match="two streams in one memory"):
        context.execute_async_v3(device.stream())
    context.set_input_shape("x", (1, 3))
    with pytest.raises(AssertionError, match="changed before it ran"):
        device.wait(bench.stream)
    with context._lock, pytest.raises(AssertionError, match="two threads"):
        context.set_input_shape("x", (2, 3))
    with pytest.raises(AssertionError, match="base class was not instantiated"):
        context.set_output_allocator("y", object())


def test_a_capture_needs_a_normal_call_and_a_context_that_stays() -> None:
    bench = Bench()
    context, device = bench.ready(), bench.device
    side = device.stream()

    def run() -> None:
        if not context.execute_async_v3(side):
            raise ServingFailed(bench.log.said[-1])

    with pytest.raises(ServingFailed, match="before a normal call"):
        device.capture(run, side)
    context.execute_async_v3(bench.stream)
    device.wait(bench.stream)
    graph = device.capture(run, side)
    device.launch(graph, bench.stream)
    device.wait(bench.stream)
    context.set_input_shape("x", (1, 3))
    device.launch(graph, bench.stream)
    with pytest.raises(AssertionError, match="changed before it ran"):
        device.wait(bench.stream)
    with pytest.raises(ServingFailed, match="when a stream is capturing"):
        device.capture(lambda: device.allocate(1), side)
    with pytest.raises(ServingFailed, match="when a stream is capturing"):
        device.capture(lambda: device.wait(side), side)


def test_data_dependent_outputs_are_never_captured() -> None:
    bench = Bench(DEPENDENT, ("places",))
    trt = make_library(bench.device, [])
    bench.context.set_device_memory(bench.device.allocate(1000), 1000)
    for name, shape in (("x", (2, 3)), ("k", (2,))):
        bench.context.set_input_shape(name, shape)
        address = bench.device.allocate(256)
        bench.device.memory(address, 256)[:] = 0
        bench.context.set_tensor_address(name, address)
    bench.context.set_tensor_address("y", bench.device.allocate(256))
    growing = growing_output(trt, bench.device)
    bench.context.set_output_allocator("places", growing)
    assert bench.context.get_tensor_shape("places") == (1, -1)
    assert bench.context.execute_async_v3(bench.stream)
    assert growing.shape == (1, 0)
    assert growing.address  # there is one even for no bytes
    bench.device.capturing[bench.stream] = []
    assert not bench.context.execute_async_v3(bench.stream)


def test_device_memory_is_reached_by_what_is_allocated_and_pinned_alone() -> None:
    device = HostDevice()
    stream, address, array = device.stream(), device.allocate(8), device.pin(16)
    device.upload(address, array, stream)
    with pytest.raises(AssertionError, match="illegal address"):
        device.wait(stream)
    with pytest.raises(AssertionError, match="not pinned"):
        device.upload(address, np.zeros(8, np.uint8), stream)
    device.upload(address, array[:8], stream)
    device.free(address)
    with pytest.raises(AssertionError, match="illegal address"):
        device.wait(stream)
    device.upload(address, array[:8], stream)
    with pytest.raises(AssertionError, match="with work on it"):
        device.end_stream(stream)
    failed: list[str] = []

    def elsewhere() -> None:
        try:
            device.allocate(1)
        except AssertionError as error:
            failed.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed == ["cudaMalloc in a thread without a device"]


def members(name: str) -> set[str]:
    kind = getattr(engine_double, name)
    return {member for member in vars(kind) if member[0] != "_" or member == "_fail"} - OWN


@pytest.mark.parametrize("version", sorted(PUBLISHED.glob("*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CLASSES)
def test_the_published_bindings_have_what_the_double_has(name: str, version: Path) -> None:
    assert members(name) - published(version)[name] == set()


@pytest.mark.parametrize("name", [*CLASSES, *RTX])
def test_methods_take_what_the_real_ones_take(name: str) -> None:
    """Names of parameters, in their order, as the installed binding's docstrings give them."""
    real = getattr(pytest.importorskip("tensorrt_rtx"), name)
    compared = 0
    for member in members(name):
        ours = getattr(getattr(engine_double, name), member)
        theirs = inspect.getdoc(getattr(real, member)) or ""
        if inspect.isfunction(ours):
            taken = list(inspect.signature(ours).parameters)[1:]
            overloads = re.findall(rf"(?m)^(?:\d\. )?{member}\((self: .*)\) -> ", theirs)
            assert taken in [re.findall(r"(?:^|, )(\w+): ", text)[1:] for text in overloads], member
            compared += 1
    assert compared or not [m for m in members(name) if inspect.isfunction(getattr(real, m))]


@pytest.mark.parametrize("name", RTX)
def test_the_installed_binding_has_what_the_double_has(name: str) -> None:
    real = dir(getattr(pytest.importorskip("tensorrt_rtx"), name))
    attributes = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(getattr(engine_double, name))))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "self"
        and node.attr not in ("cache", "strategy")  # where the double keeps what it is given
    }
    assert (members(name) | attributes) - set(real) == set()


def test_the_allocator_implements_the_documented_methods() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    documented = re.findall(r"def (\w+)\(self, ?([^)]*)\)", real.IOutputAllocator.__doc__)
    ours = growing_output(make_library(HostDevice(), []), HostDevice())
    assert len(documented) == 3
    for name, parameters in documented:
        assert ", ".join(inspect.signature(getattr(ours, name)).parameters) == parameters
    assert growing_output(real, HostDevice()).reallocate_output("y", 0, 1, 256)


def test_every_function_of_cuda_is_given_what_it_takes() -> None:
    """By the first line of the bindings' docstrings, which is the function's signature."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    asked: dict[str, int] = {}
    for node in ast.walk(ast.parse(inspect.getsource(device_memory))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            name, *arguments = node.args
            asked[ast.literal_eval(name)] = len(arguments)
    assert len(asked) >= 15
    for name, count in asked.items():
        said = getattr(runtime, name).__doc__.splitlines()[0]
        parameters = said.partition("(")[2].rstrip(")")
        assert len(parameters.split(",") if parameters else ()) == count, said
    for text in re.findall(r"self\._cuda\.([\w.]+)", inspect.getsource(device_memory)):
        found: Any = runtime
        for part in text.split("."):
            found = getattr(found, part)
