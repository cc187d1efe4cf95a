"""CUDA without torch: device memory, pinned host memory, streams, copies and graphs."""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from models.errors import ServingFailed, TargetUnavailable

# What a compiled engine asks of addresses, and what allocations of CUDA have.
ALIGNMENT = 256


class Device(Protocol):
    """A device with memory of its own; addresses, streams and graphs are numbers, none of them 0.

    Work on a stream happens in its order and later; `wait` returns when it is done. Every method
    raises `ServingFailed` with what the device says.
    """

    def use(self) -> None:
        """Make this the device of the calling thread."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The address of new device memory, aligned; there is one even for no bytes."""
        ...

    def free(self, address: int) -> None: ...

    def pin(self, nbytes: int) -> np.ndarray:
        """Host memory, uint8 [nbytes], that is copied to and from the device as it is."""
        ...

    def unpin(self, array: np.ndarray) -> None: ...

    def stream(self) -> int:
        """A new stream that never waits for the default one."""
        ...

    def end_stream(self, stream: int) -> None: ...

    def upload(self, address: int, array: np.ndarray, stream: int) -> None: ...

    def download(self, array: np.ndarray, address: int, stream: int) -> None: ...

    def wait(self, stream: int) -> None: ...

    def capture(self, work: Callable[[], object], stream: int) -> int:
        """The graph of what `work` puts on a stream, none of which happens now."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def end_graph(self, graph: int) -> None: ...

    def free_bytes(self) -> int:
        """How much device memory nobody uses."""
        ...

    def seconds(self) -> float:
        """A clock to time calls by."""
        ...


class Cuda:
    """A CUDA device by NVIDIA's own bindings, which bring the runtime and need the driver."""

    def __init__(self, index: int = 0) -> None:
        try:
            self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise TargetUnavailable(
                "engines on a GPU need the package 'cuda-bindings'",
                got="not installed",
                fix="pip install 'fucina[gpu]'",
            ) from error
        self._index = index
        self.use()

    def use(self) -> None:
        self._call("cudaSetDevice", self._index)

    def allocate(self, nbytes: int) -> int:
        return int(self._call("cudaMalloc", max(nbytes, ALIGNMENT)))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pin(self, nbytes: int) -> np.ndarray:
        size = max(nbytes, 1)
        address = int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))[:nbytes]

    def unpin(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def end_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, "HostToDevice", stream)

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, "DeviceToHost", stream)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def capture(self, work: Callable[[], object], stream: int) -> int:
        # Of this thread alone: what others allocate meanwhile is none of the graph's business.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # The stream leaves its capture, which has failed already and may say so again.
            _, graph = self._cuda.cudaStreamEndCapture(stream)
            if graph is not None and int(graph):
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def end_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def free_bytes(self) -> int:
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def seconds(self) -> float:
        return time.perf_counter()

    def _copy(self, to: int, source: int, nbytes: int, kind: str, stream: int) -> None:
        if nbytes:
            way = getattr(self._cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
            self._call("cudaMemcpyAsync", to, source, nbytes, way, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a function of the runtime returns beside its status, which has to be success."""
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, said = self._cuda.cudaGetErrorString(status)
            asked = f" of {arguments[0]} bytes" if name in ("cudaMalloc", "cudaHostAlloc") else ""
            raise ServingFailed(
                f"the GPU refused {name}{asked}",
                got=f"{status.name}, {said.decode()}",
                fix="see `fucina doctor` for its driver and free memory",
            )
        return values[0] if len(values) == 1 else tuple(values)
