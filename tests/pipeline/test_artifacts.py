"""Folders and files are whole or not there, whatever kills the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from safetensors.numpy import load

from models.errors import MissingFile, TamperedFile
from pipeline.artifacts import (
    check_files,
    digest_files,
    digest_value,
    new_folder,
    pack,
    point,
    replacing,
    sweep,
    write_bytes,
)


@given(axes=st.permutations(range(3)), step=st.sampled_from((1, 2, -1)), rows=st.integers(0, 3))
def test_arrays_are_packed_as_they_are_read(axes: list[int], step: int, rows: int) -> None:
    """Whatever their order in memory, which safetensors alone takes for their order."""
    whole = np.arange(rows * 12, dtype=np.float32).reshape(rows, 4, 3)
    arrays = {"cut": whole.transpose(axes)[::step], "whole": whole, "one": np.array(7)}
    found = load(pack(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with new_folder(final) as out:
        (out / "a").write_text("a")
        (out / "a").chmod(0o600)
        assert not final.exists()
    assert names(tmp_path) == ["final"]
    assert (final / "a").stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "final") as out:
        (out / "a").write_text("a")
        raise RuntimeError
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_failed_replacement_keeps_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"


def test_the_first_of_two_equal_folders_stays(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with new_folder(final) as slow:
        with new_folder(final) as fast:
            (fast / "who").write_text("fast")
        (slow / "who").write_text("slow")
    assert (final / "who").read_text() == "fast"
    assert names(tmp_path) == ["final"]


def test_sweep_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.artifacts import new_folder\n"
        "with new_folder(Path(sys.argv[1]) / 'final') as out:\n"
        "    (out / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = names(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".partial-")
    foreign = left[0].partition("@")[0] + "@elsewhere"
    (tmp_path / foreign).mkdir()  # of another host, where it may live
    with new_folder(tmp_path / "mine") as mine:  # of a live process: ours
        assert [path.name for path in sweep(tmp_path)] == left
        assert mine.is_dir()
    assert names(tmp_path) == [foreign, "mine"]


def test_a_link_is_replaced_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point(tmp_path / "link", tmp_path / name)
        assert (tmp_path / "link").resolve() == tmp_path / name
    assert os.readlink(tmp_path / "link") == "two"


def test_missing_and_tampered_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = digest_files(tmp_path, ["a", "b"])
    check_files(tmp_path, files)
    (tmp_path / "b").write_text("B")
    with pytest.raises(TamperedFile, match="b is not the file that was recorded"):
        check_files(tmp_path, files)
    (tmp_path / "a").unlink()
    with pytest.raises(MissingFile, match="lacks a"):
        check_files(tmp_path, files)


class Value(BaseModel):
    folder: Path = Field(exclude=True)
    name: str


class Later(Value):
    extra: dict[str, str] = {}


def test_a_field_of_a_later_version_leaves_the_digest_of_a_value_as_it_was(tmp_path: Path) -> None:
    before, after = Value(folder=tmp_path, name="a"), Later(folder=tmp_path, name="a")
    assert digest_value(before) == digest_value(after)
    assert digest_value(before) != digest_value(Value(folder=tmp_path, name="b"))
    assert digest_value(after) != digest_value(Later(folder=tmp_path, name="a", extra={"b": "c"}))
