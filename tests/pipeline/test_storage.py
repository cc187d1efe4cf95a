"""Bundles and runs at other addresses: whole or not seen, checked on arrival, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import (
    BadSetting,
    BundleError,
    DataUnavailable,
    MissingArtifact,
    NotABundle,
    TamperedFile,
)
from pipeline.artifacts import point
from pipeline.bundle import MANIFEST, open_bundle
from pipeline.storage import LISTING, Listing, pull, push
from tests.conftest import Release


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a bucket of moto's S3 server, which ends with the tests."""
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer(
        "127.0.0.1", port=0, verbose=False
    )
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "fucina",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            fsspec.filesystem("s3").mkdir("fucina")
            yield "s3://fucina"
    finally:
        server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        yield f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        return
    yield f"file://{tmp_path}/store/one" if request.param == "file" else "memory://store/one"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def bundle(mlp: Release) -> Path:
    return mlp.bundle.folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that is no bundle, with a link and something half-written."""
    folder = tmp_path / "run"
    for name in ("train/a/weights", "package/b/card", "run.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 1000)
    point(folder / "bundle", folder / "package" / "b")
    (folder / ".partial-1-x").write_text("half")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_a_bundle_comes_back_as_it_was(bundle: Path, address: str, tmp_path: Path) -> None:
    pushed = push(bundle, address)
    assert pushed.sent == pushed.files == len(open_bundle(bundle).manifest.files)
    pulled = pull(address, tmp_path / "out")
    assert pulled.digest == pushed.digest == open_bundle(tmp_path / "out").digest
    assert contents(tmp_path / "out") == contents(bundle)
    assert pull(address, tmp_path / "out").sent == 0
    assert {p.name for p in tmp_path.iterdir()} - {"store"} == {"out"}


def test_a_run_comes_back_with_its_links(run: Path, address: str, tmp_path: Path) -> None:
    push(run, address)
    pull(address, tmp_path / "out")
    assert (tmp_path / "out" / "bundle").resolve() == (tmp_path / "out" / "package/b").resolve()
    assert contents(tmp_path / "out") == {
        name: data for name, data in contents(run).items() if not name.startswith(".")
    }


def interrupted(after: int) -> object:
    def progress(done: int, total: int, text: str) -> None:
        if done == after:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_push_is_not_seen_and_goes_on(
    bundle: Path, address: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        push(bundle, address, interrupted(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(NotABundle, match="pushed whole"):
        pull(address, tmp_path / "out")
    pushed = push(bundle, address)
    assert pushed.sent == pushed.files - 3
    assert push(bundle, address).sent == 0
    pull(address, tmp_path / "out")


def test_an_interrupted_pull_is_not_seen_and_goes_on(
    bundle: Path, address: str, tmp_path: Path
) -> None:
    push(bundle, address)
    with pytest.raises(KeyboardInterrupt):
        pull(address, tmp_path / "out", interrupted(3))  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()
    assert pull(address, tmp_path / "out").sent == len(open_bundle(bundle).manifest.files) - 3
    open_bundle(tmp_path / "out")


def test_what_has_the_size_but_not_the_digest_is_sent_again(bundle: Path, address: str) -> None:
    system, root = fsspec.core.url_to_fs(address)
    name = "codec.json"
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/{name}", b"x" * (bundle / name).stat().st_size)
    pushed = push(bundle, address)
    assert pushed.sent == pushed.files
    assert system.cat_file(f"{root}/{name}") == (bundle / name).read_bytes()


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_what_is_harmed_there_does_not_arrive(
    bundle: Path, address: str, tmp_path: Path, harm: str
) -> None:
    push(bundle, address)
    system, root = fsspec.core.url_to_fs(address)
    path = f"{root}/codec.json"
    data = system.cat_file(path)
    system.rm_file(path)
    if harm != "gone":
        system.pipe_file(path, data[:-1] + (b"?" if harm == "changed" else b""))
    with pytest.raises(TamperedFile, match=r"codec\.json is not the file that was recorded"):
        pull(address, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert push(bundle, address).sent == 1  # which mends it
    pull(address, tmp_path / "out")


def test_another_bundle_is_never_mixed_in(bundle: Path, address: str, tmp_path: Path) -> None:
    push(bundle, address)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"title": "another"}))
    with pytest.raises(BadSetting, match="holds something else"):
        push(other, address)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(BadSetting, match="is something else"):
        pull(address, tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine": b"mine"}


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "a\\b"])
@pytest.mark.parametrize("index", [MANIFEST, LISTING])
def test_no_index_reaches_out_of_the_folder(
    bundle: Path, address: str, tmp_path: Path, name: str, index: str
) -> None:
    system, root = fsspec.core.url_to_fs(address)
    system.makedirs(root, exist_ok=True)
    document = {"files": {name: "0" * 64}}
    if index == MANIFEST:
        document = json.loads((bundle / MANIFEST).read_text()) | document
    system.pipe_file(f"{root}/{index}", json.dumps(document).encode())
    with pytest.raises(NotABundle):
        pull(address, tmp_path / "out")


@given(st.text(max_size=20))
def test_a_name_of_a_listing_stays_inside(name: str) -> None:
    try:
        listing = Listing(files={name: ""}, links={"link": name})
    except ValidationError:
        return
    (inside,) = listing.files
    whole = os.path.normpath(os.path.join("/folder", inside))
    assert whole.startswith("/folder/")


def test_a_link_out_of_the_folder_is_not_pushed(run: Path, address: str) -> None:
    (run / "out").symlink_to("/etc")
    with pytest.raises(BundleError, match="leads out"):
        push(run, address)


def test_what_is_not_there_is_one_line(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(NotABundle, match="pushed whole"):
        pull("memory://nothing", tmp_path / "out")
    with pytest.raises(MissingArtifact, match="not a folder"):
        push(tmp_path / "none", "memory://x")
    with pytest.raises(DataUnavailable) as caught:
        push(bundle, "nonsense://user:secret@host/x")
    assert "secret" not in str(caught.value)
