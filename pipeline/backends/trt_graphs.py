"""CUDA graphs of calls that come again: captured where they pay, and once they have paid."""

from __future__ import annotations

import logging
import math
import statistics
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import FucinaError
from models.signature import Arrays
from pipeline.backends.device_memory import Device
from pipeline.backends.trt_tensors import Profile, Shapes

KEPT = 16  # graphs of a lane; each holds a context of its own
COUNTED = 256  # shapes whose calls are counted
_PAYS = 1.05  # times as fast as launches; less is noise
_ROUNDS = 7

Key = tuple[int, Shapes]  # a profile and the shapes of a call

logger = logging.getLogger("fucina.tensorrt")


@dataclass
class Choice:
    """Of which profiles CUDA graphs are used: those where they were measured to pay.

    `after` is how many calls of a shape by a graph save what it takes to capture one.
    """

    wanted: bool
    why_not: str = "not asked for"
    times_as_fast: dict[int, float] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)

    def used(self, profile: Profile) -> bool:
        return self.wanted and self.times_as_fast.get(profile.index, 0) >= _PAYS

    def open(self, profile: Profile) -> bool:
        """Whether it has to be measured."""
        return self.wanted and profile.index not in self.times_as_fast

    def measured(self, profile: Profile, launched: float, by_graph: float, capture: float) -> None:
        """Seconds of a call by launches and by a graph, and those of capturing it."""
        self.times_as_fast[profile.index] = launched / by_graph
        if launched > by_graph:
            self.after[profile.index] = math.ceil(capture / (launched - by_graph))

    def refuse(self, why: str) -> None:
        """Use none from now on; said once."""
        if self.wanted:
            logger.warning("no CUDA graphs: %s", why)
            self.wanted, self.why_not = False, why

    def facts(self) -> dict[str, Any]:
        """`times_as_fast` as launches and `after` by profile, which are `used`, and why none is."""
        pays = {index for index, times in self.times_as_fast.items() if times >= _PAYS}
        return {
            "used": sorted(pays) if self.wanted else [],
            "times_as_fast": {str(i): round(times, 3) for i, times in self.times_as_fast.items()},
            "after": {str(i): calls for i, calls in self.after.items()},
            "why_not": None if self.wanted else self.why_not,
        }


@dataclass(frozen=True)
class Call:
    """One call as it is put on a stream: a context whose shapes are set, and those shapes."""

    context: Any
    shapes: Shapes
    outputs: Shapes


@dataclass(frozen=True)
class Captured:
    """The graph of a call, whose context nothing else may change."""

    handle: int
    call: Call


class Calls(Protocol):
    """What graphs are captured of: the calls of a lane, at addresses that never change."""

    def prepare(self, shapes: Shapes, profile: Profile) -> Call:
        """A call with a context of its own."""
        ...

    def enqueue(self, call: Call, stream: int) -> None:
        """Put a call on a stream: copies in, the engine, copies out."""
        ...

    def answers(self, call: Call) -> Arrays:
        """What the last call left in host memory, copied."""
        ...

    def spoil(self, call: Call) -> None:
        """Make other bytes of what the last call left, on the host and on the device."""
        ...


@dataclass
class Graphs:
    """The graphs of one lane, each used only after it answered as the launches it is made of."""

    device: Device
    choice: Choice
    stream: int
    side: int
    calls: Calls
    _graphs: OrderedDict[Key, Captured] = field(default_factory=OrderedDict)
    _counts: OrderedDict[Key, int] = field(default_factory=OrderedDict)

    def get(self, shapes: Shapes, profile: Profile) -> Captured | None:
        """The graph of these shapes, captured when as many calls have come as it takes to pay.

        So capturing never takes more time than the launches did that it is to save. Of graphs, and
        of shapes that are counted, the least recently used goes; it then begins anew.
        """
        if not self.choice.used(profile):
            return None
        key = profile.index, shapes
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            return graph
        count = self._counts.pop(key, 0) + 1
        if count < self.choice.after[profile.index]:
            self._counts[key] = count
            if len(self._counts) > COUNTED:
                self._counts.popitem(last=False)
        elif graph := self._capture(shapes, profile):
            self._graphs[key] = graph
            if len(self._graphs) > KEPT:
                self._forget(next(iter(self._graphs)))
        return graph

    def measure(self, profile: Profile) -> None:
        """Time launches and a graph of the profile's usual shapes in turn."""
        begun = self.device.seconds()
        if (graph := self._capture(profile.usual, profile)) is None:
            return
        capture = self.device.seconds() - begun
        ways: tuple[Callable[[], None], ...] = (
            lambda: self.calls.enqueue(graph.call, self.stream),
            lambda: self.device.launch(graph.handle, self.stream),
        )
        times: tuple[list[float], ...] = ([], [])
        try:
            for _ in range(_ROUNDS):
                for way, seconds in zip(ways, times, strict=True):
                    start = self.device.seconds()
                    way()
                    self.device.wait(self.stream)
                    seconds.append(self.device.seconds() - start)
        finally:
            self.device.end_graph(graph.handle)
        launched, by_graph = (statistics.median(seconds) for seconds in times)
        self.choice.measured(profile, launched, by_graph, capture)

    def close(self) -> None:
        for key in list(self._graphs):
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self.device.end_graph(self._graphs.pop(key).handle)

    def _capture(self, shapes: Shapes, profile: Profile) -> Captured | None:
        """The graph of a call that has a context of its own: one that changes breaks its graph.

        One normal call comes first: what that prepares once is no part of the graph. None where
        there is no graph, or one that does not answer as that call did, to the bit.
        """
        try:
            call = self.calls.prepare(shapes, profile)
            self.calls.enqueue(call, self.stream)
            self.device.wait(self.stream)
            launched = self.calls.answers(call)
            handle = self.device.capture(lambda: self.calls.enqueue(call, self.side), self.side)
        except FucinaError as error:
            self.choice.refuse(f"capture failed: {error}")
            return None
        if self._agrees(handle, call, launched):
            return Captured(handle, call)
        self.device.end_graph(handle)
        return None

    def _agrees(self, handle: int, call: Call, launched: Arrays) -> bool:
        try:
            self.calls.spoil(call)  # else what the launches left would pass for an answer
            self.device.launch(handle, self.stream)
            self.device.wait(self.stream)
        except FucinaError as error:
            self.choice.refuse(f"a graph failed: {error}")
            return False
        answers = self.calls.answers(call)
        others = [n for n, array in launched.items() if array.tobytes() != answers[n].tobytes()]
        if others:
            self.choice.refuse(f"a graph answers otherwise than launches: {', '.join(others)}")
        return not others
