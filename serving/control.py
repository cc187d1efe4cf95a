"""The BentoML service of agents: `serving.control:Control`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import Response

from models.errors import BadInput, RequestError
from serving.act_messages import EXAMPLE, ActRequest, ActResponse
from serving.acting import choose, read_observation
from serving.fields import answered
from serving.front import FrontedService
from serving.inference_rest import json_response
from serving.runtime import Runtime, check_deployment
from serving.settings import read_settings

KIND = "control"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Control.working_dir)


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Control",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
class Control:
    """Agents that act on what they see, over REST with JSON and the Open Inference Protocol.

    The protocol is served under `/v2`, and over gRPC beside this server.
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

    @bentoml.api(route="/act", input_spec=ActRequest, output_spec=ActResponse)
    async def act(self, observation: Any = None, model: str | None = None) -> Response:
        """Take the action of highest value for each observation."""

        async def answer() -> Response:
            if isinstance(observation, RequestError):
                raise observation
            chosen = self.runtime.models.get(model)
            actions = chosen.codec.actions
            if actions is None:
                raise BadInput(
                    f"model {chosen.name!r} names no actions",
                    expected=f"POST /v2/models/{chosen.name}/infer",
                )
            if observation is None:
                raise BadInput("field 'observation' is missing", expected=EXAMPLE)
            inputs = read_observation(actions, chosen.signature, observation)
            taken = choose(actions, await chosen.predict(inputs))
            return json_response(
                {"model": chosen.name, "version": chosen.version, "actions": taken}
            )

        return await answered(answer())
