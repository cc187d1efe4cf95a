"""Training by torchrun: the floor of one process, two nodes, an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows import stages
from flows.launching import Placement, launch
from flows.stages import Job
from models.errors import BadSetting, FloorMissed, TrainingFailed
from pipeline.values import HISTORY, WEIGHTS


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize(
    ("placement", "why"),
    [
        (Placement(2, node_rank=1), "no such node"),
        (Placement(1, nodes=2), "nodes meet at one address"),
        (Placement(2, rendezvous="127.0.0.1:1"), "nodes meet at one address"),
        (Placement(1, nodes=2, rendezvous="nowhere"), "expected HOST:PORT"),
    ],
)
def test_what_cannot_be_placed_is_one_line(placement: Placement, why: str) -> None:
    with pytest.raises(BadSetting, match=why):
        placement.check("cpu")


def workers(job: Job) -> list[int]:
    """The processes that train a job, which name its folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "flows.launching" in line and str(job.out) in line:
            found.append(int(path.name))
    return sorted(found)


def listening(process: int) -> list[str]:
    """The addresses at which a process listens."""
    connections = psutil.Process(process).net_connections("inet")
    return [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN]


def gone(job: Job) -> bool:
    for _ in range(600):
        if not workers(job):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_to_the_floor_of_one(tmp_path: Path) -> None:
    """Real processes and a training long enough for the floor: about a minute."""
    changes = {"epochs": 12}
    alone = stages.train(Job("lenet5", out=tmp_path / "one", changes=changes))
    job = Job("lenet5", out=tmp_path / "two", changes=changes, placement=Placement(2))
    together = stages.train(job)  # which raises below the floor
    assert together.processes == 2
    assert together.metrics == pytest.approx(alone.metrics, abs=5e-3)
    assert gone(job)
    # What several trained is what later commands find, whatever they say of processes.
    later = Job("lenet5", out=tmp_path / "two", changes=changes)
    assert stages.train(later, only_resume=True) == together


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_failure_arrives_as_itself(tmp_path: Path) -> None:
    changes = {"epochs": 1, "learning_rate": 1e-6}
    job = Job("lenet5", out=tmp_path, changes=changes, placement=Placement(2))
    with pytest.raises(FloorMissed, match="misses its floor of test accuracy: got 0"):
        stages.train(job)
    assert gone(job)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_process_ends_all_and_the_training_goes_on_later(tmp_path: Path) -> None:
    """Starts three trainings of two processes."""
    changes = {"epochs": 4, "floor": "none"}
    undisturbed = stages.train(
        Job("lenet5", out=tmp_path / "calm", changes=changes, placement=Placement(2))
    )
    job = Job("lenet5", out=tmp_path / "hit", changes=changes, placement=Placement(2))

    def hit(done: int, total: int, text: str) -> None:
        if done == 2 and text.startswith("loss"):
            os.kill(workers(job)[-1], signal.SIGKILL)

    with pytest.raises(TrainingFailed, match=r"process \d of the training died: got SIGKILL; run"):
        stages.train(job, hit)
    assert gone(job)
    assert not list((tmp_path / "hit" / "lenet5" / "train").glob(".partial*"))
    heard: list[int] = []
    resumed = stages.train(job, lambda done, total, text: heard.append(done))
    assert min(heard) >= 2  # the first epochs were kept
    assert resumed.files[WEIGHTS] == undisturbed.files[WEIGHTS]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_caller_leaves_no_process(tmp_path: Path) -> None:
    job = Job("lenet5", out=tmp_path)
    command = ["train", "lenet5", "--devices", "2", "--set", "epochs=900", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "flows", *command], stderr=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stderr is not None
        assert "loss" in caller.stderr.readline() + caller.stderr.readline()
        assert len(workers(job)) == 3  # the agent and two
        assert {host for one in workers(job) for host in listening(one)} == {"127.0.0.1"}
        caller.kill()
    assert gone(job)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_nodes_train_what_one_trains(tmp_path: Path) -> None:
    """Two agents on this machine, who meet at a port of it as two machines would."""
    changes = {"epochs": 2, "floor": "none"}
    alone = stages.train(Job("lenet5", out=tmp_path / "one", changes=changes))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    first, second = (
        Job(
            "lenet5", out=tmp_path / str(rank), changes=changes,
            placement=Placement(1, 2, rank, address),
        )
        for rank in range(2)
    )  # fmt: skip
    (tmp_path / "nothing").mkdir()
    helper = threading.Thread(
        target=launch, args=(second, second.placement, tmp_path / "nothing", None)
    )
    helper.start()
    together = stages.train(first)
    helper.join()
    assert together.processes == 2
    assert not list((tmp_path / "nothing").iterdir())
    history = [json.loads((one.folder / HISTORY).read_text()) for one in (alone, together)]
    assert [e["loss"] for e in history[1]] == pytest.approx(
        [e["loss"] for e in history[0]], rel=1e-4
    )
    assert gone(first)
    assert gone(second)
