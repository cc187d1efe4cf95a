"""The life of a serving process: models loading behind an already live REST and gRPC."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import grpc.aio

from models.errors import ServingFailed
from pipeline.bundle import Kind
from serving.inference_grpc import start_grpc
from serving.predictor import Models, open_bundles
from serving.settings import Settings, read_settings

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
    """The models of one worker and the gRPC server beside BentoML's REST."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._settings: Settings = read_settings(os.environ, folder)
        bundles = open_bundles(self._settings.bundles, kind)
        self.models = Models(bundles, self._settings.target, self._settings.queue)
        self._grpc: grpc.aio.Server | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer over gRPC and to load; REST is live meanwhile, and not ready."""
        self._grpc = await start_grpc(
            lambda: self.models,
            self._settings.grpc_host,
            self._settings.grpc_port,
            largest=self._settings.largest_body,
            shared=self._settings.workers > 1,
        )
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        await self.models.load()
        if self._settings.ready and self.models.ready:
            (self._settings.ready / str(os.getpid())).touch()

    async def stop(self) -> None:
        """Let calls in flight end, then close the engines."""
        if self._loading is not None:
            self._loading.cancel()
        if self._grpc is not None:
            await self._grpc.stop(GRACE)
        await self.models.close()
