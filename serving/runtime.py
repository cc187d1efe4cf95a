"""The life of a serving process: models loading behind an already live REST and gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from models.errors import NotReady
from pipeline.bundle import Kind
from serving.access_log import AccessLog
from serving.gate import Gate
from serving.inference_grpc import GrpcServer, start_grpc
from serving.opening import open_bundles
from serving.ports import check_port
from serving.predictor import Models
from serving.repository import Repository
from serving.settings import Settings, read_settings
from serving.telemetry import Telemetry
from serving.tls import check_protection
from serving.tracing import open_tracing
from serving.workers import workers

GRACE = 10.0  # seconds that calls in flight have, once nothing more is taken
_FAREWELL = 0.2  # seconds without a new call over gRPC, after which it ends
_LONGEST_FAREWELL = 2.0
WAITING = "not every worker is ready yet"


def check_deployment(kind: Kind, folder: Path) -> None:
    """Refuse to start workers that could not serve; run once, before they start.

    Raises what `open_bundles` raises, `BadSetting` for keys or certificates that cannot be used,
    and `ServingFailed` when the gRPC port is taken.
    """
    settings = read_settings(os.environ, folder)
    check_protection(settings, sys.argv)
    open_bundles(settings.bundles, kind)
    check_port(settings.grpc_host, settings.grpc_port, "gRPC")


class Runtime:
    """All that one worker is made of; transports ask it for what they need at each request."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.settings: Settings = read_settings(os.environ, folder)
        self.telemetry = Telemetry(
            AccessLog() if self.settings.access_log else None, open_tracing(os.environ)
        )
        self.gate = Gate(self.settings)
        self.models = Models(self.settings, self.telemetry)
        bundles = open_bundles(self.settings.bundles, kind)
        self.repository = Repository(self.models, self.settings, bundles, kind, self.telemetry)
        self.draining = False  # not ready any more
        self._leaving = False  # nor taking what is new over gRPC
        self._asked = 0.0  # when it last came all the same
        self._workers = workers(self.settings.workers, os.environ)
        self._joined = self._started = False
        self._grpc: GrpcServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer over gRPC and to load; REST is live meanwhile, and not ready.

        A worker that takes the place of one that ended loads first: others answer meanwhile, and
        the system gives requests to whoever listens.
        """
        # What the project says at level INFO is for who runs a server; BentoML is quieter.
        logging.getLogger("fucina").setLevel(logging.INFO)
        self._catch_signals()
        others = self._workers.any()
        if others:
            await self._load()
        self._grpc = await start_grpc(self)
        self._tasks = [
            asyncio.create_task(self._live(loaded=others)),
            asyncio.create_task(self.telemetry.run()),
        ]

    async def _live(self, *, loaded: bool) -> None:
        if not loaded:
            await self._load()
        await self.repository.watch()

    async def _load(self) -> None:
        await self.models.load()
        if self.models.ready:
            self._join()

    def _join(self) -> None:
        self._joined = True
        self._workers.join()
        self.telemetry.worker_ready(True)

    def check_started(self) -> None:
        """Raise `NotReady` until every model of every worker was ready once."""
        if not self._started:
            for model in self.models:
                model.check_ready()
            if not self._joined:  # another version came where one could not be opened
                self._join()
            if not self._workers.were_all():
                raise NotReady(WAITING)
            self._started = True

    def check_ready(self) -> None:
        """Raise `NotReady` with the reason, unless this worker answers, and goes on to."""
        if self.draining:
            raise NotReady("the server is ending")
        self.check_started()  # later versions are switched to when they are ready

    def check_staying(self) -> None:
        """Raise `NotReady` once nothing new is taken over gRPC."""
        if self._leaving:
            self._asked = time.monotonic()
            raise NotReady("the server is ending")

    @property
    def ready(self) -> bool:
        """Whether this worker answers, and goes on to."""
        try:
            self.check_ready()
        except NotReady:
            return False
        return True

    def _catch_signals(self) -> None:
        """Drain before what would end the process at once does; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)

            def ask(number: int, frame: FrameType | None, before: Any = before) -> None:
                loop.call_soon_threadsafe(self._begin_drain, partial(before, number, frame))

            signal.signal(number, ask)

    def _begin_drain(self, leave: Callable[[], object]) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain(leave))
        else:  # asked again: whoever asks does not want to wait
            self._ending.cancel()
            leave()

    async def _drain(self, leave: Callable[[], object]) -> None:
        """Say that it is not ready, let who balances the load see it, then take nothing more."""
        self._retire()
        await asyncio.sleep(self.settings.drain)
        leave()
        await self._close_grpc()

    def _retire(self) -> None:
        self.draining = True
        self._workers.leave()
        self.telemetry.worker_ready(False)

    async def _close_grpc(self) -> None:
        if self._grpc is not None:
            # What has arrived and is not taken up when gRPC stops is cancelled, and its client does
            # not know whether to ask again. So what is new is told so before, until none comes.
            self._leaving = True
            begun = self._asked = time.monotonic()
            while (now := time.monotonic()) < min(
                self._asked + _FAREWELL, begun + _LONGEST_FAREWELL
            ):
                await asyncio.sleep(self._asked + _FAREWELL - now)
            await self._grpc.stop(GRACE)

    async def stop(self) -> None:
        """Let calls in flight end, then close the engines."""
        self._retire()
        if self._ending is None or self._ending.cancelled():
            await self._close_grpc()
        else:
            await self._ending
        for task in self._tasks:
            task.cancel()
        await self.models.close()
        await self.telemetry.close()
