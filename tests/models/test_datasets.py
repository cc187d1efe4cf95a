"""Data sets: separate splits, and files that are taken only with the right bytes."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.datasets import DATA_VARIABLE, RemoteFile, fetch, split_rows
from models.digits import embedded_digits, mnist
from models.errors import DataCorrupt, DataUnavailable

CONTENT = b"0123456789" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fucina"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A real HTTP server over `tmp_path/site`."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once_and_checked_after_decompression(
    cache: Path, address: str, tmp_path: Path
) -> None:
    site = tmp_path / "site" / "file.gz"
    site.write_bytes(gzip.compress(CONTENT, compresslevel=1))
    file = RemoteFile("set/file.gz", f"{address}/file.gz", SHA256)
    assert fetch(file) == CONTENT
    assert (cache / "set" / "file.gz").is_file()
    site.unlink()
    assert fetch(file) == CONTENT


def test_a_wrong_download_is_refused_and_not_kept(
    cache: Path, address: str, tmp_path: Path
) -> None:
    (tmp_path / "site" / "file").write_bytes(CONTENT + b"!")
    with pytest.raises(DataCorrupt, match="is not the published file"):
        fetch(RemoteFile("file", f"{address}/file", SHA256))
    assert not list(cache.rglob("*"))


def test_a_truncated_gzip_is_refused(cache: Path, address: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "file").write_bytes(gzip.compress(CONTENT)[:-9])
    with pytest.raises(DataCorrupt, match="not a whole compressed file"):
        fetch(RemoteFile("file", f"{address}/file", SHA256))


def test_a_file_in_a_zip_archive_is_read_out_of_it(
    cache: Path, address: str, tmp_path: Path
) -> None:
    archive = tmp_path / "site" / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("readme", "other")
        packed.writestr("inside/rows", CONTENT)
    file = RemoteFile("set/rows", f"{address}/archive.zip", SHA256, member="inside/rows")
    assert fetch(file) == CONTENT
    archive.unlink()
    assert fetch(file) == CONTENT, "the cache holds it"
    (cache / "set" / "rows").write_bytes(CONTENT)
    assert fetch(file) == CONTENT, "a file that somebody unpacked is as good"


def test_of_a_png_the_pixels_are_checked(cache: Path, address: str, tmp_path: Path) -> None:
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    site = tmp_path / "site" / "0.png"
    Image.fromarray(pixels).save(site, compress_level=1)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    file = RemoteFile("set/0.png", f"{address}/0.png", digest)
    assert fetch(file) == pixels.tobytes()
    site.unlink()
    assert fetch(file) == pixels.tobytes(), "the cache holds it"


@pytest.mark.parametrize("keep", [20, 40])
def test_a_truncated_png_is_refused(cache: Path, address: str, tmp_path: Path, keep: int) -> None:
    site = tmp_path / "site" / "0.png"
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(site)
    site.write_bytes(site.read_bytes()[:keep])
    with pytest.raises(DataCorrupt, match="not a whole compressed file"):
        fetch(RemoteFile("0.png", f"{address}/0.png", SHA256))
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize("damage", ["member", "bytes"])
def test_a_damaged_archive_is_refused(
    cache: Path, address: str, tmp_path: Path, damage: str
) -> None:
    archive = tmp_path / "site" / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("rows", CONTENT)
    if damage == "bytes":
        archive.write_bytes(archive.read_bytes()[:-30])
    member = "rows" if damage == "bytes" else "columns"
    with pytest.raises(DataCorrupt, match="not a whole compressed file"):
        fetch(RemoteFile("rows", f"{address}/archive.zip", SHA256, member=member))
    assert not list(cache.rglob("*"))


def test_no_network_is_one_line_that_says_what_to_do(cache: Path) -> None:
    file = RemoteFile("set/file", "http://127.0.0.1:1/file", SHA256)
    with pytest.raises(
        DataUnavailable, match=r"not reachable: got .*; connect, or set FUCINA_DATA"
    ):
        fetch(file)


def test_the_given_folder_is_used_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    file = RemoteFile("file", "http://127.0.0.1:1/file", SHA256)
    with pytest.raises(
        DataUnavailable, match="file is missing; put it there, or unset FUCINA_DATA"
    ):
        fetch(file)
    (tmp_path / "file").write_bytes(CONTENT)
    assert fetch(file) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_embedded_digits_are_separate_and_stable() -> None:
    dataset = embedded_digits()
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [1257, 180, 360]
    assert dataset.digest == embedded_digits().digest
    assert dataset.train.inputs["image"].shape[1:] == (1, 28, 28)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.inputs["image"].min() >= 0
        assert split.inputs["image"].max() <= 1
        assert set(split.targets["label"]) == set(range(10))


def test_splits_are_disjoint_and_complete() -> None:
    rows = np.arange(100)
    splits = split_rows({"x": rows}, {"y": -rows}, {"train": 0, "validation": 20, "test": 30})
    together = np.concatenate([split.inputs["x"] for split in splits.values()])
    assert sorted(together) == list(rows)
    assert [len(split) for split in splits.values()] == [50, 20, 30]
    for split in splits.values():
        np.testing.assert_array_equal(split.inputs["x"], -split.targets["y"])


@pytest.mark.usefixtures("full_data")
def test_mnist_has_its_published_rows() -> None:
    dataset = mnist()
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [
        55000,
        5000,
        10000,
    ]
    labels = np.concatenate([dataset.train.targets["label"], dataset.validation.targets["label"]])
    # Published counts of the ten digits in the 60,000 training rows.
    assert np.bincount(labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert dataset.train.inputs["image"].max() == 1.0
