"""The Open Inference Protocol over gRPC, in the process and event loop of the REST half."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from models.errors import ServingFailed
from serving.inference_calls import unary
from serving.inference_health import REFLECTION_SERVICE, health_handlers, reflection_handlers
from serving.inference_methods import inference_methods
from serving.inference_proto import HEALTH_SERVICE, MESSAGES, SERVICE
from serving.inference_stream import stream_call
from serving.tls import grpc_credentials

if TYPE_CHECKING:
    from serving.runtime import Runtime
    from serving.settings import Settings

# Calls of all clients at a time, and of one connection: more than a queue holds, which refuses
# with its reason.
MOST_CALLS, MOST_OF_A_CONNECTION = 4096, 1024
_LARGEST_METADATA = 16 * 1024  # bytes
_MINUTE = 60_000  # milliseconds


@dataclass(frozen=True)
class GrpcServer:
    """A server that answers."""

    server: grpc.aio.Server
    ending: asyncio.Event

    async def stop(self, grace: float) -> None:
        """Refuse what is new and answer what is under way, for at most `grace` seconds."""
        # Who only watches or listens would otherwise be waited for.
        self.ending.set()
        await self.server.stop(grace)


async def start_grpc(runtime: Runtime) -> GrpcServer:
    """Start answering; other workers of this service may bind the port too.

    Raises `ServingFailed` when the port is taken.
    """
    settings = runtime.settings
    ending = asyncio.Event()
    server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=MOST_CALLS)
    methods = inference_methods(runtime)
    inference = {
        name: unary(runtime, name, MESSAGES[f"{name}Request"], method.answer, admin=method.admin)
        for name, method in methods.items()
    }
    infer = methods["ModelInfer"].answer
    inference["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        stream_call(runtime, infer, ending)
    )
    services = {
        SERVICE: inference,
        HEALTH_SERVICE: health_handlers(runtime, ending),
        REFLECTION_SERVICE: reflection_handlers(runtime),
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, each) for name, each in services.items())
    )
    _bind(server, settings)
    await server.start()
    return GrpcServer(server, ending)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.largest_body),
        ("grpc.max_send_message_length", -1),
        # Left to us, who know how large a message may become.
        ("grpc.per_message_decompression", 0),
        ("grpc.max_metadata_size", _LARGEST_METADATA),
        ("grpc.absolute_max_metadata_size", _LARGEST_METADATA),
        ("grpc.max_concurrent_streams", MOST_OF_A_CONNECTION),
        # A client that has gone without a word is noticed; one may itself ask every ten seconds.
        ("grpc.keepalive_time_ms", _MINUTE),
        ("grpc.keepalive_timeout_ms", _MINUTE // 3),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _MINUTE // 6),
        # Off unless several workers share it: two unrelated services would share their traffic.
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]


def _bind(server: grpc.aio.Server, settings: Settings) -> None:
    host, port = settings.grpc_host, settings.grpc_port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = grpc_credentials(settings)
    try:
        bound = (
            server.add_secure_port(address, credentials)
            if credentials
            else server.add_insecure_port(address)
        )
    except RuntimeError:
        bound = 0
    if not bound:
        raise ServingFailed(
            f"gRPC cannot listen on {host}:{port}", fix="choose another port, or stop its owner"
        )
