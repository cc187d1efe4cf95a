"""The parts of a value: each is a value of the same kind, in a folder of its own beneath it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from models.errors import TamperedFile
from pipeline.artifacts import check_files, load, save
from pipeline.values import (
    CERTIFICATE_VALUE,
    ENGINE_VALUE,
    MODEL_VALUE,
    PARTS,
    Certificate,
    Engine,
    OnnxModel,
    TrainedModel,
)

Whole = TypeVar("Whole", bound="OnnxModel | Engine | Certificate")

_FILES = {OnnxModel: MODEL_VALUE, Engine: ENGINE_VALUE, Certificate: CERTIFICATE_VALUE}


def part(whole: Whole, name: str) -> Whole:
    """The part of that name. Raises `MissingArtifact` or, where it is another, `TamperedFile`."""
    kind = type(whole)
    found = load(kind, whole.folder / PARTS / name, _FILES[kind])
    if found.digest != whole.parts[name]:
        raise TamperedFile(
            f"{found.folder} is not the part that was recorded",
            got=f"sha256 {found.digest[:12]}",
            expected=f"sha256 {whole.parts[name][:12]}",
            fix="make it again, or copy it whole",
        )
    return found


def save_value(value: OnnxModel | Engine | Certificate) -> None:
    """Write a value into its own folder."""
    save(value, value.folder, _FILES[type(value)])


def check(value: BaseModel, *, apart: bool = True) -> None:
    """Raise `MissingFile` or `TamperedFile` unless all its files, and its parts', are theirs.

    What a graph keeps apart may be missing without `apart`: then it is all there or not at all.
    """
    if isinstance(value, TrainedModel | OnnxModel | Engine):
        check_files(value.folder, value.files)
    if isinstance(value, OnnxModel) and (
        apart or any((value.folder / name).exists() for name in value.apart)
    ):
        check_files(value.folder, value.apart)
    if isinstance(value, OnnxModel | Engine | Certificate):
        for name in value.parts:
            check(part(value, name), apart=apart)


def new_part(out: Path, name: str) -> Path:
    """An empty folder for a part of the value that is being made in `out`."""
    folder = out / PARTS / name
    folder.mkdir(parents=True)
    return folder
