"""Small generative bundles made without torch: of parts with noise and without, and of classes.

`coder` encodes with noise and decodes, `finder` encodes without noise and judges, `drawer` draws
coloured pictures of a class and has no parts.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper, save_model
from PIL import Image

from models.codec import Anomaly, Codec, ImageInput, Pictures
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.artifacts import save, write_json
from pipeline.bundle import CASES, ENGINES, Bundle
from pipeline.cases import CASES_FILE
from pipeline.optimize import optimize
from pipeline.parts import new_part, part, save_value
from pipeline.values import CODEC, MODEL, MODEL_VALUE, PARTS, Certificate, Engine, OnnxModel
from pipeline.verify import verify
from serving.drawing import in_blocks
from tests.serving.conftest import TARGET, record_cases, write_manifest, write_model

BLOCK = 8
BATCH = Axis("batch", 1, BLOCK, 64)
SIDE, LATENTS = 28, 4
NOISE = 17  # latents of the drawer
CLASSES = ("disc", "ring", "bar")
THRESHOLD = 0.1
RANDOM = np.random.default_rng(5)
_HIDDEN, _DEEP = 64, 8


def _weights(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, shape[0] ** -0.5, shape).astype(np.float32)


WEIGHTS: Arrays = {
    "down": _weights(SIDE * SIDE, _HIDDEN),
    "to_mean": 2 * _weights(_HIDDEN, LATENTS),
    "to_variance": _weights(_HIDDEN, LATENTS),
    "up": 2 * _weights(LATENTS, _HIDDEN),
    "out": 2 * _weights(_HIDDEN, SIDE * SIDE),
    "table": RANDOM.normal(0, 1, (len(CLASSES), NOISE)).astype(np.float32),
    "first": 2 * _weights(NOISE, _DEEP * 36),
    "kernel": _weights(_DEEP, 3, 4, 4),
    "half": np.array(0.5, np.float32),
    "picture": np.array([-1, 1, SIDE, SIDE]),
    "maps": np.array([-1, _DEEP, 6, 6]),
    "pixels": np.array([1, 2, 3]),
}

IMAGE = TensorSpec("image", "float32", (BATCH, 1, SIDE, SIDE), 0.0, 1.0)
DRAWN = TensorSpec("reconstruction", "float32", (BATCH, 1, SIDE, SIDE))
LOGITS = TensorSpec("logits", "float32", (BATCH, 1, SIDE, SIDE))
LATENT, NOISY, MEAN, VARIANCE = (
    TensorSpec(name, "float32", (BATCH, LATENTS), -3.0, 3.0)
    for name in ("latent", "noise", "mean", "log_variance")
)
ERROR = TensorSpec("error", "float32", (BATCH,))


@dataclass(frozen=True)
class Graph:
    """A graph and the same in numpy, to any precision."""

    signature: Signature
    nodes: list[Any]
    answer: Callable[[Arrays, Any], Arrays]


@dataclass(frozen=True)
class Coded:
    """A model: its whole, its parts and how it is asked."""

    whole: Graph
    codec: Codec
    parts: Mapping[str, Graph] = field(default_factory=dict)


def _encode(inputs: Arrays, dtype: Any) -> Arrays:
    w = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    rows = inputs["image"].astype(dtype).reshape(len(inputs["image"]), -1)
    hidden = np.tanh(rows @ w["down"])
    mean, variance = hidden @ w["to_mean"], hidden @ w["to_variance"]
    if "noise" not in inputs:
        return {"latent": mean}
    latent = mean + np.exp(variance * w["half"]) * inputs["noise"].astype(dtype)
    return {"mean": mean, "log_variance": variance, "latent": latent}


def _decode(inputs: Arrays, dtype: Any) -> Arrays:
    w = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    flat = np.tanh(inputs["latent"].astype(dtype) @ w["up"]) @ w["out"]
    logits = flat.reshape(-1, 1, SIDE, SIDE)
    return {"logits": logits, "reconstruction": 1 / (1 + np.exp(-logits))}


def _both(inputs: Arrays, dtype: Any) -> Arrays:
    coded = _encode(inputs, dtype)
    drawn = _decode(coded, dtype)
    apart = drawn["reconstruction"] - inputs["image"].astype(dtype)
    return {**coded, **drawn, "error": np.square(apart).mean((1, 2, 3))}


def _draw(inputs: Arrays, dtype: Any) -> Arrays:
    w = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    code = inputs["latent"].astype(dtype) + w["table"][inputs["label"]]
    maps = np.maximum(code @ w["first"], 0).reshape(-1, _DEEP, 6, 6)
    wide = np.zeros((len(maps), 3, 14, 14), dtype)
    for y in range(4):
        for x in range(4):
            piece = np.einsum("bchw,co->bohw", maps, w["kernel"][:, :, y, x])
            wide[:, :, y : y + 12 : 2, x : x + 12 : 2] += piece
    logits = wide[:, :, 1:13, 1:13]
    return {"logits": logits, "image": 1 / (1 + np.exp(-logits))}


_node = helper.make_node
_DOWN = [
    _node("Flatten", ["image"], ["rows"]),
    _node("MatMul", ["rows", "down"], ["a"]),
    _node("Tanh", ["a"], ["b"]),
]
_NOISED = [
    *_DOWN,
    _node("MatMul", ["b", "to_mean"], ["mean"]),
    _node("MatMul", ["b", "to_variance"], ["log_variance"]),
    _node("Mul", ["log_variance", "half"], ["c"]),
    _node("Exp", ["c"], ["d"]),
    _node("Mul", ["d", "noise"], ["e"]),
    _node("Add", ["mean", "e"], ["latent"]),
]
_PLAIN = [*_DOWN, _node("MatMul", ["b", "to_mean"], ["latent"])]
_UP = [
    _node("MatMul", ["latent", "up"], ["f"]),
    _node("Tanh", ["f"], ["g"]),
    _node("MatMul", ["g", "out"], ["h"]),
    _node("Reshape", ["h", "picture"], ["logits"]),
    _node("Sigmoid", ["logits"], ["reconstruction"]),
]
_APART = [
    _node("Sub", ["reconstruction", "image"], ["i"]),
    _node("Mul", ["i", "i"], ["j"]),
    _node("ReduceMean", ["j", "pixels"], ["error"], keepdims=0),
]
_COLOURED = [
    _node("Gather", ["table", "label"], ["a"]),
    _node("Add", ["latent", "a"], ["b"]),
    _node("MatMul", ["b", "first"], ["c"]),
    _node("Relu", ["c"], ["d"]),
    _node("Reshape", ["d", "maps"], ["e"]),
    _node("ConvTranspose", ["e", "kernel"], ["logits"], strides=[2, 2], pads=[1, 1, 1, 1]),
    _node("Sigmoid", ["logits"], ["image"]),
]

_READ = ImageInput(name="image", height=SIDE, width=SIDE)
_DECODER = Graph(Signature((LATENT,), (LOGITS, DRAWN)), _UP, _decode)
CODER = Coded(
    Graph(
        Signature((IMAGE, NOISY), (MEAN, VARIANCE, LATENT, LOGITS, DRAWN, ERROR)),
        [*_NOISED, *_UP, *_APART],
        _both,
    ),
    Codec(
        image=_READ,
        pictures=Pictures(
            latent="latent", drawn="reconstruction", decoder="decoder", encoder="encoder",
            code="mean", reconstruction="reconstruction",
        ),
        noise=("noise", "latent"),
        block=BLOCK,
    ),
    {
        "encoder": Graph(Signature((IMAGE, NOISY), (MEAN, VARIANCE, LATENT)), _NOISED, _encode),
        "decoder": _DECODER,
    },
)  # fmt: skip
FINDER = Coded(
    Graph(
        Signature((IMAGE,), (LATENT, LOGITS, DRAWN, ERROR)), [*_PLAIN, *_UP, *_APART], _both
    ),
    Codec(
        image=_READ,
        pictures=Pictures(
            latent="latent", drawn="reconstruction", decoder="decoder", encoder="encoder",
            code="latent", reconstruction="reconstruction",
        ),
        anomaly=Anomaly(error="error", threshold=THRESHOLD),
        block=BLOCK,
    ),
    {"encoder": Graph(Signature((IMAGE,), (LATENT,)), _PLAIN, _encode), "decoder": _DECODER},
)  # fmt: skip
DRAWER = Coded(
    Graph(
        Signature(
            (
                TensorSpec("latent", "float32", (BATCH, NOISE), -3.0, 3.0),
                TensorSpec("label", "int64", (BATCH,), 0, len(CLASSES) - 1),
            ),
            tuple(TensorSpec(n, "float32", (BATCH, 3, 12, 12)) for n in ("logits", "image")),
        ),
        _COLOURED,
        _draw,
    ),
    Codec(
        classes=CLASSES,
        pictures=Pictures(latent="latent", drawn="image", label="label"),
        noise=("latent",),
        block=BLOCK,
    ),
)


def _write_graph(path: Path, signature: Signature, nodes: list[Any]) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, shape)

    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [declare(spec) for spec in signature.inputs],
        [declare(spec) for spec in signature.outputs],
        [numpy_helper.from_array(a, n) for n, a in WEIGHTS.items() if n in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def _export(
    folder: Path, name: str, graph: Graph, codec: Codec, parts: Mapping[str, str]
) -> OnnxModel:
    """One graph and its cases, as `pipeline.export` leaves them."""
    random = np.random.default_rng(3)
    samples = {"image": pictures(80), "label": np.arange(80) % len(CLASSES)}
    for spec in graph.signature.inputs:
        size = spec.at({"batch": 80})
        samples.setdefault(spec.name, random.normal(size=size).astype(np.float32))
    _write_graph(folder / MODEL, graph.signature, graph.nodes)
    cases = record_cases(graph.signature, samples, graph.answer)
    value = write_model(folder, name, graph.signature, cases, codec, parts=dict(parts))
    save_value(value)
    return value


def make_bundle(folder: Path, name: str, coded: Coded) -> Path:
    """A certified bundle of the model, with its parts."""
    stage, out = folder / f"{name}-stage", folder / name
    for path in (stage / "graph", stage / "engine", stage / "certificate", out):
        path.mkdir(parents=True)
    digests = {
        n: _export(new_part(stage / "graph", n), name, g, coded.codec.of_part(), {}).digest
        for n, g in coded.parts.items()
    }
    model = _export(stage / "graph", name, coded.whole, coded.codec, digests)
    engine = optimize(model, TARGET, stage / "engine")
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, stage / "certificate")
    assert certificate, certificate.failures
    _copy(out, model, engine, certificate)
    for n in coded.parts:
        _copy(out / PARTS / n, part(model, n), part(engine, n), part(certificate, n))
    write_json(out / CODEC, coded.codec.model_dump(mode="json"))
    signatures = {n: graph.signature for n, graph in coded.parts.items()}
    write_manifest(
        out, name=name, kind="generative", signature=coded.whole.signature, parts=signatures
    )
    return out


def _copy(out: Path, model: OnnxModel, engine: Engine, certificate: Certificate) -> None:
    (out / CASES).mkdir(parents=True)
    save(model, out, MODEL_VALUE)
    shutil.copy(model.folder / MODEL, out / MODEL)
    shutil.copy(model.folder / CASES_FILE, out / CASES / CASES_FILE)
    engine_folder = out / ENGINES / TARGET
    shutil.copytree(engine.folder, engine_folder, ignore=shutil.ignore_patterns(PARTS))
    shutil.copytree(
        certificate.folder,
        engine_folder,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(PARTS),
    )


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Grey pictures [count, 1, 28, 28] of whole bytes, as those of a file, in [0, 1]."""
    few = np.random.default_rng(seed).integers(0, 256, (count, 7, 7))
    return (few.repeat(4, 1).repeat(4, 2)[:, None] / np.float32(255)).astype(np.float32)


def encoded(picture: np.ndarray, format: str = "PNG") -> bytes:
    """A picture [1, height, width] in [0, 1] as a file."""
    file = io.BytesIO()
    Image.fromarray(np.rint(picture[0] * 255).astype(np.uint8)).save(file, format)
    return file.getvalue()


def single(values: Any) -> np.ndarray:
    """Numbers of JSON as the float32 they were."""
    return np.array(values, np.float32)


def asked(bundle: Bundle, inputs: Arrays) -> Arrays:
    """What the bundle's engine answers here, in the blocks that its codec asks for."""
    return in_blocks(bundle.open_engine(TARGET).run, BLOCK)(inputs)
