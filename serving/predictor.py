"""The models that one process serves, each ready once it has reproduced its recorded cases."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from models.codec import Codec
from models.errors import BadInput, NotReady, UnknownModel
from models.signature import Arrays, Signature
from pipeline.backends import Session
from pipeline.bundle import Bundle
from serving.batcher import Batcher, Bounds
from serving.calls import note_model
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

# Of the largest size, as many as may wait for one model.
_BODIES = 4


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
        self.target = settings.target
        self.largest_pixels = settings.largest_pixels  # of a picture that is sent
        self.bundle = bundle
        self._settings = settings
        self._telemetry = telemetry
        self._batcher: Batcher | None = None
        self._writer: ContinuousBatcher | None = None
        self._recheck: Recheck | None = None
        self._problem = f"model {self.name!r} {LOADING}"

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

    async def load(self) -> None:
        """Open the engine in a thread; a failure leaves the model not ready, and says why."""
        try:
            session, pace, full = await asyncio.to_thread(self._open)
        except NotReady as error:
            self._problem = str(error)
            self._telemetry.loaded(self.name, self.version, False)
            logger.error("%s", error)
        except Exception:
            self._problem = f"model {self.name!r} cannot be opened: the server's log has the cause"
            self._telemetry.loaded(self.name, self.version, False)
            logger.exception("model %r cannot be opened", self.name)
        else:
            report = partial(self._telemetry.batched, self.name, self.version)
            settings = self._settings
            if self.codec.generation:
                self._writer = ContinuousBatcher(
                    session.run, self.signature, self.codec.generation, settings.queue, report
                )
            self._batcher = Batcher(
                session.run, self.signature, _bounds(settings),
                most=settings.largest_batch or full, pace=pace, report=report,
            )  # fmt: skip
            if settings.recheck:
                self._recheck = Recheck(self.bundle, self.target, settings.recheck, self._telemetry)
            self._telemetry.loaded(self.name, self.version, True)
            self._telemetry.model_state(self.name, self.version, self.target, True)
            logger.info("model %r version %s is ready (%s)", self.name, self.version, self.target)

    def _open(self) -> tuple[Session, Pace, int]:
        session = open_session(self.bundle, self.target, self._settings.threads)
        return session, *find_pace(session.run, self.signature, self.bundle.cases())

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


class Models:
    """Every model of this process by name and version, and which version answers who names none.

    A version that is dropped goes on answering the requests that have it already, and is freed
    with the last of them.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._versions: dict[str, dict[str, Model]] = {}  # parts as well
        self._wholes: dict[str, str] = {}  # by name the version that answers
        self._canaries: dict[str, tuple[str, float]] = {}  # and of a share of requests, in percent

    @property
    def ready(self) -> bool:
        return bool(self._wholes) and all(model.ready for model in self)

    def __iter__(self) -> Iterator[Model]:
        return iter([m for versions in self._versions.values() for m in versions.values()])

    @property
    def names(self) -> list[str]:
        return list(self._wholes)

    def versions(self, name: str) -> list[Model]:
        """Every version of a model; none of one that is unknown."""
        return list(self._versions.get(name, {}).values())

    def get(self, name: str | None, version: str = "") -> Model:
        """The model of that name and version; without a name the only one, its parts aside.

        Without a version the one that stands, or the canary for its share of requests. Raises
        `UnknownModel`, or `BadInput` when several are served and none is named.
        """
        if name is None:
            if len(self._wholes) != 1:
                known = ", ".join(repr(known) for known in self._versions)
                raise BadInput("'model' is missing and several are served", expected=known)
            (name,) = self._wholes
        versions = self._versions.get(name)
        if versions is None:
            known = ", ".join(repr(known) for known in self._versions)
            raise UnknownModel(f"model {name!r} is unknown", expected=known)
        model = versions.get(version or self._choose(name))
        if model is None:
            raise UnknownModel(
                f"model {name!r} has no version {version!r}",
                expected=" or ".join(map(repr, versions)),
            )
        note_model(model.name, model.version)
        return model

    def _choose(self, name: str) -> str:
        whole = name if name in self._wholes else name.rpartition(".")[0]
        if whole in self._canaries:
            version, percent = self._canaries[whole]
            if random.random() * 100 < percent:  # noqa: S311  # a share, no secret
                return version
        return self._wholes[whole]

    def add(self, bundle: Bundle) -> Model:
        """A version that is known from now on, stands, and is not ready yet."""
        whole = Model(bundle, self._settings, self._telemetry)
        self._put(whole)
        self._wholes[whole.name] = whole.version
        return whole

    async def open(self, bundle: Bundle) -> Model:
        """A version that is ready, and that nobody is answered by before a `switch` to it.

        Raises `NotReady` when it does not become so.
        """
        whole = Model(bundle, self._settings, self._telemetry)
        for model in _all_of(whole):
            await model.load()
            if not model.ready:
                if self._versions.get(whole.name, {}).get(whole.version) is None:
                    self._leave(_all_of(whole))
                raise NotReady(model.problem)
        return whole

    def switch(
        self, wholes: Sequence[Model], canary: Model | None = None, percent: float = 0.0
    ) -> None:
        """Serve these versions of a model from now on, and no other.

        The last one answers who names none, but for the canary's share of requests.
        """
        name = wholes[-1].name
        before = self._take(name)
        for whole in (*wholes, canary):
            if whole is not None:
                self._put(whole)
        self._wholes[name] = wholes[-1].version
        if canary is not None:
            self._canaries[name] = (canary.version, percent)
        self._leave(m for m in before if m.version not in self._versions.get(m.name, ()))

    def remove(self, name: str) -> None:
        """Forget a model, with all its versions."""
        self._leave(self._take(name))

    def _put(self, whole: Model) -> None:
        for model in _all_of(whole):
            self._versions.setdefault(model.name, {})[model.version] = model

    def _take(self, name: str) -> list[Model]:
        """Take every version of a model, and its parts, out of the table."""
        gone = [model for whole in self.versions(name) for model in _all_of(whole)]
        for model in gone:
            self._versions.pop(model.name, None)
        self._wholes.pop(name, None)
        self._canaries.pop(name, None)
        return gone

    def _leave(self, models: Iterable[Model]) -> None:
        for model in models:
            self._telemetry.model_state(model.name, model.version, model.target, False)

    def canary(self, name: str) -> tuple[str, float] | None:
        """The version that a share of requests gets, and the share in percent."""
        return self._canaries.get(name)

    def standing(self, name: str) -> str:
        """The version that answers who names none."""
        return self._wholes[name]

    async def load(self) -> None:
        """Load all, one after the other, and spare what then lives from collection."""
        for model in [*self]:
            await model.load()
        # Full collections over a loaded framework take most of a second. What is loaded later is
        # little, and pausing for it would cost the requests under way more than it saves.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        for model in [*self]:
            await model.close()


def _all_of(whole: Model) -> tuple[Model, ...]:
    return (whole, *whole.parts.values())
