"""Children that do stages: errors come back as they were, and nothing outlives limit or parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.children import ask, children
from models.errors import DataUnavailable, FucinaError

# A recipe whose data do what the setting `deed` says; `pid` lines tell which processes there are.
NAUGHTY = """
import os, signal, subprocess, time
from dataclasses import replace
from models.errors import DataUnavailable
from models.zoo import find

def load(deed: str = "raise"):
    print("pid", os.getpid(), flush=True)
    if deed == "raise":
        raise DataUnavailable("no rows", got=0, expected=1, fix="bring some") from OSError(5, "why")
    if deed == "foreign":
        class Odd(Exception): ...
        raise Odd("cannot be sent")
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "exit":
        os._exit(3)
    print("pid", subprocess.Popen(["sleep", "600"]).pid, flush=True)
    time.sleep(600)

RECIPE = replace(find("mlp"), name="naughty", data={"embedded": load})
"""
PARENT = """
from flows.children import ask
ask("train", {"reference": "naughty:RECIPE", "plan": {"out": "runs", "changes": {"deed": "hang"}}},
    limit=600, told=print, printed=lambda line: print(line, flush=True))
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "naughty.py").write_text(NAUGHTY)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def warm() -> Iterator[None]:
    with children():
        yield


def do(deed: str, said: list[str], limit: float = 300) -> dict[str, Any]:
    plan = {"out": "runs", "changes": {"deed": deed}}
    return ask(
        "train", {"reference": "naughty:RECIPE", "plan": plan},
        limit=limit, told=lambda *_: None, printed=said.append,
    )  # fmt: skip


def pids(said: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in said if line.startswith("pid ")]


def gone(process: int) -> bool:
    """Whether a process has ended; one that nobody waits for yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_errors_come_back_as_they_were_and_limits_hold(warm: None) -> None:
    said: list[str] = []
    with pytest.raises(DataUnavailable) as raised:
        do("raise", said)
    assert str(raised.value) == "no rows: got 0, expected 1; bring some"
    assert isinstance(raised.value.__cause__, OSError)  # which is what makes it worth a retry
    with pytest.raises(RuntimeError, match="cannot be sent"):
        do("foreign", said)
    assert len(set(pids(said))) == 1  # who raises can still be asked

    before = pids(said)[0]
    with pytest.raises(FucinaError, match="'train' took too long and was ended: got more than 1 s"):
        do("hang", said, limit=1)
    assert before in pids(said)
    for process in pids(said):
        assert gone(process), process


@pytest.mark.parametrize(("deed", "ending"), [("die", "SIGKILL"), ("exit", "exit code 3")])
def test_a_child_that_dies_is_one_line(deed: str, ending: str) -> None:
    said: list[str] = []
    with pytest.raises(FucinaError, match=f"ended without a result: got {ending}"):
        do(deed, said)
    assert all(map(gone, pids(said)))


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        said = [parent.stdout.readline() for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
    assert len(pids(said)) == 2
    until = time.monotonic() + 60
    while not all(map(gone, pids(said))):
        assert time.monotonic() < until
        time.sleep(0.05)
