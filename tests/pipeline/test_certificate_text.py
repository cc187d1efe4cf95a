"""A certificate in words: nothing that failed reads as passed, and it needs no extra."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.certificate_text import (
    certificate_markdown,
    certificate_text,
    located,
    reason,
    spends_most,
    swallowed_words,
    telling,
)
from pipeline.values import KIT, Diagnosis, Edge, Limit, Swallowed
from tests.pipeline.test_card import failed, make_certificate, told
from tests.test_structure import EXTRAS, blocked

BOUNDS = {"multiple": 16.0, "smallest": 1e-6, "ceiling": 1e-5}


def test_a_passed_certificate_in_lines(tmp_path) -> None:
    first, *lines = certificate_text(make_certificate(tmp_path))
    assert first == "tiny on ort-cpu-fp32: passed, worst error / limit 0.4"
    assert "FAILED" not in "".join(lines)
    said = dict(line.strip().split("  ", 1) for line in lines)
    assert said["samples"].strip() == "0.4 of the limit, logits at batch=4: 4.0e-07 (3 comparisons)"
    assert said["equal"].strip() == "edges, twice"
    assert said["contract"].strip() == "all places agree on 2 rows of tensors and axes"
    assert said["not run"].strip() == "task drift"


def test_a_failed_certificate_in_lines(tmp_path) -> None:
    certificate = told(tmp_path)
    first, *lines = certificate_text(certificate)
    assert first == "tiny on ort-cpu-fp32: FAILED, must not be served"
    text = "\n".join(lines)
    assert "FAILED, not all places agree on tensor image" in text
    assert "FAILED, class of logits: 10.00 % of 540 answers changed" in text
    assert "FAILED, logits at batch=4: 3 of 12 values are NaN or infinite" in text
    assert "  kit " not in text
    assert "node 'conv1' (Conv)" in text
    assert 10 <= len(lines) < 25
    (tmp_path / KIT).mkdir()
    assert certificate_text(certificate)[-2].split() == ["kit", str(tmp_path / KIT)]
    many = certificate.model_copy(update={"failures": tuple(f"f{n}" for n in range(99))})
    assert "and 94 more failures" in "\n".join(certificate_text(many))
    markdown = certificate_markdown(many)
    assert markdown.startswith(f"# {first}")
    assert all(f"- failed: f{n}\n" in markdown for n in range(99))


def test_a_certificate_that_contradicts_itself_does_not_read_passed(tmp_path) -> None:
    certificate = make_certificate(tmp_path).model_copy(update={"findings": ()})
    assert "FAILED" in certificate_text(certificate)[0]
    assert telling(certificate) is None


def test_the_telling_failure_is_of_the_case_that_was_diagnosed(tmp_path) -> None:
    lines = ("samples: output 'a' at batch=16: got", "samples: output 'a' at batch=1: got")
    certificate = failed(make_certificate(tmp_path)).model_copy(update={"failures": lines})
    assert telling(certificate) == lines[0]
    diagnosis = Diagnosis(
        case="batch=1", node="n", operator="Add", tensor="t", error=None, inputs=()
    )
    assert telling(certificate.model_copy(update={"diagnosis": diagnosis})) == lines[1]
    assert located(diagnosis).endswith("its tensor 't' at batch=1")
    declared = diagnosis.model_copy(update={"kind": "declared", "note": "its batch is 2"})
    assert located(declared) == "tensor 't'; its batch is 2"


@given(st.floats(1e-12, 1e-3))
def test_the_reason_of_a_limit_is_the_term_that_decided(floor: float) -> None:
    limit = min(max(16 * floor, 1e-6), 1e-5)
    text = reason(Limit(scale=1.0, noise_floor=floor, limit=limit), BOUNDS)
    if 16 * floor > 1e-5:
        assert text.startswith("the most that is ever allowed")
    elif 16 * floor < 1e-6:
        assert text.startswith("the least that is asked")
    elif 1e-6 < 16 * floor < 1e-5:
        assert text.startswith("16 × noise floor")


def test_other_limits_are_told_beside_it() -> None:
    plain = Limit(scale=1.0, noise_floor=1e-7, limit=1.6e-6)
    text = reason(plain, BOUNDS)
    more = plain.model_copy(update={"edges": 2e-3, "carried": 4e-3})
    assert reason(more, BOUNDS) == (
        f"{text}; 2.0e-03 on edges, where the module itself is farther off; "
        "4.0e-03 over sequences that carry their state"
    )


def test_what_cannot_be_measured_spends_most() -> None:
    def edge(error: float | None, limit: float = 1e-6) -> Edge:
        return Edge(start="a", end="b", output="c", error=error, total=error, limit=limit)

    assert spends_most([]) is None
    assert spends_most([edge(1e-7), edge(2e-7)]) == edge(2e-7)
    assert spends_most([edge(2e-7), edge(1e-7, 1e-8)]) == edge(1e-7, 1e-8)
    assert spends_most([edge(1.0), edge(None)]) == edge(None)
    assert spends_most([edge(0.0, 0.0), edge(1.0, 0.0)]) == edge(1.0, 0.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_engine_swallows_what_its_module_does_not(module: float, engine: float) -> None:
    (text,) = swallowed_words([Swallowed(case="nan", output="y", module=module, engine=engine)])
    assert ("SWALLOWS" in text) == (engine > module)
    assert text.endswith("nan (y)")


def test_it_needs_no_extra() -> None:
    done = blocked(EXTRAS, "import pipeline.certificate_text")
    assert done.returncode == 0, done.stderr
