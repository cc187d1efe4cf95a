"""A double of a CUDA device: host memory that nobody may touch but by its address, and streams.

Work on a stream waits until somebody waits for the stream, so what is read too early or reused too
soon is wrong. What the documentation leaves undefined is an AssertionError.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from models.errors import ServingFailed

Work = Callable[[], None]


class HostDevice:
    """Implements `Device`. `capacity` bytes can be allocated; once `lost`, nothing works.

    Its clock counts what a host puts on streams: each a unit, a whole graph `graph_cost` of them.
    """

    def __init__(self, capacity: int = 1 << 24, graph_cost: float = 1.0) -> None:
        self.capacity, self.graph_cost, self.lost, self.clock = capacity, graph_cost, False, 0.0
        self.blocks: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.claims: dict[int, int] = {}  # memory between layers, and the stream that works in it
        self.made: dict[str, int] = defaultdict(int)
        self._numbers = iter(range(1, 1 << 30))
        self._threads: set[int] = set()
        self.use()

    def use(self) -> None:
        self._threads.add(threading.get_ident())

    def allocate(self, nbytes: int) -> int:
        self._check("cudaMalloc")
        if self.capturing:
            raise ServingFailed("not permitted when a stream is capturing")
        if sum(block.nbytes for block in self.blocks.values()) + nbytes > self.capacity:
            raise ServingFailed(f"the GPU refused cudaMalloc of {nbytes} bytes: out of memory")
        raw = np.full(max(nbytes, 1) + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        block = raw[start : start + nbytes]
        address = raw.ctypes.data + start
        self.blocks[address] = block
        self.made["blocks"] += 1
        return address

    def free(self, address: int) -> None:
        self._check("cudaFree")
        self.blocks.pop(address)[:] = 0xFF

    def pin(self, nbytes: int) -> np.ndarray:
        self._check("cudaHostAlloc")
        array = np.full(max(nbytes, 1), 0xFF, np.uint8)
        self.pinned[array.ctypes.data] = array
        self.made["pinned"] += 1
        return array[:nbytes]

    def unpin(self, array: np.ndarray) -> None:
        self.pinned.pop(array.ctypes.data)[:] = 0xFF

    def stream(self) -> int:
        self._check("cudaStreamCreate")
        number = next(self._numbers)
        self.streams[number] = []
        return number

    def end_stream(self, stream: int) -> None:
        assert not self.streams.pop(stream), "a stream ends with work on it"

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        assert self._is_pinned(array), "a copy from memory that is not pinned is none of a stream"

        def copy() -> None:
            self.memory(address, array.nbytes)[:] = array.view(np.uint8).reshape(-1)

        self.put(stream, copy)

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        assert self._is_pinned(array) or stream not in self.capturing

        def copy() -> None:
            ctypes.memmove(
                array.ctypes.data, self.memory(address, array.nbytes).ctypes.data, array.nbytes
            )

        self.put(stream, copy)

    def wait(self, stream: int) -> None:
        self._check("cudaStreamSynchronize")
        if stream in self.capturing:
            raise ServingFailed("not permitted when a stream is capturing")
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()
        for memory in [memory for memory, user in self.claims.items() if user == stream]:
            del self.claims[memory]

    def capture(self, work: Callable[[], object], stream: int) -> int:
        self._check("cudaStreamBeginCapture")
        assert not self.streams[stream], "a capture begins on a stream with work on it"
        self.capturing[stream] = []
        try:
            work()
        finally:
            steps = self.capturing.pop(stream)
        number = next(self._numbers)
        self.graphs[number] = steps
        self.made["graphs"] += 1
        return number

    def launch(self, graph: int, stream: int) -> None:
        self._check("cudaGraphLaunch")
        assert stream not in self.capturing
        self.streams[stream] += self.graphs[graph]
        self.made["launches"] += 1
        self.clock += self.graph_cost

    def end_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def free_bytes(self) -> int:
        return self.capacity - sum(block.nbytes for block in self.blocks.values())

    def seconds(self) -> float:
        return self.clock

    def put(self, stream: int, work: Work) -> None:
        """Put work on a stream, or into the graph that is captured of it."""
        self._check("a launch")
        assert stream, "the default stream"
        assert stream in self.streams, "no such stream"
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            self.streams[stream].append(work)
            self.clock += 1

    def memory(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address, which have to be allocated now."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + block.nbytes:
                return block[address - start : address - start + nbytes]
        raise AssertionError(f"an illegal address, {address:#x}, of {nbytes} bytes")

    def claim(self, memory: int, stream: int) -> None:
        assert self.claims.setdefault(memory, stream) == stream, "two streams in one memory"

    @property
    def held(self) -> int:
        """What has not been freed."""
        return sum(map(len, (self.blocks, self.pinned, self.streams, self.graphs)))

    def _is_pinned(self, array: np.ndarray) -> bool:
        return any(
            start <= array.ctypes.data <= start + whole.nbytes - array.nbytes
            for start, whole in self.pinned.items()
        )

    def _check(self, what: str) -> None:
        assert threading.get_ident() in self._threads, f"{what} in a thread without a device"
        if self.lost:
            raise ServingFailed(f"the GPU refused {what}: got cudaErrorDeviceUnavailable")
