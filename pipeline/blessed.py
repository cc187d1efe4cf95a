"""Blessed: which bundles of a model are to be served, as a record that only grows.

Each decision is one line of JSON, written under a lock and synced before it counts. A last line
without its end was cut off by a crash: it never counted, and the next decision takes its place.
The history folds like a stack: a blessing goes on top, a rollback takes the top away.
"""

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

    `bundle` is relative to the record's folder where it lies inside. `previous` is where a rollback
    would lead from there. A canary of 0 percent ends it.
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
class Chosen:
    """A bundle that is to be served; of a blessed one the version and the digest it must have."""

    folder: Path
    version: str = ""
    digest: str = ""

    def check(self, bundle: Bundle) -> None:
        """Raise `BundleError` for a bundle that is not the one that was blessed."""
        found = bundle.digest  # read now, before the folder can change
        if self.digest and found != self.digest:
            raise BundleError(
                f"{self.folder} is not the bundle that was blessed",
                got=f"sha256 {found[:12]}",
                expected=f"sha256 {self.digest[:12]}",
                fix="bless it again, or roll back",
            )


@dataclass(frozen=True)
class Standing:
    """The bundle that is served, and one that a share of the requests gets instead."""

    bundle: Chosen
    canary: Chosen | None = None
    percent: float = 0.0


def read_record(run: Path) -> list[Entry]:
    """Every decision so far, oldest first; raises `BundleError` for a line that is none."""
    path = run / RECORD
    # What follows the last line's end is no decision yet, or was never to become one.
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            raise BundleError(
                f"line {number} of {path} is no decision", got=error.errors()[0]["msg"]
            ) from error
    return entries


def standing(run: Path) -> Standing:
    """What a run folder says is to be served: the blessed bundle, or the last while none is.

    Raises `MissingArtifact` when there is neither, and `BundleError` for a record that cannot be.
    """
    history, trial = fold(read_record(run))
    if not history:
        if not (run / LAST).exists():
            raise MissingArtifact(
                f"{run} has no bundle", fix=f"run `fucina run {run.name}` first, or give --out"
            )
        return Standing(Chosen((run / LAST).resolve()))
    current = _chosen(run, history[-1])
    return Standing(current, _chosen(run, trial), trial.percent) if trial else Standing(current)


def fold(entries: list[Entry]) -> tuple[list[Entry], Entry | None]:
    """The blessings that stand, each over the one a rollback leads to, and the canary's entry.

    Raises `BundleError` for a rollback to what was not there.
    """
    history: list[Entry] = []
    trial = None
    for number, entry in enumerate(entries, 1):
        if entry.action == "canary":
            trial = entry if entry.percent else None
            continue
        trial = None
        if entry.action == "rollback":
            if len(history) < 2 or history[-2].version != entry.version:
                raise BundleError(
                    f"decision {number} of the record goes back to what was not there",
                    got=entry.version,
                    expected=history[-2].version if len(history) > 1 else "no rollback",
                )
            history.pop()
        elif history and history[-1].version == entry.version:
            history[-1] = entry
        else:
            history.append(entry)
    return history, trial


def bless(run: Path, folder: Path, who: str | None = None) -> Entry:
    """Serve this bundle from now on; ends a canary.

    It was decided by `who`, else by the user of this process. Raises what `open_bundle` raises,
    `CertificateFailed` unless every engine is certified, and `BadSetting` for another model's
    bundle or for a version that was blessed with other content.
    """
    bundle = open_bundle(folder)
    with _locked(run) as record:
        entries = read_record(run)
        history, _ = fold(entries)
        if history and history[-1].version == bundle.manifest.version:
            history.pop()  # blessed again, it is still over the same one
        previous = history[-1].version if history else None
        entry = _entry(run, "bless", bundle, entries, previous)
        return _append(record, entry.model_copy(update={"who": who}) if who else entry)


def canary(run: Path, folder: Path, percent: float) -> Entry:
    """Give this share of the requests to a bundle beside the one that is served.

    Raises what `bless` raises, `MissingArtifact` when none is blessed, and `BadSetting` when it is
    the one that is served or the share is none.
    """
    if not 0 < percent <= 100:
        raise BadSetting("a canary needs a share", got=percent, expected="over 0, to 100 percent")
    bundle = open_bundle(folder)
    with _locked(run) as record:
        entries = read_record(run)
        history, _ = fold(entries)
        if not history:
            raise MissingArtifact(
                f"{run.name!r} has no blessed bundle beside which to try another",
                fix=f"run `fucina bless {run.name}` first",
            )
        version = bundle.manifest.version
        if history[-1].version == version:
            raise BadSetting(f"version {version!r} is the one that is served already")
        entry = _entry(run, "canary", bundle, entries, history[-1].version, percent)
        return _append(record, entry)


def end_canary(run: Path) -> Entry:
    """Serve the blessed bundle alone again; raises `MissingArtifact` when there is no canary."""
    with _locked(run) as record:
        _, trial = fold(read_record(run))
        if trial is None:
            raise MissingArtifact(f"{run.name!r} has no canary to end")
        return _append(record, _repeated(trial, percent=0.0))


def rollback(run: Path) -> Entry:
    """Serve what was served before the current one; while there is a canary, only end that.

    Raises `MissingArtifact` when nothing was, and what `open_bundle` raises, or `BundleError`, for
    a bundle that is not there any more as it was blessed.
    """
    with _locked(run) as record:
        history, trial = fold(read_record(run))
        if trial is not None:  # whose bundle need not even be there any more
            return _append(record, _repeated(trial, percent=0.0))
        if len(history) < 2:
            before = f" before {history[-1].version!r}" if history else ""
            raise MissingArtifact(f"{run.name!r} has no blessed bundle{before} to go back to")
        earlier = history[-2]
        chosen = _chosen(run, earlier)
        chosen.check(open_bundle(chosen.folder))
        return _append(record, _repeated(earlier, action="rollback", percent=100.0))


def _entry(
    run: Path,
    action: Action,
    bundle: Bundle,
    entries: list[Entry],
    previous: str | None,
    percent: float = 100.0,
) -> Entry:
    name, version = bundle.manifest.name, bundle.manifest.version
    if name != run.resolve().name:
        raise BadSetting(
            f"a bundle of {name!r} cannot be served as {run.resolve().name!r}",
            fix="bless it in its own run's folder",
        )
    if any(e.version == version and e.digest != bundle.digest for e in entries):
        raise BadSetting(
            f"version {version!r} of {name!r} was blessed with other content",
            fix="package it again, which gives it a version of its own",
        )
    folder = bundle.folder.resolve()
    inside = folder.is_relative_to(run.resolve())
    return Entry(
        action=action,
        version=version,
        bundle=str(folder.relative_to(run.resolve()) if inside else folder),
        digest=bundle.digest,
        certificates={name: bundle.certificate(name).digest for name in bundle.manifest.engines},
        previous=previous,
        percent=percent,
        who=_who(),
        when=datetime.now(UTC),
    )


def _repeated(entry: Entry, **changes: object) -> Entry:
    return entry.model_copy(update={"who": _who(), "when": datetime.now(UTC)} | changes)


def _chosen(run: Path, entry: Entry) -> Chosen:
    return Chosen(run / entry.bundle, entry.version, entry.digest)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())


def _append(record: int, entry: Entry) -> Entry:
    """Write a decision where the last whole one ends."""
    size = os.fstat(record).st_size
    end = os.pread(record, size, 0).rfind(b"\n") + 1
    os.ftruncate(record, end)
    line = entry.model_dump_json().encode() + b"\n"
    written = 0
    try:
        while written < len(line):
            written += os.write(record, line[written:])
        os.fsync(record)
    except OSError:  # no room: a decision is there whole or not at all
        os.ftruncate(record, end)
        raise
    return entry


@contextmanager
def _locked(run: Path) -> Iterator[int]:
    """The record, open for one process that appends to it."""
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    record = os.open(run / RECORD, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(record, fcntl.LOCK_EX)
        yield record
        _sync_folder(run)
    finally:
        os.close(record)


def _sync_folder(run: Path) -> None:
    """A record that is new must be found in its folder after a crash as well."""
    folder = os.open(run, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
