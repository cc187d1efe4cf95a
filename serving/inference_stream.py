"""ModelStreamInfer, Triton's extension of the protocol: many requests and answers in one call.

A request whose input is `prompt`, BYTES [1], is answered by responses with the output `text`, BYTES
[1]; any other by one response, as by ModelInfer. The last response to a request has the parameter
`triton_final_response`, and of a text why and how it ended. A request that fails is answered by
an `error_message`, and the stream goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from models.errors import NotReady
from serving.calls import CALL, Call
from serving.failures import failure
from serving.inference_calls import (
    Answer,
    Context,
    Metadata,
    arrive,
    header,
    late,
    name_call,
    parse,
    refuse,
)
from serving.inference_proto import MESSAGES
from serving.inference_texts import FINAL, write_text

if TYPE_CHECKING:
    from serving.runtime import Runtime

ROUTE = "ModelStreamInfer"
MOST_OPEN = 256  # requests of one stream that are being answered


class InferenceStream:
    """One call of ModelStreamInfer, whose requests are each a call of their own.

    They are counted, admitted and bounded in time one by one; the stream itself is only let in. No
    more of them are read than may be under way, nor than the largest message's bytes in all.
    """

    def __init__(self, runtime: Runtime, infer: Answer, client: str, metadata: Metadata) -> None:
        self._runtime = runtime
        self._infer = infer
        self._client = client
        self._metadata = metadata
        self._authorization = header(metadata, "authorization")
        self._responses: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_OPEN)
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0  # of the requests under way
        self._room = asyncio.Event()

    async def responses(
        self, requests: AsyncIterator[bytes], ending: asyncio.Event
    ) -> AsyncGenerator[bytes, None]:
        """The responses as they come. Raises `NotReady` when the server is ending.

        What was asked before that is answered.
        """
        reading = asyncio.create_task(self._read(requests))
        stopping = asyncio.create_task(ending.wait())
        finishing = asyncio.create_task(self._finish(reading, stopping))
        try:
            while (response := await self._responses.get()) is not None:
                yield response
        finally:  # also when the client has gone
            for task in (reading, stopping, finishing, *self._tasks):
                task.cancel()
        if finishing.result():
            raise NotReady("the server is ending")

    async def _finish(self, reading: asyncio.Task[None], stopping: asyncio.Task[Any]) -> bool:
        """End the responses when all is read and answered; whether that was before its time."""
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopped = reading.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._responses.put(None)
        return stopped

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            while self._tasks and (
                len(self._tasks) >= MOST_OPEN
                or self._bytes + len(raw) > self._runtime.settings.largest_body
            ):
                self._room.clear()
                await self._room.wait()
            self._bytes += len(raw)
            task = asyncio.create_task(self._answer_one(raw))
            self._tasks.add(task)
            task.add_done_callback(partial(self._leave, len(raw)))

    def _leave(self, size: int, done: asyncio.Task[None]) -> None:
        self._tasks.discard(done)
        self._bytes -= size
        self._room.set()

    async def _answer_one(self, raw: bytes) -> None:
        call = Call("grpc", ROUTE, client=self._client, received=len(raw), code="OK")
        CALL.set(call)
        self._runtime.telemetry.begin(call, self._metadata)
        try:
            await self._answer(raw, call)
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        finally:
            self._runtime.telemetry.end(call)

    async def _answer(self, raw: bytes, call: Call) -> None:
        async def put(response: Any, error: str = "") -> None:
            said = MESSAGES["ModelStreamInferResponse"](infer_response=response)
            if error:
                said.error_message = error
            sent = said.SerializeToString()
            call.sent += len(sent)
            await self._responses.put(sent)

        settings = self._runtime.settings
        request = MESSAGES["ModelInferRequest"]()
        try:
            self._runtime.gate.admit(call, self._authorization)
            try:
                self._runtime.gate.hold(call, len(raw))
                request = await parse(type(request), raw, settings.largest_body)
                name_call(call, request)
                if any(tensor.name == "prompt" for tensor in request.inputs):
                    await write_text(self._runtime, request, put)
                    return
                async with asyncio.timeout(settings.timeout):
                    response = await self._infer(request)
                response.parameters[FINAL].bool_param = True
                await put(response)
            finally:
                self._runtime.gate.leave(call)
        except Exception as error:
            row, text = failure(late(settings) if isinstance(error, TimeoutError) else error)
            call.code = row.code.name
            name_call(call, request)
            response = MESSAGES["ModelInferResponse"](id=request.id, model_name=request.model_name)
            response.parameters[FINAL].bool_param = True
            await put(response, text)


def stream_call(runtime: Runtime, infer: Answer, ending: asyncio.Event) -> Any:
    """The method; `infer` answers what asks for no text, and `ending` says that the server ends."""

    async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        opening, metadata = arrive(ROUTE, context)
        try:
            runtime.check_staying()
            runtime.gate.admit(opening, header(metadata, "authorization"))
            runtime.gate.leave(opening)
            stream = InferenceStream(runtime, infer, opening.client, metadata)
            async with aclosing(stream.responses(requests, ending)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            runtime.telemetry.begin(opening, metadata)
            try:
                await refuse(opening, context, error)
            finally:
                runtime.telemetry.end(opening)

    return call
