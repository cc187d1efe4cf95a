"""A text as an HTTP answer: events while it is written, or whole; it ends when nobody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.failures import failure
from serving.inference_rest import failed
from serving.model import Model
from serving.writing import Piece, Writing

# Makes the answer of the whole text and its last piece.
Finisher = Callable[[str, Piece], Awaitable[Response]]
_EVENTS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy that gathers events would undo them
}


def summary(model: Model, writing: Writing, text: str, last: Piece) -> dict[str, Any]:
    """The fields of a `GenerateResponse`."""
    return {
        "model": model.name,
        "version": model.version,
        "prompt": writing.prompt,
        "text": text,
        "finish": last.finish,
        "tokens": last.tokens,
        "prompt_tokens": writing.prompt_tokens,
        "context_cuts": last.cuts,
        "seed": writing.seed,
    }


class EventsResponse(Response):
    """Server-sent events: each piece of the text as soon as it is there."""

    def __init__(self, model: Model, writing: Writing) -> None:
        super().__init__(headers=_EVENTS)
        del self.headers["content-length"]
        self._model = model
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await _while_read(self._writing, receive, self._say(send))
        if self.background is not None:
            await self.background()

    async def _say(self, send: Send) -> None:
        index = 0
        try:
            async for piece in self._writing:
                event: dict[str, Any] = {"text": piece.text, "index": index}
                index += len(piece.text)
                if piece.finish:
                    event |= summary(self._model, self._writing, piece.text, piece)
                    await _send_event(send, event, more=False)
                else:
                    await _send_event(send, event, more=True)
        except Exception as error:
            await _send_event(send, {"error": failure(error)[1]}, more=False)


class WholeResponse(Response):
    """One answer, made by `finisher` once the text is whole."""

    def __init__(self, writing: Writing, finisher: Finisher) -> None:
        super().__init__()
        self._writing = writing
        self._finisher = finisher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say() -> None:
            try:
                pieces = [piece async for piece in self._writing]
                if self._writing.cancelled:
                    return
                text = "".join(piece.text for piece in pieces)
                answer = await self._finisher(text, pieces[-1])
            except Exception as error:
                answer = failed(error)
            await answer(scope, receive, send)

        await _while_read(self._writing, receive, say())
        if self.background is not None:
            await self.background()


async def _while_read(writing: Writing, receive: Receive, answer: Awaitable[None]) -> None:
    """Answer; the text is no longer written once its reader has gone, or the answer has ended."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()

    watching = asyncio.create_task(watch())
    try:
        await answer
    finally:
        watching.cancel()
        writing.cancel()


async def _send_event(send: Send, event: dict[str, Any], *, more: bool) -> None:
    body = b"data: " + orjson.dumps(event) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": more})
