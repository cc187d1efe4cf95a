"""The OpenAPI 3.1 document of a running server: typed routes and the protocol's, by what is served.

BentoML's own document, at `/docs.json`, knows the typed routes only, and of a field that may be of
several types the first one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import bentoml
import orjson

from models.signature import Axis, TensorSpec
from serving.failures import FAILURES
from serving.inference_messages import HEADER_LENGTH
from serving.model import Model
from serving.tensors import DATATYPES

if TYPE_CHECKING:
    from serving.runtime import Runtime

PATH = "/openapi.json"
_REF = "#/components/schemas/{model}"
_LARGEST_EXAMPLE = 1024  # elements
_PROTOCOL = "Open Inference Protocol"
_ADMIN = "Model repository"
Schema = dict[str, Any]


def document(service: bentoml.Service[Any], runtime: Runtime) -> bytes:
    """The document as JSON, of the models that are served now."""
    # As JSON: some of its statuses are numbers.
    theirs = json.loads(json.dumps(service.openapi_spec.asdict()))
    schemas: Schema = theirs["components"]["schemas"]
    paths: Schema = {path: _typed(item) for path, item in theirs["paths"].items()}
    for api in service.apis.values():
        schema = api.input_spec.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        for content in paths[api.route]["post"]["requestBody"]["content"].values():
            content["schema"] = _closed(schema)
    paths |= _server_paths(admin=runtime.settings.admin)
    for name in dict.fromkeys(model.name for model in runtime.models):
        paths |= _model_paths(runtime.models.versions(name))
    whole: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": f"Fucina: {service.name}",
            "version": metadata.version("fucina"),
            "description": service.inner.__doc__ or "",
        },
        "tags": [*theirs["tags"], {"name": _PROTOCOL}, {"name": _ADMIN}],
        "paths": paths,
        "components": {"schemas": schemas | {"Error": _ERROR}},
    }
    if runtime.settings.api_keys:
        whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"key": []}]
    return orjson.dumps(whole)


_ERROR: Schema = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "what, got, expected, fix"}},
    "required": ["error"],
    "additionalProperties": False,
}


def _refusals() -> Schema:
    """What every route may be answered with instead, by status."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    refusals: Schema = {"405": {"description": "wrong method: see Allow", "content": content}}
    for kind, row in FAILURES.items():
        said = refusals.setdefault(str(row.status), {"description": "", "content": content})
        said["description"] = ", ".join(filter(None, [said["description"], kind.__name__]))
        if row.retry_after is not None:
            said["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return refusals


def _typed(item: Schema) -> Schema:
    """A path of BentoML's, with our answers to what goes wrong."""
    return {
        method: one | {"responses": {"200": one["responses"]["200"], **_refusals()}}
        for method, one in item.items()
    }


def _closed(schema: Schema) -> Schema:
    """A request's schema as it is read: no unknown field, and a file as OpenAPI says it."""
    properties = {
        name: one | {"type": "string"} if one.get("type") == "file" else one
        for name, one in schema["properties"].items()
    }
    return schema | {"properties": properties, "additionalProperties": False}


def _operation(tag: str, summary: str, answer: Schema, **more: Any) -> Schema:
    content = {"application/json": {"schema": answer}}
    said = {"200": {"description": summary, "content": content}, **_refusals()}
    return {"tags": [tag], "summary": summary, "responses": said, **more}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: Schema = {"type": "string"}
_TENSOR = _object(
    name=_TEXT,
    datatype={"enum": list(DATATYPES.values())},
    shape={"type": "array", "items": {"type": "integer", "minimum": -1}},
)
_ENTRY = _object(name=_TEXT, version=_TEXT, state={"enum": ["READY", "UNAVAILABLE"]}, reason=_TEXT)


def _listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _server_paths(*, admin: bool) -> Schema:
    live, ready = _object(live={"const": True}), _object(ready={"const": True})
    about = _object(name=_TEXT, version=_TEXT, extensions=_listed(_TEXT))
    wanted = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    wanted["additionalProperties"] = False
    index = _operation(
        _PROTOCOL, "every model and version", _listed(_ENTRY), requestBody=_body(wanted)
    )
    paths: Schema = {
        "/v2": {"get": _operation(_PROTOCOL, "the server and its extensions", about)},
        "/v2/health/live": {"get": _operation(_PROTOCOL, "the server answers", live)},
        "/v2/health/ready": {"get": _operation(_PROTOCOL, "every model is ready", ready)},
        "/v2/repository/index": {"post": index},
    }
    if admin:
        name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
        for verb, what in (
            ("load", "serve what its folders hold now"),
            ("unload", "serve no more"),
        ):
            done = _operation(_ADMIN, what, {"type": "object"}, parameters=[name])
            paths[f"/v2/repository/models/{{model}}/{verb}"] = {"post": done}
    return paths


def _body(schema: Schema, **more: Any) -> Schema:
    return {"content": {"application/json": {"schema": schema, **more}}}


def _model_paths(versions: Iterable[Model]) -> Schema:
    """The routes of one model, with and without a version; all versions have one signature."""
    models = list(versions)
    model = models[-1]
    name = f"/v2/models/{quote(model.name, safe='')}"
    version = {
        "name": "version", "in": "path", "required": True,
        "schema": {"enum": [one.version for one in models]},
    }  # fmt: skip
    described = _object(
        name={"const": model.name}, versions=_listed(_TEXT), platform=_TEXT,
        inputs=_listed(_TENSOR), outputs=_listed(_TENSOR),
        properties={"type": "object", "additionalProperties": _TEXT},
    )  # fmt: skip
    ready = _object(name={"const": model.name}, ready={"const": True})
    infer = _operation(
        _PROTOCOL, f"infer with {model.name}", _answer(model), requestBody=_question(model)
    )
    infer["responses"]["200"]["content"]["application/octet-stream"] = {}
    infer["parameters"] = [{
        "name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0},
        "description": "bytes of JSON, which binary tensors follow; 0 for bare bytes of one input",
    }]  # fmt: skip
    routes = {
        "": {"get": _operation(_PROTOCOL, f"what {model.name} takes and answers", described)},
        "/ready": {"get": _operation(_PROTOCOL, f"{model.name} is ready", ready)},
        "/infer": {"post": infer},
    }
    paths: Schema = {}
    for route, item in routes.items():
        paths[f"{name}{route}"] = item
        paths[f"{name}/versions/{{version}}{route}"] = item | {"parameters": [version]}
    return paths


def _question(model: Model) -> Schema:
    inputs = model.signature.inputs
    flags = {"binary_data_output": {"type": "boolean"}}
    output = _object(name={"enum": [spec.name for spec in model.signature.outputs]})
    output["properties"]["parameters"] = {
        "type": "object", "properties": {"binary_data": {"type": "boolean"}},
        "additionalProperties": False,
    }  # fmt: skip
    nested = model.signature.json_schema()["properties"]
    tensors = [_input(spec, nested[spec.name]) for spec in inputs]
    schema = {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "inputs": _listed({"oneOf": tensors} if len(tensors) > 1 else tensors[0])
            | {"maxItems": len(inputs), "minItems": 0 if model.codec.noise else len(inputs)},
            "outputs": _listed(output),
            "parameters": {"type": "object", "properties": flags},
        },
        "required": [] if model.codec.noise else ["inputs"],
        "additionalProperties": False,
    }
    body = _body(schema)
    sizes = {axis.name: axis.min for axis in model.signature.axes.values()}
    if sum(math.prod(spec.at(sizes)) for spec in inputs) <= _LARGEST_EXAMPLE:
        given = [_given(spec, sizes) for spec in inputs]
        body["content"]["application/json"]["example"] = {"inputs": given}
    body["content"]["application/octet-stream"] = {}
    return body | {"required": True}


def _given(spec: TensorSpec, sizes: Mapping[str, int]) -> Schema:
    """An input of the smallest shape, all of one value that is within its range."""
    low = max(spec.low or 0, 0)
    value = bool(low) if spec.dtype == "bool" else low if spec.floating else int(low)
    shape = spec.at(sizes)
    name, kind = spec.name, DATATYPES[spec.dtype]
    return {"name": name, "datatype": kind, "shape": shape, "data": [value] * math.prod(shape)}


def _input(spec: TensorSpec, nested: Schema) -> Schema:
    leaf = nested
    while "items" in leaf:
        leaf = leaf["items"]
    size = {"type": "integer", "minimum": 0}
    shape = [
        {"type": "integer", "minimum": one.min, "maximum": one.max}
        if isinstance(one, Axis)
        else {"const": one}
        for one in spec.shape
    ]
    tensor = _object(
        name={"const": spec.name},
        datatype={"const": DATATYPES[spec.dtype]},
        shape={
            "type": "array",
            "prefixItems": shape,
            "minItems": len(shape),
            "maxItems": len(shape),
        },
    )
    tensor["properties"] |= {
        "data": {
            "anyOf": [_listed(leaf), nested],
            "description": "flat in row-major order, or nested",
        },
        "parameters": {"type": "object", "properties": {"binary_data_size": size}},
    }
    return tensor | {"title": spec.name, "description": str(spec)}


def _answer(model: Model) -> Schema:
    tensor = _object(**_TENSOR["properties"])
    tensor["properties"] |= {"data": {"type": "array"}, "parameters": {"type": "object"}}
    answer = _object(model_name={"const": model.name}, model_version=_TEXT, outputs=_listed(tensor))
    answer["properties"] |= {"id": _TEXT, "parameters": {"type": "object"}}
    return answer
