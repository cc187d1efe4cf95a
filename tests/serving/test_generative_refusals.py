"""What a generative service refuses says why in one line, and its schema says what it takes."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from models.errors import BadInput
from pipeline.bundle import open_bundle
from pipeline.cases import NONFINITE
from serving.ask import ask
from serving.launch import Server, serve
from tests.serving.conftest import models_of
from tests.serving.generative_bundle import (
    CODER,
    DRAWER,
    FINDER,
    encoded,
    make_bundle,
    pictures,
)

# BentoML uses a deprecated name of pydantic's when it makes a message.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from serving import picture_answers

IMAGE = pictures(1)[0].tolist()
FILE = encoded(pictures(1)[0])
CODE = [0.5, -1.0, 2.0, 0.0]
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generative")
    models = {"coder": CODER, "finder": FINDER, "drawer": DRAWER}
    return {name: make_bundle(folder, name, coded) for name, coded in models.items()}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], forbidden_imports: Path) -> Iterator[Server]:
    with serve(list(folders.values()), port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=60) as client:
        yield client


def assert_refused(http: httpx.Client, response: httpx.Response, status: int, text: str) -> None:
    assert response.status_code == status, response.text
    assert text in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert http.post("/sample", json={"model": "coder", "n": 1}).status_code == 200


@pytest.mark.parametrize(
    ("route", "model", "fields", "expected"),
    [
        # What a model cannot do, and what it can.
        (
            "/sample", "finder", {},
            "model 'finder' has no prior that codes could be drawn from: got POST /sample, "
            "expected /encode, /decode, /reconstruct, /traverse, /anomaly",
        ),
        (
            "/encode", "drawer", {"image": IMAGE},
            "'drawer' has no encoder: got POST /encode, expected /sample, /decode, /traverse",
        ),
        ("/reconstruct", "drawer", {"image": IMAGE}, "reconstructs no pictures"),
        ("/anomaly", "coder", {"image": IMAGE}, "has no threshold for anomalies"),
        ("/traverse", "drawer", {"image": IMAGE}, "has no encoder"),
        ("/traverse", "finder", {"seed": 5}, "has no prior"),
        (
            "/sample", "coder.decoder", {},
            "has no prior that codes could be drawn from: got POST /sample, "
            "expected POST /v2/models/coder.decoder/infer",
        ),
        # Sampling.
        ("/sample", "coder", {"n": 0}, "field 'n' is out of range: got 0, expected 1 to 64"),
        ("/sample", "coder", {"n": 65}, "field 'n' is out of range: got 65"),
        ("/sample", "coder", {"n": 2.0}, "field 'n' is of a wrong type: got float"),
        ("/sample", "coder", {"n": True}, "field 'n' is of a wrong type: got bool"),
        ("/sample", "coder", {"n": "1"}, "got str, expected a whole number"),
        ("/sample", "coder", {"seed": -1}, "field 'seed' is out of range: got -1"),
        ("/sample", "coder", {"seed": 2**64}, "field 'seed' is of a wrong type"),
        ("/sample", "coder", {"seed": "five"}, "field 'seed' is of a wrong type: got str"),
        ("/sample", "coder", {"count": 5}, "field 'count' is unknown: expected 'model', 'n'"),
        ("/sample", "coder", {"class": "ring"}, "'class' is of no use: model 'coder' draws no"),
        ("/sample", "drawer", {"class": "square"}, "class 'square' is unknown: expected 'disc'"),
        ("/sample", "drawer", {"n": 2, "class": ["bar"]}, "length: got 1, expected one class or 2"),
        ("/sample", "drawer", {"class": [1]}, "field 'class' is of a wrong type"),
        ("/sample", "drawer", {"class": 1}, "expected a class or a list of classes"),
        ("/sample", "coder", {"format": "jpeg"}, "expected 'json' or 'png'"),
        ("/sample", "coder", {"scale": 2}, "field 'scale' is of no use: got format 'json'"),
        ("/sample", "coder", {"columns": 2}, "field 'columns' is of no use"),
        ("/sample", "coder", {"format": "png", "scale": 0}, "'scale' is out of range: got 0"),
        ("/sample", "coder", {"format": "png", "scale": 33}, "expected 1 to 32"),
        ("/sample", "coder", {"format": "png", "columns": 0}, "'columns' is out of range"),
        (
            "/sample", "coder", {"format": "png", "n": 64, "scale": 32},
            "the grid is too large: got 7168 x 7168 pixels, expected at most 16000000 pixels",
        ),
        # Pictures.
        ("/encode", "coder", {}, "field 'image' is missing"),
        ("/encode", "coder", {"image": None}, "'image' is of a wrong type: got NoneType"),
        ("/encode", "coder", {"image": "http://127.0.0.1/"}, "got str, expected nested lists"),
        ("/encode", "coder", {"image": []}, "'image' has a wrong shape: got [0]"),
        ("/encode", "coder", {"image": IMAGE[0]}, "got [28, 28], expected [1, 28, 28], or 1 to 64"),
        ("/encode", "coder", {"image": [[[0.5] * 28] * 27]}, "got [1, 27, 28]"),
        ("/encode", "coder", {"image": [IMAGE] * 65}, "got [65, 1, 28, 28]"),
        ("/encode", "coder", {"image": [[[0.5, "a"]]]}, "holds values of a wrong type: got 'a'"),
        ("/encode", "coder", {"image": [[[0.5], [0.5, 0.5]]]}, "ragged"),
        ("/encode", "coder", {"image": [[[NAN] * 28] * 28]}, "out of range: got nan"),
        ("/anomaly", "finder", {"image": [[[255] * 28] * 28]}, "got 255.0 to 255.0, expected 0"),
        ("/encode", "coder", {"image": IMAGE, "seed": 5}, "field 'seed' is unknown"),
        ("/reconstruct", "finder", {"image": IMAGE, "seed": 5}, "'finder' takes no noise"),
        ("/reconstruct", "coder", {"image": IMAGE, "seed": -5}, "'seed' is out of range"),
        # Codes.
        ("/decode", "coder", {}, 'field \'latent\' is missing: expected {"latent": [0.5, ...]}'),
        ("/decode", "coder", {"latent": CODE[:3]}, "got [3], expected [4], or 1 to 64 of them"),
        ("/decode", "coder", {"latent": [CODE] * 65}, "got [65, 4]"),
        ("/decode", "coder", {"latent": [[CODE]]}, "got [1, 1, 4]"),
        ("/decode", "coder", {"latent": [INFINITY] * 4}, "4 NaN or infinite of 4"),
        ("/decode", "coder", {"latent": [10**400, 0, 0, 0]}, "out of range"),
        # Traversals.
        ("/traverse", "coder", {}, "got none, expected one of 'image', 'latent' and 'seed'"),
        ("/traverse", "coder", {"seed": 1, "latent": CODE}, "got 'latent' and 'seed'"),
        ("/traverse", "coder", {"latent": [CODE, CODE]}, "got [2, 4], expected [4]"),
        ("/traverse", "coder", {"image": [IMAGE, IMAGE]}, "expected [1, 28, 28]"),
        ("/traverse", "coder", {"seed": 1, "latents": []}, "'latents' is empty or names one twice"),
        ("/traverse", "coder", {"seed": 1, "latents": [1, 1]}, "names one twice: got [1, 1]"),
        ("/traverse", "coder", {"seed": 1, "latents": [4]}, "out of range: got 4, expected 0 to 3"),
        ("/traverse", "coder", {"seed": 1, "latents": ["a"]}, "'latents' is of a wrong type"),
        ("/traverse", "coder", {"seed": 1, "steps": 1}, "'steps' is out of range: got 1"),
        ("/traverse", "coder", {"seed": 1, "reach": 0}, "'reach' is out of range: got 0"),
        ("/traverse", "coder", {"seed": 1, "reach": NAN}, "'reach' is out of range: got nan"),
        ("/traverse", "drawer", {"seed": 1, "class": ["bar", "bar"]}, "length: got 2"),
        (
            "/traverse", "drawer", {"seed": 1, "steps": 64},
            "too many for one answer: got 17 latents x 64 steps, expected at most 1024",
        ),
        ("/traverse", "coder", {"seed": 1, "columns": 3}, "field 'columns' is unknown"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_clear_line(
    http: httpx.Client, route: str, model: str, fields: dict[str, Any], expected: str
) -> None:
    # The standard library writes NaN and Infinity, as Python clients do.
    response = http.post(route, content=json.dumps({"model": model} | fields))
    assert_refused(http, response, 400, expected)


@pytest.mark.parametrize("route", ["/sample", "/encode", "/decode", "/reconstruct", "/traverse"])
@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "the body is empty"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b'{"model": "none", "image": [], "latent": []}', 404, "model 'none' is unknown"),
        (b'{"image": [], "latent": []}', 400, "'model' is missing and several are served"),
        (b'{"model": 5}', 400, "field 'model' is of a wrong type"),
    ],
)
def test_a_body_that_cannot_be_read(
    http: httpx.Client, route: str, body: bytes, status: int, expected: str
) -> None:
    if route == "/sample" and b"image" in body:
        body = body.replace(b', "image": []', b"").replace(b'"image": [], ', b"")
        body = body.replace(b', "latent": []', b"").replace(b'"latent": []', b"")
    if route in ("/encode", "/reconstruct"):
        body = body.replace(b', "latent": []', b"")
    if route == "/decode":
        body = body.replace(b'"image": [], ', b"")
    assert_refused(http, http.post(route, content=body), status, expected)


@pytest.mark.parametrize(
    ("route", "files", "form", "expected"),
    [
        ("/encode_image", [("image", b"no picture")], {}, "a PNG or JPEG file"),
        ("/encode_image", [("image", FILE[:100])], {}, "the image is corrupt"),
        ("/encode_image", [("image", FILE), ("image", b"")], {}, "a PNG or JPEG file"),
        ("/encode_image", [], {"image": "http://127.0.0.1:9/x.png"}, "is no upload: got text"),
        ("/encode_image", [("image", FILE)], {"image": "x.png"}, "is no upload: got text"),
        ("/encode_image", [("other", FILE)], {}, "field 'other' is unknown: expected 'image', "),
        ("/encode_image", [("model", FILE), ("image", FILE)], {}, "'model' is not one text"),
        ("/encode_image", [("image", FILE)], {"seed": "5"}, "field 'seed' is unknown"),
        ("/encode_image", [("image", FILE)], {"invert": "perhaps"}, "expected true or false"),
        ("/encode_image", [("image", FILE)] * 65, {}, "the form cannot be read"),
        ("/traverse_image", [("image", FILE)] * 2, {}, "the form cannot be read"),
        ("/traverse_image", [("image", FILE)], {"latents": "0"}, "'latents' is of a wrong type"),
        ("/traverse_image", [("image", FILE)], {"latents": "[9]"}, "got 9, expected 0 to 3"),
        ("/reconstruct_image", [("image", FILE)], {"format": "gif"}, "expected 'json' or 'png'"),
        ("/reconstruct_image", [("image", FILE)], {"scale": "2"}, "'scale' is of no use"),
        ("/anomaly_image", [("image", FILE)], {}, "has no threshold for anomalies"),
    ],
)
def test_an_upload_that_is_refused(
    http: httpx.Client,
    route: str,
    files: list[tuple[str, bytes]],
    form: dict[str, str],
    expected: str,
) -> None:
    parts: list[Any] = [(name, (f"{name}.png", data, "image/png")) for name, data in files]
    parts += [(name, (None, value)) for name, value in form.items()]
    if "model" not in dict(files):
        parts.append(("model", (None, "coder")))
    assert_refused(http, http.post(route, files=parts), 400, expected)


def test_only_uploads_are_read_from_forms(http: httpx.Client) -> None:
    response = http.post("/encode_image", json={"model": "coder", "image": IMAGE})
    assert_refused(http, response, 400, "the body is not a form: got 'application/json'")


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "expected"),
    [
        (
            "coder.decoder", {}, {},
            "input 'latent' is missing: got no inputs, expected 'latent'; give it, or the "
            "parameter 'seed' to have it drawn ('rows' says how many rows)",
        ),
        ("coder", {"image": pictures(2)}, {}, "input 'noise' is missing: got 'image'"),
        ("coder", {"image": pictures(2)}, {"seed": 1, "rows": 3}, "'rows' disagrees with input"),
        ("coder", {}, {"seed": 1}, "input 'image' is missing: got 'noise'"),
        ("coder.decoder", {}, {"seed": "1"}, "'seed' is of a wrong type: got str"),
        ("coder.decoder", {}, {"seed": -1}, "'seed' is out of range: got -1"),
        ("coder.decoder", {}, {"rows": 65}, "'rows' is out of range: got 65, expected 1 to 64"),
        (
            "coder.decoder", {"latent": np.zeros((1, 4), np.float32)}, {"seed": 1},
            "parameter 'seed' is of no use, for every noise is given",
        ),
        ("finder.decoder", {}, {"seed": 1}, "input 'latent' is missing: got no inputs"),
        ("drawer", {}, {"seed": 1}, "input 'label' is missing"),
    ],
)  # fmt: skip
def test_the_protocol_draws_only_what_it_is_asked_to(
    server: Server,
    http: httpx.Client,
    model: str,
    inputs: dict[str, np.ndarray],
    parameters: dict[str, Any],
    expected: str,
) -> None:
    tensors = [
        {"name": n, "datatype": "FP32", "shape": list(a.shape), "data": a.ravel().tolist()}
        for n, a in inputs.items()
    ]
    body = {"inputs": tensors, "parameters": parameters}
    assert_refused(http, http.post(f"/v2/models/{model}/infer", json=body), 400, expected)
    sent = [triton_grpc.InferInput(n, list(a.shape), "FP32") for n, a in inputs.items()]
    for tensor, array in zip(sent, inputs.values(), strict=True):
        tensor.set_data_from_numpy(array)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, sent, parameters=parameters)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert expected in caught.value.message()


def test_both_transports_reproduce_every_recorded_case_of_every_graph(
    server: Server, folders: dict[str, Path]
) -> None:
    for folder in folders.values():
        bundle = open_bundle(folder)
        graphs = [bundle, *bundle.parts.values()]
        # The service refuses what is not a number.
        count = sum(
            len(g.manifest.signature.outputs) * sum(c.origin != NONFINITE for c in g.cases())
            for g in graphs
        )
        for findings in ask(server.http, server.grpc, bundle).values():
            assert len(findings) == count
            assert all(finding.passed for finding in findings)


def test_the_schema_is_typed(http: httpx.Client) -> None:
    paths = http.get("/docs.json").json()["paths"]

    def asked(route: str, kind: str = "application/json") -> dict[str, Any]:
        return paths[route]["post"]["requestBody"]["content"][kind]["schema"]["properties"]

    sample = asked("/sample")
    assert set(sample) == {"model", "n", "seed", "class", "format", "scale", "columns"}
    assert (sample["n"]["minimum"], sample["n"]["maximum"]) == (1, 64)
    assert sample["format"]["enum"] == ["json", "png"]
    for route, depth in (("/encode", 3), ("/decode", 1)):
        one, many = asked(route)["latent" if route == "/decode" else "image"]["oneOf"]
        for lists, levels in ((one, depth), (many, depth + 1)):
            inner = lists
            for _ in range(levels):
                assert inner["type"] == "array"
                inner = inner["items"]
            assert inner == {"type": "number"}
    form = asked("/reconstruct_image", "multipart/form-data")
    assert form["image"]["items"] == {"type": "string", "format": "binary"}
    for route, told in (
        ("/sample", {"model", "version", "seed", "classes", "latent", "images"}),
        ("/encode_image", {"model", "version", "latent"}),
        ("/anomaly", {"model", "version", "threshold", "pictures"}),
    ):
        found = paths[route]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(found["properties"]) == told


def test_the_serving_process_loads_no_training_library(
    http: httpx.Client, forbidden_imports: Path
) -> None:
    assert http.post("/sample", json={"model": "drawer", "format": "png"}).status_code == 200
    assert not forbidden_imports.exists(), forbidden_imports.read_text()


def test_an_answer_of_too_many_numbers_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_answers, "MOST_NUMBERS", 28 * 28)
    models = models_of(open_bundle(folders["coder"]))
    fields = {"model": None, "seed": 5, "classes": [], "scale": None, "columns": None}

    async def main() -> None:
        await models.get("coder.decoder").load()
        for n, format in ((1, "json"), (2, "png")):
            wanted = fields | {"n": n, "format": format}
            assert (await picture_answers.sample(models, wanted)).status_code == 200
        with pytest.raises(BadInput, match="too many for one answer: got 1568 numbers"):
            await picture_answers.sample(models, fields | {"n": 2, "format": "json"})
        await models.close()

    asyncio.run(main())
