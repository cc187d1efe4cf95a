"""Versions of one small model whose answers differ, and runs that bless them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from models.codec import Codec
from models.signature import Arrays
from tests.serving.conftest import LEVEL, make_bundle, write_manifest

NAME = "level"
ONE = np.array([[1, 0, 0]], np.float32)  # asked this, version k answers k


def make_version(folder: Path, number: int) -> Path:
    """A certified bundle in a new `folder`: version `number` answers that many times as much."""
    slope = np.array([[number], [2 * number], [-number]], np.float32)
    nodes = [
        helper.make_node("Constant", [], ["factor"], value=numpy_helper.from_array(slope)),
        helper.make_node("MatMul", ["features", "factor"], ["value"]),
    ]

    def answer(inputs: Arrays, dtype: Any) -> Arrays:
        return {"value": inputs["features"].astype(dtype) @ slope.astype(dtype)}

    made = make_bundle(folder, NAME, LEVEL, nodes, Codec(values="value"), answer)
    write_manifest(made, name=NAME, signature=LEVEL, version=str(number))
    return made


def make_run(folder: Path, bundles: Sequence[Path]) -> Path:
    """A run's folder of the model with copies of these bundles, of which none is blessed."""
    run = folder / NAME
    for bundle in bundles:
        shutil.copytree(bundle, run / bundle.parent.name)
    (run / "bundle").symlink_to(bundles[0].parent.name)
    return run
