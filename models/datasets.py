"""Data sets as named arrays: what came with a dependency, or files that are fetched and checked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import DataCorrupt, DataUnavailable
from models.signature import Arrays

DATA_VARIABLE = "FUCINA_DATA"


@dataclass(frozen=True)
class Split:
    """Rows of named inputs and named targets, the row axis first."""

    inputs: Arrays
    targets: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Dataset:
    """Three separate splits: weights see `train`, choices see `validation`, numbers `test`."""

    name: str
    source: str
    licence: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()  # of text: the tokens that ids stand for
    exhaustive: bool = False  # the rows are all that can be, so each split holds all of them

    @cached_property
    def digest(self) -> str:
        """sha256 over every array of every split, with its name, dtype and shape."""
        total = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for part in (split.inputs, split.targets):
                for name, array in sorted(part.items()):
                    total.update(f"{name} {array.dtype} {array.shape}".encode())
                    total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def split_rows(
    inputs: Arrays, targets: Arrays, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, Any]:
    """Disjoint random `Split`s of the given sizes by name; 0 takes what remains."""
    count = len(next(iter(inputs.values())))
    order = np.random.default_rng(seed).permutation(count)
    rest = count - sum(sizes.values())
    splits: dict[str, Any] = {}  # so that a type checker lets them be keywords of `Dataset`
    start = 0
    for name, size in sizes.items():
        rows = np.sort(order[start : start + (size or rest)])
        start += len(rows)
        splits[name] = Split(
            {key: array[rows] for key, array in inputs.items()},
            {key: array[rows] for key, array in targets.items()},
        )
    return splits


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: where it lies under the data folder, its address and its digest.

    `sha256` is of the decompressed bytes, because the same data is found recompressed; of a PNG
    these are its pixels, row by row. What is downloaded may be a ZIP archive that holds the file as
    `member`.
    """

    path: str
    address: str
    sha256: str
    member: str = ""


def fetch(file: RemoteFile) -> bytes:
    """The decompressed bytes of a file: from FUCINA_DATA, from the cache, or downloaded into it.

    Raises `DataUnavailable` when it is nowhere, `DataCorrupt` when its digest is wrong.
    """
    given = os.environ.get(DATA_VARIABLE)
    path = (Path(given) if given else cache_folder()) / file.path
    if path.is_file():
        return _checked(path.read_bytes(), file, str(path))
    if given:
        raise DataUnavailable(
            f"{path} is missing", fix=f"put it there, or unset {DATA_VARIABLE} to download it"
        )
    raw = _download(file)
    data = _checked(raw, file, file.address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        temporary.write(raw)
    Path(temporary.name).replace(path)
    return data


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/fucina, else ~/.cache/fucina."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fucina"


def _download(file: RemoteFile) -> bytes:
    try:
        with urllib.request.urlopen(file.address, timeout=60) as answer:
            return answer.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise DataUnavailable(
            f"{file.path} is not here and {file.address} is not reachable",
            got=str(getattr(error, "reason", error)),
            fix=f"connect, or set {DATA_VARIABLE} to a folder that holds {file.path}, "
            f"or use --data embedded",
        ) from error


def _decompressed(raw: bytes, file: RemoteFile) -> bytes:
    if raw[:2] == b"\x1f\x8b":
        return gzip.decompress(raw)
    if file.member and raw[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return archive.read(file.member)
    if raw[:8] == b"\x89PNG\r\n\x1a\n":
        from PIL import Image

        with Image.open(io.BytesIO(raw)) as picture:
            return picture.tobytes()
    return raw


def _checked(raw: bytes, file: RemoteFile, where: str) -> bytes:
    try:
        data = _decompressed(raw, file)
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, SyntaxError) as error:
        raise DataCorrupt(f"{where} is not a whole compressed file", got=str(error)) from error
    got = hashlib.sha256(data).hexdigest()
    if got != file.sha256:
        raise DataCorrupt(
            f"{where} is not the published file",
            got=f"sha256 {got[:12]}",
            expected=f"sha256 {file.sha256[:12]} after decompression",
            fix="delete it and fetch it again",
        )
    return data
