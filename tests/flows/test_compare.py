"""Comparing settings: what is refused before any training, ranked on validation, and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.comparing import grid, ranked
from flows.stages import Job
from models.errors import BadSetting
from models.mlp import MLP_784_512_10
from tests.flows.conftest import Fucina, ask_prefect

SMALL = ("--set", "epochs=2", "--set", "hidden=16", "--set", "weight_decay=10")


def job(**changes: object) -> Job:
    return Job(MLP_784_512_10.name, changes=changes)


def test_a_grid_is_every_combination_once_as_the_recipe_reads_it() -> None:
    vary = {"optimizer": ["sgd", "adam"], "learning_rate": ["0.1", "1e-1", "0.01"]}
    assert grid(job(epochs=1), vary) == [
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.01},
        {"optimizer": "adam", "learning_rate": 0.1},
        {"optimizer": "adam", "learning_rate": 0.01},
    ]
    assert grid(job(), {"batchnorm": ["yes", "no"]}) == [{"batchnorm": True}, {"batchnorm": False}]


rows = st.lists(
    st.one_of(
        st.just({"error": "diverged"}),
        st.fixed_dictionaries(
            {
                "validation": st.fixed_dictionaries(
                    {
                        "accuracy": st.sampled_from([None, -1.0, 0.0, 0.5, 1.0]),
                        "loss": st.sampled_from([None, 0.0, 0.5, 2.0]),
                    }
                )
            }
        ),
    )
)


@given(rows)
def test_no_variant_stands_before_a_better_one(rows: list[dict[str, Any]]) -> None:
    def goodness(row: dict[str, Any]) -> tuple[float, float]:
        if "error" in row:
            return -200, 0
        accuracy, loss = row["validation"]["accuracy"], row["validation"]["loss"]
        return -100 if accuracy is None else accuracy, -100 if loss is None else -loss

    order = ranked(rows, MLP_784_512_10)
    assert sorted(map(repr, order)) == sorted(map(repr, rows))
    assert [goodness(row) for row in order] == sorted(map(goodness, rows), reverse=True)


@pytest.mark.parametrize(
    ("vary", "changes", "words"),
    [
        ({"speed": ["1"]}, {}, "has no setting 'speed': expected one of activation, batch_size,"),
        ({"optimizer": ["sgd", "magic"]}, {}, "got 'magic', expected 'sgd', 'momentum', 'adam'"),
        ({"epochs": ["3", "0"]}, {}, "got '0', expected greater than or equal to 1"),
        ({"epochs": ["3"]}, {"epochs": "4"}, "setting 'epochs' is both set and varied"),
        ({"floor": ["0.5"]}, {}, "a comparison has no floor"),
        ({"epochs": ["3"]}, {"floor": "0.5"}, "a comparison has no floor"),
    ],
)
def test_what_is_no_setting_is_refused(
    vary: dict[str, list[str]], changes: dict[str, str], words: str
) -> None:
    with pytest.raises(BadSetting) as raised:
        grid(job(**changes), vary)
    assert words in str(raised.value)


def test_a_comparison_is_a_subflow_each_with_a_page_and_resumes(
    fucina: Fucina, prefect_api: str, tmp_path: Path
) -> None:
    command = ("compare", "mlp", "--vary", "optimizer=sgd,adam", "--vary", "learning_rate=0.01,100")
    first = fucina(*command, *SMALL, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["metric"] == "accuracy"
    assert document["settings"] == {"epochs": 2, "hidden": 16, "weight_decay": 10.0}
    found = {
        (row["settings"]["optimizer"], row["settings"]["learning_rate"]): row
        for row in document["variants"]
    }
    # Each step of sgd multiplies the weights by 1 - 10 * 100, so they overflow.
    diverged = found.pop(("sgd", 100.0))
    assert "loss of mlp is not finite" in diverged["error"]
    assert document["variants"][-1] == diverged
    assert found.keys() == {("sgd", 0.01), ("adam", 0.01), ("adam", 100.0)}
    for row in found.values():
        assert row["resumed"] is False
        assert 0 < row["seconds"] < 60
        assert 1 <= row["best_epoch"] <= row["epochs"] == 2
        history = json.loads((tmp_path / row["path"] / "history.json").read_bytes())
        assert row["validation"] == history[row["best_epoch"] - 1]["validation"]
    best = max(found.values(), key=lambda row: row["validation"]["accuracy"])
    assert document["variants"][0] == best
    # The test split is told of the chosen variant only.
    trained = json.loads((tmp_path / best["path"] / "trained.json").read_bytes())
    assert document["chosen"] == {"settings": best["settings"], "test": trained["metrics"]}
    assert trained["floor"] is None

    page = (tmp_path / document["page"]).read_text()
    assert Path(document["page"]).parent == Path("runs/mlp")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 2
    assert f"{trained['metrics']['accuracy']:.4g}" in page
    for row in found.values():
        assert f">{row['validation']['accuracy']:.4g}<" in page
    assert "not finite" in page

    body = {"flow_runs": {"name": {"like_": "optimizer=adam, learning_rate=0.01"}}}
    (run,) = ask_prefect(prefect_api, "flow_runs/filter", body)
    assert run["state_type"] == "COMPLETED"
    assert run["parent_task_run_id"], "it is a run inside another one"

    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/mlp/train/*/*")}
    assert written
    second = fucina(*command, *SMALL, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    # Only what diverged is tried once more.
    assert {line.partition(" train ")[0] for line in second.stderr.splitlines()} <= {
        "optimizer=sgd, learning_rate=100.0"
    }
    assert second.stdout.count("resumed") == 3
    assert document["page"] in second.stdout
    chosen = document["chosen"]["settings"]
    assert (
        "run mlp --set epochs=2 --set hidden=16 --set weight_decay=10.0 "
        f"--set optimizer={chosen['optimizer']} --set learning_rate={chosen['learning_rate']}"
    ) in second.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_when_no_variant_can_be_trained_the_command_fails(fucina: Fucina, tmp_path: Path) -> None:
    done = fucina(
        "compare", "mlp", "--vary", "learning_rate=90,100", "--set", "optimizer=sgd", *SMALL,
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["chosen"] is None
    assert all("not finite" in row["error"] for row in document["variants"])
    assert "fucina: no variant of mlp could be trained" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mlp", "--vary", "optimizer=sgd,magic"], 1, "got 'magic', expected 'sgd'"),
        (["mlp", "--vary", "epochs=1", "--data", "none"], 1, "has no data 'none'"),
        (["mlp"], 2, "Missing option '--vary'"),
        (["mlp", "--vary", "epochs"], 2, "'epochs' is not KEY=VALUE,VALUE,..."),
        (["mlp", "--vary", "epochs=1,,2"], 2, "is not KEY=VALUE,VALUE,..."),
        (["mlp", "--vary", "epochs=1", "--vary", "epochs=2"], 2, "'epochs' is varied twice"),
    ],
)
def test_refusals_come_before_any_training(
    fucina: Fucina, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = fucina("compare", *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("train"))
