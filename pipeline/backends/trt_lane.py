"""One TensorRT call at a time: an execution context with a stream and buffers that stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from models.errors import FucinaError, ServingFailed, first_line
from models.signature import Arrays
from pipeline.backends.device_memory import Device
from pipeline.backends.trt_graphs import Call, Choice, Graphs
from pipeline.backends.trt_tensors import Profile, Shapes, Tensor

logger = logging.getLogger("fucina.tensorrt")


class Lane:
    """A context for every profile, of which one runs at a time, on a stream of their own.

    Device memory is allocated once: for each tensor at its largest, and for what is between
    layers, which all contexts share. `make` gives contexts of the engine, `opened` is told how to
    free each thing. `nbytes` is all of it that is known before a call.
    """

    def __init__(
        self,
        engine: Any,
        make: Callable[[], Any],
        trt: Any,
        log: Any,
        device: Device,
        tensors: Sequence[Tensor],
        profiles: Sequence[Profile],
        choice: Choice,
        opened: ExitStack,
    ) -> None:
        self._engine: Any = engine
        self._make: Any = make
        self._trt, self._log, self._device = trt, log, device
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._profiles, self._choice, self._opened = profiles, choice, opened
        self._stream, side = self._new_stream(), self._new_stream()
        self.nbytes = 0
        self._between = engine.device_memory_size_v2
        self._scratch = self._new_memory(self._between)
        self._growing: dict[str, Any] = {}
        self._addresses: dict[str, int] = {}
        self._staging: dict[str, np.ndarray] = {}
        self._contexts = {profile.index: self._new_context(profile) for profile in profiles}
        self._calls: dict[int, Call] = {}  # the last one of each profile's context
        self._allocate()
        self._graphs = Graphs(device, choice, self._stream, side, self)
        opened.callback(self._close)

    def run(self, arrays: Arrays, shapes: Shapes, profile: Profile) -> Arrays:
        """One call at shapes that the profile admits."""
        self._device.use()
        try:
            for name, array in arrays.items():
                np.copyto(self._view(name, array.shape), array)
            if graph := self._graphs.get(shapes, profile):
                call = graph.call
                self._device.launch(graph.handle, self._stream)
            else:
                call = self._call(shapes, profile)
                self.enqueue(call, self._stream)
            self._device.wait(self._stream)
            return self.answers(call) | {name: self._fetch(name) for name in self._growing}
        except FucinaError:
            with suppress(FucinaError):  # nothing of this call is under way when the next begins
                self._device.wait(self._stream)
            raise

    def warm_up(self) -> None:
        """Run every profile's usual shapes, and see once for all lanes where graphs pay."""
        for profile in self._profiles:
            arrays = {n: np.zeros(s, self._tensors[n].dtype) for n, s in profile.usual}
            self.run(arrays, profile.usual, profile)
            if self._choice.open(profile):
                self._graphs.measure(profile)

    def inspect(self, shapes: Shapes, profile: Profile) -> str:
        """The engine's layers at these shapes, as JSON of TensorRT."""
        self._device.use()
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._call(shapes, profile).context
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def prepare(self, shapes: Shapes, profile: Profile) -> Call:
        context = self._new_context(profile)
        self._address(context)
        return self._bind(context, shapes)

    def enqueue(self, call: Call, stream: int) -> None:
        for name, shape in call.shapes:
            self._device.upload(self._addresses[name], self._bytes(name, shape), stream)
        self._ask(call.context.execute_async_v3(stream), "run the engine")
        for name, shape in call.outputs:
            self._device.download(self._bytes(name, shape), self._addresses[name], stream)

    def answers(self, call: Call) -> Arrays:
        return {name: self._view(name, shape).copy() for name, shape in call.outputs}

    def spoil(self, call: Call) -> None:
        for name, shape in call.outputs:
            left = self._bytes(name, shape)
            np.invert(left, out=left)
            self._device.upload(self._addresses[name], left, self._stream)

    def _allocate(self) -> None:
        """Memory for every tensor at its largest; of some outputs the data decide the shape."""
        sizes: dict[str, int] = {}
        for profile in self._profiles:
            outputs = self._shape(self._contexts[profile.index], profile.largest)
            for name, shape in (*profile.largest, *outputs):
                if -1 in shape:
                    self._growing.setdefault(name, None)
                else:
                    sizes[name] = max(sizes.get(name, 0), self._tensors[name].nbytes(shape))
        for name in self._growing:
            self._growing[name] = growing = growing_output(self._trt, self._device)
            self._opened.callback(growing.free)
        for name, nbytes in sizes.items():
            if name not in self._growing:
                self._addresses[name] = self._new_memory(nbytes)
                self._staging[name] = array = self._device.pin(nbytes)
                self._opened.callback(self._device.unpin, array)
        if self._growing:
            self._choice.refuse(f"the data decide the shape of {', '.join(self._growing)}")
        for context in self._contexts.values():
            self._address(context)

    def _new_context(self, profile: Profile) -> Any:
        context = self._make()
        self._ask(context is not None, "create an execution context")
        context.set_device_memory(self._scratch, self._between)
        if context.active_optimization_profile != profile.index:
            chosen = context.set_optimization_profile_async(profile.index, self._stream)
            self._ask(chosen, f"take profile {profile.index}")
            self._device.wait(self._stream)
        return context

    def _shape(self, context: Any, shapes: Shapes) -> Shapes:
        """Set the shapes of a context's inputs; those of its outputs, -1 where data decide."""
        for name, shape in shapes:
            self._ask(context.set_input_shape(name, shape), f"take {name!r} of {list(shape)}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise ServingFailed(f"TensorRT cannot infer shapes: {first_line(error)}") from error
        if unknown:
            raise ServingFailed(f"TensorRT cannot infer shapes without {', '.join(unknown)}")
        outputs = [tensor.name for tensor in self._tensors.values() if not tensor.given]
        return tuple((name, tuple(context.get_tensor_shape(name))) for name in outputs)

    def _address(self, context: Any) -> None:
        for name, address in self._addresses.items():
            self._ask(context.set_tensor_address(name, address), f"take memory for {name!r}")
        for name, growing in self._growing.items():
            self._ask(context.set_output_allocator(name, growing), f"take memory for {name!r}")

    def _call(self, shapes: Shapes, profile: Profile) -> Call:
        """A call with the profile's context, whose shapes are set where they are others."""
        call = self._calls.pop(profile.index, None)
        if call is None or call.shapes != shapes:
            call = self._bind(self._contexts[profile.index], shapes)
        self._calls[profile.index] = call
        return call

    def _bind(self, context: Any, shapes: Shapes) -> Call:
        outputs = [(n, s) for n, s in self._shape(context, shapes) if n not in self._growing]
        for name, shape in outputs:
            if self._tensors[name].nbytes(shape) > self._staging[name].nbytes:
                raise ServingFailed(
                    f"output {name!r} is larger than at the largest inputs",
                    got=list(shape),
                    expected=f"at most {self._staging[name].nbytes} bytes",
                )
        return Call(context, shapes, tuple(outputs))

    def _fetch(self, name: str) -> np.ndarray:
        """An output whose shape is known only now that it is there."""
        growing = self._growing[name]
        answer = np.empty(growing.shape, self._tensors[name].dtype)
        self._device.download(answer, growing.address, self._stream)
        self._device.wait(self._stream)
        return answer

    def _new_stream(self) -> int:
        stream = self._device.stream()
        self._opened.callback(self._device.end_stream, stream)
        return stream

    def _new_memory(self, nbytes: int) -> int:
        address = self._device.allocate(nbytes)
        self._opened.callback(self._device.free, address)
        self.nbytes += nbytes
        return address

    def _bytes(self, name: str, shape: Sequence[int]) -> np.ndarray:
        return self._staging[name][: self._tensors[name].nbytes(shape)]

    def _view(self, name: str, shape: Sequence[int]) -> np.ndarray:
        return self._bytes(name, shape).view(self._tensors[name].dtype).reshape(shape)

    def _ask(self, done: bool, what: str) -> None:
        """Raise with what TensorRT complained of last, unless it did what it was asked."""
        if not done:
            said = self._log.said[-1] if self._log.said else "no reason given"
            raise ServingFailed(f"TensorRT did not {what}: {' '.join(said.split())[:300]}")

    def _close(self) -> None:
        self._graphs.close()
        self._calls.clear()
        self._contexts.clear()
        self._engine = self._make = None


def growing_output(trt: Any, device: Device) -> Any:
    """What TensorRT asks for the memory of an output whose shape the data decide."""

    class Growing(trt.IOutputAllocator):  # theirs is the interface
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.address, self.nbytes = 0, 0
            self.shape: tuple[int, ...] = ()

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            """Memory of at least `size` bytes; 0, which fails the call, when there is none."""
            if size > self.nbytes or not self.address:
                try:
                    self.free()
                    self.address, self.nbytes = device.allocate(size), size
                except FucinaError as error:
                    logger.error("no memory for output %r: %s", tensor_name, error)
            return self.address

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Sequence[int]) -> None:
            self.shape = tuple(shape)

        def free(self) -> None:
            address, self.address, self.nbytes = self.address, 0, 0
            if address:
                device.free(address)

    return Growing()
