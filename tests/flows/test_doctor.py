"""`fucina doctor`: every target is there with what its backend says, with extras and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import doctor
from pipeline.backends import DEFAULT_TARGET, TARGETS, backend
from tests.test_structure import ROOT


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", "doctor", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_target_has_what_its_backend_says() -> None:
    found = doctor.examine()
    assert [row["target"] for row in found["targets"]] == list(TARGETS)
    for row in found["targets"]:
        target = TARGETS[row["target"]]
        tools = backend(target)
        assert row["missing_to_build"] == list(tools.missing(target, to_run=False))
        assert row["missing_to_run"] == list(tools.missing(target))
        assert row["builds"] == (not row["missing_to_build"])
        assert row["runs"] == (not row["missing_to_run"])
    assert next(row for row in found["targets"] if row["target"] == DEFAULT_TARGET)["runs"]


def test_packages_are_those_that_are_installed_in_the_ranges_that_are_declared() -> None:
    rows = {row["name"]: row for row in doctor.examine()["packages"]}
    assert rows["torch"]["installed"] == metadata.version("torch")
    assert rows["torch"]["in_range"] is True
    for name, row in rows.items():
        try:
            assert row["installed"] == metadata.version(name)
        except metadata.PackageNotFoundError:
            assert row["installed"] is None
            assert row["in_range"] is None
    assert doctor._fits("1.0", ">=1.1,<2") is False


def test_json_is_one_document_and_a_table_names_the_same() -> None:
    done = ask("--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document.keys() == doctor.examine().keys()
    table = ask()
    assert (table.returncode, table.stderr) == (0, "")
    for row in document["targets"]:
        assert row["target"] in table.stdout
        for text in row["missing_to_build"] + row["missing_to_run"]:
            assert text in table.stdout
    assert len({line for line in table.stdout.splitlines() if line[:2] == "1."}) <= 1


def test_a_required_target_decides_the_exit_code() -> None:
    assert ask("--require", DEFAULT_TARGET).returncode == 0
    unknown = ask("--json", "--require", "nothing")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("fucina: there is no target 'nothing'")
    for row in doctor.examine()["targets"]:
        if not row["runs"]:
            done = ask("--json", "--require", row["target"])
            assert done.returncode == 1
            assert json.loads(done.stdout)
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"fucina: this machine cannot run {row['target']!r}: ")
            assert row["missing_to_run"][0] in line
            return
    pytest.skip("every target runs on this machine")


def core(folder: Path) -> Path:
    """A folder with Fucina's core and what that requires, and nothing of any extra."""
    waiting, seen = ["fucina"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            place = Path(str(found.locate_file(top)))
            if top != "__pycache__" and place.exists():
                (folder / top).symlink_to(place)
        requirements = map(Requirement, found.requires or ())
        waiting += [r.name for r in requirements if not r.marker or r.marker.evaluate()]
    return folder


def test_without_any_extra_it_names_each_package_that_lacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "flows", "doctor", "--json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(core(tmp_path))},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert not any(row["installed"] for row in document["packages"])
    for row in document["targets"]:
        assert not row["runs"]
        if row["target"].startswith("ort-"):
            extra = "cpu" if "-cpu-" in row["target"] else "gpu"
            assert f"pip install 'fucina[{extra}]'" in row["missing_to_build"][0]
        else:
            assert "TensorRT cannot be used: got not installed" in row["missing_to_build"][0]
