"""Digests, and folders that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors.numpy import save as save_arrays

from models.errors import MissingArtifact, MissingFile, TamperedFile

Value = TypeVar("Value", bound=BaseModel)

_TEMPORARY = ".partial-"


def canonical_json(data: object) -> bytes:
    """The one spelling of a JSON document that digests are taken of."""
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def pack(arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as a file of safetensors, in C order whatever their order in memory.

    Its own writer takes the bytes as they lie there, and so scrambles a transposed array.
    """
    return save_arrays({n: np.asarray(a, order="C") for n, a in arrays.items()}, metadata)


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_json(data: object) -> str:
    return digest_bytes(canonical_json(data))


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in sorted(names)}


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raise `MissingFile` or `TamperedFile` unless each named file has its sha256."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise MissingFile(f"{folder} lacks {name}", fix="make it again, or copy it whole")
        got = digest_file(path)
        if got != expected:
            raise TamperedFile(
                f"{path} is not the file that was recorded",
                got=f"sha256 {got[:12]}",
                expected=f"sha256 {expected[:12]}",
                fix="make it again, or copy it whole",
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well: readers see all or nothing."""
    temporary = _temporary_beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: object) -> None:
    write_bytes(path, canonical_json(data))


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that takes its final name when the block ends well.

    Raised errors remove it; a killed process leaves it for `sweep`. Where another process was
    first with the same name, its folder stays: equal names mean equal content.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(final)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some writers leave files private
        if final.exists():
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sweep(root: Path) -> list[Path]:
    """Remove what killed processes of this host left half-written under `root`; what was removed.

    Of a process on another host, or in another container, nobody here knows whether it lives.
    """
    removed = []
    for path in sorted(root.rglob(f"{_TEMPORARY}*@{platform.node()}")) if root.is_dir() else []:
        process = int(path.name.removeprefix(_TEMPORARY).partition("-")[0])
        if not path.exists() or _alive(process):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        removed.append(path)
    return removed


def point(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, replacing the one before it at once."""
    temporary = _temporary_beside(link)
    temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
    temporary.replace(link)


def save(value: BaseModel, folder: Path, name: str) -> None:
    """Write a value as canonical JSON: without its `folder`, which is where it lies."""
    write_bytes(folder / name, canonical_json(as_json(value)))


def load(kind: type[Value], folder: Path, name: str) -> Value:
    """Read a value back; raises `MissingArtifact` when absent or not of this version."""
    path = folder / name
    try:
        data = json.loads(path.read_bytes())
        return kind.model_validate(data | {"folder": folder})
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise MissingArtifact(
            f"{path} does not hold a {kind.__name__}",
            got=type(error).__name__,
            fix="run the stage that makes it again",
        ) from error


def as_json(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude={"folder"})


def digest_value(value: BaseModel) -> str:
    """sha256 of what a value says beyond its defaults.

    So a value of an older version, which lacks a field, keeps the digest that others name.
    """
    return digest_json(value.model_dump(mode="json", exclude={"folder"}, exclude_defaults=True))


def _temporary_beside(path: Path) -> Path:
    name = f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}@{platform.node()}"
    return path.parent / name


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
