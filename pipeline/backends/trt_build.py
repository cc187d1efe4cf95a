"""Plans by TensorRT: a typed graph is parsed, given its profiles, and compiled."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from models.datasets import cache_folder
from models.errors import BuildFailed, first_line
from models.signature import Axis, Signature
from pipeline.artifacts import digest_file, write_bytes, write_json
from pipeline.backends.trt_library import (
    complaint,
    flags,
    library,
    make_log,
    versions,
    word,
)
from pipeline.progress import Progress, silent

PLAN = "engine.plan"
GRAPH = "engine.onnx"  # what the plan was compiled from: all that is needed to compile it again
LAYERS = "layers.json"

Profile = dict[str, dict[str, tuple[int, ...]]]  # by input: min, opt, max

# Kernels are tuned for opt. Where the largest input holds more than this many times as much as
# the usual one, a second profile is tuned for the largest, and takes what is above the usual.
_WIDE = 8
_WORKSPACE = 2 << 30  # bytes a kernel may use beside its tensors: engines share the GPU
# What a parser puts in by itself has no ONNX node; what it made of a node names it.
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_PASSING = ("IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")
# What a parser puts before the layer that it makes of a node; all else comes after it.
_BEFORE = ("CAST", "CONSTANT", "SHAPE", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")


def profiles(signature: Signature) -> list[Profile]:
    """The optimisation profiles of a signature: one over all sizes, perhaps one for large ones."""
    whole = signature.profile()

    def volume(bound: str) -> int:
        return sum(prod(shapes[bound]) for shapes in whole.values())

    if volume("max") <= _WIDE * volume("opt"):
        return [whole]
    large = {
        name: {"min": shapes["opt"], "opt": shapes["max"], "max": shapes["max"]}
        for name, shapes in whole.items()
    }
    return [whole, large]


def compile_graph(
    graph: Path,
    signature: Signature,
    out: Path,
    *,
    tf32: bool,
    gpu: Mapping[str, str],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compile a graph, its precision in it, into PLAN and LAYERS under `out`; what was done.

    `gpu` says for which one, empty where there is none. Where the compiler fails at the profile of
    large sizes, the other, which is over all sizes, is alone, and `refused_profiles` says why.
    Raises `BuildFailed` with the first complaint, and the node of the graph that it is about.
    """
    wanted = profiles(signature)

    def compiled(shapes: list[Profile]) -> dict[str, Any]:
        # Both outlive the compiler, whose objects call them until they are gone, after errors too.
        log, monitor = make_log(), _monitor(progress)
        return _compile(log, monitor, graph, signature, out, tf32, gpu, shapes)

    try:
        return compiled(wanted)
    except BuildFailed as error:
        if len(wanted) == 1:
            raise
        return compiled(wanted[:1]) | {"refused_profiles": first_line(error)}


def _compile(
    log: Any, monitor: Any, graph: Path, signature: Signature, out: Path, tf32: bool,
    gpu: Mapping[str, str], wanted: list[Profile],
) -> dict[str, Any]:  # fmt: skip
    trt, start = library(), time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(flags(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise _refused(parser, complaint(log, "it says nothing"))
    config = builder.create_builder_config()
    told = [_profile(builder, config, shapes) for shapes in wanted]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that a plan tells its layers
    config.progress_monitor = monitor
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    if not tf32:  # allowed unless it is forbidden
        config.clear_flag(trt.BuilderFlag.TF32)
    cache = _timing_cache(gpu)
    timed = bool(cache) and _use(config, cache)
    layers = list(_layers(network))
    declared = dict(_declared(network, signature))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(
            f"TensorRT cannot compile {graph.name}: {complaint(log, 'it says nothing')}",
            fix="see the node it names in the graph, or build a target of another precision",
        )
    data = bytes(memoryview(plan))
    write_bytes(out / PLAN, data)
    facts = {"profiles": told, "layers": layers, "tf32": config.get_flag(trt.BuilderFlag.TF32)}
    write_json(out / LAYERS, {"declared": declared, **facts})
    if cache and timed:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cache, bytes(memoryview(config.get_timing_cache().serialize())))
    return {
        "library": versions(),
        "file": PLAN,
        "bytes": len(data),
        "sha256": digest_file(out / PLAN),
        **facts,
        "precisions": dict(Counter(layer["precision"] for layer in layers)),
        "seconds": round(time.perf_counter() - start, 3),
        "timing_cache": str(cache) if timed else None,
    }


def _refused(parser: Any, default: str) -> BuildFailed:
    """What the parser complained of first, and of which node."""
    if not parser.num_errors:
        return BuildFailed(f"TensorRT cannot parse the graph: {default}")
    first = parser.get_error(0)
    said = " ".join(f"{first.code().name} {first.desc()}".split())[:300]
    return BuildFailed(
        f"TensorRT refuses node {first.node_name()!r} ({first.node_operator()}): {said}",
        fix="write that step of the module with other operators, or use a target of ONNX Runtime",
    )


def _profile(builder: Any, config: Any, shapes: Profile) -> Profile:
    """Add a profile to what is compiled; what it says then."""
    profile = builder.create_optimization_profile()
    for name, bounds in shapes.items():
        profile.set_shape(name, bounds["min"], bounds["opt"], bounds["max"])
    config.add_optimization_profile(profile)
    return {
        name: dict(zip(("min", "opt", "max"), map(tuple, profile.get_shape(name)), strict=True))
        for name in shapes
    }


def _declared(network: Any, signature: Signature) -> Iterator[tuple[str, str]]:
    """Each tensor as `TensorSpec.declared` writes it.

    A network names the axes of its inputs only; those of an output have the signature's names.
    """
    axes = {spec.name: spec.shape for spec in signature.inputs + signature.outputs}
    words = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        known = dict(enumerate(axes.get(tensor.name, ())))
        sizes = []
        for place, size in enumerate(tensor.shape):
            axis = known.get(place)
            given = tensor.get_dimension_name(place) or (
                axis.name if isinstance(axis, Axis) else "?"
            )
            sizes.append(str(size) if size >= 0 else given)
        kind = word(tensor.dtype)
        yield tensor.name, f"{words.get(kind, kind)}[{', '.join(sizes)}]"


def _layers(network: Any) -> Iterator[dict[str, Any]]:
    """Every layer as it is typed: name, operator, precision, and the ONNX nodes it is made of.

    A product of values that come out of eight bits is computed in these. Of the layers that make
    up a recurrent node not all name it; they follow one that does.
    """
    node: list[str] = []
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    for layer in layers:
        if not layer.num_outputs:  # such as how often a loop turns
            continue
        kinds = {word(layer.get_output(i).dtype) for i in range(layer.num_outputs)}
        if layer.type.name in _PRODUCTS:
            rounded = {_rounded(layer.get_input(i), makers) for i in range(2)}
            kinds = rounded if None not in rounded else kinds
        named = _NODE.findall(layer.metadata)
        node = named or node
        yield {
            "name": layer.name,
            "operator": layer.type.name.lower(),
            "precision": "+".join(sorted(filter(None, kinds))),
            "onnx": named or ([] if layer.type.name in _BEFORE else node),
        }


def _rounded(tensor: Any, makers: Mapping[str, Any]) -> str | None:
    """The eight bits that a value comes out of, as a word; None where it does not."""
    maker = makers.get(tensor.name) if tensor is not None else None
    while maker is not None and maker.type.name in _PASSING:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "DEQUANTIZE":
        return None
    return word(maker.get_input(0).dtype)


def _monitor(progress: Progress) -> Any:
    """A listener of the compiler's phases, of which the outermost is passed on."""
    trt = library()

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if total := self.steps.get(phase_name):
                progress(min(step + 1, total), total, phase_name.lower())
            return True

    return Monitor()


def _timing_cache(gpu: Mapping[str, str]) -> Path | None:
    """Where measured times of kernels lie, for this library and GPU; nowhere without a GPU."""
    if not gpu:
        return None
    key = "-".join([*versions(), *versions().values(), gpu["gpu"], gpu["compute_capability"]])
    return cache_folder() / "timing" / (re.sub(r"[^A-Za-z0-9.-]+", "-", key) + ".cache")


def _use(config: Any, path: Path) -> bool:
    """Go on from what was measured before; what does not fit begins empty."""
    known = path.read_bytes() if path.is_file() else b""
    for data in dict.fromkeys((known, b"")):
        if config.set_timing_cache(config.create_timing_cache(data), False):
            return True
    return False
