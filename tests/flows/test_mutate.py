"""Mutation of the gate: its counts, its verdict both ways, and what peers say of known cases."""

from __future__ import annotations

import json
import operator
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import cli, main
from flows.mutating import print_campaign
from flows.mutation.choice import Candidate, chosen
from flows.mutation.page import PAGE, SEPARATION, ranked
from flows.mutation.tally import passed, tally
from flows.mutation.trials import Distance, Sound, Trial
from flows.mutation.workers import workers
from models.errors import CertificateFailed, UnknownRecipe
from models.zoo import ZOO, find
from pipeline import verify
from pipeline.backends import DEFAULT_TARGET
from pipeline.faults import FAULTS
from pipeline.peers import ONES, PEERS, RANDOM, Question, refusals

TINY = "xor"
NOWHERE = Distance(None, None, None)


def fucina(out: Path) -> tuple[int, dict[str, Any]]:
    """The command in this process, so that the gate can be exchanged."""
    arguments = ["mutate", TINY, "--seeds", "1", "--jobs", "1", "--out", str(out), "--json"]
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def document(out: Path) -> dict[str, Any]:
    return fucina(out)[1]


def test_the_document_says_all_and_its_counts_agree(document: dict[str, Any]) -> None:
    rows = document["faults"]
    assert [row["fault"] for row in rows] == [fault.name for fault in FAULTS]
    assert document["mutants"] == sum(row["mutants"] for row in rows) > 0
    for row in rows:
        damaged = row["mutants"] - len(row["equivalent"])
        assert row["detected"] == sum(row["checks"].values())
        assert len(row["missed"]) == damaged - row["detected"]
        assert row["rate"] == (round(row["detected"] / damaged, 4) if damaged else None)
        assert row["peers"].keys() == document["peers"].keys()
    damaged = document["mutants"] - document["equivalent"]
    detected = sum(row["detected"] for row in rows)
    assert document["detection_rate"] == round(detected / damaged, 4)
    assert document["fault_kinds"] == sum(row["rate"] is not None for row in rows)
    assert document["sound_engines"] == 1
    assert document["false_alarms"] == 0, document["alarms"]
    assert document["recipes"][0]["name"] == TINY
    assert {"machine", "seconds", "seeds", "separation"} <= document.keys()


def test_a_person_reads_the_same(
    document: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    missed = {**document["faults"][0], "missed": [f"{TINY}: a weight"]}
    print_campaign({**document, "faults": [missed, *document["faults"][1:]]})
    text = capsys.readouterr().out
    for row in document["faults"]:
        assert row["fault"] in text
    for name in document["peers"]:
        assert name in text
    assert f"missed: {missed['fault']} in {TINY}: a weight\n" in text
    assert text.splitlines()[-1] == document["page"]


def test_the_page_and_the_separation_are_written(out: Path, document: dict[str, Any]) -> None:
    page = out / "mutate" / DEFAULT_TARGET / PAGE
    assert document["page"] == str(page)
    text = page.read_text()
    assert all(row["fault"] in text for row in document["faults"])
    assert text.count("<svg") == 3
    separation = json.loads((out / "mutate" / DEFAULT_TARGET / SEPARATION).read_bytes())
    damaged = document["mutants"] - document["equivalent"]
    assert len(separation["damaged"]) == damaged
    (sound,) = separation["sound"]
    assert sound["limit"] <= 1
    assert separation["summary"]["scale"]["sound_most"] == sound["scale"]


def test_workers_answer_in_order_bring_errors_home_and_may_die() -> None:
    calls = [([n], [n + 1]) for n in range(5)]
    with workers(2, "test") as each:
        assert each(operator.concat, calls, "adding") == [(c, [*c[0], *c[1]]) for c in calls]
        ((call, error),) = each(find, [("nothing",)], "finding")
        assert call == ("nothing",)
        assert isinstance(error, UnknownRecipe)
    with pytest.raises(CertificateFailed, match="died"), workers(2, "test") as each:
        each(os._exit, [(3,)], "dying")


def test_a_gate_that_sees_nothing_fails(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "examine", lambda *_: iter(()))
    code, blind = fucina(out)
    assert code == 1
    # What cannot be built or opened needs no gate.
    assert {check for row in blind["faults"] for check in row["checks"]} <= {"build"}
    assert blind["detection_rate"] < 0.5
    assert blind["false_alarms"] == 0


def test_a_gate_that_refuses_everything_fails(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "examine", lambda *_: iter(["samples: always"]))
    code, strict = fucina(out)
    assert code == 1
    assert strict["detection_rate"] == 1
    assert strict["false_alarms"] == 1
    assert strict["alarms"] == [{"recipe": TINY, "seed": 0, "failure": "samples: always"}]


def test_an_unknown_name_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fucina", "mutate", "nothing"])
    with pytest.raises(SystemExit, match="1"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fucina: no recipe 'nothing': expected ")


names = st.sampled_from([fault.name for fault in FAULTS[:4]])
verdicts = st.fixed_dictionaries({peer.name: st.booleans() for peer in PEERS})
trials = st.lists(
    st.builds(
        Trial, fault=names, recipe=st.just("net"), part=st.just(""), where=st.just("w"),
        equivalent=st.none() | st.just("zero times anything"),
        check=st.none() | st.sampled_from(["samples", "declared"]), failure=st.just(""),
        peers=verdicts, distance=st.just(NOWHERE),
    )
)  # fmt: skip
sound = st.lists(
    st.builds(
        Sound, recipe=st.just("net"), part=st.just(""), seed=st.integers(0, 4),
        failures=st.just(()) | st.just(("samples: far", "edges: far")), peers=verdicts,
        distance=st.just(NOWHERE),
    )
)  # fmt: skip


@given(trials, sound)
def test_the_verdict_follows_from_the_trials(trials: list[Trial], sound: list[Sound]) -> None:
    document = tally({fault.name: fault.says for fault in FAULTS}, trials, sound)
    damaged = [t for t in trials if t.equivalent is None]
    seen = sum(t.check is not None for t in damaged)
    alarms = sum(bool(s.failures) for s in sound)
    assert document["false_alarms"] == alarms
    assert sum(row["detected"] for row in document["faults"]) == seen
    for peer in PEERS:
        refused = sum(t.peers[peer.name] for t in damaged)
        assert document["peers"][peer.name]["detection_rate"] == (
            round(refused / len(damaged), 4) if damaged else None
        )
    good = bool(damaged) and seen >= 0.95 * len(damaged) and bool(sound) and not alarms
    assert passed({**document, "target": DEFAULT_TARGET, "recipes": [{}]}) == good
    assert not passed({**document, "target": DEFAULT_TARGET, "recipes": [{"error": "not trained"}]})


candidates = st.lists(
    st.builds(
        Candidate, name=st.uuids().map(str), kind=st.sampled_from("ab"),
        layers=st.frozensets(st.sampled_from("vwxyz"), min_size=1), depth=st.integers(1, 9),
    )
)  # fmt: skip


@given(candidates)
def test_the_choice_has_every_layer_of_every_kind_and_no_recipe_in_vain(
    candidates: list[Candidate],
) -> None:
    names = chosen(candidates)
    assert len(names) == len(set(names))
    for kind in {c.kind for c in candidates}:
        every = frozenset().union(*(c.layers for c in candidates if c.kind == kind))
        taken = [c for c in candidates if c.name in names and c.kind == kind]
        assert frozenset().union(*(c.layers for c in taken)) == every
        for one in taken:
            assert not one.layers <= frozenset().union(*(c.layers for c in taken if c is not one))


@given(st.lists(st.floats(1e-9, 1e9)))
def test_ranked_values_stand_at_the_share_that_is_no_larger(values: list[float]) -> None:
    shares, known = ranked(values)
    assert sorted(values) == list(known)
    assert all(0 < share <= 100 for share in shares)
    assert list(shares) == sorted(set(shares))


VALUE = np.array([[0.0, 1.0, -100.0]])
ASKED: dict[str, Question] = {asks: Question({}, {"y": VALUE}) for asks in (RANDOM, ONES)}
CLOSE = {"torch assert_close", "torch.onnx verify", "PyTorch tutorial", "ORT transformers",
         "Optimum", "Polygraphy", "numpy.allclose"}  # fmt: skip


def off(*errors: float) -> np.ndarray:
    return np.add(VALUE, errors)


@pytest.mark.parametrize(
    ("actual", "refused"),
    [
        (VALUE, set()),
        (off(0, 0, 5e-4), {"torch assert_close"}),  # 5e-6 of a large number
        (off(5e-6, 0, 0), {"numpy.allclose", "torch.onnx verify"}),  # where 0 is expected
        (off(0, 0, 5e-2), CLOSE - {"torch.onnx verify", "PyTorch tutorial"}),  # 5e-4
        (off(0, 0, 1), CLOSE),
        (np.array([[0, 1, np.nan]]), {*CLOSE, "AITune"}),
        (np.array([[np.inf, 1, -100]]), {*CLOSE, "AITune"}),
        (VALUE.T, {peer.name for peer in PEERS}),
    ],
)
def test_peers_refuse_by_their_tolerances(actual: np.ndarray, refused: set[str]) -> None:
    said = refusals(lambda inputs: {"y": actual}, ASKED)
    assert {name for name, no in said.items() if no} == refused


def test_an_engine_that_lacks_an_output_or_cannot_run_is_refused_by_all() -> None:
    def broken(inputs: object) -> dict[str, np.ndarray]:
        raise RuntimeError("no kernel")

    for run in (broken, lambda inputs: {}):
        assert all(refusals(run, ASKED).values())


def test_the_choice_by_default_has_every_kind_of_the_zoo() -> None:
    from flows.mutation.choice import cover

    names = cover()
    assert {ZOO[name].kind for name in names} == {recipe.kind for recipe in ZOO.values()}
    assert len(names) < len(ZOO) / 2
