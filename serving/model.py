"""A served model: what it is from the start, what answers for it here, and whether it is ready."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from models.codec import Codec
from models.errors import BadInput, FucinaError, NotReady
from models.signature import Arrays, Signature
from pipeline.backends import Session, facts_of
from pipeline.bundle import Bundle
from pipeline.rebuild import rebuild
from serving.batcher import Batcher, Bounds
from serving.choosing import REBUILDING, REBUILT, UNFIT, Choice, choose, rebuilt_choice, refusal
from serving.generation import ContinuousBatcher
from serving.opening import open_session
from serving.pace import Pace, find_pace
from serving.recheck import Recheck
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.writing import Prompt, Writing

logger = logging.getLogger("fucina.serving")

# Said of a model that may yet become ready; any other reason is final.
LOADING = "is still replaying its recorded cases"
BEING_BUILT = "is being built for this machine"

# Of the largest size, as many as may wait for one model.
_BODIES = 4


@dataclass(frozen=True)
class Opened:
    """An engine that is open and has been asked every recorded case, in so many seconds."""

    session: Session
    pace: Pace
    full: int  # rows that it answers together
    seconds: float


class Model:
    """A served model: what it is from the start, and whether it is ready."""

    def __init__(self, bundle: Bundle, settings: Settings, telemetry: Telemetry) -> None:
        self.parts: Mapping[str, Model] = {
            name: Model(part, settings, telemetry) for name, part in bundle.parts.items()
        }
        self.name: str = bundle.manifest.name
        self.version: str = bundle.manifest.version
        self.signature: Signature = bundle.manifest.signature
        self.codec: Codec = bundle.codec
        self._choice = Choice(bundle, settings.target, "")
        self.largest_pixels = settings.largest_pixels  # of a picture that is sent
        self.bundle = bundle
        self._settings = settings
        self._telemetry = telemetry
        self._batcher: Batcher | None = None
        self._writer: ContinuousBatcher | None = None
        self._recheck: Recheck | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._problem = f"model {self.name!r} {LOADING}"

    def and_parts(self) -> tuple[Model, ...]:
        return (self, *self.parts.values())

    @property
    def ready(self) -> bool:
        return self._batcher is not None

    @property
    def problem(self) -> str:
        """Why it is not ready; nothing when it is."""
        return "" if self.ready else self._problem

    def check_ready(self) -> None:
        """Raise `NotReady` with the reason, unless the model answers."""
        if self._batcher is None:
            raise NotReady(self._problem)

    @property
    def target(self) -> str:
        """What it is served by, and until it is, what it is to be."""
        return self._choice.target or self._choice.requested

    @property
    def properties(self) -> dict[str, str]:
        """The target that was asked for, the one it is served by, and why that is another one."""
        choice = self._choice
        said = {"requested_target": choice.requested, "served_target": choice.target}
        return {**said, "reason": choice.reason, "why": choice.why} if choice.reason else said

    async def load(self) -> None:
        """Open what answers, in a thread; a failure leaves the model not ready, and says why."""
        try:
            choice, opened = await asyncio.to_thread(self._choose)
        except NotReady as error:
            self._refuse(str(error))
            logger.error("%s", error)
        except Exception:
            self._refuse(f"model {self.name!r} cannot be opened: the server's log has the cause")
            logger.exception("model %r cannot be opened", self.name)
        else:
            for name, part in choice.bundle.parts.items():
                self.parts[name].bundle = part
            self._choice = choice
            if opened is not None:
                self._serve(choice, opened)
            else:
                self._problem = f"model {self.name!r} {BEING_BUILT}: {choice.why}"
                logger.warning("%s", self._problem)

    def _refuse(self, problem: str) -> None:
        self._problem = problem
        self._telemetry.loaded(self.name, self.version, False)

    def _serve(self, choice: Choice, opened: Opened) -> None:
        """Answer what comes from now on by this engine; what has come the last one answers."""
        if self.ready:
            self._telemetry.model_state(self.name, self.version, self._choice.labels, False)
        session = opened.session
        report = partial(self._telemetry.batched, self.name, self.version)
        settings = self._settings
        if self.codec.generation:
            self._writer = ContinuousBatcher(
                session.run, self.signature, self.codec.generation, settings.queue, report
            )
        self._batcher = Batcher(
            session.run, self.signature, _bounds(settings),
            most=settings.largest_batch or opened.full, pace=opened.pace, report=report,
        )  # fmt: skip
        if settings.recheck:
            self._recheck = Recheck(choice.bundle, choice.target, settings.recheck, self._telemetry)
        self._choice = choice
        self._telemetry.loaded(self.name, self.version, True)
        self._telemetry.model_state(self.name, self.version, choice.labels, True)
        held = facts_of(session).get("device_bytes", 0)
        self._telemetry.opened(self.name, self.version, opened.seconds, held)
        logger.info("model %r version %s is ready (%s)", self.name, self.version, choice.target)
        if choice.reason:
            self._tell()

    def _tell(self) -> None:
        choice = self._choice
        logger.warning(
            "model %r version %s: %s is served, %s was asked for (%s): %s",
            self.name, self.version, choice.target or "nothing", choice.requested, choice.reason,
            choice.why,
        )  # fmt: skip

    def _choose(self) -> tuple[Choice, Opened | None]:
        choice = choose(self.bundle, self._settings)
        try:
            return choice, self._open(choice) if choice.target else None
        except NotReady as error:
            if choice.reason != REBUILT:
                raise
            # What an earlier start has left no longer answers as it did then.
            logger.warning("%s", error)
            choice = choose(self.bundle, replace(self._settings, rebuild=0.0))
            return choice, self._open(choice)

    def _open(self, choice: Choice) -> Opened:
        begun = time.perf_counter()
        session = open_session(choice.bundle, choice.target, self._settings.threads)
        pace, full = find_pace(session.run, self.signature, self.bundle.cases())
        return Opened(session, pace, full, time.perf_counter() - begun)

    def cure(self, turn: asyncio.Lock) -> None:
        """Begin to rebuild the engine, and its parts', where that would bring the target."""
        if self._choice.reason == REBUILDING:
            self._rebuilding = asyncio.create_task(self._rebuild(turn))

    async def _rebuild(self, turn: asyncio.Lock) -> None:
        """Serve an engine that is built here, of all parts at once; a failure is only told."""
        settings, name = self._settings, self._choice.requested
        try:
            async with turn:
                here = await rebuild(self.bundle, name, settings.cache, settings.rebuild)
            bundles = [(self, here), *((self.parts[n], part) for n, part in here.parts.items())]
            choices = [(model, rebuilt_choice(bundle, name)) for model, bundle in bundles]
            opened = [await asyncio.to_thread(model._open, choice) for model, choice in choices]
        except Exception as error:  # of any library
            if not isinstance(error, FucinaError):
                logger.exception("model %r cannot be rebuilt", self.name)
            for model in self.and_parts():
                model._stay(str(error) or type(error).__name__)
        else:
            for (model, choice), own in zip(choices, opened, strict=True):
                model._serve(choice, own)

    def _stay(self, error: str) -> None:
        """Remain with what answers now, for the engine could not be rebuilt."""
        before = self._choice
        why = f"{before.why}; it could not be rebuilt: {error}"
        self._choice = replace(before, reason=UNFIT, why=why)
        if self.ready:
            self._telemetry.model_state(self.name, self.version, before.labels, False)
            self._telemetry.model_state(self.name, self.version, self._choice.labels, True)
            self._tell()
        else:
            self._refuse(refusal(self.bundle, before.requested, why))
            logger.error("%s", self._problem)

    async def cured(self) -> None:
        """Return when nothing is being rebuilt."""
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding])

    def leave(self) -> None:
        """It answers no more: say so, and rebuild nothing for it."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
        self._telemetry.model_state(self.name, self.version, self._choice.labels, False)

    def check_room(self) -> None:
        """Raise `NotReady` or `Overloaded` unless a request may be read now.

        Asked before a body is parsed, so that a refusal costs little.
        """
        self.check_ready()
        if self._batcher is not None:
            self._batcher.check_room()

    async def predict(self, inputs: Arrays) -> Arrays:
        """Named outputs for named inputs; raises `NotReady`, `BadInput` or `Overloaded`."""
        if self._batcher is None:
            raise NotReady(self._problem)
        answers = await self._batcher.predict(inputs)
        if self._recheck is not None:
            self._recheck.offer(inputs, answers)
        return answers

    def write(self, prompt: Prompt) -> Writing:
        """Begin a text; raises `NotReady`, `BadInput` or `Overloaded`."""
        self.check_ready()
        if self._writer is None:
            raise BadInput(f"model {self.name!r} writes no text")
        return self._writer.write(prompt)

    async def close(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await self.cured()
        if self._recheck is not None:
            self._recheck.close()
        if self._writer is not None:
            await self._writer.close()
        if self._batcher is not None:
            await self._batcher.close()


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        requests=settings.queue,
        bytes=_BODIES * settings.largest_body,
        wait=settings.longest_wait / 1e3 or math.inf,
        patience=settings.latency_target / 1e3,
    )
