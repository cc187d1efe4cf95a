"""A gRPC call's life, in this process: ids, refusals, deadlines, compression bombs, the end."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from models.errors import NotReady, Overloaded
from models.signature import Arrays
from pipeline.bundle import open_bundle
from serving.calls import CALL, Call
from serving.gate import Gate
from serving.inference_grpc import GrpcServer, start_grpc
from serving.inference_proto import SERVICE
from serving.ports import free_port
from serving.settings import Settings
from tests.serving.conftest import models_of

INFER = f"/{SERVICE}/ModelInfer"


@dataclass
class Ends:
    """A telemetry that keeps the calls that ended."""

    calls: list[Call] = field(default_factory=list)
    begun: int = 0

    def begin(self, call: Call, headers: Any = ()) -> None:
        self.begun += 1

    def end(self, call: Call) -> None:
        self.calls.append(replace(call))

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: None


@dataclass
class Running:
    """A server in this process, and what may be done to it."""

    address: str
    server: GrpcServer
    ends: Ends
    answer: Callable[[Arrays], Awaitable[Arrays]] | None = None
    cancelled: int = 0
    leaving: bool = False

    async def ended(self, count: int) -> list[Call]:
        """So many calls; the server counts one after the client has its answer."""
        await until(lambda: len(self.ends.calls) >= count)
        return self.ends.calls


@asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncIterator[Running]:
    models = models_of(open_bundle(folder))
    await models.load()
    model = models.get("digits")
    settings = Settings(grpc_port=free_port("127.0.0.1"), **changes)
    ends = Ends()

    def check_staying() -> None:
        if found.leaving:
            raise NotReady("the server is ending")

    runtime: Any = SimpleNamespace(
        settings=settings,
        models=models,
        telemetry=ends,
        gate=Gate(settings),
        ready=True,
        check_staying=check_staying,
        draining=False,
    )
    found = Running(f"127.0.0.1:{settings.grpc_port}", await start_grpc(runtime), ends)
    engine = model.predict

    async def predict(inputs: Arrays) -> Arrays:
        try:
            return await (found.answer or engine)(inputs)
        except asyncio.CancelledError:
            found.cancelled += 1
            raise

    model.predict = predict  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield found
    finally:
        await found.server.stop(1)
        await models.close()


def request(rows: int = 1, **more: Any) -> Any:
    tensor = {"name": "image", "datatype": "FP32", "shape": [rows, 1, 28, 28]}
    zeros = np.zeros([rows, 1, 28, 28], np.float32).tobytes()
    messages: Any = service_pb2
    return messages.ModelInferRequest(
        model_name="digits", inputs=[tensor], raw_input_contents=[zeros], **more
    )


async def slow(inputs: Arrays) -> Arrays:
    await asyncio.sleep(30)
    return {}


async def refused(call: Any) -> tuple[str, dict[str, Any], str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return error.code().name, dict(error.trailing_metadata() or ()), error.details() or ""


def stub(channel: grpc.aio.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_a_call_is_counted_and_named_by_metadata_request_or_the_server(digits: Path) -> None:
    async def ask() -> None:
        async with running(digits) as here, grpc.aio.insecure_channel(here.address) as channel:
            infer = stub(channel).ModelInfer
            await infer(request(id="mine"), metadata=[("x-request-id", "theirs")])
            await infer(request(id="mine"))
            await infer(request())
            await infer(request(id="not\nsound"))
            first, second, third, fourth = await here.ended(4)
            assert (first.id, second.id) == ("theirs", "mine")
            assert len(third.id) == len(fourth.id) == 32
            assert (first.transport, first.route, first.client) == (
                "grpc", "ModelInfer", "127.0.0.1",
            )  # fmt: skip
            assert (first.model, first.version, first.code) == ("digits", "1", "OK")
            assert first.received > 3136
            assert first.sent > 80
            assert here.ends.begun == 4
            assert CALL.get() is None

    asyncio.run(ask())


def test_refusals_say_when_to_ask_again_and_are_counted_by_code(digits: Path) -> None:
    async def full(inputs: Arrays) -> Arrays:
        raise Overloaded("too many requests are waiting")

    async def broken(inputs: Arrays) -> Arrays:
        raise ValueError("secret")

    async def ask() -> None:
        async with running(digits) as here, grpc.aio.insecure_channel(here.address) as channel:
            infer = stub(channel).ModelInfer
            here.answer = full
            code, trailing, _ = await refused(infer(request(id="a")))
            assert (code, trailing["retry-after"]) == ("RESOURCE_EXHAUSTED", "1")
            assert trailing["x-request-id"] == "a"
            here.answer = broken
            code, _, text = await refused(infer(request()))
            assert code == "INTERNAL"
            assert "secret" not in text
            code, _, text = await refused(infer(request(id="x" * 100, model_version="é" * 9000)))
            assert code == "NOT_FOUND"
            assert len(text) <= 512
            codes = ["RESOURCE_EXHAUSTED", "INTERNAL", "NOT_FOUND"]
            assert [call.code for call in await here.ended(3)] == codes

    asyncio.run(ask())


def test_timeout_deadline_and_cancellation_end_the_work(digits: Path) -> None:
    async def ask() -> None:
        async with (
            running(digits, timeout=0.3) as here,
            grpc.aio.insecure_channel(here.address) as channel,
        ):
            infer = stub(channel).ModelInfer
            here.answer = slow
            code, _, text = await refused(infer(request()))
            assert (code, text) == ("DEADLINE_EXCEEDED", "no answer within 0.3 seconds")
            assert here.cancelled == 1
            code, _, _ = await refused(infer(request(), timeout=0.1))
            assert code == "DEADLINE_EXCEEDED"
            await until(lambda: here.cancelled == 2)
            call = infer(request())
            await until(lambda: here.ends.begun == 3)
            call.cancel()
            await until(lambda: here.cancelled == 3)
            assert [one.code for one in await here.ended(3)] == [
                "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "CANCELLED",
            ]  # fmt: skip

    asyncio.run(ask())


def test_a_compression_bomb_is_refused_before_it_opens(digits: Path) -> None:
    async def ask() -> None:
        async with (
            running(digits, largest_body=100_000) as here,
            grpc.aio.insecure_channel(here.address) as channel,
        ):
            infer = stub(channel).ModelInfer
            for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                small = await infer(request(), compression=algorithm)
                assert small.model_name == "digits"
                # A fiftieth of it arrives.
                code, _, text = await refused(infer(request(rows=64), compression=algorithm))
                assert (code, text) == (
                    "INVALID_ARGUMENT", "the message is too large: expected at most 100000 bytes",
                )  # fmt: skip
            code, _, _ = await refused(infer(request(rows=64)))
            assert code == "RESOURCE_EXHAUSTED"  # gRPC's own limit of what arrives
            raw = channel.unary_unary(INFER)
            for broken in (zlib.compress(bytes(100))[:-1], b"\x1f\x8b garbage"):
                code, _, text = await refused(raw(broken))
                assert code == "INVALID_ARGUMENT"
                assert "compressed message" in text

    asyncio.run(ask())


def test_calls_under_way_are_answered_while_the_server_ends(digits: Path) -> None:
    async def late(inputs: Arrays) -> Arrays:
        await asyncio.sleep(0.3)
        return {name: np.zeros([1, 10], np.float32) for name in ("logits", "probabilities")}

    async def ask() -> None:
        async with running(digits) as here, grpc.aio.insecure_channel(here.address) as channel:
            here.answer = late
            call = stub(channel).ModelInfer(request())
            stream = stub(channel).ModelStreamInfer()
            await stream.write(request(id="streamed"))
            idle = stub(channel).ModelStreamInfer()
            await idle.wait_for_connection()
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await until(lambda: here.ends.begun == 3)
            begun = time.monotonic()
            stopping = asyncio.create_task(here.server.stop(20))
            assert (await call).model_name == "digits"
            assert (await stream.read()).infer_response.id == "streamed"
            for one in (stream, idle):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await one.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await stopping
            assert time.monotonic() - begun < 15  # nobody was waited for to the end of the grace

    asyncio.run(ask())


def test_a_server_that_leaves_takes_no_call_and_no_stream(digits: Path) -> None:
    async def ask() -> None:
        async with running(digits) as here, grpc.aio.insecure_channel(here.address) as channel:
            here.leaving = True
            methods = stub(channel)
            stream = methods.ModelStreamInfer()
            for call in (methods.ModelInfer(request()), stream.read()):
                async with asyncio.timeout(20):
                    code, _, text = await refused(call)
                assert (code, text) == ("UNAVAILABLE", "the server is ending")
            assert [call.code for call in await here.ended(2)] == ["UNAVAILABLE"] * 2

    asyncio.run(ask())


def test_a_stream_reads_no_more_than_it_may_hold(digits: Path) -> None:
    held: list[int] = []
    release = asyncio.Event()

    async def hold(inputs: Arrays) -> Arrays:
        held.append(1)
        await release.wait()
        return {name: np.zeros([1, 10], np.float32) for name in ("logits", "probabilities")}

    async def ask() -> None:
        async with (
            running(digits, largest_body=10_000) as here,
            grpc.aio.insecure_channel(here.address) as channel,
        ):
            here.answer = hold
            stream = stub(channel).ModelStreamInfer()

            async def write() -> None:
                for _ in range(12):
                    await stream.write(request())
                await stream.done_writing()

            writing = asyncio.create_task(write())
            await until(lambda: len(held) == 3)  # of 3,170 bytes each
            await asyncio.sleep(0.2)
            assert len(held) == 3
            release.set()
            answers = [one async for one in stream]
            await writing
            assert len(answers) == len(held) == 12
            assert not any(one.error_message for one in answers)

    asyncio.run(ask())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)
