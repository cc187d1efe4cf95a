"""The Open Inference Protocol over REST: health, metadata, inference and repository under `/v2`.

Each route is a plain coroutine over bytes, so that no framework stands before an inference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from models.errors import Forbidden, UnknownModel, Unsupported, WrongMediaType
from serving.bodies import WORTH_A_THREAD, Lines
from serving.drawing import complete
from serving.failures import failure
from serving.inference_messages import (
    HEADER_LENGTH,
    check_keys,
    parse_json,
    read_flag,
    read_parameters,
    read_question,
    write_answer,
)
from serving.model import Model
from serving.tensors import describe

if TYPE_CHECKING:
    from serving.runtime import Runtime

SERVER = "fucina"
# Of the REST half: over gRPC raw contents are no extension. Parameters are `seed` and `rows`.
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_LENGTH = HEADER_LENGTH.lower().encode()
# A page of any origin may send a form or plain text without asking, so that neither is taken.
_MEDIA = (b"", b"application/json", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response, but for the headers that every one has.

    Only of an inference is the body compressed: stock clients read no other that way.
    """

    body: bytes
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = (_JSON,)
    packable: bool = False


# Runtime, parameters of the path, the request's header, body.
Handler = Callable[["Runtime", Mapping[str, str], Lines, bytes], Awaitable[Answer]]
Check = Callable[["Runtime", Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Match:
    """The route that a request has taken, as a template, with what stood at its places."""

    route: str
    handler: Handler
    parameters: Mapping[str, str]
    admin: bool = False
    check: Check | None = None  # before the body is read


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
    # What a client sent may hold half a character, which has no form in UTF-8.
    said = text.encode(errors="backslashreplace").decode()
    return Answer(_dump({"error": said}), row.status, headers)


def match(method: str, path: str) -> Match | None:
    """The protocol's route of a request, one that says what is wrong with it, or None: not ours."""
    parts = path.strip("/").split("/")
    if parts[0] != "v2" and parts not in (["readyz"], ["startupz"]):
        return None
    parameters: dict[str, str] = {}
    # What follows these words is a name, whatever it is.
    at = 2 if parts[1:2] == ["repository"] else 1
    if parts[at : at + 1] == ["models"] and len(parts) > at + 1 and parts[at + 1]:
        parameters["model"], parts[at + 1] = parts[at + 1], "{model}"
        if at == 1 and parts[3:4] == ["versions"] and len(parts) > 4 and parts[4]:
            parameters["version"] = parts[4]
            del parts[3:5]
    plain = "/" + "/".join(parts)
    methods = ROUTES.get(plain)
    if methods is None:
        return Match("/v2/{rest}", _unknown, {"what": f"{method} {path}"})
    route = plain.replace("{model}", VERSIONED, 1) if "version" in parameters else plain
    known = methods.get("GET" if method == "HEAD" else method)
    if known is None:
        return Match(route, _wrong_method, {"allow": allowed(methods), "method": method})
    handler, admin = known
    return Match(route, handler, parameters, admin, check_room if handler is infer else None)


def allowed(methods: Collection[str]) -> str:
    """What stands in `Allow` of a route with these methods."""
    return ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])


def wrong_method(method: str, allow: str) -> Answer:
    """The answer to a request whose path is known and whose method is not."""
    text = f"the method does not fit the path: got {method}, expected {allow}"
    return Answer(_dump({"error": text}), 405, (_JSON, (b"allow", allow.encode())))


async def live(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    return Answer(b'{"live":true}')


async def ready(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    runtime.check_ready()
    return Answer(b'{"ready":true}')


async def started(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    runtime.check_started()
    return Answer(b'{"started":true}')


async def server(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    version = metadata.version("fucina")
    return Answer(_dump({"name": SERVER, "version": version, "extensions": EXTENSIONS}))


async def describe_model(
    runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes
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
                "properties": model.properties,
            }
        )
    )


async def model_ready(
    runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes
) -> Answer:
    model = _model(runtime, parameters)
    model.check_ready()
    return Answer(_dump({"name": model.name, "ready": True}))


def check_room(runtime: Runtime, parameters: Mapping[str, str]) -> None:
    """Raise `NotReady`, `Overloaded` or `UnknownModel` for what need not be read to be refused."""
    _model(runtime, parameters).check_room()


async def infer(
    runtime: Runtime, parameters: Mapping[str, str], header: Lines, body: bytes
) -> Answer:
    check_media(header)
    model = _model(runtime, parameters)
    model.check_room()
    length = header.get(_LENGTH)
    if len(body) < WORTH_A_THREAD:
        question = read_question(model.signature, body, length, model.name)
    else:
        question = await asyncio.to_thread(read_question, model.signature, body, length, model.name)
    inputs, drawn = complete(model.signature, model.codec, question.inputs, question.parameters)
    answers = await model.predict(inputs)
    said, split = write_answer(model.name, model.version, question, answers, drawn)
    if split is None:
        return Answer(said, packable=True)
    return Answer(said, headers=(_BINARY, (_LENGTH, str(split).encode())), packable=True)


async def index(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    asked = parse_json(body) if body else {}
    check_keys(asked, ("ready",))
    entries = runtime.repository.index(ready=read_flag(asked, "ready", False))
    return Answer(_dump([vars(entry) for entry in entries]))


async def load(
    runtime: Runtime, parameters: Mapping[str, str], header: Lines, body: bytes
) -> Answer:
    _check_admin(header, body, ())  # Triton's own take a configuration and files of the client's
    await runtime.repository.load(parameters["model"])
    return Answer(b"{}")


async def unload(
    runtime: Runtime, parameters: Mapping[str, str], header: Lines, body: bytes
) -> Answer:
    # Stock clients always send it: the parts of a model go with it, whatever it says.
    _check_admin(header, body, ("unload_dependents",))
    await runtime.repository.unload(parameters["model"])
    return Answer(b"{}")


def check_media(header: Lines) -> None:
    """Raise `WrongMediaType` unless a body is declared as JSON, as bytes, or not at all."""
    declared = header.get(b"content-type", b"")
    if declared not in _MEDIA and declared.split(b";")[0].strip().lower() not in _MEDIA:
        raise WrongMediaType(
            "the content type is not the protocol's", got=repr(declared.decode("latin-1")),
            expected="application/json or application/octet-stream",
        )  # fmt: skip


def _check_admin(header: Lines, body: bytes, known: Collection[str]) -> None:
    if b"origin" in header:  # a page of any origin may post nothing without asking
        raise Forbidden("no page may load or unload", fix="ask from outside a browser")
    check_media(header)
    asked = parse_json(body) if body else {}
    check_keys(asked, ("parameters",))
    check_keys(read_parameters(asked, "the request"), known)


async def _unsupported(
    runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes
) -> Answer:
    model = _model(runtime, parameters)
    raise Unsupported(
        f"model {model.name!r} has no configuration or statistics of Triton's",
        expected=f"GET /v2/models/{model.name} for its metadata, GET /metrics for its numbers",
    )


async def _wrong_method(
    runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes
) -> Answer:
    return wrong_method(parameters["method"], parameters["allow"])


async def _unknown(
    runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes
) -> Answer:
    raise UnknownModel(f"nothing is at {parameters['what']}")


VERSIONED = "{model}/versions/{version}"
# By path without a version: each method's handler, and whether it is for admins only.
ROUTES: Mapping[str, Mapping[str, tuple[Handler, bool]]] = {
    "/readyz": {"GET": (ready, False)},
    "/startupz": {"GET": (started, False)},
    "/v2": {"GET": (server, False)},
    "/v2/health/live": {"GET": (live, False)},
    "/v2/health/ready": {"GET": (ready, False)},
    "/v2/models/{model}": {"GET": (describe_model, False)},
    "/v2/models/{model}/ready": {"GET": (model_ready, False)},
    "/v2/models/{model}/infer": {"POST": (infer, False)},
    "/v2/models/{model}/config": {"GET": (_unsupported, False)},
    "/v2/models/{model}/stats": {"GET": (_unsupported, False)},
    "/v2/repository/index": {"POST": (index, False)},
    "/v2/repository/models/{model}/load": {"POST": (load, True)},
    "/v2/repository/models/{model}/unload": {"POST": (unload, True)},
}


def _model(runtime: Runtime, parameters: Mapping[str, str]) -> Model:
    return runtime.models.get(parameters["model"], parameters.get("version", ""))


def _dump(content: object) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
