"""The experiment `episodes`: its agent, its verdict both ways, and a small real run of it."""

from __future__ import annotations

import http.client
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.experiments import Setup, find
from flows.experiments.episodes import (
    RANDOM,
    SERVED,
    TORCH,
    UNTRAINED,
    Record,
    agent,
    judge,
    recorded,
)
from models.errors import ServingFailed
from pipeline.bundle import Bundle, open_bundle
from pipeline.progress import silent
from serving.launch import serve
from tests.serving.control_bundle import MOST, POLE, make_bundle


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_bundle(POLE, tmp_path_factory.mktemp("pole")))


@pytest.fixture(scope="module")
def connection(pole: Bundle) -> Iterator[http.client.HTTPConnection]:
    with serve([pole.folder], port=0, grpc_port=0) as server:
        opened = http.client.HTTPConnection(server.http.removeprefix("http://"))
        yield opened
        opened.close()


@pytest.mark.parametrize("rows", [1, MOST, MOST + 1, 3 * MOST + 5])
def test_the_agent_takes_the_servers_actions_in_order(
    pole: Bundle, connection: http.client.HTTPConnection, rows: int
) -> None:
    seen = POLE.observations(rows, seed=rows)
    taken = agent(connection, pole)(seen)
    np.testing.assert_array_equal(taken, POLE.answer(seen).argmax(1))


def test_what_the_server_refuses_ends_the_game(
    pole: Bundle, connection: http.client.HTTPConnection
) -> None:
    with pytest.raises(ServingFailed, match=r"/act answered 400: got input .* wrong shape"):
        agent(connection, pole)(np.zeros((2, 3)))
    assert len(agent(connection, pole)(POLE.observations(2))) == 2


def test_a_record_counts_what_another_policy_would_not_have_done() -> None:
    choose, record = recorded(lambda seen: seen[:, 0] > 0, silent, 9)
    for seed in range(3):
        seen = POLE.observations(5, seed=seed)
        np.testing.assert_array_equal(choose(seen), seen[:, 0] > 0)
        seen[:] = 0  # what an environment does to its own arrays afterwards
    assert record.count() == 15
    assert record.others(lambda seen: seen[:, 0] > 0) == 0
    assert record.others(lambda seen: seen[:, 0] <= 0) == 15
    every = np.concatenate(record.observations)[:, 0] > 0
    assert record.others(lambda seen: np.ones(len(seen))) == 15 - every.sum()
    assert Record([], []).count() == 0


def returns(**changed: list[float]) -> dict[str, np.ndarray]:
    usual = {"served": [200, 300.5], "torch": [200, 300.5], "random": [20, 9], "untrained": [9, 9]}
    names = {"served": SERVED, "torch": TORCH, "random": RANDOM, "untrained": UNTRAINED}
    return {names[name]: np.array(values) for name, values in (usual | changed).items()}


@pytest.mark.parametrize(
    ("changed", "reported", "holds", "words"),
    [
        ({}, 250.25, True, "Episode by episode both return the same. Of 501 actions that were"),
        ({"served": [200, 300]}, 250.25, False, "1 episodes return something else when served, by"),
        ({"served": [300.5, 200]}, 250.25, False, "2 episodes return something else when served"),
        ({}, 250.0, False, "in torch 250.25 (250.00 reported by training)"),
        ({"random": [500, 500]}, 250.25, False, "random actions 500.00"),
        ({"untrained": [200, 300.5]}, 250.25, False, "the untrained module 250.25"),
    ],
)
def test_the_claim_holds_when_every_episode_returns_the_same(
    changed: dict[str, list[float]], reported: float, holds: bool, words: str
) -> None:
    verdict, held = judge(returns(**changed), reported, 501, 2)
    assert held is holds
    assert words in verdict
    assert verdict.endswith("2 are not the module's.")


def test_episodes_for_real(tmp_path: Path) -> None:
    tiny = {"epochs": 4, "steps": 256, "rows": 1024}
    outcome = find("episodes").run(Setup(tmp_path, changes=tiny))
    assert [row["policy"] for row in outcome.rows] == [TORCH, SERVED, RANDOM, UNTRAINED]
    assert all(math.isfinite(v) for row in outcome.rows for v in row.values() if row["policy"] != v)
    torch_row, served, *_ = outcome.rows
    assert served == torch_row | {"policy": SERVED, "actions as the module's": 1}
    assert served["actions"] == round(100 * served["mean return"]), "each step is worth 1"
    assert f"Of {served['actions']:,} actions that were served, 0" in outcome.verdict
    assert tiny.items() <= outcome.settings.items()
    (figure,) = outcome.figures
    assert "<svg" in figure.markup
