"""The repository: where each served model comes from, loaded, unloaded and watched there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.errors import NotReady, UnknownModel
from pipeline.blessed import Standing, standing
from pipeline.bundle import Bundle, Kind
from serving.opening import open_for_service
from serving.predictor import Models
from serving.settings import is_run


@dataclass(frozen=True)
class Entry:
    """One version of a model in the repository's index, and why it is not ready."""

    name: str
    version: str
    state: str  # READY or UNAVAILABLE
    reason: str = ""


class Repository:
    """The models of one process and the folders they come from.

    A folder is a bundle's, or a run's, whose blessed record says which bundle it is now.
    """

    def __init__(
        self, models: Models, folders: Iterable[Path], bundles: Iterable[Bundle], kind: Kind
    ) -> None:
        self._models = models
        self._kind: Kind = kind
        self._lock = asyncio.Lock()  # one change at a time
        self._folders: dict[str, list[Path]] = {}  # by model's name
        for folder, bundle in zip(folders, bundles, strict=True):
            name, version = bundle.manifest.name, bundle.manifest.version
            self._folders.setdefault(name, []).append(folder)
            models.add(bundle)
            models.stand(name, version)

    def index(self, *, ready: bool = False) -> list[Entry]:
        """Every model and version, in the order of their names; `ready` leaves the others out."""
        entries = [
            Entry(m.name, m.version, "READY" if m.ready else "UNAVAILABLE", m.problem)
            for m in self._models
        ]
        for name in self._folders:
            if not self._models.versions(name):
                entries.append(Entry(name, "", "UNAVAILABLE", "unloaded"))
        return sorted(
            (e for e in entries if not ready or e.state == "READY"),
            key=lambda e: (e.name, e.version),
        )

    async def load(self, name: str) -> None:
        """Serve what the model's folders hold now: what is new is loaded, then what is gone leaves.

        Raises `UnknownModel`, and what opening a bundle raises; then all stays as it was.
        """
        if name not in self._folders:
            known = ", ".join(map(repr, self._folders))
            raise UnknownModel(f"model {name!r} is unknown", expected=known)
        async with self._lock:
            stands = [_standing(folder) for folder in self._folders[name]]
            await self._serve(name, stands)

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that it has are answered. Raises `UnknownModel`."""
        async with self._lock:
            if not self._models.versions(name) or name not in self._folders:
                raise UnknownModel(f"model {name!r} is unknown or not loaded")
            for model in self._models.versions(name):
                self._models.drop(name, model.version)

    async def watch(self) -> None:
        """Follow the blessed records of every run, until cancelled."""

    async def _serve(self, name: str, stands: list[Standing]) -> None:
        there = {model.version: model for model in self._models.versions(name)}
        wanted: dict[Path, str] = {}
        for folder in [f for s in stands for f in (s.bundle, s.canary) if f is not None]:
            bundle = await asyncio.to_thread(open_for_service, folder, self._kind)
            version = bundle.manifest.version
            wanted[folder] = version
            if version in there:
                continue
            model = self._models.add(bundle)
            await self._models.load([model])
            problems = [one.problem for one in (model, *model.parts.values()) if not one.ready]
            if problems:
                self._models.drop(name, version)
                raise NotReady(problems[0])
        last = stands[-1]
        canary = wanted[last.canary] if last.canary else ""
        self._models.stand(name, wanted[last.bundle], canary, last.percent)
        for version in there:
            if version not in wanted.values():
                self._models.drop(name, version)


def _standing(folder: Path) -> Standing:
    return standing(folder) if is_run(folder) else Standing(folder)
