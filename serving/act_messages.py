"""Requests and responses of `/act`, typed and strictly read."""

from __future__ import annotations

from typing import Any

import bentoml
from pydantic import BaseModel, Field
from starlette.requests import Request

from models.errors import RequestError
from serving.fields import MODEL, JsonField, read_fields, served_models

_JSON_FIELDS = {
    "model": MODEL,
    "observation": JsonField(
        "numbers in lists",
        lambda value: isinstance(value, list | int | float) and not isinstance(value, bool),
    ),
}
EXAMPLE = '{"observation": NUMBERS}, of one observation or a list of them'


def _describe_observation(schema: dict[str, Any]) -> None:
    """Put what the served models see into the OpenAPI schema, where a service is running."""
    try:
        models = list(served_models())
    except bentoml.exceptions.BentoMLException:
        return  # a Bento is being built
    wanted: list[dict[str, Any]] = []
    for model in models:
        if model.codec.actions:
            several = model.signature.json_schema()["properties"][model.codec.actions.observation]
            wanted += [
                several["items"] | {"title": f"{model.name}: one observation"},
                several | {"title": f"{model.name}: several"},
            ]
    schema["oneOf"] = wanted


class ActRequest(bentoml.IODescriptor):
    """What an agent sees, or several of them see: as nested lists."""

    model: str | None = Field(None, description="which model; needed when several are served")
    observation: Any = Field(
        description="one observation or a list of them", json_schema_extra=_describe_observation
    )

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ActRequest:
        # A refusal raised here would be answered in another format: `act` raises it.
        try:
            fields = read_fields(await request.body(), _JSON_FIELDS, EXAMPLE)
            return cls.model_construct(**{"observation": None} | fields)
        except RequestError as error:
            return cls.model_construct(observation=error)


class Action(BaseModel):
    """What the agent does that saw one observation."""

    action: int = Field(description="the number of the action, from 0, as the environment counts")
    name: str
    q_values: dict[str, float] = Field(description="the expected return of each action, by name")


class ActResponse(bentoml.IODescriptor):
    """One action an observation, in their order: of highest value, of equal ones the first."""

    model: str
    version: str
    actions: list[Action]
