"""Schedules against torch's own; optimizers against the updates of their papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, lr_scheduler

from models.optimization import learning_rate, make_optimizer
from models.recipe import Optimizer, Schedule, Training

STEPS = 400


def rates(schedule: Schedule) -> list[float]:
    settings = Training(schedule=schedule, learning_rate=0.5)
    return [learning_rate(settings, step / STEPS, []) for step in range(STEPS)]


def torchs(make: Callable[[SGD], lr_scheduler.LRScheduler]) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_cosine_and_step_are_torchs() -> None:
    assert set(rates("constant")) == {0.5}
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS))
    assert rates("cosine") == pytest.approx(expected, abs=1e-9)
    expected = torchs(lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4]))
    assert rates("step") == pytest.approx(expected)


def test_one_cycle_is_torchs_up_to_its_steps() -> None:
    """Torch ends each phase one step early, which is 1/120 of the rise."""
    expected = torchs(lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS))
    assert rates("one-cycle") == pytest.approx(expected, abs=0.5 * 0.02)
    assert max(rates("one-cycle")) == pytest.approx(0.5)
    assert rates("one-cycle")[0] == pytest.approx(0.02)


@given(st.lists(st.integers(0, 6), max_size=30))
def test_plateau_is_torchs(losses: list[int]) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=3, threshold=0, eps=0)
    settings = Training(schedule="plateau", learning_rate=0.5)
    for count in range(len(losses)):
        scheduler.step(losses[count])
        ours = learning_rate(settings, 0.0, [float(loss) for loss in losses[: count + 1]])
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_every_schedule_stays_between_nothing_and_the_rate(schedule: Schedule) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(schedule))


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_descends(name: Optimizer) -> None:
    point = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = make_optimizer(Training(optimizer=name, learning_rate=0.05), [point])
    start = float(point.detach().square().sum())
    for _ in range(60):
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    assert float(point.detach().square().sum()) < start


def first_step(name: Optimizer, decay: float = 0.0) -> float:
    point = nn.Parameter(torch.tensor([2.0]))
    settings = Training(optimizer=name, learning_rate=0.1, weight_decay=decay)
    optimizer = make_optimizer(settings, [point])
    (point * 4).sum().backward()
    optimizer.step()
    return float(point.detach()) - 2.0


def test_the_first_step_is_the_papers() -> None:
    assert first_step("sgd") == pytest.approx(-0.4)
    assert first_step("momentum") == pytest.approx(-0.4)
    for name in ("adam", "adamw", "adagrad"):  # gradient over its own size
        assert first_step(name) == pytest.approx(-0.1, rel=1e-4)
    assert first_step("rmsprop") == pytest.approx(-0.1 / 0.01**0.5, rel=1e-4)
    # Adadelta: rate * sqrt(eps) / sqrt(0.1 g^2 + eps) * g
    assert first_step("adadelta") == pytest.approx(-0.1 * (1e-6 / 1.600001) ** 0.5 * 4, rel=1e-3)


def test_only_adamw_decays_weights_apart_from_the_gradient() -> None:
    assert first_step("sgd", 0.5) == pytest.approx(-0.1 * (4 + 0.5 * 2))
    assert first_step("adam", 0.5) == pytest.approx(-0.1, rel=1e-4)
    assert first_step("adamw", 0.5) == pytest.approx(-0.1 - 0.1 * 0.5 * 2, rel=1e-4)
