"""Running TensorRT plans: opened by digest, asked from several threads, and what really ran."""

from __future__ import annotations

import json
import queue
import re
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from models.errors import BuildFailed, ServingFailed, TamperedFile
from models.signature import Arrays
from pipeline.artifacts import check_files, digest_bytes
from pipeline.backends.device_memory import Cuda, Device
from pipeline.backends.trt_build import LAYERS, PLAN
from pipeline.backends.trt_graphs import Choice
from pipeline.backends.trt_lane import Lane
from pipeline.backends.trt_library import complaint, context_maker, library, make_log
from pipeline.backends.trt_tensors import admit, read_profiles, read_tensors

# While one call computes, the next is copied; more of them only wait for the same device.
_CONTEXTS = 2

# ONNX nodes of a layer, and what it computes in, in TensorRT's words for a layer.
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FORMATS = {
    "BF16": "bf16", "BFloat16": "bf16", "FP16": "fp16", "Half": "fp16", "FP32": "fp32",
    "Float": "fp32", "FP8": "fp8", "Int8": "int8", "INT8": "int8", "Int32": "int32",
    "Int64": "int64", "Bool": "bool", "UInt8": "uint8",
}  # fmt: skip


class PlanSession:
    """A plan that is open, behind the `Session` interface; `close` frees all that it holds.

    Calls beyond `contexts` at once wait for one to end. `facts` are what opening it took,
    measured: `device_bytes` that the device has less, of which `buffer_bytes` for its own buffers,
    `warm_up_seconds` and the whole of `open_seconds`, `contexts`, `profiles`, and `graphs`.
    """

    def __init__(
        self, plan: bytes, trt: Any, log: Any, device: Device, options: Mapping[str, Any]
    ) -> None:
        start, free = device.seconds(), device.free_bytes()
        choice = Choice(options.get("cuda_graphs", False))
        # What is opened last is freed first: graphs, contexts, memory, streams, engine, runtime.
        opened = ExitStack()
        with ExitStack() as failing:
            failing.callback(opened.close)
            engine = _deserialise(plan, trt, log, opened)
            self.tensors = read_tensors(engine, trt)
            self.profiles = read_profiles(engine, self.tensors)
            make = context_maker(engine, trt)
            self._lanes = [
                Lane(engine, make, trt, log, device, self.tensors, self.profiles, choice, opened)
                for _ in range(options.get("contexts", _CONTEXTS))
            ]
            built = device.seconds()
            for lane in self._lanes:
                lane.warm_up()
            failing.pop_all()
        self._idle: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        for lane in self._lanes:
            self._idle.put(lane)
        self._free = weakref.finalize(self, _free, opened, device)
        end = device.seconds()
        self.facts: dict[str, Any] = {
            "device_bytes": free - device.free_bytes(),
            "buffer_bytes": sum(lane.nbytes for lane in self._lanes),
            "open_seconds": end - start,
            "warm_up_seconds": end - built,
            "contexts": len(self._lanes),
            "profiles": len(self.profiles),
            "graphs": choice.facts(),
        }

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Raises `BadInput` for what no profile admits, `ServingFailed` when the device fails."""
        arrays, shapes, profile = admit(inputs, self.tensors, self.profiles)
        lane = self._take()
        try:
            return lane.run(arrays, shapes, profile)
        finally:
            self._idle.put(lane)

    def inspect(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The layers of the engine at the shapes of these inputs, as TensorRT describes them."""
        _, shapes, profile = admit(inputs, self.tensors, self.profiles)
        lane = self._take()
        try:
            layers = json.loads(lane.inspect(shapes, profile))["Layers"]
        finally:
            self._idle.put(lane)
        # A plan that was built to tell less has names alone.
        return [layer for layer in layers if isinstance(layer, dict)]

    def close(self) -> None:
        """Wait for the calls that run, then free everything; a later call is refused."""
        if self._free.alive:
            for _ in self._lanes:
                self._idle.get()
            self._idle.put(None)
            self._free()
            self._lanes.clear()

    def _take(self) -> Lane:
        lane = self._idle.get()
        if lane is None:
            self._idle.put(None)
            raise ServingFailed("the engine is closed", fix="open it again")
        return lane


def open_plan(folder: Path, files: Mapping[str, str], options: Mapping[str, Any]) -> PlanSession:
    """Open the plan of a folder on the GPU of this machine.

    `files` has its sha256; what is not recorded there is never deserialised, because a plan can
    hold code. Raises `BundleError`s, `BuildFailed`, or `ServingFailed` when the device fails.
    """
    plan = _recorded(folder, files, PLAN)
    return PlanSession(plan, library(), make_log(), Cuda(), options)


def effective(
    folder: Path, files: Mapping[str, str], options: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], Arrays]:
    """See `Backend.effective`: what was compiled, corrected by what the open engine tells."""
    compiled = json.loads(_recorded(folder, files, LAYERS))
    with closing(open_plan(folder, files, options)) as session:
        answers = session.run(inputs)
        nodes = merge(compiled["layers"], session.inspect(inputs))
    facts = {
        "declared": compiled["declared"],
        "nodes": nodes,
        "devices": dict(Counter(node["device"] for node in nodes)),
        "precisions": dict(Counter(node["precision"] for node in nodes)),
        "tf32": compiled["tf32"],
        "profiles": [profile.shapes for profile in session.profiles],
    }
    return facts, answers


def merge(
    compiled: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Layers as they were typed, with the precision of those that an engine still tells apart.

    What a layer takes and puts out tells of its arithmetic where both are the same; elsewhere, as
    in fused ones, the type that the graph gives it decides, which is binding. Layers that the
    compiler put in, such as copies into another format, come last.
    """
    told: dict[tuple[str, ...], str] = {}
    nodes = []
    for layer in layers:
        of = tuple(_NODE.findall(layer.get("Metadata", "")))
        puts_out = _words(layer.get("Outputs", []))
        if of:
            both = puts_out | _words(layer.get("Inputs", []))
            told[of] = both.pop() if len(both) == 1 and of not in told else ""
        else:
            operator = layer.get("LayerType", "").lower()
            nodes.append(_node(layer["Name"], operator, "+".join(sorted(puts_out)), ()))
    made = Counter(tuple(layer["onnx"]) for layer in compiled)
    typed = []
    for layer in compiled:
        of = tuple(layer["onnx"])
        alone = len(of) == 1 and made[of] == 1
        precision = (told.get(of) if alone else None) or layer["precision"]
        typed.append(_node(layer["name"], layer["operator"], precision, of))
    return typed + nodes


def _node(name: str, operator: str, precision: str, of: Sequence[str]) -> dict[str, Any]:
    facts = {"name": name, "operator": operator, "device": "cuda", "precision": precision}
    return {**facts, "onnx": list(of)}


def _words(tensors: Sequence[Mapping[str, Any]]) -> set[str]:
    """What tensors hold, in the words of `Target`; nothing where TensorRT does not say."""
    keys = ("Format/Datatype", "Format", "Datatype")
    said = " ".join(str(tensor.get(key, "")) for tensor in tensors for key in keys)
    return {_FORMATS[word] for word in re.findall(r"\w+", said) if word in _FORMATS}


def _deserialise(plan: bytes, trt: Any, log: Any, opened: ExitStack) -> Any:
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildFailed(
            f"TensorRT {trt.__version__} cannot open {PLAN}: {complaint(log, 'no reason given')}",
            fix="build it again on this machine",
        )
    # References of ours are the last ones, and go in this order.
    for held in ([runtime], [engine]):
        opened.callback(held.clear)
    return engine


def _recorded(folder: Path, files: Mapping[str, str], name: str) -> bytes:
    """The bytes of a file whose sha256 is recorded: those that were digested, not read again."""
    if name not in files:
        raise TamperedFile(f"{folder / name} has no recorded sha256", fix="build it again")
    check_files(folder, {name: files[name]})
    data = (folder / name).read_bytes()
    if digest_bytes(data) != files[name]:
        raise TamperedFile(f"{folder / name} changed while it was opened", fix="build it again")
    return data


def _free(opened: ExitStack, device: Device) -> None:
    device.use()  # whichever thread it is that finalises
    opened.close()
