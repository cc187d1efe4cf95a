"""Small segmenting bundles made without torch, convolutions around a pooled level, and pictures."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model
from PIL import Image

from models.codec import Codec, TiledImage
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.bundle import CASES, ENGINES
from pipeline.cases import CASES_FILE
from pipeline.optimize import optimize
from pipeline.values import CODEC, MODEL, Engine
from pipeline.verify import verify
from tests.serving.conftest import TARGET, record_cases, write_manifest, write_model

CLASSES = ("ground", "cell", "border")
COLOURS = ("#102030", "#ff8000", "#00c0ff")
SMALLEST, LARGEST = 16, 64
# One pixel by the first convolution, two by the second, one by pooling, two by the third on
# pooled pixels and one more where a pooled pixel is cut.
MARGIN = 8
_FIRST, _DEEP, _LAST = 4, 5, 6


def weights(channels: int) -> Arrays:
    random = np.random.default_rng(channels)
    shapes = {
        "first": (_FIRST, channels, 3, 3),
        "deep": (_DEEP, _FIRST, 3, 3),
        "last": (len(CLASSES), _FIRST + _DEEP, 3, 3),
    }
    return {n: random.normal(0, 0.3, shape).astype(np.float32) for n, shape in shapes.items()}


def make_signature(channels: int) -> Signature:
    height, width = (Axis(name, SMALLEST, 32, LARGEST) for name in ("height", "width"))
    batch = Axis("batch", 1, 2, 4)
    return Signature(
        (TensorSpec("image", "float32", (batch, channels, height, width), 0.0, 1.0),),
        (TensorSpec("probabilities", "float32", (batch, len(CLASSES), height, width)),),
    )


def answer(image: np.ndarray, dtype: Any) -> Arrays:
    """What the graph says of pictures [rows, channels, height, width], in plain numpy."""
    kernels = {n: w.astype(dtype) for n, w in weights(image.shape[1]).items()}
    _, _, tall, wide = image.shape
    first = np.maximum(_convolve(image.astype(dtype), kernels["first"]), 0)
    # Where the size is odd the last window is half outside, where pooling sees nothing.
    even = np.pad(first, [(0, 0), (0, 0), (0, tall % 2), (0, wide % 2)], constant_values=-np.inf)
    pooled = even.reshape(*even.shape[:2], even.shape[2] // 2, 2, even.shape[3] // 2, 2).max((3, 5))
    deep = np.maximum(_convolve(pooled, kernels["deep"]), 0)
    back = deep.repeat(2, 2).repeat(2, 3)[:, :, :tall, :wide]
    logits = _convolve(np.concatenate([first, back], 1), kernels["last"])
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return {"probabilities": powers / powers.sum(1, keepdims=True)}


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    padded = np.pad(image, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, kernel, optimize=True)


def _graph() -> list[Any]:
    node = helper.make_node
    same: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return [
        node("Conv", ["image", "first"], ["a"], **same),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Conv", ["c", "deep"], ["d"], **same),
        node("Relu", ["d"], ["e"]),
        node(
            "Resize", ["e", "", "twice"], ["f"],
            mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric",
        ),
        node("Shape", ["image"], ["sizes"], start=2),
        node("Slice", ["f", "start", "sizes", "sides"], ["g"]),
        node("Concat", ["b", "g"], ["h"], axis=1),
        node("Conv", ["h", "last"], ["logits"], **same),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]  # fmt: skip


def _write_graph(path: Path, signature: Signature, channels: int) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, shape)

    constants = {
        "twice": np.array([1, 1, 2, 2], np.float32),
        "start": np.array([0, 0]),
        "sides": np.array([2, 3]),
    }
    graph = helper.make_graph(
        _graph(),
        "graph",
        [declare(spec) for spec in signature.inputs],
        [declare(spec) for spec in signature.outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights(channels) | constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def make_bundle(folder: Path, name: str, channels: int) -> Path:
    """A certified bundle of pictures with sides of 16 to 64 pixels."""
    stage, out = folder / f"{name}-stage", folder / name
    engine_folder = out / ENGINES / TARGET
    for path in (stage, out / CASES, engine_folder):
        path.mkdir(parents=True)
    signature = make_signature(channels)
    _write_graph(stage / MODEL, signature, channels)
    random = np.random.default_rng(3)
    samples = {"image": random.random((8, channels, LARGEST, LARGEST), np.float32)}
    cases = record_cases(signature, samples, lambda given, dtype: answer(given["image"], dtype))
    tiled = TiledImage(name="image", channels=channels, margin=MARGIN, multiple=2)
    codec = Codec(tiled=tiled, pixels="probabilities", classes=CLASSES, colours=COLOURS)
    model = write_model(stage, name, signature, cases, codec)
    engine = optimize(model, TARGET, engine_folder)
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, engine_folder)
    assert certificate, certificate.failures
    shutil.copy(stage / MODEL, out / MODEL)
    shutil.copy(stage / CASES_FILE, out / CASES / CASES_FILE)
    shutil.copy(stage / CODEC, out / CODEC)
    write_manifest(out, name=name, kind="segmentation", signature=signature)
    return out


def picture(tall: int, wide: int, seed: int = 0) -> np.ndarray:
    """Smooth colours uint8 [height, width, 3], as of a photograph."""
    few = np.random.default_rng(seed).integers(0, 256, (tall // 6 + 2, wide // 6 + 2, 3))
    coarse = Image.fromarray(few.astype(np.uint8))
    return np.asarray(coarse.resize((wide, tall), Image.Resampling.BICUBIC))


def encoded(array: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def scaled(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1) / np.float32(255))
