"""Small graphs from x to y, with the rows that they are calibrated by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.signature import Axis, Signature, TensorSpec
from pipeline.backends.mixed import sensitive
from pipeline.samples import CALIBRATION_ROWS, Samples, write_samples
from pipeline.values import MODEL

FLOAT = TensorProto.FLOAT
WIDTH = 6
BATCH = Axis("batch", 1, 8, 64)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (BATCH, WIDTH)),), (TensorSpec("y", "float32", (BATCH, WIDTH)),)
)


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    rows: np.ndarray | None = None,
    opset: int = 18,
) -> Path:
    """A graph from x to y, both [batch, WIDTH], and rows that it is calibrated by."""
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, folder / MODEL)
    rows = np.linspace(-1, 1, 16 * WIDTH, dtype=np.float32) if rows is None else rows
    write_samples(Samples({"x": rows.reshape(-1, WIDTH)}), folder / CALIBRATION_ROWS)
    return folder / MODEL


def reasons(folder: Path, nodes: Sequence[onnx.NodeProto], **weights: np.ndarray) -> dict[str, str]:
    rows = np.random.default_rng(0).normal(size=(16, WIDTH)).astype(np.float32)
    return sensitive(save(folder, nodes, weights, rows), SIGNATURE, "fp16")
