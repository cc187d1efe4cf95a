"""A machine with a GPU, in doubles: what TensorRT really compiled is run over ONNX Runtime.

Graphs are lowered, parsed and compiled as ever. A plan is then opened, behind the doubles of
TensorRT's runtime and of its device, as the graph that it was compiled from, which rounds where
that rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from models.signature import Signature
from pipeline import optimize
from pipeline.artifacts import digest_bytes
from pipeline.backends import trt, trt_run
from pipeline.backends.graphs import types_of
from pipeline.backends.trt_build import compile_graph
from pipeline.progress import Progress, silent
from tests.pipeline.device_double import HostDevice
from tests.pipeline.engine_double import FP32, Layer, make_library, make_plan
from tests.pipeline.simulated import rounding

GPU = {"gpu": "NVIDIA Double", "compute_capability": "0.0"}


@dataclass
class Machine:
    """Its device, and whether engines run their layers in fp32 whatever they were typed as."""

    device: HostDevice
    typed_as_fp32: bool = False


_TOLD: dict[int, str] = {
    TensorProto.FLOAT: FP32, TensorProto.FLOAT16: "Row major linear FP16 format",
    TensorProto.BFLOAT16: "Row major linear BF16 format",
    TensorProto.INT8: "Row major Int8 format", TensorProto.FLOAT8E4M3FN: "Row major FP8 format",
    TensorProto.INT64: "Row major Int64 format", TensorProto.INT32: "Row major Int32 format",
    TensorProto.BOOL: "Row major Bool format",
}  # fmt: skip


@contextmanager
def gpu_machine(gpu: str = GPU["gpu"]) -> Iterator[Machine]:
    """This process is on a machine with a GPU, which is as fast in any precision.

    What has to be faster than fp32 is not asked to be: a double says nothing of speed.
    """
    device, plans = HostDevice(1 << 30, graph_cost=1), dict[str, bytes]()
    machine = Machine(device)

    def compiled(
        graph: Path, signature: Signature, out: Path, *, tf32: bool, gpu: Mapping[str, str],
        progress: Progress = silent,
    ) -> dict[str, Any]:  # fmt: skip
        report = compile_graph(graph, signature, out, tf32=tf32, gpu={}, progress=progress)
        runs = rounding(graph, "tf32" if tf32 else "fp16").SerializeToString()
        profiles = [{n: [*b.values()] for n, b in one.items()} for one in report["profiles"]]
        plans[report["sha256"]] = make_plan(
            runs, profiles, layers=list(_layers(graph, machine.typed_as_fp32))
        )
        return report

    def cuda() -> HostDevice:
        device.use()
        return device

    double = make_library(device, [], rtx=True)

    def runtime(log: Any) -> Any:
        made = double.Runtime(log)
        open_double = made.deserialize_cuda_engine

        def deserialize_cuda_engine(plan: bytes) -> Any:
            return open_double(plans.get(digest_bytes(plan), plan))

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    library = SimpleNamespace(**{**vars(double), "Runtime": runtime})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt, "compile_graph", compiled)
        patch.setattr(trt, "gpu", lambda: GPU | {"gpu": gpu})
        patch.setattr(trt, "missing_to_run", lambda: ())
        patch.setattr(trt_run, "Cuda", cuda)
        patch.setattr(trt_run, "library", lambda: library)
        patch.setattr(optimize, "_PAYS", 0)
        yield machine


def _layers(graph: Path, as_fp32: bool) -> Iterator[Layer]:
    """What TensorRT would tell of a graph of which it fuses nothing but steps of eight bits."""
    loaded = onnx.load_model(graph)
    types = types_of(loaded)
    makers = {name: node for node in loaded.graph.node for name in node.output}

    def kind(name: str) -> str:
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return FP32 if as_fp32 else _TOLD.get(types.get(name, TensorProto.UNDEFINED), "")

    for node in loaded.graph.node:
        yield (
            node.name, node.op_type, [kind(name) for name in node.input if name],
            [kind(name) for name in node.output if name],
        )  # fmt: skip
