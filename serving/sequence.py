"""The BentoML service of sequence models: `serving.sequence:Sequence`.

It writes texts with models that go step by step, and classifies texts with the others.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import Response

from models.errors import BadInput, RequestError
from serving.fields import answered
from serving.front import FrontedService
from serving.generate_messages import ClassifyRequest, GenerateRequest, GenerateResponse
from serving.inference_rest import json_response
from serving.model import Model
from serving.music import check_music, read_tune
from serving.predict_messages import PredictResponse, read_text, respond
from serving.prompts import read_prompt
from serving.runtime import Runtime, check_deployment
from serving.settings import read_settings
from serving.text_responses import EventsResponse, WholeResponse, summary
from serving.writing import Piece, Writing

KIND = "sequence"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Sequence.working_dir)


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Sequence",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
class Sequence:
    """Models of sequences over REST with plain text, and over the Open Inference Protocol.

    The protocol, with which a client may step an engine itself, is served under `/v2`, and over
    gRPC beside this server, which streams texts too.
    """

    def __init__(self) -> None:
        self.runtime = Runtime(KIND, _folder())

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        check_deployment(KIND, _folder())

    @bentoml.on_startup
    async def start(self) -> None:
        await self.runtime.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.runtime.stop()

    @bentoml.api(route="/generate", input_spec=GenerateRequest, output_spec=GenerateResponse)
    async def generate(
        self,
        prompt: str | RequestError,
        model: str | None,
        stream: bool | None,
        format: str,
        **how: Any,
    ) -> Response:
        """Write a text: as server-sent events, as one JSON, or music as a MIDI file."""

        async def answer() -> Response:
            if isinstance(prompt, RequestError):
                raise prompt
            chosen = self.runtime.models.get(model)
            midi = format == "midi"
            if midi:
                _check_music(chosen, stream)
            writing = chosen.write(read_prompt(how | {"prompt": prompt}))
            if not midi and stream is not False:
                return EventsResponse(chosen, writing)

            async def finish(text: str, last: Piece) -> Response:
                if midi:
                    return await _midi(chosen, writing, text)
                return json_response(summary(chosen, writing, text, last))

            return WholeResponse(writing, finish)

        return await answered(answer())

    @bentoml.api(route="/classify", input_spec=ClassifyRequest, output_spec=PredictResponse)
    async def classify(self, text: str | list[str] | RequestError, model: str | None) -> Response:
        """Classify plain texts."""

        async def answer() -> Response:
            if isinstance(text, RequestError):
                raise text
            chosen = self.runtime.models.get(model)
            # Long texts take a while, for which others are not to wait.
            rows = await asyncio.to_thread(read_text, chosen, {}, text)
            return respond(chosen, await chosen.predict(rows), [])

        return await answered(answer())


def _check_music(model: Model, stream: bool | None) -> None:
    generation = model.codec.generation
    if generation is None or generation.media != "abc":
        raise BadInput(f"model {model.name!r} writes no music", expected="format 'text'")
    check_music()
    if stream:
        raise BadInput("a MIDI file is not streamed", got="stream true", expected="false or none")


async def _midi(model: Model, writing: Writing, text: str) -> Response:
    generation = model.codec.generation
    continued = generation is not None and generation.source is None
    content = await asyncio.to_thread(read_tune, writing.prompt * continued + text)
    headers = {
        "Content-Disposition": 'attachment; filename="tune.mid"',
        "Fucina-Seed": str(writing.seed),
    }
    return Response(content, headers=headers, media_type="audio/midi")
