"""The models that one process serves, each ready once it has reproduced its recorded cases."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Iterable, Iterator, Mapping

from models.codec import Codec
from models.errors import BadInput, NotReady, UnknownModel
from models.signature import Arrays, Signature
from pipeline.bundle import Bundle
from serving.batcher import Batcher
from serving.calls import note_model
from serving.generation import ContinuousBatcher
from serving.opening import open_session
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.writing import Prompt, Writing

logger = logging.getLogger("fucina.serving")

# Said of a model that may yet become ready; any other reason is final.
LOADING = "is still replaying its recorded cases"


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
        self.bundle = bundle
        self._settings = settings
        self._telemetry = telemetry
        self._batcher: Batcher | None = None
        self._writer: ContinuousBatcher | None = None
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
            session = await asyncio.to_thread(open_session, self.bundle, self.target)
        except NotReady as error:
            self._problem = str(error)
            logger.error("%s", error)
        except Exception:
            self._problem = f"model {self.name!r} cannot be opened: the server's log has the cause"
            logger.exception("model %r cannot be opened", self.name)
        else:
            if self.codec.generation:
                self._writer = ContinuousBatcher(
                    session.run, self.signature, self.codec.generation, self._settings.queue
                )
            self._batcher = Batcher(session.run, self.signature, self._settings.queue)
            self._telemetry.model_state(self.name, self.version, self.target, True)
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
        """A version that is known from now on, and not ready; the model's first one stands."""
        whole = Model(bundle, self._settings, self._telemetry)
        for model in (whole, *whole.parts.values()):
            self._versions.setdefault(model.name, {})[model.version] = model
        self._wholes.setdefault(whole.name, whole.version)
        return whole

    def stand(self, name: str, version: str, canary: str = "", percent: float = 0.0) -> None:
        """Let a version answer who names none, and another for a share of these requests."""
        self._wholes[name] = version
        self._canaries.pop(name, None)
        if canary:
            self._canaries[name] = (canary, percent)

    def canary(self, name: str) -> tuple[str, float] | None:
        """The version that a share of requests gets, and the share in percent."""
        return self._canaries.get(name)

    def standing(self, name: str) -> str:
        """The version that answers who names none."""
        return self._wholes[name]

    def drop(self, name: str, version: str) -> None:
        """Forget a version, which does not stand any more unless it is the last one."""
        whole = self._versions[name][version]
        for model in (whole, *whole.parts.values()):
            del self._versions[model.name][version]
            if not self._versions[model.name]:
                del self._versions[model.name]
            self._telemetry.model_state(model.name, version, model.target, False)
        if name not in self._versions:
            del self._wholes[name]
            self._canaries.pop(name, None)

    async def load(self, wholes: Iterable[Model] | None = None) -> None:
        """Load these or all, one after the other, and spare what then lives from collection."""
        for whole in [*(self if wholes is None else wholes)]:
            for model in (whole,) if wholes is None else (whole, *whole.parts.values()):
                await model.load()
        # Full collections over a loaded framework take most of a second.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        for model in self:
            await model.close()
