"""SIGKILL inside any stage: the next run goes on, and ends in the same bundle, byte for byte."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from flows.stages import STAGES
from pipeline.values import CANDIDATES
from tests.flows.conftest import Fucina

# The command line itself, in which the progress line of one stage kills the process.
DIES = """
import os, signal, flows.console
def dying(recipe, stage):
    def progress(done, total, text):
        print(stage, done, flush=True)
        if stage == {stage!r} and done == {done}:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress
flows.console._lines = dying
from flows.cli import main
main()
"""
# In train after the first whole epoch; elsewhere at the first word of the stage.
AT = {"train": 1, "export": 3, "optimize": 0, "verify": 1, "package": 1}


def test_a_run_killed_in_every_stage_ends_in_the_undisturbed_bundle(
    fucina: Fucina, tmp_path: Path
) -> None:
    command = ("run", "lenet5", "--set", "epochs=2", "--set", "floor=0.2", "--json")
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    undisturbed = json.loads(fucina(*command, cwd=calm).stdout)[0]

    for stage in STAGES:
        code = DIES.format(stage=stage, done=AT[stage])
        killed = fucina(*command, cwd=rough, code=code)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        said = killed.stdout.split("\n")[:-1]
        assert said[-1] == f"{stage} {AT[stage]}"
        # What was finished before was not done again.
        assert {line.split()[0] for line in said} <= {stage, STAGES[STAGES.index(stage) - 1]}
        assert not (rough / "runs/lenet5/bundle").exists()
        left = [p.name for p in (rough / "runs/lenet5" / stage).iterdir()]
        assert [n for n in left if not n.startswith(".partial-") and "checkpoint" not in n] == []

    final = fucina(*command, cwd=rough)
    assert final.returncode == 0, final.stderr
    assert json.loads(final.stdout)[0]["digest"] == undisturbed["digest"]
    assert not list(rough.rglob(".partial-*"))
    assert not list(rough.rglob("*.checkpoint"))
    files = [
        {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and path.name != CANDIDATES  # times differ
        }
        for root in (calm / "runs", rough / "runs")
    ]
    assert files[0] == files[1]
