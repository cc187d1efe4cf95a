"""The life of a serving process: models loading behind an already live REST and gRPC."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import grpc.aio

from models.errors import ServingFailed
from pipeline.bundle import Kind
from serving.gate import Gate
from serving.inference_grpc import start_grpc
from serving.opening import open_bundles
from serving.predictor import Models
from serving.repository import Repository
from serving.settings import Settings, read_settings
from serving.telemetry import Telemetry

GRACE = 10.0


def check_deployment(kind: Kind, folder: Path) -> None:
    """Refuse to start workers that could not serve; run once, before they start.

    Raises what `open_bundles` raises, and `ServingFailed` when the gRPC port is taken.
    """
    settings = read_settings(os.environ, folder)
    open_bundles(settings.bundles, kind)
    check_port(settings.grpc_host, settings.grpc_port, "gRPC")


def check_port(host: str, port: int, what: str) -> None:
    """Raise `ServingFailed` naming the port unless it is free for us alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # A port whose last connections linger is free; one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingFailed(
                f"{what} port {port} on {host} cannot be used",
                got=error.strerror,
                fix="choose another port, or stop what uses it",
            ) from error


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Runtime:
    """All that one worker is made of; transports ask it for what they need at each request."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.settings: Settings = read_settings(os.environ, folder)
        self.telemetry = Telemetry(self.settings.access_log)
        self.gate = Gate(self.settings)
        self.models = Models(self.settings, self.telemetry)
        bundles = open_bundles(self.settings.bundles, kind)
        self.repository = Repository(self.models, self.settings.bundles, bundles, kind)
        self._grpc: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to answer over gRPC and to load; REST is live meanwhile, and not ready."""
        self._grpc = await start_grpc(self)
        self._tasks = [asyncio.create_task(self._live())]

    async def _live(self) -> None:
        await self.models.load()
        if self.settings.ready and self.models.ready:
            (self.settings.ready / str(os.getpid())).touch()
        await self.repository.watch()

    async def stop(self) -> None:
        """Let calls in flight end, then close the engines."""
        for task in self._tasks:
            task.cancel()
        if self._grpc is not None:
            await self._grpc.stop(GRACE)
        await self.models.close()
