"""A cached result is stale when any line it depends on changed, and only then."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from flows.stages import Job
from pipeline import versions
from pipeline.versions import folder_digest, source_digest

FILES = {
    "own.py": "import loose\nfrom bundle_of.net import Net\nfrom plain import part\n",
    "loose.py": "X = 1\n",
    "bundle_of/__init__.py": "",
    "bundle_of/net.py": "from . import near\nfrom .deep.far import Far\nNet = 1\n",
    "bundle_of/near.py": "Y = 1\n",
    "bundle_of/deep/__init__.py": "",
    "bundle_of/deep/far.py": "Far = 1\n",
    "plain/part.py": "Z = 1\n",  # a package without __init__.py
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's modules, importable from a folder of theirs."""
    for name, text in {**FILES, "stranger.py": "S = 1\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    theirs = {Path(name).parts[0].removesuffix(".py") for name in FILES}
    for name in [name for name in sys.modules if name.partition(".")[0] in theirs]:
        del sys.modules[name]  # of the folder of the test before
    for cached in (versions._installed, versions._source):
        cached.cache_clear()
    return tmp_path


@pytest.mark.parametrize("name", [name for name, text in FILES.items() if text])
def test_a_changed_line_anywhere_below_is_seen(project: Path, name: str) -> None:
    before = source_digest("own")
    (project / name).write_text(FILES[name] + "# changed\n")
    assert source_digest("own") != before


def test_a_neighbour_that_is_not_imported_does_not_matter(project: Path) -> None:
    before = source_digest("own")
    (project / "stranger.py").write_text("S = 2\n")
    assert source_digest("own") == before


def test_installed_packages_are_left_to_their_versions(project: Path) -> None:
    before = source_digest("own")
    (project / "own.py").write_text(FILES["own.py"].replace("import loose", "import loose, numpy"))
    with_numpy = source_digest("own")
    assert with_numpy != before  # the line itself
    assert versions._installed("numpy")
    assert versions._installed("json")
    assert versions._installed("sys")
    assert not versions._installed("models")
    assert not versions._installed("own")
    assert not versions._installed("plain")


def test_one_architecture_does_not_make_another_stale() -> None:
    lenet5 = source_digest("pipeline.train", *Job("lenet5").modules)
    mlp = source_digest("pipeline.train", *Job("mlp").modules)
    assert lenet5 != mlp
    assert "models.mlp" not in Job("lenet5").modules


def test_a_recipe_is_where_all_that_it_names_is(project: Path) -> None:
    (project / "losses_of.py").write_text("def loss(outputs, targets): return outputs['y'].sum()\n")
    (project / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from losses_of import loss\n"
        "from models.mlp import MLP_784_512_10\n"
        "MINE = replace(MLP_784_512_10, loss=loss)\n"
    )
    assert {"mine", "losses_of", "models.mlp", "models.digits"} <= set(Job("mine:MINE").modules)


def test_a_changed_template_is_seen(project: Path) -> None:
    before = folder_digest("bundle_of", "deep")
    (project / "bundle_of/deep/page.html").write_text("new")
    after = folder_digest("bundle_of", "deep")
    assert after != before
    (project / "bundle_of/deep/__pycache__").mkdir(exist_ok=True)  # as an installer leaves it
    assert folder_digest("bundle_of", "deep") == after
