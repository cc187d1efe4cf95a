"""Bounds of lower precisions: a sound graph is inside them, one with a fault is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from models.codec import Codec
from pipeline.backends import TARGETS, mixed, qdq
from pipeline.cases import read_cases
from pipeline.compare import BOUNDS, Run, derive_limits, replay, worst_ratio
from pipeline.faults import FAULTS, Subject, mutate
from pipeline.samples import CALIBRATION_ROWS
from pipeline.values import CODEC, MODEL, OnnxModel
from tests.conftest import Release
from tests.pipeline.simulated import simulated

LOWER = ("tf32", "fp16", "bf16", "int8", "fp8")
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def exported(lenet5: Release) -> OnnxModel:
    return lenet5.model


def run(model: OnnxModel, precision: str, folder: Path, fault: str = "") -> Run:
    """The graph in a precision, with a fault in it, as the simulation computes it."""
    path = model.folder / MODEL
    signature = model.signature
    keep = mixed.sensitive(path, signature, precision) if precision in ("fp16", "bf16") else ()
    if fault:
        codec = Codec.model_validate_json((model.folder / CODEC).read_bytes())
        subject = Subject(signature, codec, None)
        mutant = mutate(onnx.load_model(path), BY_NAME[fault], subject, 0)
        assert mutant is not None
        path = folder / MODEL
        onnx.save_model(mutant.graph, path)
        shutil.copy(model.folder / CALIBRATION_ROWS, folder)
    if precision == "tf32":
        return simulated(path, precision)
    out = folder / "low.onnx"
    if precision in ("fp16", "bf16"):
        mixed.write(path, out, precision, keep)
    else:
        qdq.quantise(path, signature, out, (), folder / "ranges.json", precision)
    return simulated(out, precision)


def worst(model: OnnxModel, precision: str, engine: Run) -> float:
    cases = read_cases(model.folder)
    floors = model.floors[TARGETS[f"tensorrt-{precision}"].rounding]
    limits = derive_limits(cases, precision, floors)
    ratio = worst_ratio(replay(engine, cases, limits))
    assert ratio is not None
    return ratio


def test_every_precision_of_a_target_has_bounds() -> None:
    assert {"fp32", *LOWER} == BOUNDS.keys()


@pytest.mark.parametrize("precision", LOWER)
def test_a_sound_graph_is_inside_its_limits(
    precision: str, exported: OnnxModel, tmp_path: Path
) -> None:
    # Torch's own rounding is told from the graph's by no more than this share of the limit.
    assert 0.05 < worst(exported, precision, run(exported, precision, tmp_path)) < 0.9


# fp8 is as coarse as a bias that is not there: that is for the fp32 engine to show.
@pytest.mark.parametrize(
    ("precision", "fault"),
    [
        *((precision, "dropped bias") for precision in ("tf32", "fp16")),
        *((precision, "swapped channels") for precision in LOWER),
        *((precision, "dropped activation") for precision in LOWER),
        *((precision, "shifted kernel") for precision in LOWER),
    ],
)
def test_a_faulty_graph_is_not(
    precision: str, fault: str, exported: OnnxModel, tmp_path: Path
) -> None:
    assert worst(exported, precision, run(exported, precision, tmp_path, fault)) > 1


def test_no_precision_passes_for_one_with_more_bits(exported: OnnxModel, tmp_path: Path) -> None:
    bf16 = run(exported, "bf16", tmp_path)
    assert worst(exported, "fp16", bf16) > 1
    assert worst(exported, "tf32", bf16) > 1
