"""The Open Inference Protocol over REST: health, metadata, inference and repository under `/v2`.

Each route is a plain coroutine over bytes, so that no framework stands before an inference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from models.errors import UnknownModel
from serving.drawing import complete
from serving.failures import failure
from serving.inference_messages import HEADER_LENGTH, parse_json, read_question, write_answer
from serving.predictor import Model
from serving.tensors import describe

if TYPE_CHECKING:
    from serving.runtime import Runtime

SERVER = "fucina"
# Of the REST half only: over gRPC raw contents are no extension.
EXTENSIONS = ("binary_tensor_data", "model_repository", "model_repository(unload_dependents)")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_LENGTH = HEADER_LENGTH.lower().encode()

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response, but for the headers that every one has."""

    body: bytes
    status: int = 200
    headers: Headers = (_JSON,)


# Runtime, parameters of the path, headers in lower case, body.
Handler = Callable[["Runtime", Mapping[str, str], Headers, bytes], Awaitable[Answer]]


@dataclass(frozen=True)
class Match:
    """The route that a request has taken, as a template, with what stood at its places."""

    route: str
    handler: Handler
    parameters: Mapping[str, str] = field(default_factory=dict)
    admin: bool = False


def platform(model: Model) -> str:
    """What a model runs on, as metadata says it: the library and format of its target."""
    library = model.target.split("-")[0]
    return {"ort": "onnxruntime_onnx"}.get(library, library)


def json_response(
    content: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Any content as JSON, numpy arrays included, for a typed route."""
    return Response(_dump(content), status, headers, "application/json")


def failed(error: Exception) -> Response:
    """The answer to an error: `{"error": ...}` with the status of the table, for a typed route."""
    answer = refused(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)


def refused(error: Exception) -> Answer:
    """The answer to an error: `{"error": ...}` with the status of the table."""
    row, text = failure(error)
    headers: list[tuple[bytes, bytes]] = [_JSON]
    if row.retry_after is not None:
        headers.append((b"retry-after", str(row.retry_after).encode()))
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Answer(_dump({"error": text}), row.status, headers)


def match(method: str, path: str) -> Match | None:
    """The protocol's route of a request, one that says what is unknown, or None: not ours."""
    parts = path.strip("/").split("/")
    if parts[0] == "readyz" and len(parts) == 1:
        return Match("/readyz", ready)
    if parts[0] != "v2":
        return None
    template, parameters = [], {}
    rest = parts[1:]
    for place, one in enumerate(rest):
        # What follows these two words is a name, whatever it is.
        before = rest[place - 1] if place else ""
        if before in ("models", "versions") and rest[0] != "health" and place in (1, 2, 3):
            parameters[before[:-1]] = one
            template.append("{" + before[:-1] + "}")
        else:
            template.append(one)
    route = "/" + "/".join(["v2", *template])
    known = _ROUTES.get((method, route.replace("/versions/{version}", "", 1)))
    if known is None:
        return Match("/v2/{rest}", _unknown, {"what": f"{method} {path}"})
    handler, admin = known
    return Match(route, handler, parameters, admin)


async def live(runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes) -> Answer:
    return Answer(b'{"live":true}')


async def ready(runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes) -> Answer:
    for model in runtime.models:
        model.check_ready()
    return Answer(b'{"ready":true}')


async def server(
    runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes
) -> Answer:
    version = metadata.version("fucina")
    return Answer(_dump({"name": SERVER, "version": version, "extensions": EXTENSIONS}))


async def describe_model(
    runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes
) -> Answer:
    model = _model(runtime, parameters)
    return Answer(
        _dump(
            {
                "name": model.name,
                "versions": [one.version for one in runtime.models.versions(model.name)],
                "platform": platform(model),
                "inputs": [describe(spec) for spec in model.signature.inputs],
                "outputs": [describe(spec) for spec in model.signature.outputs],
            }
        )
    )


async def model_ready(
    runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes
) -> Answer:
    model = _model(runtime, parameters)
    model.check_ready()
    return Answer(_dump({"name": model.name, "ready": True}))


async def infer(
    runtime: Runtime, parameters: Mapping[str, str], headers: Headers, body: bytes
) -> Answer:
    model = _model(runtime, parameters)
    model.check_ready()
    length = next((value.decode("latin-1") for name, value in headers if name == _LENGTH), None)
    question = read_question(model.signature, body, length)
    inputs, drawn = complete(model.signature, model.codec, question.inputs, question.parameters)
    answers = await model.predict(inputs)
    said, split = write_answer(model.name, model.version, question, answers, drawn)
    if split is None:
        return Answer(said)
    return Answer(said, headers=(_BINARY, (_LENGTH, str(split).encode())))


async def index(runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes) -> Answer:
    only = parse_json(body).get("ready") if body else False
    entries = runtime.repository.index(ready=only is True)
    return Answer(_dump([vars(entry) for entry in entries]))


async def load(runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes) -> Answer:
    await runtime.repository.load(parameters["model"])
    return Answer(b"{}")


async def unload(
    runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes
) -> Answer:
    await runtime.repository.unload(parameters["model"])
    return Answer(b"{}")


async def _unknown(
    runtime: Runtime, parameters: Mapping[str, str], _: Headers, body: bytes
) -> Answer:
    raise UnknownModel(f"nothing is at {parameters['what']}")


_ROUTES: Mapping[tuple[str, str], tuple[Handler, bool]] = {
    ("GET", "/v2"): (server, False),
    ("GET", "/v2/health/live"): (live, False),
    ("GET", "/v2/health/ready"): (ready, False),
    ("GET", "/v2/models/{model}"): (describe_model, False),
    ("GET", "/v2/models/{model}/ready"): (model_ready, False),
    ("POST", "/v2/models/{model}/infer"): (infer, False),
    ("POST", "/v2/repository/index"): (index, False),
    ("POST", "/v2/repository/models/{model}/load"): (load, True),
    ("POST", "/v2/repository/models/{model}/unload"): (unload, True),
}


def _model(runtime: Runtime, parameters: Mapping[str, str]) -> Model:
    return runtime.models.get(parameters["model"], parameters.get("version", ""))


def _dump(content: object) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
