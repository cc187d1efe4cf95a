"""Tuning: what is tried, what is chosen, and that other threads need a certificate that held."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tuning import options
from models.errors import CertificateFailed
from pipeline.artifacts import digest_files, load, save
from pipeline.bundle import ENGINES, MANIFEST, Bundle, Manifest, open_bundle
from pipeline.values import CERTIFICATE_VALUE, Certificate
from serving.opening import open_session
from serving.tuning import Choice, Trial, best, grid, tune
from tests.serving.conftest import TARGET

trials = st.lists(
    st.builds(
        Trial,
        st.builds(Choice, st.integers(1, 8), st.integers(0, 8), st.integers(0, 1)),
        st.floats(1, 1e5),
        st.floats(0.1, 1e3),
        st.floats(0.1, 1e3),
        st.just(0),
    ),
    min_size=1,
)


@given(found=trials)
def test_the_choice_is_about_the_fastest_and_nothing_as_fast_takes_fewer_cores(
    found: list[Trial],
) -> None:
    chosen = best(found)
    fastest = max(trial.rate for trial in found)
    assert chosen.rate >= 0.95 * fastest
    for trial in found:
        assert trial.rate < 0.95 * fastest or trial.choice.cores >= chosen.choice.cores


@given(found=trials, times=st.floats(1.2, 100))
def test_who_is_much_faster_than_all_is_chosen(found: list[Trial], times: float) -> None:
    fast = replace(found[0], rate=times * max(trial.rate for trial in found))
    assert best([*found, fast]) is fast


@pytest.mark.parametrize(
    ("cores", "wanted"),
    [
        (1, {(1, 0)}),
        (2, {(1, 0), (1, 2), (2, 0)}),
        (6, {(1, 0), (1, 6), (2, 0), (2, 3), (4, 0), (6, 0)}),
    ],
)
def test_processes_times_threads_fit_the_cores(
    digits: Path, cores: int, wanted: set[tuple[int, int]]
) -> None:
    tried = [*grid([open_bundle(digits)], TARGET, cores)]
    assert {(choice.workers, choice.threads) for choice in tried} == wanted
    assert len(tried) == len(wanted)


def without_threads(folder: Path, out: Path) -> Bundle:
    """The bundle with a certificate of which the law of threads was not asked."""
    shutil.copytree(folder, out)
    place = out / ENGINES / TARGET
    certificate = load(Certificate, place, CERTIFICATE_VALUE)
    findings = [finding for finding in certificate.findings if finding.check != "threads"]
    assert len(findings) < len(certificate.findings)
    save(certificate.model_copy(update={"findings": tuple(findings)}), place, CERTIFICATE_VALUE)
    manifest = Manifest.model_validate_json((out / MANIFEST).read_bytes())
    files = digest_files(out, sorted(manifest.files))
    save(manifest.model_copy(update={"files": files}), out, MANIFEST)
    return open_bundle(out)


def test_other_threads_are_taken_where_the_certificate_covers_them(digits: Path) -> None:
    bundle = open_bundle(digits)
    session = open_session(bundle, TARGET, 2)  # and the recorded cases hold with them
    case = bundle.cases()[0]
    for name, array in bundle.open_engine(TARGET).run(case.inputs).items():
        np.testing.assert_allclose(session.run(case.inputs)[name], array, rtol=1e-5, atol=1e-6)
    assert bundle.options(TARGET, 2) == {**bundle.options(TARGET), "intra_op_threads": 2}
    assert bundle.options(TARGET, 1) == bundle.options(TARGET)


def test_other_threads_than_the_certified_are_refused_without_the_law(
    digits: Path, tmp_path: Path
) -> None:
    bundle = without_threads(digits, tmp_path / "bundle")
    with pytest.raises(CertificateFailed, match="not certified for other threads"):
        bundle.options(TARGET, 2)
    assert {choice.threads for choice in grid([bundle], TARGET, 4)} == {0}


@pytest.mark.slow  # starts two servers, one after the other
def test_a_server_is_tried_and_told_how_to_be_started(digits: Path) -> None:
    told: list[Trial] = []
    found, chosen = tune([digits], TARGET, 1, 0.3, told.append)
    assert found == told
    assert [trial.choice for trial in found] == [Choice(), Choice(largest_batch=1)]
    assert chosen in found
    assert all(trial.rate > 0 and 0 < trial.p50 <= trial.p99 for trial in found)
    assert all(trial.refused == 0 for trial in found)


def test_the_options_to_type_are_those_that_differ() -> None:
    assert options(Choice()) == ""
    assert options(Choice(2, 4, 8)) == "--workers 2 --threads 4 --largest-batch 8"
