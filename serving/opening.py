"""Opening: bundles and their engines, refused unless they are whole and answer as recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.codec import TextInput
from models.errors import BundleError, FucinaError, NotReady, ServingFailed
from models.signature import Arrays, Axis, TensorSpec
from pipeline.backends import Session, facts_of
from pipeline.blessed import Chosen, standing
from pipeline.bundle import Bundle, Kind, open_bundle
from serving.acting import acting_problem
from serving.drawing import in_blocks
from serving.picture_problems import picture_problem
from serving.settings import is_run
from serving.stepwise import generation_problem
from serving.tiles import tiling_problem


def open_bundles(folders: Iterable[Path], kind: Kind | None = None) -> list[Bundle]:
    """Open every bundle that a service is to serve, of a run the blessed one.

    All are to be of `kind`, or of the first one's; several may be versions of one model, of which
    the last answers who names none. Raises `BundleError`, `MissingArtifact` for a run without a
    bundle, or `ServingFailed` for no bundle, another kind, or one version twice.
    """
    bundles: dict[tuple[str, str], Bundle] = {}
    for folder in folders:
        chosen = standing(folder).bundle if is_run(folder) else Chosen(folder)
        bundle = open_for_service(chosen, kind)
        kind = kind or bundle.manifest.kind
        name, version = bundle.manifest.name, bundle.manifest.version
        if (name, version) in bundles:
            raise ServingFailed(
                f"version {version!r} of {name!r} is given twice",
                got=f"{bundles[name, version].folder} and {folder}",
                fix="serve one of them",
            )
        bundles[name, version] = bundle
    if not bundles:
        raise ServingFailed(
            "there is no bundle to serve",
            fix="name one, or list folders in FUCINA_BUNDLES, or serve from inside a bundle",
        )
    return list(bundles.values())


def open_for_service(chosen: Chosen, kind: Kind | None) -> Bundle:
    """Open a bundle of `kind`, checking every digest and that its codec fits its signature.

    Raises `BundleError`, also for one that was changed after it was blessed, or `ServingFailed`
    for another kind.
    """
    bundle = open_bundle(chosen.folder)
    chosen.check(bundle)
    if kind not in (None, bundle.manifest.kind):
        raise ServingFailed(
            f"bundle {bundle.manifest.name!r} is of another kind than this service serves",
            got=bundle.manifest.kind,
            expected=kind,
        )
    _check_codec(bundle)
    return bundle


@dataclass(frozen=True)
class _InBlocks:
    """An engine that is asked in batches of one size."""

    session: Session
    block: int

    @property
    def facts(self) -> Mapping[str, Any]:
        return facts_of(self.session)

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return in_blocks(self.session.run, self.block)(inputs)


def open_session(bundle: Bundle, target: str, threads: int = 0) -> Session:
    """The bundle's engine for `target`, once it has answered the recorded cases as recorded.

    `threads` other than the certified number are taken where the certificate says that they do not
    matter; the cases are then answered with these. Raises `NotReady` with the first finding that
    failed, when nothing was compared, or when the engine cannot be opened.
    """
    name = bundle.manifest.name
    try:
        session = bundle.open_engine(target, threads)
        if bundle.codec.block:
            session = _InBlocks(session, bundle.codec.block)
        findings = bundle.replay(session, target)
    except FucinaError as error:
        raise NotReady(f"model {name!r} cannot be opened: {error}") from error
    if not findings:
        raise NotReady(f"model {name!r} has no recorded case to replay", fix="package it again")
    for finding in findings:
        if not finding.passed:
            got = finding.note if finding.error is None else f"an error of {finding.error:.2g}"
            raise NotReady(
                f"model {name!r} does not reproduce its recorded case {finding.case!r} "
                f"at output {finding.output!r}",
                got=got,
                expected=f"at most {finding.limit:.2g} of the output's scale",
                fix="build and certify the engine on this machine",
            )
    return session


def _check_codec(bundle: Bundle) -> None:
    """Refuse a codec that names what the signature lacks, or that would not fit there."""
    codec, signature = bundle.codec, bundle.manifest.signature
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}

    def refuse(what: str, got: object = None, expected: object = None) -> None:
        raise BundleError(
            f"bundle {bundle.manifest.name!r}: its codec {what}", got=got, expected=expected
        )

    if codec.image and codec.image.name not in inputs:
        refuse("reads an image into an input it lacks")
    if codec.text:
        spec = inputs.get(codec.text.name)
        if spec is None or not _takes_ids(spec, codec.text):
            wanted = f"integers [batch, {codec.text.shortest}..{codec.text.longest}]"
            refuse(f"reads text into {codec.text.name!r}", spec, f"an input of {wanted}")
        elif spec.high is not None and codec.text.largest > spec.high:
            refuse(
                "has a larger vocabulary than its input",
                codec.text.largest,
                f"ids to {spec.high:.0f}",
            )
    if codec.scores is not None:
        spec = outputs.get(codec.scores)
        if spec is None or not spec.shape or spec.shape[-1] != len(codec.classes):
            size = len(codec.classes)
            wanted = f"an output {codec.scores!r} whose last dimension is {size}"
            refuse(f"names {size} classes", spec, wanted)
    if problem := tiling_problem(codec, signature):
        refuse(*problem)
    if codec.generation and (problem := generation_problem(codec.generation, signature)):
        refuse(*problem)
    if problem := picture_problem(codec, signature, bundle.manifest.parts):
        refuse(*problem)
    if codec.actions and (problem := acting_problem(codec.actions, signature)):
        refuse(*problem)
    for name in (codec.sign, codec.values):
        if name is None:
            continue
        spec = outputs.get(name)
        if spec is None or not spec.floating or spec.shape[1:] not in ((), (1,)):
            wanted = f"a floating output {name!r} of one number per row"
            refuse("names an output of numbers", spec, wanted)


def _takes_ids(spec: TensorSpec, text: TextInput) -> bool:
    """Whether a tensor takes every array that `text` can make."""
    if spec.dtype != "int64" or len(spec.shape) != 2:
        return False
    length = spec.shape[1]
    low, high = (length.min, length.max) if isinstance(length, Axis) else (length, length)
    return low <= text.shortest and text.longest <= high
