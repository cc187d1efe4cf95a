"""The report: whole without a network, the same every time, and saying what the artifacts say."""

from __future__ import annotations

import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from models.signature import Signature, TensorSpec
from pipeline import plots
from pipeline.artifacts import write_json
from pipeline.report import write_report
from pipeline.values import Candidate, Refusal
from tests.pipeline.test_card import (
    ACTUAL,
    BATCH,
    PICTURES,
    PREDICTED,
    failed,
    make_certificate,
    make_model,
    make_recipe,
    make_trained,
    told,
)

VECTORS = Signature(
    (TensorSpec("left", "float32", (BATCH, 3)), TensorSpec("right", "float32", (BATCH, 2))),
    (TensorSpec("value", "float32", (BATCH, 1)),),
)
SECTIONS = (
    "training", "test", "samples", "filters", "certificate", "latency", "settings", "lineage",
)  # fmt: skip
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page holds: elements, table rows by their region, ids; and that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._region = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if dict(attrs).get("role") == "region":
            self._region = str(dict(attrs)["aria-label"])
        if tag == "tr":
            self.tables.setdefault(self._region, []).append([])
        if tag in ("td", "th"):
            self.tables[self._region][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            cells = self.tables[self._region][-1]
            cells[-1] = " ".join(f"{cells[-1]} {data}".split())

    def all(self, attribute: str) -> list[str]:
        return [str(a[attribute]) for _, a in self.elements if attribute in a]


def render(folder: Path, **changes: Any) -> str:
    """The page of small artifacts, of which `changes` replaces some."""
    trained = changes.get("trained") or make_trained(folder)
    model = make_model(folder, trained, changes.get("signature", PICTURES))
    certificates = changes.get("certificates", [make_certificate(folder)])
    path = folder / "report.html"
    recipe = changes.get("recipe", make_recipe())
    more = {k: v for k, v in changes.items() if k in ("latency", "candidates", "refusals")}
    write_report(recipe, trained, model, certificates, path, **more)
    return path.read_text()


def check_page(text: str) -> Page:
    """A page is well formed, accessible, and needs no network and no script."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.all("href") if target.startswith("#")} <= set(ids)
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    for tag, attributes in page.elements:
        assert tag != "script"
        assert tag != "th" or attributes["scope"] in ("row", "col")
        assert tag != "img" or attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]
    assert all(a.startswith(("#", "data:")) for a in [*page.all("src"), *page.all("href")])
    assert "://" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    return page


def test_page_is_whole_and_needs_nothing_else(tmp_path) -> None:
    other = told(tmp_path).model_copy(update={"target": "ort-cpu-int8"})
    page = check_page(render(tmp_path, certificates=[make_certificate(tmp_path), other]))
    assert set(SECTIONS) <= set(page.all("id"))


def test_same_artifacts_give_the_same_bytes(tmp_path) -> None:
    first = render(tmp_path / "a", trained=make_trained(tmp_path / "a"))
    assert render(tmp_path / "b", trained=make_trained(tmp_path / "b")) == first
    assert str(tmp_path) not in first
    assert not re.search(r"20[2-9]\d-\d\d", first)


def test_threads_do_not_change_each_others_plots() -> None:
    def draw(name: str) -> str:
        return plots.lines(name, {"s": ([1, 2], [3.0, 4.0])}, "alt", xlabel="x", ylabel="y")

    expected = {name: draw(name) for name in "abcd"}
    assert len(set(expected.values())) == 4
    drawn: dict[str, str] = {}
    threads = [threading.Thread(target=lambda n=n: drawn.update({n: draw(n)})) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == expected


def test_confusion_matrix_is_sklearns(tmp_path) -> None:
    rows = Page(render(tmp_path)).tables["Confusion matrix"]
    assert rows[0] == ["", "cat", "dog", "owl"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    assert (counts == confusion_matrix(ACTUAL, PREDICTED)).all()
    assert counts.sum() == len(ACTUAL)


def test_class_scores_are_sklearns(tmp_path) -> None:
    rows = Page(render(tmp_path)).tables["Scores of each class"][1:]
    expected = np.array(precision_recall_fscore_support(ACTUAL, PREDICTED)).T
    shown = np.array([[float(cell) for cell in row[1:]] for row in rows])
    assert shown == pytest.approx(expected, abs=5e-5)


def test_class_that_never_occurs_has_undefined_scores(tmp_path) -> None:
    trained = make_trained(tmp_path, classes=["cat", "dog", "owl", "yak"])
    rows = Page(render(tmp_path, trained=trained)).tables["Scores of each class"]
    assert rows[-1] == ["yak", "undefined", "undefined", "undefined", "0"]


def test_many_classes_are_listed_by_their_mistakes(tmp_path) -> None:
    trained = make_trained(tmp_path, classes=[f"c{n}" for n in range(200)])
    page = Page(render(tmp_path, trained=trained))
    assert "Confusion matrix" not in page.tables
    assert page.tables["Commonest mistakes"][1:] == [["c0", "c1", "1"], ["c2", "c0", "1"]]


def test_errors_are_the_certificates(tmp_path) -> None:
    page = Page(render(tmp_path))
    rows = page.tables["Errors at every shape of ort-cpu-fp32"][1:]
    assert rows == [
        ["batch=1", "1.0e-07 0.1"], ["batch=2", "2.0e-07 0.2"], ["batch=4", "4.0e-07 0.4"],
    ]  # fmt: skip
    assert page.tables["Errors at every shape of ort-cpu-fp32"][0] == [
        "Case", "logits error, error / limit",
    ]  # fmt: skip
    assert page.tables["Errors on edge inputs of ort-cpu-fp32"][1:] == [["zeros", "0 equal"]]
    assert page.tables["Invariances of ort-cpu-fp32"][1][0] == "twice"
    assert page.tables["Limits of ort-cpu-fp32"][1] == [
        "logits", "2", "5.0e-08", "1.0e-06",
        "the least that is asked (16 × noise floor 5.0e-08 is less)",
    ]  # fmt: skip


def test_gallery_shows_mistakes_first(tmp_path) -> None:
    text = render(tmp_path)
    items = re.findall(r'<li( class="miss")?>\s*<img', text)
    assert items == [' class="miss"', ' class="miss"', ""]
    assert re.search(r"✗ dog</strong>\s*actually cat<br>\s*<span[^>]*>80.00 %", text)


def test_failed_certificate_looks_failed(tmp_path) -> None:
    text = render(
        tmp_path, certificates=[make_certificate(tmp_path), failed(make_certificate(tmp_path))]
    )
    assert 'class="badge bad">✗ Certificate failed' in text
    assert "✓ Certified" not in text
    assert 'class="verdict bad"><strong>✗ Failed.' in text
    assert "samples: output &#39;logits&#39; at batch=2: got error 3.0e-04" in text
    rows = Page(text).tables["Errors at every shape of ort-cpu-fp32"]
    assert ["batch=2", "✗ 3.0e-04 300 times the limit"] in rows
    assert ["batch=4", "✗ failed 3 of 12 values are NaN or infinite"] in rows


@pytest.mark.parametrize("broken", ["finding", "nothing", "failure"])
def test_certificate_that_contradicts_itself_is_no_pass(tmp_path, broken: str) -> None:
    certificate = make_certificate(tmp_path)
    unread = certificate.findings[0].model_copy(update={"error": None})
    changes: dict[str, Any] = {
        "finding": {"findings": (unread, *certificate.findings[1:])},
        "nothing": {"findings": ()},
        "failure": {"failures": ("effective: no node was seen to run",)},
    }[broken]
    text = render(tmp_path, certificates=[certificate.model_copy(update=changes)])
    assert "✗ Certificate failed" in text
    assert "✓" not in text.partition("<main>")[0]
    assert 'class="verdict good"' not in text


def test_no_certificate_is_no_pass(tmp_path) -> None:
    text = render(tmp_path, certificates=[])
    assert "No certificate" in text
    assert "✓ Certified" not in text
    assert "No engine of this model has a certificate." in text


def test_not_run_is_said_and_never_good(tmp_path) -> None:
    text = render(tmp_path)
    assert "<li>not run: task drift</li>" in text
    assert re.search(r'<ul class="notrun muted">\s*<li>not run', text)


def test_regression_of_two_vectors_in_one_epoch(tmp_path) -> None:
    trained = make_trained(
        tmp_path,
        epochs=1,
        weights=np.zeros((4, 3), np.float32),
        evaluation={"metrics": {}, "rows": 6, "gallery": [0]},
        gallery={"left": np.zeros((1, 3), np.float32), "right": np.zeros((1, 2), np.float32)},
    )
    text = render(
        tmp_path,
        trained=trained,
        signature=VECTORS,
        certificates=[make_certificate(tmp_path, ("value",))],
    )
    page = Page(text)
    assert "Confusion matrix" not in page.tables
    assert "This model has no classes" in text
    assert "No input of this model is a picture" in text
    assert set(SECTIONS) <= set(page.all("id"))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((6, 1, 5, 5), "all 6 units"),
        (
            (80, 3, 3, 3),
            "the 64 of 80 units with the largest norms; each input channel as a colour",
        ),
        ((8, 4, 3, 3), "a row of kernels for each of 8 outputs"),
        ((5, 16), "all 5 units"),  # over 4x4 pixels
        ((5, 7), "a row for each output"),
        ((5, 3, 9), "is not drawn"),
        ((2048, 2048), "is not drawn"),
    ],
)
def test_first_layers_of_every_shape(tmp_path, shape: tuple[int, ...], said: str) -> None:
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    text = render(tmp_path, trained=make_trained(tmp_path, weights=weights))
    assert said in text
    assert ("Weights of the first layer" in text) == ("not drawn" not in said)


def test_lineage_tells_a_foreign_parent(tmp_path) -> None:
    text = render(tmp_path)
    assert f"another ONNX model: {'m' * 64}" in text
    trained = make_trained(tmp_path)
    whole = make_certificate(tmp_path).model_copy(
        update={"model": make_model(tmp_path, trained).digest}
    )
    text = render(tmp_path, trained=trained, certificates=[whole])
    assert "another" not in text
    assert trained.digest in text


def test_latency_is_shown_or_said_to_be_missing(tmp_path) -> None:
    assert "<code>fucina report</code> measures it" in render(tmp_path)
    rows = [
        {
            "target": "ort-cpu-fp32",
            "batch": b,
            "eager_ms": 1.0 * b,
            "engine_ms": 0.4 * b,
            "ratio": 2.5,
        }
        for b in (1, 8)
    ]
    latency = {"machine": "a desk", "threads": 2, "rows": rows, "note": "Medians."}
    page = Page(text := render(tmp_path, latency=latency))
    assert "Measured on a desk with 2 threads: Medians." in text
    assert page.tables["Latency"][2] == ["ort-cpu-fp32", "8", "8.000", "3.200", "2.50"]


def test_latency_is_drawn_where_one_line_can_show_it(tmp_path) -> None:
    row = {"target": "t", "batch": 1, "eager_ms": 0.3, "engine_ms": 0.1, "ratio": 3.0}
    latency = {"machine": "a", "threads": 1, "rows": [row], "note": ""}
    plot = "Milliseconds per call of PyTorch eager and 1 engines"
    assert plot in render(tmp_path, latency=latency)
    # Two lengths at one batch are two rows of the table, and no line.
    latency["rows"] = [row | {"case": "length=2"}, row | {"case": "length=9"}]
    text = render(tmp_path, latency=latency)
    assert plot not in text
    assert Page(text).tables["Latency"][2][:3] == ["t", "length=9", "1"]
    assert "1 thread</p>" in render(tmp_path, latency=latency | {"rows": []})


def test_hostile_names_stay_text(tmp_path) -> None:
    hostile = "<script>alert(1)</script>"
    certificate = make_certificate(tmp_path).model_copy(update={"not_run": (hostile,)})
    text = render(
        tmp_path,
        trained=make_trained(tmp_path, classes=[hostile, '"><img src=x>', "$x^2$"]),
        recipe=make_recipe(title=hostile, paper=hostile),
        certificates=[certificate],
    )
    assert "<script" not in text
    assert "<img src=x" not in text
    assert hostile in Page(text).tables["Confusion matrix"][0]
    drawn = plots.lines(hostile, {hostile: ([1], [1.0])}, hostile, xlabel="$", ylabel=hostile)
    assert "<script" not in drawn


def test_layers_of_ten_and_more_are_drawn_in_their_order(tmp_path) -> None:
    names = tuple(f"network.l{n}.weight" for n in range(12))
    trained = make_trained(tmp_path).model_copy(update={"layers": names})
    history = json.loads((tmp_path / "history.json").read_bytes())
    for entry in history:
        entry["gradient_norms"] = {name: 0.1 + n for n, name in enumerate(names)}
    write_json(tmp_path / "history.json", history)
    drawn = re.findall(r">(l\d+)</text>", render(tmp_path, trained=trained))
    assert len(drawn) == 8
    assert drawn[0] == "l0"
    assert drawn[-1] == "l11"
    assert drawn == sorted(drawn, key=lambda name: int(name[1:]))


def test_candidates_and_refusals_are_shown_where_they_are_given(tmp_path) -> None:
    assert 'id="candidates"' not in render(tmp_path)
    several = [
        Candidate(
            name=name, precision="fp32", options={"threads": 1}, milliseconds=times,
            outcome=outcome, kept=not outcome.startswith("slower"),
        )
        for name, times, outcome in (
            ("a", {1: 0.5, 8: 2.0}, "the fastest"), ("b", {1: 0.75}, "slower"),
        )
    ]  # fmt: skip
    refusal = Refusal(folder=tmp_path, target="ort-cpu-int8", parent="m", why="It does not pay.")
    text = render(tmp_path, candidates={"ort-cpu-fp32": several}, refusals=[refusal])
    page = check_page(text)
    assert page.tables["Candidates for ort-cpu-fp32"] == [
        ["Candidate", "Precision", "Batch 1, ms", "Batch 8, ms", "Outcome"],
        ["✓ a", "fp32", "0.500", "2.000", "the fastest"],
        ["b", "fp32", "0.750", "–", "slower"],
    ]
    assert "<strong>ort-cpu-int8 was refused:</strong> It does not pay." in text
