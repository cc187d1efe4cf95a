"""The experiment `disentangle`: its verdict both ways, and a small run of the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.experiments.disentangle import BETAS, Found, chosen, judge
from tests.flows.conftest import Fucina

TINY = {"epochs": 1, "image": 16, "hidden": 8, "latents": 3, "batch_size": 512}


def found(scores: Sequence[float], reconstruction: float) -> list[Found]:
    return [Found(score, -reconstruction - 3, reconstruction, 3, 2) for score in scores]


LOW, HIGH = (0.05, 0.1), (0.2, 0.3)


@pytest.mark.parametrize(
    ("one", "larger", "holds"),
    [
        (found(LOW, 40), found(HIGH, 50), True),
        (found(HIGH, 40), found(LOW, 50), False),
        (found((0.05, 0.25), 40), found(HIGH, 50), False),  # one seed at beta 1 is as good
        (found((0.2, 0.2), 40), found(HIGH, 50), False),
        (found(LOW, 50), found(HIGH, 40), False),  # it has no price
        (found(LOW, 40), found((0.2, math.nan), 50), False),
    ],
)
def test_disentangled_is_what_every_seed_of_a_larger_beta_is(
    one: list[Found], larger: list[Found], holds: bool
) -> None:
    verdict, held = judge({1.0: one, 4.0: larger})
    assert held is holds
    assert f"{min(found.mig for found in larger):.3f}" in verdict
    assert f"{max(found.mig for found in one):.3f}" in verdict
    assert f"{larger[0].reconstruction:.1f} nats given its code at beta 4" in verdict
    assert "it uses 2 latents at beta 4 and 2 at beta 1, where the factors are 4" in verdict


def test_the_best_larger_beta_is_chosen_by_its_mean() -> None:
    some = {1.0: found((0.9, 0.9), 1), 2.0: found(LOW, 1), 4.0: found(HIGH, 1), 8.0: found(LOW, 1)}
    assert chosen(some) == 4
    assert "0.900 at beta 1, 0.075 at beta 2, 0.250 at beta 4" in judge(some)[0]


def test_the_command_judges_every_beta_with_every_seed(fucina: Fucina, tmp_path: Path) -> None:
    small = (
        "from flows.experiments import disentangle\n"
        "disentangle.BETAS, disentangle.SEEDS = (1.0, 4.0), (0, 1)\n"
        "from flows.cli import main\nmain()"
    )
    changes = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    arguments = ("experiment", "disentangle", "--json", *changes)
    done = fucina(*arguments, cwd=tmp_path, code=small)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = document["rows"]
    assert [(row["beta"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    for row in rows:
        assert 0 <= row["mutual information gap"] <= 1
        assert row["ELBO"] == pytest.approx(-row["reconstruction, nats"] - row["KL, nats"])
    assert TINY.items() <= document["settings"].items()
    assert not {"beta", "seed"} & document["settings"].keys()
    page = (tmp_path / document["report"]).read_text()
    assert page.count("<svg") == 4
    assert page.count("<image") == 2 * TINY["latents"] * 9

    again = fucina(*arguments, cwd=tmp_path, code=small)
    assert " train " not in again.stderr
    assert json.loads(again.stdout)["rows"] == rows


def test_beta_1_is_among_the_betas() -> None:
    assert BETAS[0] == 1
    assert len(BETAS) > 2
