"""The repository: where each served model comes from, loaded, unloaded and watched there."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import FucinaError, NotReady, ServingFailed, UnknownModel
from pipeline.blessed import RECORD, Chosen, Standing, standing
from pipeline.bundle import Bundle, Kind
from serving.model import Model
from serving.opening import open_for_service
from serving.predictor import Models
from serving.settings import Settings, is_run
from serving.telemetry import Telemetry

logger = logging.getLogger("fucina.serving")

Stamp = tuple[int, int, int]  # a file's time, size and number: another one means another content


@dataclass(frozen=True)
class Entry:
    """One version of a model in the repository's index, and why it is not ready."""

    name: str
    version: str
    state: str  # READY, LOADING or UNAVAILABLE
    reason: str = ""


class Repository:
    """The models of one process and the folders they come from.

    A folder is a bundle's, or a run's, whose blessed record says which bundle it is now.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        bundles: Iterable[Bundle],
        kind: Kind,
        telemetry: Telemetry,
    ) -> None:
        self._models = models
        self._seconds = settings.watch
        self._kind: Kind = kind
        self._telemetry = telemetry
        self._lock = asyncio.Lock()  # one change at a time
        self._folders: dict[str, list[Path]] = {}  # by model's name
        self._stamps: dict[str, list[Stamp | None]] = {}  # of the records, when last looked at
        self._coming: dict[str, Entry] = {}  # by model's name the version that loads, or failed
        for folder, bundle in zip(settings.bundles, bundles, strict=True):
            self._folders.setdefault(bundle.manifest.name, []).append(folder)
            models.add(bundle)

    def index(self, *, ready: bool = False) -> list[Entry]:
        """Every model and version, in the order of their names; `ready` leaves the others out."""
        entries = [
            Entry(m.name, m.version, "READY" if m.ready else "UNAVAILABLE", m.problem)
            for m in self._models
        ]
        entries += self._coming.values()
        for name in self._folders.keys() - self._coming.keys():
            if not self._models.versions(name):
                entries.append(Entry(name, "", "UNAVAILABLE", "unloaded"))
        return sorted(
            (e for e in entries if not ready or e.state == "READY"),
            key=lambda e: (e.name, e.version),
        )

    async def load(self, name: str) -> None:
        """Serve what the model's folders hold now: what is new is loaded, then what is gone leaves.

        Raises `UnknownModel`, and what opening a bundle raises; then what was served still is.
        """
        if name not in self._folders:
            known = ", ".join(map(repr, self._folders))
            raise UnknownModel(f"model {name!r} is unknown", expected=known)
        async with self._lock:
            await self._follow(name)

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that it has are answered. Raises `UnknownModel`."""
        async with self._lock:
            if not self._models.versions(name) or name not in self._folders:
                raise UnknownModel(f"model {name!r} is unknown or not loaded")
            self._models.remove(name)
            self._coming.pop(name, None)

    async def watch(self) -> None:
        """Follow the blessed records of every run until cancelled; SIGHUP looks at once.

        A version that cannot be served is not tried again before its record changes, or SIGHUP.
        """
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Outside the main thread, as in tests, no signal can be had.
        with suppress(ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGHUP, asked.set)
        again = False
        try:
            while True:
                for name in self._folders:
                    await self._look(name, again=again)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds or None):
                        await asked.wait()
                again = asked.is_set()
                asked.clear()
        finally:
            with suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(signal.SIGHUP)

    async def _look(self, name: str, *, again: bool) -> None:
        """Follow a model if a record of it has changed, or in any case; a failure is only told."""
        folders = self._folders[name]
        stamps = await asyncio.to_thread(lambda: [_stamp(folder) for folder in folders])
        nothing: list[Stamp | None] = [None] * len(folders)
        # What nobody has blessed is as it was when the server started.
        changed = stamps != self._stamps.get(name, nothing) or (again and stamps != nothing)
        if not changed or not self._models.versions(name):
            return
        self._stamps[name] = stamps
        async with self._lock:
            try:
                await self._follow(name)
            except Exception as error:  # of any library
                version = self._models.standing(name)
                told = error if isinstance(error, FucinaError) else type(error).__name__
                logger.error("model %r: version %s goes on answering: %s", name, version, told)

    async def _follow(self, name: str) -> None:
        """Serve what the folders hold; raises what opening raises, with the old one in place.

        A canary that cannot be served does not keep the version beside it from being so.
        """
        folders = self._folders[name]
        before = {id(model) for model in self._models.versions(name)}
        stands = await asyncio.to_thread(lambda: [_standing(folder) for folder in folders])
        wholes = [await self._open(name, one.bundle) for one in stands]
        last = stands[-1]
        trial = problem = None
        if last.canary:
            try:
                trial = await self._open(name, last.canary)
            except Exception as error:  # of any library, raised below
                problem = error
        self._models.switch(wholes, trial, last.percent)
        if problem is None:
            self._coming.pop(name, None)
        for model in (*wholes, trial):
            if model is not None and id(model) not in before:
                self._telemetry.swapped(name, model.version, True, "")
        logger.info(
            "model %r: version %s answers%s", name, wholes[-1].version,
            f", {trial.version} {last.percent:g} % of requests" if trial else "",
        )  # fmt: skip
        if problem is not None:
            raise problem

    async def _open(self, name: str, chosen: Chosen) -> Model:
        """The version that was chosen, loaded if it is not yet; a failure is told and raised."""
        there = {m.bundle.digest: m for m in self._models.versions(name) if m.ready}
        if chosen.digest in there:
            return there[chosen.digest]
        self._coming[name] = Entry(name, chosen.version, "LOADING")
        try:
            bundle = await asyncio.to_thread(open_for_service, chosen, self._kind)
            if bundle.digest in there:
                return there[bundle.digest]
            if bundle.manifest.name != name:
                raise ServingFailed(
                    "the bundle is another model's", got=bundle.manifest.name, expected=name
                )
            return await self._models.open(bundle)
        except Exception as error:
            known = isinstance(error, FucinaError)
            why = str(error) if known else "it cannot be opened: the server's log has the cause"
            if not known:
                logger.exception("model %r version %s cannot be opened", name, chosen.version)
            self._coming[name] = Entry(name, chosen.version, "UNAVAILABLE", why)
            self._telemetry.swapped(name, chosen.version, False, why)
            # Over the protocol: the bundle is at fault, not the request.
            raise NotReady(why) from error


def _standing(folder: Path) -> Standing:
    return standing(folder) if is_run(folder) else Standing(Chosen(folder))


def _stamp(folder: Path) -> Stamp | None:
    try:
        found = (folder / RECORD).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
