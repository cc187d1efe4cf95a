"""Scheduled runs on a server and a worker: sweeps, what a person decides, what is cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.blessed import read_record
from tests.flows.conftest import Fucina, ask_prefect
from tests.flows.test_up import marked, until, unused_port

pytestmark = pytest.mark.slow  # a Prefect server and a worker of their own, and trainings
QUICK = ("--set", "epochs=2", "--set", "floor=none", "--seed", "configured")


@dataclass(frozen=True)
class Place:
    """A folder with runs, a server and a worker, and the mark that all their processes carry."""

    folder: Path
    api: str
    mark: str
    do: Callable[..., str]

    def schedule(self, flow: str, *words: str) -> str:
        """Have a flow run once, now; the run's id once it runs."""
        before: list[str] = []
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}

        def begun() -> list[str]:
            runs = ask_prefect(self.api, "flow_runs/filter", body)
            return [one["id"] for one in runs if one["start_time"] and one["id"] not in before]

        before = begun()
        self.do("schedule", flow, "mlp", "--interval", "36000", "--now", *words)
        return until(begun)[0]

    def state(self, run: str) -> str:
        body = {"flow_runs": {"id": {"any_": [run]}}}
        return ask_prefect(self.api, "flow_runs/filter", body)[0]["state"]["name"]

    def slots(self) -> dict[str, int]:
        """How many slots of each limit are taken: of releases, and of each schedule."""
        limits = ask_prefect(self.api, "v2/concurrency_limits/filter", {})
        return {one["name"]: one["active_slots"] for one in limits}

    def children(self) -> list[int]:
        return [one.pid for one in marked(self.mark) if "flows.child" in one.cmdline()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fucina: Fucina) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("scheduled")
    alone = {"PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": ""}

    def do(*words: str) -> str:
        done = fucina(*words, cwd=folder, **alone)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        up = json.loads(do("up", "--port", str(unused_port()), "--json"))
        mark = json.loads((folder / "home/fucina-up.json").read_text())["mark"]
        yield Place(folder, up["api"], mark, do)
    finally:
        fucina("down", cwd=folder, **alone)


def resume(place: Place, run: str, **words: object) -> str:
    """Whether Prefect takes what a person answers."""
    answer: Any = ask_prefect(place.api, f"flow_runs/{run}/resume", {"run_input": words})
    return answer["status"]


def test_a_candidate_is_served_when_a_person_agrees_who_is_recorded(place: Place) -> None:
    run = place.schedule("retrain", "--approval", *QUICK)
    until(lambda: place.state(run) == "Suspended")
    assert read_record(place.folder / "runs/mlp") == []
    until(lambda: not place.children())

    answers: list[dict[str, Any]] = [
        {},
        {"approve": True},
        {"name": " ", "approve": True},
        {"name": "A", "approve": 7},
    ]
    for bad in answers:
        assert resume(place, run, **bad) == "REJECT"
        assert place.state(run) == "Suspended"
    assert resume(place, run, name="Ada Lovelace", approve=True) == "ACCEPT"
    until(lambda: place.state(run) == "Completed")
    (entry,) = read_record(place.folder / "runs/mlp")
    assert (entry.action, entry.who) == ("bless", "Ada Lovelace")
    assert len(list((place.folder / "runs/mlp/train").iterdir())) == 1  # it was not trained again


def test_a_sweep_chooses_by_validation_and_is_a_table(place: Place) -> None:
    vary = ("--vary", "learning_rate=0.1,0.01,100", "--set", "epochs=1", "--set", "optimizer=sgd")
    run = place.schedule("sweep", *vary, "--set", "weight_decay=10")
    until(lambda: place.state(run) == "Completed")
    found = ask_prefect(
        place.api, "artifacts/latest/filter", {"artifacts": {"key": {"any_": ["sweep-mlp"]}}}
    )
    table = json.loads(found[0]["data"])
    assert [row["rank"] for row in table] == [1, 2, "failed"]
    assert table[0]["validation accuracy"] >= table[1]["validation accuracy"]
    assert table[2]["learning_rate"] == 100
    assert "is not finite" in found[0]["description"]
    assert len(list((place.folder / "runs/mlp").glob("compare-*.html"))) == 1


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ("release", ("--set", "floor=none")),
        ("sweep", ("--vary", "batch_size=32,64")),
    ],
)
def test_a_run_that_is_cancelled_leaves_nothing(
    place: Place, flow: str, words: tuple[str, ...]
) -> None:
    old = set(place.folder.glob("runs/mlp/train/*.checkpoint"))
    run = place.schedule(flow, "--set", "epochs=5000", *words)
    until(place.children)
    until(lambda: set(place.folder.glob("runs/mlp/train/*.checkpoint")) - old)
    taken = [name for name, many in place.slots().items() if many]
    assert len(taken) == (2 if flow == "sweep" else 1), taken
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    ask_prefect(place.api, f"flow_runs/{run}/set_state", cancelling)
    until(lambda: place.state(run) == "Cancelled")
    until(lambda: not place.children())
    until(lambda: not any(place.slots().values()))
    place.do("schedule", flow, "mlp", "--remove")
