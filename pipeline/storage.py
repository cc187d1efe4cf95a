"""Bundles and runs at other addresses: what arrives is checked, and what is not whole is not seen.

An address is any that fsspec knows: a folder, memory://, s3://. There lie the same files as here,
beside an index with the sha256 of each, which is written last: manifest.json of a bundle,
files.json of anything else. A file that is there with its sha256 is not sent again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from models.errors import (
    BadSetting,
    BundleError,
    DataUnavailable,
    FucinaError,
    MissingArtifact,
    NotABundle,
    TamperedFile,
    first_line,
)
from pipeline.artifacts import (
    canonical_json,
    digest_bytes,
    digest_file,
    point,
    replacing,
    write_bytes,
)
from pipeline.bundle import MANIFEST, Manifest, open_bundle
from pipeline.progress import Progress, silent

LISTING = "files.json"
_LARGEST_INDEX = 1 << 26
_HIDDEN = "."  # what is half-written begins so


class Listing(BaseModel):
    """Of a folder that is no bundle: the sha256 of each file, and where links lead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]
    links: dict[str, str] = {}

    @model_validator(mode="after")
    def _inside(self) -> Listing:
        for name in (*self.files, *self.links, *self.links.values()):
            path = PurePosixPath(name)
            if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name:
                raise ValueError(f"file name {name!r} leaves the folder")
        return self


@dataclass(frozen=True)
class Moved:
    """What a transfer did: the index's digest, all files, and those that had to be sent."""

    place: str
    digest: str
    files: int
    sent: int
    bytes: int


@dataclass(frozen=True)
class _Place:
    """A folder of a file system, and how it may be named to a person."""

    system: Any
    root: str
    name: str

    def __truediv__(self, file: str) -> str:
        return f"{self.root.rstrip('/')}/{file}"


@dataclass(frozen=True)
class _Index:
    name: str
    data: bytes
    files: dict[str, str]
    links: dict[str, str]


def push(folder: Path, address: str, progress: Progress = silent) -> Moved:
    """Copy a bundle, or all that lies in another folder, to an address; the index comes last.

    Every file is read back and has its sha256. Raises `BadSetting` when the address has another
    bundle, `TamperedFile` for what did not arrive, `DataUnavailable` when nobody answers there.
    """
    if not folder.is_dir():
        raise MissingArtifact(f"{folder} is not a folder", fix="give a bundle, a run, or a name")
    index = _index_of(folder)
    sent = size = 0
    with _opened(address) as place:
        there = _read(place, index.name)
        if there is not None and there != index.data:
            raise BadSetting(
                f"{place.name} holds something else",
                got=f"sha256 {digest_bytes(there)[:12]}",
                expected=f"sha256 {digest_bytes(index.data)[:12]}",
                fix="push to another address, such as one that ends in the version",
            )
        for number, (name, digest) in enumerate(sorted(index.files.items())):
            progress(number, len(index.files), name)
            local, remote = folder / name, place / name
            if _digest_there(place, remote, local.stat().st_size) == digest:
                continue
            place.system.makedirs(remote.rpartition("/")[0], exist_ok=True)
            place.system.put_file(str(local), remote)
            sent, size = sent + 1, size + local.stat().st_size
            got = _digest_there(place, remote, local.stat().st_size)
            if got != digest:
                raise _not_arrived(f"{place.name}/{name}", got, digest)
        if there is None:
            with place.system.transaction, place.system.open(place / index.name, "wb") as file:
                file.write(index.data)
        progress(len(index.files), len(index.files), f"{sent} files sent")
    return Moved(place.name, digest_bytes(index.data), len(index.files), sent, size)


def pull(address: str, out: Path, progress: Progress = silent) -> Moved:
    """Copy what was pushed to an address into the new folder `out`, which appears when it is whole.

    What an interrupted pull has fetched is kept beside `out` and not fetched again. Raises
    `NotABundle` when the address holds no index, `TamperedFile` for a file that is not the index's,
    `BadSetting` when `out` is something else, `DataUnavailable` when nobody answers there.
    """
    sent = size = 0
    with _opened(address) as place:
        index = _index_at(place)
        digest = digest_bytes(index.data)
        done = Moved(str(out), digest, len(index.files), 0, 0)
        if out.exists():
            if out.is_dir() and _index_of(out).data == index.data:
                return done
            raise BadSetting(f"{out} is there and is something else", fix="pull into a new folder")
        temporary = out.parent / f".pulled-{digest[:16]}"
        for number, (name, wanted) in enumerate(sorted(index.files.items())):
            progress(number, len(index.files), name)
            local = temporary / name
            if local.is_file() and digest_file(local) == wanted:
                continue
            local.parent.mkdir(parents=True, exist_ok=True)
            with replacing(local) as partial:
                try:
                    place.system.get_file(place / name, str(partial))
                except FileNotFoundError as error:
                    raise _not_arrived(f"{place.name}/{name}", None, wanted) from error
                got = digest_file(partial)
                if got != wanted:
                    raise _not_arrived(f"{place.name}/{name}", got, wanted)
                sent, size = sent + 1, size + partial.stat().st_size
    temporary.mkdir(parents=True, exist_ok=True)
    for link, target in index.links.items():
        (temporary / link).parent.mkdir(parents=True, exist_ok=True)
        point(temporary / link, temporary / target)
    _drop_others(temporary, index)
    if index.name == MANIFEST:
        write_bytes(temporary / MANIFEST, index.data)
        open_bundle(temporary)
    temporary.rename(out)
    progress(len(index.files), len(index.files), f"{sent} files fetched")
    return Moved(str(out), digest, len(index.files), sent, size)


def _index_of(folder: Path) -> _Index:
    if (folder / MANIFEST).is_file():
        bundle = open_bundle(folder)
        return _Index(MANIFEST, (folder / MANIFEST).read_bytes(), bundle.manifest.files, {})
    files, links = {}, {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(_HIDDEN) for part in PurePosixPath(name).parts):
            continue
        if path.is_symlink():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise BundleError(f"link {path} leads out of {folder}", fix="remove it")
            links[name] = path.resolve().relative_to(folder.resolve()).as_posix()
        elif path.is_file():
            files[name] = digest_file(path)
    if not files:
        raise MissingArtifact(f"{folder} has no files", fix="give a bundle, a run, or a name")
    return _Index(LISTING, canonical_json({"files": files, "links": links}), files, links)


def _index_at(place: _Place) -> _Index:
    for name, kind in ((MANIFEST, Manifest), (LISTING, Listing)):
        data = _read(place, name)
        if data is None:
            continue
        try:
            said = kind.model_validate(json.loads(data))
        except (ValueError, ValidationError) as error:
            raise NotABundle(f"{place.name}/{name} is not valid", got=first_line(error)) from error
        links = said.links if isinstance(said, Listing) else {}
        return _Index(name, data, said.files, links)
    raise NotABundle(
        f"{place.name} holds nothing that was pushed whole",
        got=f"neither {MANIFEST} nor {LISTING}",
        fix="push it, or push it again: what is there is not sent twice",
    )


def _read(place: _Place, name: str) -> bytes | None:
    path = place / name
    try:
        size = place.system.info(path)["size"]
        if size > _LARGEST_INDEX:
            raise NotABundle(f"{place.name}/{name} is too large", got=size)
        return place.system.cat_file(path)
    except FileNotFoundError:
        return None


def _digest_there(place: _Place, path: str, size: int) -> str | None:
    """The sha256 of a file at a place; None where it is missing, or not of this size anyway."""
    place.system.invalidate_cache(path.rpartition("/")[0])
    try:
        if place.system.info(path)["size"] != size:
            return None
        with place.system.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _drop_others(folder: Path, index: _Index) -> None:
    """Remove what an earlier, interrupted pull may have left besides."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in index.files and name not in index.links:
            path.unlink()


def _not_arrived(name: str, got: str | None, wanted: str) -> TamperedFile:
    return TamperedFile(
        f"{name} is not the file that was recorded",
        got=f"sha256 {got[:12]}" if got else "nothing, or another size",
        expected=f"sha256 {wanted[:12]}",
        fix="try again, or push it anew",
    )


@contextmanager
def _opened(address: str) -> Iterator[_Place]:
    """The file system of an address; what it raises becomes one line that has no password in it."""
    import fsspec

    name = re.sub(r"//[^/@]*@", "//", address).rstrip("/")
    try:
        system, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        yield _Place(system, root, name)
    except FucinaError:
        raise
    except ImportError as error:
        protocol = address.partition("://")[0]
        raise BadSetting(
            f"addresses of {protocol}:// need a package that is not installed",
            fix="pip install 'fucina[s3]'" if protocol == "s3" else first_line(error),
        ) from error
    except Exception as error:  # every file system raises its own
        raise DataUnavailable(
            f"{name} cannot be used", got=first_line(error).replace(address, name)
        ) from error
