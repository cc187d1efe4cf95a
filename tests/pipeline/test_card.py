"""The model card: its numbers are the artifacts', and it reads the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from test_report import failed, finding, make_certificate, make_recipe, make_trained

from pipeline.card import measured, number, ratio, times, wilson, worst_ratio, write_card
from pipeline.values import Finding


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (1, 1), (357, 360), (0, 50), (9_900, 10_000)])
def test_wilson_is_scipys(hits: int, rows: int) -> None:
    low, high = wilson(hits, rows)
    expected = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_only_a_proportion_of_rows_has_an_interval(tmp_path) -> None:
    trained = make_trained(tmp_path)
    found = {m.name: m for m in measured(trained, {"rows": 6})}
    assert found["accuracy"].interval == wilson(4, 6)
    assert found["log_loss"].interval is None
    # 0.6667 of 5 rows is no count, so it was not measured on rows.
    assert {m.name: m for m in measured(trained, {"rows": 5})}["accuracy"].interval is None


def test_ratio_and_the_worst_of_them() -> None:
    def of(error: float | None, limit: float) -> Finding:
        return finding("samples", "batch=1", "y", error, limit)

    assert ratio(of(2e-6, 1e-6)) == pytest.approx(2)
    assert ratio(of(0.0, 0.0)) == 0
    assert ratio(of(1e-9, 0.0)) == math.inf
    assert ratio(of(None, 1e-6)) is None
    assert ratio(of(math.nan, 1e-6)) is None
    assert worst_ratio([of(1e-7, 1e-6), of(2e-6, 1e-6)]) == pytest.approx(2)
    assert worst_ratio([of(1e-7, 1e-6), of(None, 1e-6)]) is None
    assert worst_ratio([]) is None


def test_numbers_are_not_rounded_into_something_else() -> None:
    assert number(61706) == "61,706"
    assert number(0.002) == "0.002"
    assert number(1.2e-5) == "1.2e-05"
    assert times(1e-9) == "below 0.001"
    assert times(0.0) == "0"
    assert times(None) == "not a number"
    assert times(math.inf) == "inf"


def test_card_says_what_the_artifacts_hold(tmp_path) -> None:
    trained = make_trained(tmp_path)
    path = tmp_path / "card.md"
    write_card(make_recipe(), trained, [make_certificate(tmp_path)], path)
    text = path.read_text()
    low, high = wilson(4, 6)
    assert f"| accuracy | 0.6667 | {100 * low:.2f} % to {100 * high:.2f} % | 6 |" in text
    assert "| log_loss | 0.5 | not computed | 6 |" in text
    assert r"| input | image | float32\[batch 1..4, 1, 4, 4\] | 0 to 1 |" in text
    assert "with 1,234 parameters" in text
    assert "Licence: CC0" in text
    assert "### ort-cpu-fp32: passed" in text
    assert "Not run: task drift" in text
    assert "fucina serve tiny" in text
    assert "- no bias, unlike the paper" in text
    assert str(tmp_path) not in text
    first = path.read_bytes()
    write_card(make_recipe(), make_trained(tmp_path / "again"), [make_certificate(tmp_path)], path)
    assert path.read_bytes() == first


def test_order_of_settings_does_not_change_the_card(tmp_path) -> None:
    trained = make_trained(tmp_path)
    turned = trained.model_copy(
        update={
            "settings": dict(reversed(trained.settings.items())),
            "metrics": dict(reversed(trained.metrics.items())),
        }
    )
    for name, value in (("a.md", trained), ("b.md", turned)):
        write_card(make_recipe(), value, [], tmp_path / name)
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()


def test_failed_certificate_reads_failed(tmp_path) -> None:
    path = tmp_path / "card.md"
    write_card(make_recipe(), make_trained(tmp_path), [failed(make_certificate(tmp_path))], path)
    text = path.read_text()
    assert "### ort-cpu-fp32: FAILED" in text
    assert "ort-cpu-fp32: passed" not in text
    assert "Failure: samples: output 'logits' at batch=2" in text


def test_without_certificates_it_says_so(tmp_path) -> None:
    write_card(make_recipe(), make_trained(tmp_path), [], tmp_path / "card.md")
    assert "No engine of this model has a certificate." in (tmp_path / "card.md").read_text()


def test_hostile_text_does_not_become_markup(tmp_path) -> None:
    recipe = make_recipe(title="<script>alert(1)</script>", deviations=("a | b\n# heading",))
    write_card(recipe, make_trained(tmp_path), [], tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert r"\<script\>" in text
    assert r"- a \| b # heading" in text
    assert np.all([not line.startswith("# heading") for line in text.splitlines()])
