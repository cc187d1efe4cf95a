"""Noise floors: what each precision costs the module, where it can be asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.datasets import Split
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.cases import EDGE, HELD_OUT, VALIDATION
from pipeline.floors import measure_floors
from pipeline.recording import record, record_samples
from pipeline.samples import choose_samples

ROWS = Axis(BATCH, 1, 4, 8)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (ROWS, 16), -1.0, 1.0),), (TensorSpec("y", "float32", (ROWS, 4)),)
)


class Dense(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.scale = scale

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.layers(x) * self.scale}


def floors(scale: float = 1.0) -> dict[str, dict[str, dict[str, float]]]:
    torch.manual_seed(0)
    module = Dense(scale).eval()
    rows = torch.rand(64, 16).numpy() * 2 - 1
    cases = record(module, SIGNATURE, {"x": rows})
    calibration = choose_samples(SIGNATURE, Split({"x": rows}, {}), rows=64)
    validation = record_samples(module, SIGNATURE, Split({"x": rows[::-1]}, {}), 32)
    return measure_floors(module, SIGNATURE, cases, calibration, validation)


def test_the_fewer_bits_the_higher_the_floor() -> None:
    found = {precision: of["y"][HELD_OUT] for precision, of in floors().items()}
    # Half a unit in the last place of 11, 8 and 8 bits of significand, grown by two layers.
    assert 1e-5 < found["fp16"] < 5e-3
    assert 4 * found["fp16"] < found["bf16"] < 5e-2
    assert 1e-3 < found["int8"] < 5e-2
    # 11 bits of significand of what is read alone, and 4.
    assert found["fp16"] / 10 < found["tf32"] < found["fp16"]
    assert 2 * found["bf16"] < found["fp8"] < 1e-1


def test_held_out_and_edge_cases_have_floors_of_their_own() -> None:
    for precision, of in floors().items():
        chosen_by = {VALIDATION} if precision == "int8" else set()
        assert of["y"].keys() == {HELD_OUT, EDGE} | chosen_by


def test_validation_rows_are_as_far_off_as_any_other_rows() -> None:
    of = floors()["int8"]["y"]
    assert of[HELD_OUT] / 3 < of[VALIDATION] < 3 * of[HELD_OUT]


def test_what_overflows_in_half_precision_has_no_floor_there() -> None:
    found = floors(scale=1e6)
    assert "fp16" in found
    assert HELD_OUT not in found["fp16"]["y"]
    assert HELD_OUT in found["bf16"]["y"]
