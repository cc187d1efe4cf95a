"""Small modules, exported and recorded, for tests that break one node of their graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import nn

from models.errors import BuildFailed
from models.signature import Axis, Signature, TensorSpec
from pipeline.artifacts import digest_files
from pipeline.backends import ort as backend
from pipeline.cases import CASES_FILE, Case, write_cases
from pipeline.compare import derive_limits, replay
from pipeline.recording import record
from pipeline.values import MODEL, Engine, Finding, OnnxModel

_BATCH = Axis("batch", 1, 4, 8)
_TIME = Axis("time", 2, 5, 9)
_OPTIONS = {
    "providers": ["CPUExecutionProvider"], "optimization_level": "ALL",
    "execution_mode": "SEQUENTIAL", "intra_op_threads": 1, "inter_op_threads": 1,
}  # fmt: skip


class ConvNet(nn.Module):
    exporter = "dynamo"
    signature = Signature(
        (TensorSpec("x", "float32", (_BATCH, 2, 12, 12)),),
        (TensorSpec("y", "float32", (_BATCH, 10)),),
    )

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.dense = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        x = torch.relu(self.third(x) + x)
        return {"y": self.dense(x.mean(dim=(2, 3)))}


class Encoder(nn.Module):
    exporter = "dynamo"
    signature = Signature(
        (TensorSpec("x", "float32", (_BATCH, _TIME, 16)),),
        (
            TensorSpec("states", "float32", (_BATCH, _TIME, 16)),
            TensorSpec("pooled", "float32", (_BATCH, 6)),
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)
        self.pool = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, length, _ = x.shape
        q, k, v = (
            t.reshape(rows, length, 4, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, length, 16)
        x = self.norm1(x + self.out(mixed))
        x = self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return {"states": x, "pooled": torch.tanh(self.pool(x.mean(dim=1)))}


class Tagger(nn.Module):
    exporter = "torchscript"
    signature = Signature(
        (TensorSpec("x", "float32", (_BATCH, _TIME, 6)),),
        (TensorSpec("y", "float32", (_BATCH, _TIME, 5)),),
    )

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(16, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.last(torch.tanh(self.dense(self.lstm(x)[0])))}


Known = ConvNet | Encoder | Tagger


def exported(kind: type[Known], out: Path) -> tuple[OnnxModel, list[Case], nn.Module]:
    """The graph of a module with trained-like weights, its cases, and the module."""
    torch.manual_seed(0)
    module = kind()
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if "norm" in name and value.is_floating_point():  # statistics are never 0 and 1
                value.uniform_(0.5, 1.5)
    module.eval()
    signature = kind.signature
    (spec,) = signature.inputs
    names = [s.name for s in signature.outputs]
    example = torch.zeros(spec.at(signature.example()))
    axes = {n: {i: a.name for i, a in d.items()} for n, d in signature.dynamic_axes().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter says about itself
        if kind.exporter == "dynamo":
            dims = {
                i: torch.export.Dim(a.name, min=a.min, max=a.max)
                for i, a in signature.dynamic_axes()["x"].items()
            }
            torch.onnx.export(
                module, (), out / MODEL, kwargs={"x": example}, dynamo=True, input_names=["x"],
                output_names=names, dynamic_shapes={"x": dims}, opset_version=18, verbose=False,
                external_data=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, (example,), out / MODEL, dynamo=False, dynamic_axes=axes, input_names=["x"],
                output_names=names, opset_version=18,
            )  # fmt: skip
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(32, *(s if isinstance(s, int) else s.max for s in spec.shape[1:])))
    cases = record(module, signature, {"x": rows.astype(np.float32)})
    write_cases(cases, out)
    model = OnnxModel(
        folder=out, recipe="small", parent="", signature=signature, opset=18,
        exporter=kind.exporter, libraries={}, files=digest_files(out, [MODEL, CASES_FILE]),
    )  # fmt: skip
    return model, cases, module


def built(
    graph: onnx.ModelProto, model: OnnxModel, out: Path, level: str = "ENABLE_EXTENDED"
) -> Engine:
    """An engine of a graph, saved as ONNX Runtime optimises it at a level."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    settings.optimized_model_filepath = str(out / "engine.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Engine(
        folder=out, target="ort-cpu-fp32", parent=model.digest, signature=model.signature,
        options=_OPTIONS, built_on={}, files=digest_files(out, ["engine.onnx"]),
    )  # fmt: skip


def findings(engine: Engine, cases: list[Case]) -> list[Finding]:
    """What an engine's answers are found to be; nothing of one that does not open."""
    try:
        run = backend.open(engine.folder, engine.files, engine.options).run
    except BuildFailed:
        return []
    return replay(run, cases, derive_limits(cases))


Break = Callable[[onnx.GraphProto], Any]


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(n for n in graph.node if n.name == name)


def weight(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Break:
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(function(array).astype(array.dtype), name))

    return change


def few_scaled(array: np.ndarray) -> np.ndarray:
    return np.where(np.arange(array.size).reshape(array.shape) % 50 == 0, array * 1.5, array)


def one_nan(array: np.ndarray) -> np.ndarray:
    return np.where(np.arange(array.size).reshape(array.shape) == 7, np.nan, array)


def attribute(name: str, key: str, value: Any) -> Break:
    def change(graph: onnx.GraphProto) -> None:
        kept = [a for a in node(graph, name).attribute if a.name != key]
        node(graph, name).ClearField("attribute")
        node(graph, name).attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


def dropped(name: str) -> Break:
    def drop(graph: onnx.GraphProto) -> None:
        gone = node(graph, name)
        before, after = gone.input[0], gone.output[0]
        for other in graph.node:
            other.input[:] = [before if n == after else n for n in other.input]
        graph.node.remove(gone)

    return drop


def without_effect(name: str) -> Break:
    def change(graph: onnx.GraphProto) -> None:
        node(graph, name).op_type = "Identity"
        node(graph, name).ClearField("attribute")
        del node(graph, name).input[1:]

    return change


def reads(name: str, *inputs: str) -> Break:
    def change(graph: onnx.GraphProto) -> None:
        node(graph, name).input[:] = inputs

    return change


def baked(name: str, shape: list[int]) -> Break:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(shape), "baked"))
        node(graph, name).input[1] = "baked"

    return change
