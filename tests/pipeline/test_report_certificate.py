"""A certificate's page: the failure and its place first, and every number where a reader looks."""

from __future__ import annotations

from pathlib import Path

from pipeline.report_certificate import write_certificate
from pipeline.values import KIT, Certificate
from tests.pipeline.test_card import PICTURES, make_certificate, told
from tests.pipeline.test_report import check_page


def render_certificate(folder: Path, certificate: Certificate) -> str:
    path = folder / "certificate.html"
    write_certificate(certificate, PICTURES, path)
    return path.read_text()


def test_page_is_whole_and_needs_nothing_else(tmp_path) -> None:
    for certificate in (make_certificate(tmp_path), told(tmp_path)):
        first = render_certificate(tmp_path, certificate)
        check_page(first)
        assert str(tmp_path) not in first
        assert render_certificate(tmp_path, certificate) == first


def test_a_failure_is_told_with_its_place_first(tmp_path) -> None:
    text = render_certificate(tmp_path, told(tmp_path))
    verdict = text.partition('class="verdict bad"')[2].partition("<h2>")[0]
    assert "samples: output &#39;logits&#39; at batch=2" in verdict
    assert "node &#39;conv1&#39; (Conv) is the first to go another way" in verdict
    assert "tensor &#39;w&#39; is not the graph&#39;s" in verdict
    assert f"<code>{KIT}/</code>" not in verdict
    (tmp_path / KIT).mkdir()
    assert f"<code>{KIT}/</code>" in render_certificate(tmp_path, told(tmp_path))


def test_a_disagreement_about_a_shape_is_marked_in_its_cell(tmp_path) -> None:
    rows = check_page(render_certificate(tmp_path, told(tmp_path))).tables[
        "Shape contract of ort-cpu-fp32"
    ]
    assert rows[0][1:] == ["Signature", "Exporter", "Graph", "Engine", "Profile", "Service"]
    shape = "float32[batch, 4]"
    assert rows[1] == ["tensor image", shape, "–", "–", "✗ float32[2, 4]", "–", "✓ same"]
    assert rows[2] == ["axis batch", "1 to 4", "✓ same", "–", "–", "–", "✓ same"]


def test_drift_is_told_with_its_interval_and_its_flips(tmp_path) -> None:
    page = check_page(text := render_certificate(tmp_path, told(tmp_path)))
    assert page.tables["Task drift of ort-cpu-fp32"][1] == [
        "class", "logits", "540", "10.00 %", "8.00 % to 13.00 %", "0.00 %", "2", "✗ too many",
    ]  # fmt: skip
    assert page.tables["What the task is measured by, on ort-cpu-fp32"][1] == [
        "accuracy", "logits", "0.97", "0.92", "-0.05", "-0.07 to -0.03",
    ]  # fmt: skip
    (flips,) = (a for a in page.all("aria-label") if a.startswith("Leads of"))
    assert flips == "Leads of 3 changed answers, class of logits; the largest 1.0e-02"
    assert ">tie</text>" in text
    strict = (told(tmp_path).drift[0].model_copy(update={"tie": 0.0}),)
    certificate = told(tmp_path).model_copy(update={"drift": strict})
    assert ">tie</text>" not in render_certificate(tmp_path, certificate)  # none is excused


def test_the_budget_names_who_spends_most(tmp_path) -> None:
    certificate = told(tmp_path)
    page = check_page(render_certificate(tmp_path, certificate))
    rows = page.tables["Error budget of ort-cpu-fp32"][1:]
    assert rows[1] == ["fp32 module → graph", "logits", "0", "5.0e-08", "1.0e-06", "0.05"]
    assert rows[3][2:] == ["not a number", "not a number", "1.0e-06", "not a number"]
    known = certificate.model_copy(update={"budget": certificate.budget[:-1]})
    assert "Most is spent on the way from graph to engine" in render_certificate(tmp_path, known)


def test_what_ran_is_counted_by_operator_and_precision(tmp_path) -> None:
    nodes = [("Conv", "fp32"), ("QLinearConv", "uint8"), ("QLinearConv", "uint8")]
    effective = {
        "devices": {"cpu": 3}, "precisions": {"fp32": 1, "uint8": 2}, "tf32": False,
        "nodes": [
            {"name": f"n{i}", "operator": operator, "device": "cpu", "precision": precision}
            for i, (operator, precision) in enumerate(nodes)
        ],
    }  # fmt: skip
    certificate = told(tmp_path).model_copy(update={"effective": effective})
    page = check_page(render_certificate(tmp_path, certificate))
    assert page.tables["Nodes by operator on ort-cpu-fp32"][1:] == [
        ["QLinearConv", "uint8", "cpu", "2"], ["Conv", "fp32", "cpu", "1"],
    ]  # fmt: skip
    rows = page.tables["Requested against effective on ort-cpu-fp32"]
    assert ["kept in fp32", "2 nodes", "conv1, fc"] in rows
    assert ["precision", "fp32", "fp32: 1 node, uint8: 2 nodes"] in rows


def test_a_swallowed_nan_is_said(tmp_path) -> None:
    text = render_certificate(tmp_path, told(tmp_path))
    assert "it answers with numbers where the module does not: nan (logits)." in text
    assert "SWALLOWS" not in render_certificate(tmp_path, make_certificate(tmp_path))


def test_samples_are_named_by_digest_and_origin(tmp_path) -> None:
    certificate = told(tmp_path)
    facts = certificate.samples | {"sha256": "c" * 64, "origin": "drawn at random, not real"}
    text = render_certificate(tmp_path, certificate.model_copy(update={"samples": facts}))
    rows = check_page(text).tables["Value"]
    assert ["sha256", "c" * 64] in rows
    assert ["edge cases", "zeros"] in rows
    assert "Where the rows are from: drawn at random, not real." in text
