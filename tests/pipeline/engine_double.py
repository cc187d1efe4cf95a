"""A double of TensorRT's runtime: the documented interface, strictly, over ONNX Runtime.

Where the documentation says so it returns False or None and complains to the logger; what it
leaves undefined is an AssertionError.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from pipeline.backends.trt_tensors import Shapes
from tests.pipeline.device_double import HostDevice

Bounds = Mapping[str, Sequence[Sequence[int]]]  # by input: min, opt, max
# Name, operator, and what inputs and outputs are in, in the inspector's words.
Layer = tuple[str, str, Sequence[str], Sequence[str]]

FP32 = "Row major linear FP32"


def make_plan(
    graph: bytes,
    profiles: Sequence[Bounds],
    dependent: Sequence[str] = (),
    layers: Sequence[Layer] | None = None,
) -> bytes:
    """A plan of the double: the data decide the shapes of `dependent` outputs.

    `layers` are what it tells of its layers; the nodes of the graph, in fp32, unless they are said.
    """
    head = {"profiles": profiles, "dependent": list(dependent), "layers": layers}
    return json.dumps(head).encode() + b"\n" + graph


@cache
def open_graph(graph: bytes) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    # As it is written: what rounds is not optimised away.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class LayerInformationFormat(Enum):
    ONELINE, JSON = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class IRuntimeCache: ...


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class DataType(Enum):
    FLOAT, HALF, BF16, INT32, INT64, BOOL = (auto() for _ in range(6))


_TYPES = {
    "tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF,
    "tensor(bfloat16)": DataType.BF16, "tensor(bool)": DataType.BOOL,
    "tensor(int32)": DataType.INT32, "tensor(int64)": DataType.INT64,
}  # fmt: skip
_NUMPY = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32,
    DataType.INT64: np.int64, DataType.BOOL: np.bool_,
}  # fmt: skip


def nptype(trt_type: DataType) -> type:
    if trt_type not in _NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return _NUMPY[trt_type]


class IOutputAllocator:
    def __init__(self) -> None:
        self.made = True


class Log:
    """Keeps what is complained of, as the runner's own logger does."""

    def __init__(self) -> None:
        self.said: list[str] = []


class Runtime:
    def __init__(self, logger: Log, device: HostDevice, freed: list[str]) -> None:
        self._log, self._device, self._freed = logger, device, freed
        weakref.finalize(self, freed.append, "runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            head, _, graph = serialized_engine.partition(b"\n")
            return ICudaEngine(json.loads(head), graph, self, self._log, self._device, self._freed)
        except ValueError:
            self._log.said.append("Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None


class ICudaEngine:
    device_memory_size_v2 = 1000

    def __init__(
        self,
        head: dict[str, Any],
        graph: bytes,
        runtime: Runtime,
        log: Log,
        device: HostDevice,
        freed: list[str],
    ) -> None:
        self.head, self.log, self.device, self.freed = head, log, device, freed
        self._runtime = runtime  # which it keeps alive, as the binding does
        self.session = open_graph(graph)
        self.settings: list[IRuntimeConfig] = []  # that contexts were created by
        self.inferred: dict[Shapes, dict[str, tuple[int, ...]]] = {}
        self.nodes = onnx.load_from_string(graph).graph.node
        self.given = {value.name: value for value in self.session.get_inputs()}
        self.answered = {value.name: value for value in self.session.get_outputs()}
        weakref.finalize(self, freed.append, "engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self.given | self.answered)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.head["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.given | self.answered)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name in self.given:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if name in self.answered else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[(self.given | self.answered)[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = (self.given | self.answered)[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.head["profiles"][profile_index][name]]

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.head.get("host", ())

    def infer(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs at those of the inputs."""
        if shapes not in self.inferred:
            kinds = {name: nptype(self.get_tensor_dtype(name)) for name, _ in shapes}
            answers = self.session.run(None, {n: np.zeros(s, kinds[n]) for n, s in shapes})
            found = [np.asarray(answer).shape for answer in answers]
            self.inferred[shapes] = dict(zip(self.answered, found, strict=True))
        return self.inferred[shapes]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy
        | IRuntimeConfig = ExecutionContextAllocationStrategy.STATIC,
    ) -> IExecutionContext | None:
        if isinstance(strategy, IRuntimeConfig):
            self.settings.append(strategy)
            strategy = strategy.strategy
        return IExecutionContext(self, strategy)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine, self.active_optimization_profile = engine, 0
        self._between = 0 if strategy is ExecutionContextAllocationStrategy.USER_MANAGED else -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._state, self._ran = 0, -1  # a graph is bound to the state that it was captured in
        self._lock = threading.Lock()
        weakref.finalize(self, engine.freed.append, "context")

    def set_device_memory(self, memory: int, size: int) -> None:
        with self._alone():
            assert size >= self.engine.device_memory_size_v2
            assert memory % 256 == 0
            self.engine.device.memory(memory, size)
            self._between = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        with self._alone():
            self.engine.device.put(stream_handle, lambda: None)
            if not 0 <= profile_index < self.engine.num_optimization_profiles:
                return self._fail(f"profile {profile_index} is out of range")
            self.active_optimization_profile = profile_index
            self._shapes.clear()
            return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        with self._alone():
            if name not in self.engine.given:
                return self._fail(f"{name} is no input")
            profile = self.active_optimization_profile
            least, _, largest = self.engine.get_tensor_profile_shape(name, profile)
            inside = len(shape) == len(least) and all(
                low <= size <= high for low, size, high in zip(least, shape, largest, strict=True)
            )
            if not inside:
                return self._fail(f"Supplied binding dimension {shape} for {name} does not satisfy")
            self._shapes[name] = tuple(shape)
            return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            if name not in self.engine.given | self.engine.answered:
                return self._fail(f"{name} is no tensor")
            if memory % 256:
                return self._fail(f"the address of {name} is misaligned")
            self._addresses[name] = memory
            return True

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator | None) -> bool:
        with self._alone():
            if name not in self.engine.answered:
                return self._fail(f"{name} is no output")
            assert getattr(output_allocator, "made", False), "the base class was not instantiated"
            self._allocators[name] = output_allocator
            return True

    def infer_shapes(self) -> list[str]:
        varying = [n for n in self.engine.given if -1 in self.engine.get_tensor_shape(n)]
        return [name for name in varying if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        declared = self.engine.get_tensor_shape(name)
        if name in self.engine.given:
            return self._shapes.get(name, declared)
        if self.infer_shapes() or name in self.engine.head["dependent"]:
            return declared
        shapes = {
            n: self._shapes.get(n, self.engine.get_tensor_shape(n)) for n in self.engine.given
        }
        return self.engine.infer(tuple(shapes.items()))[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone(changes=False):
            device, dependent = self.engine.device, self.engine.head["dependent"]
            if self.infer_shapes():
                return self._fail(f"no shape of {self.infer_shapes()}")
            for name in self.engine.given | self.engine.answered:
                if not self._addresses.get(name) and name not in self._allocators:
                    return self._fail(f"Address is not set for {name}")
            if not self._between:
                return self._fail("no memory for what is between layers")
            if stream_handle in device.capturing:
                if dependent:
                    return self._fail("operation not permitted when stream is capturing")
                if self._ran != self._state:
                    return self._fail("captured before a normal call at these shapes")
            else:
                device.claim(self._between, stream_handle)
            state, shapes = self._state, dict(self._shapes)

            def work() -> None:
                assert self._state == state, "the context of a call or graph changed before it ran"
                self._compute(shapes, stream_handle)

            device.put(stream_handle, work)
            self._ran = state
            if dependent:  # their shapes have to be known when this returns
                try:
                    device.wait(stream_handle)
                except MemoryError as error:
                    return self._fail(str(error))
            return True

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> None:
        device, engine = self.engine.device, self.engine
        inputs = {}
        for name in engine.given:
            shape = shapes.get(name, engine.get_tensor_shape(name))
            dtype = np.dtype(nptype(engine.get_tensor_dtype(name)))
            nbytes = int(np.prod(shape)) * dtype.itemsize
            inputs[name] = device.memory(self._addresses[name], nbytes).view(dtype).reshape(shape)
        answers = engine.session.run(list(engine.answered), inputs)
        for name, answer in zip(engine.answered, map(np.asarray, answers), strict=True):
            address = self._addresses.get(name, 0)
            if allocator := self._allocators.get(name):
                size = max(answer.nbytes, 1)
                address = allocator.reallocate_output_async(name, address, size, 256, stream)
                if not address:
                    raise MemoryError(f"no memory for {name}")
                allocator.notify_shape(name, answer.shape)
            data = np.frombuffer(answer.tobytes(), np.uint8)
            device.memory(address, answer.nbytes)[:] = data

    def _fail(self, said: str) -> bool:
        self.engine.log.said.append(said)
        return False

    @contextmanager
    def _alone(self, changes: bool = True) -> Iterator[None]:
        assert self._lock.acquire(blocking=False), "two threads in one context"
        try:
            self._state += changes
            yield
        finally:
            self._lock.release()


class EngineInspector:
    """Tells of each node as TensorRT tells of a layer, of formats only at shapes of a context."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        known = self.execution_context is not None
        told: Sequence[Layer] = self._engine.head["layers"] or [
            (node.name, node.op_type, [FP32] * len(node.input), [FP32] * len(node.output))
            for node in self._engine.nodes
        ]

        def tensors(kinds: Sequence[str]) -> list[dict[str, Any]]:
            said = kinds if known else ["N/A due to dynamic shapes"] * len(kinds)
            return [{"Location": "Device", "Format/Datatype": kind} for kind in said]

        layers = [
            {
                "Name": name, "LayerType": operator, "Inputs": tensors(takes),
                "Outputs": tensors(gives), "Metadata": f"[ONNX Layer: {name}]",
            }
            for name, operator, takes, gives in told
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": [*self._engine.given]})


def make_library(device: HostDevice, freed: list[str], rtx: bool = False) -> Any:
    """The double as the module that it stands for; `freed` becomes what went, in order.

    With `rtx` it is TensorRT for RTX, which has more to set when a context is created.
    """
    kernels = DynamicShapesKernelSpecializationStrategy
    more = {"DynamicShapesKernelSpecializationStrategy": kernels} if rtx else {}
    return SimpleNamespace(
        __version__="double", Runtime=lambda logger: Runtime(logger, device, freed),
        TensorIOMode=TensorIOMode, LayerInformationFormat=LayerInformationFormat,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        IOutputAllocator=IOutputAllocator, nptype=nptype, **more,
    )  # fmt: skip
