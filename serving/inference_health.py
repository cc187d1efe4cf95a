"""gRPC's standard health checking and reflection, of the whole server and of each model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from models.errors import UnknownModel
from serving.inference_calls import Context, late, parse, streaming, unary
from serving.inference_proto import HEALTH_MESSAGES, HEALTH_SERVICE, POOL, SERVICE

if TYPE_CHECKING:
    from serving.runtime import Runtime

_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
# Seconds between looks at a model that is watched.
_LOOK = 0.2
REFLECTION_SERVICE = reflection.SERVICE_NAME


def health_handlers(
    runtime: Runtime, ending: asyncio.Event
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Check and Watch; the empty name asks for the whole server, a model's name for that model."""
    asked, said = (HEALTH_MESSAGES[f"HealthCheck{name}"] for name in ("Request", "Response"))

    def status(service: str) -> int:
        if ending.is_set():
            return _NOT_SERVING
        whole = service in ("", SERVICE, HEALTH_SERVICE)
        ready = runtime.ready if whole else runtime.models.get(service).ready
        return _SERVING if ready else _NOT_SERVING

    async def check(request: Any) -> Any:
        return said(status=status(request.service))

    async def watch(raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        request = await parse(asked, raw, runtime.settings.largest_body)
        last = None
        while True:
            over = ending.is_set()
            try:
                now = status(request.service)
            except UnknownModel:  # it may come
                now = _SERVICE_UNKNOWN
            if now != last:
                yield said(status=now).SerializeToString()
            if over:
                return
            last = now
            try:
                async with asyncio.timeout(_LOOK):
                    await ending.wait()
            except TimeoutError:
                pass

    return {
        "Check": unary(runtime, "Check", asked, check),
        "Watch": grpc.unary_stream_rpc_method_handler(streaming(runtime, "Watch", watch)),
    }


def reflection_handlers(runtime: Runtime) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """What the services and messages are, for clients that were not told before."""
    servicer = reflection.aio.ReflectionServicer(
        (SERVICE, HEALTH_SERVICE, REFLECTION_SERVICE), POOL
    )

    async def answer(
        requests: AsyncIterator[bytes], context: Context
    ) -> AsyncGenerator[bytes, None]:
        async def read() -> AsyncIterator[Any]:
            settings = runtime.settings
            while True:
                try:
                    async with asyncio.timeout(settings.timeout):
                        raw = await anext(requests)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise late(settings) from None
                yield await parse(
                    reflection_pb2.ServerReflectionRequest, raw, settings.largest_body
                )

        answers: Any = servicer.ServerReflectionInfo(read(), context)
        async for said in answers:
            yield said.SerializeToString()

    serve = streaming(runtime, "ServerReflectionInfo", answer)
    return {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(serve)}
