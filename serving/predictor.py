"""The models that one process serves, each ready once it has reproduced its recorded cases."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.codec import Codec, TextInput
from models.errors import (
    BadInput,
    BundleError,
    FucinaError,
    NotReady,
    ServingFailed,
    UnknownModel,
)
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.backends import Session
from pipeline.bundle import Bundle, Kind, open_bundle
from serving.acting import acting_problem
from serving.batcher import Batcher
from serving.drawing import in_blocks
from serving.generation import ContinuousBatcher
from serving.picture_problems import picture_problem
from serving.stepwise import generation_problem
from serving.tiles import tiling_problem
from serving.writing import Prompt, Writing

logger = logging.getLogger("fucina.serving")

# Said of a model that may yet become ready; any other reason is final.
LOADING = "is still replaying its recorded cases"


def open_bundles(folders: Iterable[Path], kind: Kind | None = None) -> list[Bundle]:
    """Open every bundle that a service is to serve, checking every digest.

    All are to be of `kind`, or of the first one's. Raises `BundleError`, or `ServingFailed` for no
    bundle, another kind, or one name twice.
    """
    bundles: dict[str, Bundle] = {}
    for folder in folders:
        bundle = open_bundle(folder)
        name = bundle.manifest.name
        kind = kind or bundle.manifest.kind
        if bundle.manifest.kind != kind:
            raise ServingFailed(
                f"bundle {name!r} is of another kind than this service serves",
                got=bundle.manifest.kind,
                expected=kind,
            )
        if name in bundles:
            raise ServingFailed(
                f"two bundles are called {name!r}",
                got=f"{bundles[name].folder} and {folder}",
                fix="serve one of them, or package one under another name",
            )
        _check_codec(bundle)
        bundles[name] = bundle
    if not bundles:
        raise ServingFailed(
            "there is no bundle to serve",
            fix="name one, or list folders in FUCINA_BUNDLES, or serve from inside a bundle",
        )
    return list(bundles.values())


@dataclass(frozen=True)
class _InBlocks:
    """An engine that is asked in batches of one size."""

    session: Session
    block: int

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        return in_blocks(self.session.run, self.block)(inputs)


def open_session(bundle: Bundle, target: str) -> Session:
    """The bundle's engine for `target`, once it has answered the recorded cases as recorded.

    Raises `NotReady` with the first finding that failed, when nothing was compared, or when the
    engine cannot be opened.
    """
    name = bundle.manifest.name
    try:
        session = bundle.open_engine(target)
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


class Model:
    """A served model: what it is from the start, and whether it is ready."""

    def __init__(
        self, bundle: Bundle, target: str, queue: int, parts: Mapping[str, Model] | None = None
    ) -> None:
        self.parts: Mapping[str, Model] = parts or {}
        self.name: str = bundle.manifest.name
        self.version: str = bundle.manifest.version
        self.signature: Signature = bundle.manifest.signature
        self.codec: Codec = bundle.codec
        self.target = target
        self._bundle = bundle
        self._queue = queue
        self._batcher: Batcher | None = None
        self._writer: ContinuousBatcher | None = None
        self._problem = f"model {self.name!r} {LOADING}"

    @property
    def ready(self) -> bool:
        return self._batcher is not None

    def check_ready(self) -> None:
        """Raise `NotReady` with the reason, unless the model answers."""
        if self._batcher is None:
            raise NotReady(self._problem)

    async def load(self) -> None:
        """Open the engine in a thread; a failure leaves the model not ready, and says why."""
        try:
            session = await asyncio.to_thread(open_session, self._bundle, self.target)
        except NotReady as error:
            self._problem = str(error)
            logger.error("%s", error)
        except Exception:
            self._problem = f"model {self.name!r} cannot be opened: the server's log has the cause"
            logger.exception("model %r cannot be opened", self.name)
        else:
            if self.codec.generation:
                self._writer = ContinuousBatcher(
                    session.run, self.signature, self.codec.generation, self._queue
                )
            self._batcher = Batcher(session.run, self.signature, self._queue)
            logger.info("model %r version %s is ready (%s)", self.name, self.version, self.target)

    async def predict(self, inputs: Arrays) -> Arrays:
        """Named outputs for named inputs; raises `NotReady`, `BadInput` or `Overloaded`."""
        if self._batcher is None:
            raise NotReady(self._problem)
        return await self._batcher.predict(inputs)

    def write(self, prompt: Prompt) -> Writing:
        """Begin a text; raises `NotReady`, `BadInput` or `Overloaded`."""
        self.check_ready()
        if self._writer is None:
            raise BadInput(f"model {self.name!r} writes no text")
        return self._writer.write(prompt)

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()
        if self._batcher is not None:
            await self._batcher.close()


class Models:
    """Every model of this process, by name."""

    def __init__(self, bundles: Iterable[Bundle], target: str, queue: int) -> None:
        self._models: dict[str, Model] = {}
        self._wholes: list[Model] = []
        for bundle in bundles:
            parts = {n: Model(part, target, queue) for n, part in bundle.parts.items()}
            whole = Model(bundle, target, queue, parts)
            self._wholes.append(whole)
            self._models |= {model.name: model for model in (whole, *parts.values())}

    @property
    def ready(self) -> bool:
        return all(model.ready for model in self._models.values())

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str | None, version: str = "") -> Model:
        """The model of that name and version; without a name the only one, its parts aside.

        Raises `UnknownModel`, or `BadInput` when several are served and none is named.
        """
        known = ", ".join(repr(known) for known in self._models)
        if name is None and len(self._wholes) == 1:
            return self._wholes[0]
        if name is None:
            raise BadInput("'model' is missing and several are served", expected=known)
        if name not in self._models:
            raise UnknownModel(f"model {name!r} is unknown", expected=known)
        model = self._models[name]
        if version not in ("", model.version):
            raise UnknownModel(
                f"model {name!r} has no version {version!r}", expected=repr(model.version)
            )
        return model

    async def load(self) -> None:
        """Load one after the other, then spare what now lives for good from garbage collection."""
        for model in self._models.values():
            await model.load()
        # Full collections over a loaded framework take most of a second.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        for model in self._models.values():
            await model.close()


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
