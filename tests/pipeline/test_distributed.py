"""Training by several processes: the weights of one process, up to the order of additions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from models.errors import BadSetting
from models.zoo import ZOO
from pipeline.distributed import Group, check_divisible, current_group, told_by_first
from pipeline.train import train
from pipeline.values import HISTORY, TRAINED_VALUE, WEIGHTS
from tests.pipeline.sharing import RECIPES

WORLD = 2


@given(st.integers(1, 9), st.integers(0, 200))
def test_every_row_is_one_processs_and_in_order(world: int, rows: int) -> None:
    batch = {"x": torch.arange(rows)}
    groups = [Group(rank, world) for rank in range(world)]
    parts = [group.own(batch, rows)["x"] for group in groups]
    assert torch.equal(torch.cat(parts), batch["x"])
    assert [len(part) for part in parts] == groups[0].sizes(rows)
    assert max(groups[0].sizes(rows)) - min(groups[0].sizes(rows)) <= 1


def test_alone_there_is_nothing_to_tell() -> None:
    assert current_group() == Group(0, 1)
    assert told_by_first(current_group(), lambda: 7) == 7


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("dqn", {}, "it gathers its own rows"),
        ("gan", {}, "its gradients follow a rule of its own"),
        ("mlp", {"batch_size": 4}, "fewer rows than there are processes"),
    ],
)
def test_what_cannot_be_divided_is_refused(name: str, changes: dict[str, int], why: str) -> None:
    recipe = ZOO[name].override(changes)
    with pytest.raises(BadSetting, match=why):
        check_divisible(recipe, recipe.training["embedded"], 1257, Group(0, 2))
    check_divisible(recipe, recipe.training["embedded"], 1257, Group(0, 1))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe as it was trained by two processes, which share each batch."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "tests.pipeline.sharing"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([*command, str(rank), str(WORLD), str(folder)], env=settings)
        for rank in range(WORLD)
    ]
    assert [process.wait(300) for process in processes] == [0] * WORLD
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_several_processes_train_what_one_trains(name: str, together: Path, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    alone = train(recipe, "embedded", recipe.load("embedded"), tmp_path)
    expected = load_file(tmp_path / WEIGHTS)
    got = load_file(together / name / "0" / WEIGHTS)
    assert got.keys() == expected.keys()
    start = recipe.build().state_dict()
    moved = 0.0
    for key, wanted in expected.items():
        torch.testing.assert_close(got[key], wanted, rtol=1e-3, atol=2e-5)
        moved = max(moved, float((wanted - start[key]).abs().max()))
    assert moved > 1e-2  # there was something to learn
    said = json.loads((together / name / "0" / TRAINED_VALUE).read_text())
    assert said["processes"] == WORLD
    assert said["metrics"] == pytest.approx(alone.metrics, abs=1e-3)
    one, several = (
        json.loads((folder / HISTORY).read_text()) for folder in (tmp_path, together / name / "0")
    )
    for mine, theirs in zip(one, several, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["validation"] == pytest.approx(mine["validation"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_all_processes_end_with_the_same_bits(name: str, together: Path) -> None:
    files = {(together / name / str(rank) / WEIGHTS).read_bytes() for rank in range(WORLD)}
    assert len(files) == 1
