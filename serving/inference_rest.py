"""The Open Inference Protocol over REST: health, metadata and inference under `/v2`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import metadata

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.errors import UnknownModel
from serving.drawing import complete
from serving.failures import failure
from serving.inference_messages import HEADER_LENGTH, read_question, write_answer
from serving.predictor import Model, Models
from serving.tensors import describe

SERVER = "fucina"
# Of the REST half only: over gRPC raw contents are no extension.
EXTENSIONS = ("binary_tensor_data",)

FindModels = Callable[[], Models]
Endpoint = Callable[[Request], Awaitable[Response]]


def platform(model: Model) -> str:
    """What a model runs on, as metadata says it: the library and format of its target."""
    library = model.target.split("-")[0]
    return {"ort": "onnxruntime_onnx"}.get(library, library)


def json_response(
    content: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Any content as JSON, numpy arrays included."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def failed(error: Exception) -> Response:
    """The answer to an error: `{"error": ...}` with the status of the table."""
    answer, text = failure(error)
    wait = {} if answer.retry_after is None else {"Retry-After": str(answer.retry_after)}
    return json_response({"error": text}, answer.status, wait)


def inference_routes(models: FindModels) -> list[Route]:
    """The routes of the protocol; `models` is asked at each request, for those served then."""

    async def live(request: Request) -> Response:
        return json_response({"live": True})

    async def ready(request: Request) -> Response:
        for model in models():
            model.check_ready()
        return json_response({"ready": True})

    async def server(request: Request) -> Response:
        version = metadata.version("fucina")
        return json_response({"name": SERVER, "version": version, "extensions": EXTENSIONS})

    async def describe_model(request: Request) -> Response:
        model = _model(request, models())
        return json_response(
            {
                "name": model.name,
                "versions": [model.version],
                "platform": platform(model),
                "inputs": [describe(spec) for spec in model.signature.inputs],
                "outputs": [describe(spec) for spec in model.signature.outputs],
            }
        )

    async def model_ready(request: Request) -> Response:
        model = _model(request, models())
        model.check_ready()
        return json_response({"name": model.name, "ready": True})

    async def infer(request: Request) -> Response:
        model = _model(request, models())
        model.check_ready()
        header_length = request.headers.get(HEADER_LENGTH)
        question = read_question(model.signature, await request.body(), header_length)
        inputs, drawn = complete(model.signature, model.codec, question.inputs, question.parameters)
        answers = await model.predict(inputs)
        body, length = write_answer(model.name, model.version, question, answers, drawn)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(length)}
        return Response(body, headers=headers, media_type="application/octet-stream")

    async def unknown(request: Request) -> Response:
        raise UnknownModel(f"nothing is at {request.method} {request.url.path}")

    routes = [
        _route("/v2", server),
        _route("/v2/health/live", live),
        _route("/v2/health/ready", ready),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            _route(path, describe_model),
            _route(f"{path}/ready", model_ready),
            _route(f"{path}/infer", infer, "POST"),
        ]
    # BentoML's own readiness speaks of its process; an orchestrator needs the models'.
    routes.append(_route("/readyz", ready))
    return [*routes, Route("/v2/{rest:path}", guarded(unknown), methods=None)]


def guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with whatever it raises answered by the table."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return failed(error)

    return answer


def _route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
    return Route(path, guarded(endpoint), methods=[method])


def _model(request: Request, models: Models) -> Model:
    return models.get(request.path_params["model"], request.path_params.get("version", ""))
