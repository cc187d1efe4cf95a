"""A bundle: one folder that holds all a server needs, and is opened only whole and unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.codec import Codec
from models.errors import (
    CertificateFailed,
    NewerSchema,
    NotABundle,
    TargetUnavailable,
)
from models.recipe import Kind
from models.signature import Signature
from pipeline.artifacts import check_files, digest_bytes, load, write_json
from pipeline.backends import DEFAULT_TARGET, Session, backend, target
from pipeline.carrying import replay_sequences
from pipeline.cases import CASES_FILE, Case, read_cases
from pipeline.compare import replay
from pipeline.values import (
    CERTIFICATE_VALUE,
    CODEC,
    ENGINE_VALUE,
    MODEL,
    MODEL_VALUE,
    PARTS,
    Certificate,
    Engine,
    Finding,
    OnnxModel,
)

_THREADS = "intra_op_threads"  # the option of an engine that says how many
Value = TypeVar("Value", bound=BaseModel)

SCHEMA = 1
MANIFEST = "manifest.json"
CASES = "cases"
ENGINES = "engines"

# By kind, the service that serves such bundles: text, for nothing here imports `serving`.
SERVICES: dict[Kind, str] = {
    "classification": "serving.classification:Classification",
    "segmentation": "serving.segmentation:Segmentation",
    "sequence": "serving.sequence:Sequence",
    "generative": "serving.generative:Generative",
    "control": "serving.control:Control",
}


class Manifest(BaseModel):
    """What the bundle is, where it comes from, and the sha256 of every file in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str
    kind: Kind
    title: str
    paper: str
    signature: Signature
    lineage: dict[str, str]
    data: dict[str, str]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    remarks: tuple[str, ...] = ()
    libraries: dict[str, str]
    engines: tuple[str, ...]
    files: dict[str, str]
    parts: dict[str, Signature] = {}

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"file name {name!r} leaves the bundle")
        return files


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: every digest has been checked.

    A part of it is a bundle as well, which has no manifest of its own on the disk. `rebuilt` are
    folders of engines that this machine made in the place of those packaged, by target.
    """

    folder: Path
    manifest: Manifest
    codec: Codec
    rebuilt: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest, and through it of every file."""
        return digest_bytes((self.folder / MANIFEST).read_bytes())

    @cached_property
    def parts(self) -> dict[str, Bundle]:
        """By name, what of the model is an engine of its own; as a model it is NAME.PART."""
        return {name: self._part(name) for name in self.manifest.parts}

    def _part(self, name: str) -> Bundle:
        inside = f"{PARTS}/{name}/"
        manifest = self.manifest.model_copy(
            update={
                "name": f"{self.manifest.name}.{name}",
                "signature": self.manifest.parts[name],
                "parts": {},
                "files": {
                    file.removeprefix(inside): digest
                    for file, digest in self.manifest.files.items()
                    if file.startswith(inside)
                },
            }
        )
        rebuilt = {target: folder / PARTS / name for target, folder in self.rebuilt.items()}
        return Bundle(self.folder / PARTS / name, manifest, self.codec.of_part(), rebuilt)

    def engine(self, name: str = DEFAULT_TARGET) -> Engine:
        """The engine of a target. Raises `TargetUnavailable` when the bundle has none."""
        if name not in self.manifest.engines:
            raise TargetUnavailable(
                f"bundle {self.manifest.name!r} has no engine for target {name!r}",
                expected=" or ".join(self.manifest.engines),
            )
        folder = self.rebuilt.get(name, self.folder / ENGINES / name)
        return load(Engine, folder, ENGINE_VALUE)

    def certificate(self, name: str = DEFAULT_TARGET) -> Certificate:
        """The certificate of a target's engine.

        Raises `CertificateFailed` unless it passed and speaks of this very engine, of these files,
        and holds the certificates of all its parts.
        """
        engine = self.engine(name)
        certificate = load(Certificate, engine.folder, CERTIFICATE_VALUE)
        own = (engine.digest, engine.files, engine.parent, name)
        said = (certificate.engine, certificate.subject, certificate.model, certificate.target)
        parts = {part: one.certificate(name).digest for part, one in self.parts.items()}
        if not certificate or said != own or certificate.parts != parts:
            raise CertificateFailed(
                f"engine {name!r} of bundle {self.manifest.name!r} has no passed certificate of "
                f"its own files",
                got="one that failed" if not certificate else f"one of {certificate.engine[:12]}",
                expected=f"one of {engine.digest[:12]}",
                fix="package it again after `fucina verify`",
            )
        return certificate

    def open_engine(self, name: str = DEFAULT_TARGET, threads: int = 0) -> Session:
        """Open a certified engine exactly as its certificate says it was opened.

        Other `threads` are for who then replays the cases. Raises `CertificateFailed`.
        """
        options, engine = self.options(name, threads), self.engine(name)
        return backend(target(name)).open(engine.folder, engine.files, options)

    def options(self, name: str = DEFAULT_TARGET, threads: int = 0) -> dict[str, Any]:
        """The options that a certified engine is opened with.

        With `threads` other than its own only where its certificate asked whether they matter.
        Raises `CertificateFailed`.
        """
        certificate, options = self.certificate(name), self.engine(name).options
        if threads in (0, options.get(_THREADS)):
            return options
        if not any(finding.check == "threads" for finding in certificate.findings):
            raise CertificateFailed(
                f"engine {name!r} of bundle {self.manifest.name!r} is not certified for other "
                "threads", got=threads, expected=options.get(_THREADS),
            )  # fmt: skip
        return {**options, _THREADS: threads}

    def unpack(self, name: str, out: Path) -> tuple[OnnxModel, Engine]:
        """The graph and the engine of a target in `out`, laid out as they were before packaging.

        What a graph keeps `apart`, such as tables of rows, is not in a bundle.
        """
        engine = self.engine(name)
        shutil.copytree(engine.folder, out, dirs_exist_ok=True)
        shutil.copy2(self.folder / MODEL_VALUE, out)
        shutil.copy2(self.folder / MODEL, out)
        shutil.copy2(self.folder / CASES / CASES_FILE, out)
        write_json(out / CODEC, self.codec.model_dump(mode="json"))
        for part, one in self.parts.items():
            one.unpack(name, out / PARTS / part)
        return load(OnnxModel, out, MODEL_VALUE), load(Engine, out, ENGINE_VALUE)

    def cases(self) -> list[Case]:
        return read_cases(self.folder / CASES)

    def replay(
        self, session: Session, name: str = DEFAULT_TARGET, *, sequences: bool = True
    ) -> list[Finding]:
        """Ask the open engine every recorded case; findings against the certificate's limits.

        Without `sequences`, single calls only: a sequence is hundreds of calls, one after another.
        """
        cases, limits = self.cases(), self.certificate(name).limits
        findings = replay(session.run, cases, limits)
        if sequences:
            findings += replay_sequences(session.run, self.manifest.signature, cases, limits)
        return findings


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and check every digest.

    Raises `NotABundle`, `NewerSchema`, `MissingFile` or `TamperedFile`.
    """
    manifest = _read_manifest(folder)
    check_files(folder, manifest.files)
    if CODEC not in manifest.files:
        raise NotABundle(f"{folder} does not list {CODEC}", fix="package it again")
    bundle = Bundle(folder, manifest, _parse(Codec, folder / CODEC))
    for graph in (bundle, *bundle.parts.values()):
        _check_listed(graph)
    return bundle


def _check_listed(bundle: Bundle) -> None:
    """Refuse a bundle whose manifest does not vouch for all that will be read of it."""
    folder, manifest = bundle.folder, bundle.manifest
    required = {MODEL, f"{CASES}/{CASES_FILE}"}
    for name in manifest.engines:
        required |= {f"{ENGINES}/{name}/{file}" for file in (ENGINE_VALUE, CERTIFICATE_VALUE)}
    for name in sorted(required - manifest.files.keys()):
        raise NotABundle(f"{folder} does not list {name}", fix="package it again")
    for name in manifest.engines:
        # An engine file that the manifest does not vouch for is never opened.
        value = load(Engine, folder / ENGINES / name, ENGINE_VALUE)
        for file, digest in value.files.items():
            if manifest.files.get(f"{ENGINES}/{name}/{file}") != digest:
                raise NotABundle(f"{folder}: {name}/{file} is not in the manifest")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        data: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotABundle(
            f"{folder} is not a bundle",
            got=f"no {MANIFEST}",
            fix="give a bundle folder, or a name that `fucina run` has packaged",
        ) from error
    except (OSError, ValueError) as error:
        raise NotABundle(f"{path} is not JSON", got=type(error).__name__) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise NewerSchema(
            f"{folder} was written by a newer Fucina",
            got=f"schema {version}",
            expected=f"{SCHEMA} or older",
            fix="upgrade fucina",
        )
    return _parse(Manifest, path)


def _parse(kind: type[Value], path: Path) -> Value:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NotABundle(f"{path} is not valid: {where}: {first['msg']}") from error
