"""Experiments: verdicts follow from the runs, whichever way these came out; pages are whole."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flows.experiments import (
    EXPERIMENTS,
    Setup,
    common_settings,
    degradation,
    dropout,
    find,
    read_history,
    trained,
    vanishing,
)
from flows.experiments.dropout import Fit
from flows.experiments.flow import check, plain
from flows.experiments.page import Page, columns, write_page
from flows.experiments.trainings import fit, norms_by_layer
from models.errors import BadSetting
from models.mlp import MLP_DROPOUT
from tests.flows.conftest import Fucina

TINY: dict[str, dict[str, Any]] = {
    "degradation": {"epochs": 1, "width": 0.125, "image": 8},
    "vanishing": {"epochs": 1, "hidden": 16},
    "dropout": {"epochs": 1, "hidden": 16},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_declares_itself(name: str) -> None:
    experiment = find(name)
    assert experiment.name == name
    assert experiment.claim.endswith(".")
    assert re.search(r"\b(19|20)\d\d\b", experiment.paper), "a paper has a year"


def test_an_unknown_experiment_is_refused_with_the_names() -> None:
    with pytest.raises(BadSetting, match="no experiment 'alchemy': expected degradation, vanish"):
        find("alchemy")


@pytest.mark.parametrize("name", TINY)
def test_an_experiment_runs_and_judges_by_numbers(name: str, tmp_path: Path) -> None:
    outcome = find(name).run(Setup(tmp_path, changes=TINY[name]))
    assert outcome.holds in (True, False)
    numbers = [v for row in outcome.rows for v in row.values() if isinstance(v, int | float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    assert len(re.findall(r"\d", outcome.verdict)) > 2
    assert all("<svg" in figure.markup and figure.caption for figure in outcome.figures)
    # Equal settings but for what is varied, and those that were asked for.
    assert {n: outcome.settings[n] for n in TINY[name]} == TINY[name]
    assert not set(find(name).varied) - {"patience"} & outcome.settings.keys()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trained.json")}
    assert len(before) == len(outcome.rows)
    again = find(name).run(Setup(tmp_path, changes=TINY[name]))
    assert again == outcome
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trained.json")} == before


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        ((0.01, 0.20, 0.02, 0.01), True),
        ((0.01, 0.20, 0.02, 0.02), True),
        ((0.20, 0.01, 0.02, 0.01), False),
        ((0.01, 0.01, 0.02, 0.01), False),
        ((0.01, 0.20, 0.01, 0.02), False),
    ],
)
def test_degradation_is_a_worse_deep_plain_net_and_no_worse_deep_residual_net(
    errors: tuple[float, ...], holds: bool
) -> None:
    nets = ("plain-20", "plain-56", "residual-20", "residual-56")
    verdict, held = degradation.judge(dict(zip(nets, errors, strict=True)))
    assert held is holds
    assert all(f"{100 * error:.2f} %" in verdict for error in errors)


FLAT, STEEP = [0.5, 0.4, 0.6], [1e-5, 1e-3, 0.6]


@pytest.mark.parametrize(
    ("sigmoid", "relu", "norm", "losses", "holds"),
    [
        (STEEP, FLAT, FLAT, (2.3, 0.2, 0.1), True),
        (FLAT, STEEP, STEEP, (2.3, 0.2, 0.1), False),
        (FLAT, FLAT, FLAT, (2.3, 0.2, 0.1), False),
        (STEEP, FLAT, STEEP, (2.3, 0.2, 0.1), False),
        (STEEP, FLAT, FLAT, (2.3, 2.2, 0.1), False),
        (STEEP, [0.0, 0.0, 0.0], FLAT, (2.3, 0.2, 0.1), False),
    ],
)
def test_vanishing_is_a_gradient_lost_with_sigmoids_only(
    sigmoid: list[float],
    relu: list[float],
    norm: list[float],
    losses: tuple[float, ...],
    holds: bool,
) -> None:
    nets = ("sigmoid", "ReLU", "sigmoid, batch norm")
    norms: dict[str, list[float]] = dict(zip(nets, (sigmoid, relu, norm), strict=True))
    verdict, held = vanishing.judge(norms, dict(zip(nets, losses, strict=True)))
    assert held is holds
    assert f"{sigmoid[0] / sigmoid[-1]:.2g}" in verdict


def fits(end: float, gap: float, spread: float = 0.01) -> list[Fit]:
    """Five nets around that validation loss and that gap; the spread makes pairs differ."""
    shifts = [spread * k for k in (-2, -1, 0, 1, 2)]
    return [Fit(end + s, 0.9, 0.05, 0.05 + gap + s) for s in shifts]


OVERFIT, WELL_FIT = fits(0.30, 0.20), fits(0.10, 0.05, spread=0.002)


@pytest.mark.parametrize(
    ("without", "dropped", "holds"),
    [
        (OVERFIT, WELL_FIT, True),
        (WELL_FIT, OVERFIT, False),
        (OVERFIT, OVERFIT, False),
        (OVERFIT, fits(0.30, 0.05), False),
        (OVERFIT, fits(0.10, 0.20), False),
        (OVERFIT, fits(0.10, 0.05, spread=1.0), False),  # lower in the mean, and mostly noise
    ],
)
def test_dropout_helps_when_loss_and_gap_are_surely_lower(
    without: list[Fit], dropped: list[Fit], holds: bool
) -> None:
    verdict, held = dropout.judge(without, dropped)
    assert held is holds
    lower = sum(a.end > b.end for a, b in zip(without, dropped, strict=True))
    assert f"lower in {lower} of 5 pairs" in verdict
    assert f"{fmean(f.end for f in dropped):.3g} with it" in verdict


def test_a_difference_counts_by_students_t() -> None:
    assert pytest.approx(stats.t.ppf(0.95, df=4), abs=1e-3) == dropout.SURE
    assert Fit(0.3, 0.9, 0.05, 0.25).gap == 0.25 - 0.05


def test_what_is_set_goes_before_the_defaults_of_an_experiment(tmp_path: Path) -> None:
    setup = Setup(tmp_path, changes={"epochs": 1, "hidden": 16})
    model = trained(setup, MLP_DROPOUT, "a net", epochs=7, learning_rate=0.125)
    assert model.settings["epochs"] == 1
    assert model.settings["learning_rate"] == 0.125
    assert model.floor is None
    assert len(read_history(model)) == 1
    other = trained(setup, MLP_DROPOUT, "another", learning_rate=0.25)
    shared = common_settings([model, other])
    assert model.settings.items() - shared.items() == {("learning_rate", 0.125)}
    assert common_settings([]) == {}

    # The fit of the kept weights on the test split is what training reported of it.
    split = MLP_DROPOUT.load("embedded").test
    found = fit(MLP_DROPOUT, model, split)
    assert {n: found[n] for n in model.metrics} == pytest.approx(model.metrics)
    assert found["loss"] == pytest.approx(model.metrics["log_loss"], rel=1e-5)

    # Weight matrices of 784-16-16-10, from input to output; biases are left out.
    norms = norms_by_layer(model)
    history = read_history(model)[0]["gradient_norms"]
    assert norms == [history[name] for name in model.layers if name.endswith("weight")]
    assert len(norms) == 3


@pytest.mark.parametrize("name", ["dropout", "patience", "floor"])
def test_what_an_experiment_varies_cannot_be_set(name: str) -> None:
    check(find("dropout"), {"epochs": 3})
    with pytest.raises(BadSetting, match=f"decides setting '{name}' itself"):
        check(find("dropout"), {name: 0.5})


def test_a_result_is_json() -> None:
    value = {"a": np.float32(0.5), "b": (1, float("nan")), "c": [float("inf"), "x", None, True]}
    assert plain(value) == {"a": 0.5, "b": [1, None], "c": [None, "x", None, True]}
    json.dumps(plain(value), allow_nan=False)


def test_a_page_shows_every_row_and_escapes_it(tmp_path: Path) -> None:
    rows = [{"net": "<a> & b", "loss": 0.1234567}, {"net": "c", "loss": None, "more": "d"}]
    page = Page(
        title="T", command="fucina", verdict="It <holds>.", rows=rows, figures=[], settings={},
        holds=False,
    )  # fmt: skip
    write_page(page, tmp_path / "deep" / "page.html")
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "&lt;a&gt; &amp; b" in text
    assert "It &lt;holds&gt;." in text
    assert ">0.1235<" in text
    assert "does not hold" in text
    assert [(c.name, c.numeric) for c in columns(rows)] == [
        ("net", False), ("loss", True), ("more", False),
    ]  # fmt: skip


def test_the_command_writes_a_page_and_a_result(fucina: Fucina, tmp_path: Path) -> None:
    tiny = ("experiment", "vanishing", "--set", "epochs=1", "--set", "hidden=16")
    done = fucina(*tiny, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["settings"]["epochs"] == 1
    assert "ReLU train 1/1" in done.stderr
    result = json.loads((tmp_path / document["result"]).read_bytes())
    assert result == {name: value for name, value in document.items() if name != "seconds"}
    page = (tmp_path / document["report"]).read_text()
    assert document["report"] == "runs/experiments/vanishing/report.html"
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 2
    assert document["paper"] in page

    again = fucina(*tiny, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert " train " not in again.stderr
    said = "holds" if document["holds"] else "does not hold"
    assert f"here it {said}. {document['verdict']}" in again.stdout
    assert document["report"] in again.stdout


def test_without_a_name_the_command_lists(fucina: Fucina, tmp_path: Path) -> None:
    done = fucina("experiment", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alchemy"], "no experiment 'alchemy'"),
        (["dropout", "--set", "dropout=0.1"], "decides setting 'dropout' itself"),
        (["dropout", "--set", "speed=1"], "has no setting 'speed'"),
    ],
)
def test_refusals_are_one_line(
    fucina: Fucina, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = fucina("experiment", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fucina: ")
    assert words in line
