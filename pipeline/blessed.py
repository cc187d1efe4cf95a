"""Blessed: which bundles of a model are to be served, as a record that only grows."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import BadSetting, BundleError, MissingArtifact
from pipeline.bundle import Bundle, open_bundle

RECORD = "blessed.jsonl"  # beside the stages of a run
LAST = "bundle"  # a link to what was packaged last

Action = Literal["bless", "rollback", "canary"]


class Entry(BaseModel):
    """One decision: which version is served from then on, or to a share of requests beside it.

    `bundle` is relative to the record's folder where it lies inside. A canary of 0 percent ends it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    version: str
    bundle: str
    digest: str  # of the bundle's manifest, and through it of every file
    certificates: dict[str, str]  # by target
    previous: str | None
    percent: float = Field(default=100.0, ge=0, le=100)
    who: str
    when: datetime


@dataclass(frozen=True)
class Standing:
    """The bundle that is served, and one that a share of the requests gets instead."""

    bundle: Path
    canary: Path | None = None
    percent: float = 0.0


def read_record(run: Path) -> list[Entry]:
    """Every decision so far, oldest first; raises `BundleError` for a line that is none."""
    path = run / RECORD
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            raise BundleError(
                f"line {number} of {path} is no decision", got=error.errors()[0]["msg"]
            ) from error
    return entries


def standing(run: Path) -> Standing:
    """What a run folder says is to be served: the blessed bundle, or the last while none is.

    Raises `MissingArtifact` when there is neither.
    """
    current, canary = _fold(read_record(run))
    if current is None:
        if not (run / LAST).exists():
            raise MissingArtifact(
                f"{run} has no bundle", fix=f"run `fucina run {run.name}` first, or give --out"
            )
        folder = (run / LAST).resolve()
    else:
        folder = run / current.bundle
    if canary is None:
        return Standing(folder)
    return Standing(folder, run / canary.bundle, canary.percent)


def bless(run: Path, folder: Path) -> Entry:
    """Serve this bundle from now on; ends a canary.

    Raises what `open_bundle` raises, and `CertificateFailed` unless every engine is certified.
    """
    return _append(run, "bless", open_bundle(folder))


def canary(run: Path, folder: Path, percent: float) -> Entry:
    """Give this share of the requests to a bundle beside the one that is served.

    Raises what `bless` raises, and `BadSetting` when it is the one that is served.
    """
    return _append(run, "canary", open_bundle(folder), percent)


def rollback(run: Path) -> Entry:
    """Serve what was served before the current one; a canary is ended first.

    Raises `MissingArtifact` when nothing was.
    """
    entries = read_record(run)
    current, trial = _fold(entries)
    if current is None:
        raise MissingArtifact(f"{run.name!r} has no blessed bundle to go back from")
    if trial is not None:
        return _append(run, "canary", open_bundle(run / trial.bundle), 0.0)
    earlier = {entry.version: entry for entry in entries if entry.action != "canary"}
    if current.previous is None or current.previous not in earlier:
        raise MissingArtifact(
            f"{run.name!r} has no bundle before {current.version!r} to go back to"
        )
    return _append(run, "rollback", open_bundle(run / earlier[current.previous].bundle))


def _fold(entries: list[Entry]) -> tuple[Entry | None, Entry | None]:
    """The entry that is served and that of a canary, after all decisions."""
    current = trial = None
    for entry in entries:
        if entry.action == "canary":
            trial = entry if entry.percent else None
        else:
            current, trial = entry, None
    return current, trial


def _append(run: Path, action: Action, bundle: Bundle, percent: float = 100.0) -> Entry:
    certificates = {name: bundle.certificate(name).digest for name in bundle.manifest.engines}
    with _locked(run) as record:
        entries = read_record(run)
        current, _ = _fold(entries)
        version = bundle.manifest.version
        if action == "canary" and current is None:
            raise MissingArtifact(
                f"{run.name!r} has no blessed bundle beside which to try another",
                fix=f"run `fucina bless {run.name}` first",
            )
        if action == "canary" and current and current.version == version:
            raise BadSetting(f"version {version!r} is the one that is served already")
        folder = bundle.folder.resolve()
        inside = folder.is_relative_to(run.resolve())
        entry = Entry(
            action=action,
            version=version,
            bundle=str(folder.relative_to(run.resolve()) if inside else folder),
            digest=bundle.digest,
            certificates=certificates,
            previous=_previous(entries, action, version),
            percent=percent,
            who=getpass.getuser(),
            when=datetime.now(UTC),
        )
        os.write(record, entry.model_dump_json().encode() + b"\n")
        os.fsync(record)
        return entry


def _previous(entries: list[Entry], action: Action, version: str) -> str | None:
    """The version to which a rollback would lead from here."""
    current, _ = _fold(entries)
    if current is None:
        return None
    if action == "canary":
        return current.version
    if action == "bless":
        return current.version if current.version != version else current.previous
    # Back at a version means back at what came before it then.
    return next(
        e.previous for e in reversed(entries) if e.version == version and e.action != "canary"
    )


@contextmanager
def _locked(run: Path) -> Iterator[int]:
    """The record, open for one process that appends to it."""
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    record = os.open(run / RECORD, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(record, fcntl.LOCK_EX)
        yield record
    finally:
        os.close(record)
