"""Retraining: what is not worse is promoted, what is worse is refused and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.blessed import read_record
from tests.flows.conftest import Fucina, ask_prefect

# The digits, but the labels of the training rows are in disorder; the test rows are the same.
SHUFFLED = """
from dataclasses import replace
import numpy as np
from models.datasets import Split
from models.zoo import find

def load():
    whole = find("mlp").load("embedded")
    labels = np.random.default_rng(0).permutation(whole.train.targets["label"])
    return replace(whole, train=Split(whole.train.inputs, {"label": labels}))

RECIPE = replace(find("mlp"), data={"embedded": load})
"""
NIGHTS = """
import json
from flows.children import children
from flows.recheck import recheck
from flows.retrain import retrain

quick = {"epochs": 4, "floor": "none"}
with children():
    told = [
        retrain("mlp", changes=quick, seed="configured"),
        retrain("shuffled:RECIPE", changes=quick, seed="configured"),
        retrain("mlp", changes=quick, seed="configured"),
        retrain("mlp", changes=quick | {"batch_size": 64}, seed=1, margin=0.1),
        retrain("mlp", changes=quick, when="changed"),
    ]
    told.append(recheck("mlp"))
print(json.dumps(told))
"""


@pytest.mark.slow  # four trainings, each with its export and certificate
def test_five_nights(fucina: Fucina, prefect_api: str, tmp_path: Path) -> None:
    (tmp_path / "shuffled.py").write_text(SHUFFLED)
    done = fucina(cwd=tmp_path, code=NIGHTS, PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    first, shuffled, same, equal, unchanged, rechecked = json.loads(done.stdout)

    assert first["promoted"]
    assert first["reason"] == "nothing was blessed before"
    assert not shuffled["promoted"]
    assert "accuracy is worse: " in shuffled["reason"]
    (measure,) = shuffled["verdict"]["measures"]
    assert measure["high"] < 0
    assert not same["promoted"]
    assert same["reason"] == "it is what is blessed already"
    assert equal["promoted"], equal["reason"]
    (measure,) = equal["verdict"]["measures"]
    assert measure["low"] <= measure["candidate"] - measure["blessed"] <= measure["high"]
    assert not unchanged["promoted"]

    record = read_record(tmp_path / "runs/mlp")
    assert [entry.action for entry in record] == ["bless", "bless"]
    assert record[1].previous == record[0].version
    assert all(len(one.certificates["ort-cpu-fp32"]) == 64 and one.who for one in record)

    (engine,) = rechecked["engines"]
    assert engine["here"] == engine["packaged"] == "passed"
    assert engine["not run"] == ["task drift: the held-out rows are not here"]  # but its service
    assert rechecked["path"] == f"runs/mlp/recheck-{record[1].version}"

    states = _states(prefect_api, "retrain")
    assert sorted(states.values()) == ["Completed", "Completed", "Refused", "Refused", "Unchanged"]
    artifacts = ask_prefect(prefect_api, "artifacts/latest/filter", {})
    assert {"retrain-mlp", "recheck-mlp", "release-mlp", "certificate-mlp-ort-cpu-fp32"} <= {
        one["key"] for one in artifacts
    }


def _states(api: str, flow: str) -> dict[str, str]:
    body: dict[str, Any] = {"flows": {"name": {"any_": [flow]}}}
    return {run["id"]: run["state"]["name"] for run in ask_prefect(api, "flow_runs/filter", body)}
