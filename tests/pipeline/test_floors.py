"""Noise floors: what each precision costs the module, where it can be asked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.datasets import Split
from models.recurrence import Recurrence, State
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.cases import CARRIED, EDGE, HELD_OUT, VALIDATION, Case
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
    # What a ReLU gives has no sign to spend a bit on.
    assert found["int8"] < found["int8-symmetric"] < 3 * found["int8"]


def test_held_out_and_edge_cases_have_floors_of_their_own() -> None:
    for precision, of in floors().items():
        chosen_by = {VALIDATION} if precision.startswith("int8") else set()
        assert of["y"].keys() == {HELD_OUT, EDGE} | chosen_by


def test_validation_rows_are_as_far_off_as_any_other_rows() -> None:
    for rounding in ("int8", "int8-symmetric"):
        of = floors()[rounding]["y"]
        assert of[HELD_OUT] / 3 < of[VALIDATION] < 3 * of[HELD_OUT]


def test_what_overflows_in_half_precision_has_no_floor_there() -> None:
    found = floors(scale=1e6)
    assert "fp16" in found
    assert HELD_OUT not in found["fp16"]["y"]
    assert HELD_OUT in found["bf16"]["y"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        said, last = self.cell(x, hidden.transpose(0, 1))
        scores = self.head(said)
        return {"y": scores, "next_hidden": last.transpose(0, 1), "best": scores.argmax(-1)}


def test_what_carries_its_state_has_a_floor_of_long_sequences() -> None:
    """As `torch` says step by step in that precision, state in fp32 between the steps."""
    steps = Axis("steps", 1, 4, 6)
    signature = Signature(
        (
            TensorSpec("x", "float32", (ROWS, steps, 16), -1.0, 1.0),
            TensorSpec("hidden", "float32", (ROWS, 1, 32), -1.0, 1.0),
        ),
        (
            TensorSpec("y", "float32", (ROWS, steps, 4)),
            TensorSpec("next_hidden", "float32", (ROWS, 1, 32)),
            TensorSpec("best", "int64", (ROWS, steps)),  # which no precision rounds
        ),
        recurrence=Recurrence("steps", (State("hidden", "next_hidden"),)),
    )
    torch.manual_seed(0)
    module = Recurrent().eval()
    rows = {"x": torch.rand(16, 6, 16).numpy() * 2 - 1}
    cases = record(module, signature, rows)
    x, answers = torch.rand(2, 100, 16), []
    for one, kind in ((module, torch.float32), (copy.deepcopy(module).double(), torch.float64)):
        with torch.inference_mode():
            said = one(x.to(kind), torch.zeros(2, 1, 32, dtype=kind))
        answers.append({name: said[name].numpy() for name in ("y", "best")})
    cases.append(Case("carried", CARRIED, {BATCH: 2, "steps": 100}, {"x": x.numpy()}, *answers))
    split = Split(rows, {})
    calibration = choose_samples(signature, split, rows=16)
    found = measure_floors(
        module, signature, cases, calibration, record_samples(module, signature, split, 8)
    )
    assert "best" not in found["bf16"]
    hidden, steps_said = torch.zeros(2, 1, 32), []
    for step in range(100):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            answer = module(x[:, step : step + 1], hidden)
        hidden = answer["next_hidden"].float()
        steps_said.append(answer["y"].float())
    exact = torch.from_numpy(answers[1]["y"])
    errors = (torch.cat(steps_said, 1).double() - exact) / exact.abs().max()
    worst = [errors[:, a:b].square().mean((1, 2)).sqrt().max() for a, b in
             ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 100))]  # fmt: skip
    assert found["bf16"]["y"][CARRIED] == pytest.approx(float(max(worst)), rel=1e-6)
    assert found["tf32"]["y"][CARRIED] < found["bf16"]["y"][CARRIED]
    assert found.keys() == {"fp16", "bf16", "tf32"}  # state is not carried in eight bits
