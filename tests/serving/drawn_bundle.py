"""A small classifier of drawn digits made without torch: fixed kernels, and a fitted last layer."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model
from PIL import Image, ImageDraw

from models.codec import Codec, ImageInput
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.bundle import CASES, ENGINES
from pipeline.cases import CASES_FILE
from pipeline.optimize import optimize
from pipeline.values import CODEC, MODEL, Engine
from pipeline.verify import verify
from tests.serving.conftest import TARGET, record_cases, write_manifest, write_model

SIDE = 28
# Strokes in the unit square, y down, as they are drawn on the page too.
_TURN = np.linspace(0, 2 * np.pi, 24)
STROKES = {
    "0": [(0.5 + 0.25 * np.sin(t), 0.5 - 0.35 * np.cos(t)) for t in _TURN],
    "1": [(0.5, 0.15), (0.5, 0.85)],
    "7": [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)],
}
KERNELS = np.array(
    [
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
        [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ],
    np.float32,
)[:, None]
BATCH = Axis("batch", 1, 4, 16)
SIGNATURE = Signature(
    (TensorSpec("image", "float32", (BATCH, 1, SIDE, SIDE), 0.0, 1.0),),
    (TensorSpec("probabilities", "float32", (BATCH, len(STROKES))),),
)


def convolve(image: np.ndarray, dtype: Any) -> np.ndarray:
    """The first layer's maps [rows, 4, 28, 28], in plain numpy."""
    padded = np.pad(image.astype(dtype), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, KERNELS.astype(dtype))


def drawings(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits that fill their pictures [rows, 1, 28, 28], of any thickness, and their classes."""
    random, pictures, labels = np.random.default_rng(3), [], []
    for row in range(count):
        label = row % len(STROKES)
        points = np.array(list(STROKES.values())[label]) + random.normal(0, 0.015, 2)
        sheet = Image.new("L", (280, 280))
        pen = random.integers(20, 40)
        places = [tuple(point) for point in (points * 280).tolist()]
        ImageDraw.Draw(sheet).line(places, 255, int(pen), "curve")
        left, top, right, bottom = sheet.getbbox() or (0, 0, 280, 280)
        scale = SIDE / max(right - left, bottom - top)
        size = round((right - left) * scale) or 1, round((bottom - top) * scale) or 1
        picture = Image.new("L", (SIDE, SIDE))
        small = sheet.crop((left, top, right, bottom)).resize(size, Image.Resampling.BILINEAR)
        picture.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
        pictures.append(np.asarray(picture, np.float32)[None] / 255)
        labels.append(label)
    return np.stack(pictures), np.array(labels)


def _features(image: np.ndarray, dtype: Any) -> np.ndarray:
    maps = np.maximum(convolve(image, dtype), 0)
    pooled = maps.reshape(*maps.shape[:2], 7, 4, 7, 4).max((3, 5))
    return pooled.reshape(len(image), -1)


@cache
def head() -> np.ndarray:
    """The last layer [features, classes], by ridge regression on drawings."""
    images, labels = drawings(150)
    rows, wanted = _features(images, np.float64), np.eye(len(STROKES))[labels] * 8 - 4
    fitted = rows.T @ np.linalg.solve(rows @ rows.T + 10 * np.eye(len(rows)), wanted)
    return fitted.astype(np.float32)


def answer(inputs: Arrays, dtype: Any) -> Arrays:
    logits = _features(inputs["image"], dtype) @ head().astype(dtype)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return {"probabilities": powers / powers.sum(1, keepdims=True)}


def _write_graph(path: Path) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, shape)

    node = helper.make_node
    nodes = [
        node("Conv", ["image", "edges.weight"], ["maps"], pads=[1, 1, 1, 1]),
        node("Relu", ["maps"], ["positive"]),
        node("MaxPool", ["positive"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Flatten", ["pooled"], ["rows"]),
        node("MatMul", ["rows", "head"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    weights = {"edges.weight": KERNELS, "head": head()}
    graph = helper.make_graph(
        nodes, "graph",
        [declare(spec) for spec in SIGNATURE.inputs],
        [declare(spec) for spec in SIGNATURE.outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def make_bundle(folder: Path) -> Path:
    """A certified bundle `drawn` of the classes 0, 1 and 7."""
    stage, out = folder / "stage", folder / "drawn"
    engine_folder = out / ENGINES / TARGET
    for path in (stage, out / CASES, engine_folder):
        path.mkdir(parents=True)
    _write_graph(stage / MODEL)
    cases = record_cases(SIGNATURE, {"image": drawings(40)[0]}, answer)
    codec = Codec(
        image=ImageInput(name="image", height=SIDE, width=SIDE),
        classes=tuple(STROKES), scores="probabilities",
    )  # fmt: skip
    model = write_model(stage, "drawn", SIGNATURE, cases, codec)
    engine = optimize(model, TARGET, engine_folder)
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, engine_folder)
    assert certificate, certificate.failures
    for name, place in ((MODEL, out), (CASES_FILE, out / CASES), (CODEC, out)):
        shutil.copy(stage / name, place / name)
    write_manifest(out, name="drawn", signature=SIGNATURE)
    return out
