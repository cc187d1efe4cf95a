"""The models that one process serves, each ready once it has reproduced its recorded cases."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterable, Iterator, Sequence

from models.errors import BadInput, NotReady, UnknownModel
from pipeline.bundle import Bundle
from serving.calls import note_model
from serving.model import Model
from serving.settings import Settings
from serving.telemetry import Telemetry


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
        self._turn = asyncio.Lock()  # one engine is rebuilt at a time

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
        await self._load(whole)
        if not whole.ready:
            await whole.cured()
        for model in whole.and_parts():
            if not model.ready:
                if self._versions.get(whole.name, {}).get(whole.version) is None:
                    self._leave(whole.and_parts())
                raise NotReady(model.problem)
        return whole

    async def _load(self, whole: Model) -> None:
        for model in whole.and_parts():
            await model.load()
        whole.cure(self._turn)

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
        for model in whole.and_parts():
            self._versions.setdefault(model.name, {})[model.version] = model

    def _take(self, name: str) -> list[Model]:
        """Take every version of a model, and its parts, out of the table."""
        gone = [model for whole in self.versions(name) for model in whole.and_parts()]
        for model in gone:
            self._versions.pop(model.name, None)
        self._wholes.pop(name, None)
        self._canaries.pop(name, None)
        return gone

    def _leave(self, models: Iterable[Model]) -> None:
        for model in models:
            model.leave()

    def canary(self, name: str) -> tuple[str, float] | None:
        """The version that a share of requests gets, and the share in percent."""
        return self._canaries.get(name)

    def standing(self, name: str) -> str:
        """The version that answers who names none."""
        return self._wholes[name]

    async def load(self) -> None:
        """Load all, one after the other, and spare what then lives from collection."""
        for name in self.names:
            for whole in self.versions(name):
                await self._load(whole)
        # Full collections over a loaded framework take most of a second. What is loaded later is
        # little, and pausing for it would cost the requests under way more than it saves.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        for model in [*self]:
            await model.close()
