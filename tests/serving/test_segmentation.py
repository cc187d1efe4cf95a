"""Pictures of any size in, the class of every pixel out, over a real server."""

from __future__ import annotations

import asyncio
import io
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image

from models.errors import BundleError, NotReady
from pipeline.bundle import open_bundle
from pipeline.values import MODEL
from serving.ask import ask
from serving.images import open_picture, pixels
from serving.launch import Server, serve
from serving.opening import open_bundles
from serving.pixels import segment as segment_picture
from tests.serving.conftest import TARGET, models_of, write_manifest
from tests.serving.segmentation_bundle import (
    CLASSES,
    COLOURS,
    SMALLEST,
    answer,
    encoded,
    make_bundle,
    picture,
    scaled,
)

# BentoML uses a deprecated name of pydantic's when it makes a message.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from serving.segment_messages import LARGEST_SEGMENTED, MOST_PROBABILITIES, SegmentResponse

PALETTE = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOURS], np.uint8)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("colour"), "colour", 3)


@pytest.fixture(scope="module")
def server(
    colour: Path, tmp_path_factory: pytest.TempPathFactory, forbidden_imports: Path
) -> Iterator[Server]:
    """Two models whose tiles have sides of 16 to 64 pixels."""
    grey = make_bundle(tmp_path_factory.mktemp("grey"), "grey", 1)
    with serve([colour, grey], port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=60) as client:
        yield client


def upload(http: httpx.Client, data: bytes, **form: str) -> httpx.Response:
    # Neither the name nor the content type is what the file is.
    files = {"image": ("x.txt", data, "text/plain")}
    return http.post("/segment_image", data={"model": "colour"} | form, files=files)


def segment(http: httpx.Client, image: np.ndarray, **fields: Any) -> httpx.Response:
    body = orjson.dumps(
        {"model": "colour", "image": np.ascontiguousarray(image)} | fields,
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return http.post("/segment", content=body)


def said(response: httpx.Response) -> SegmentResponse:
    assert response.status_code == 200, response.text
    return SegmentResponse.model_validate(response.json())


def ask_whole(bundle: Path, image: np.ndarray) -> np.ndarray:
    """What the bundle's graph says of a picture that its engine would not take at once."""
    session = onnxruntime.InferenceSession(bundle / MODEL, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": image[None]})
    return np.asarray(probabilities)[0]


def limit(bundle: Path) -> float:
    found = open_bundle(bundle).certificate(TARGET).limits["probabilities"]
    return found.limit * found.scale


def assert_segmented(response: httpx.Response, expected: np.ndarray, allowed: float) -> None:
    """The answer is what `expected` [classes, height, width] says, to the certificate's limit."""
    found = said(response)
    height, width = expected.shape[1:]
    assert (found.height, found.width) == (height, width)
    assert list(found.probabilities) == list(CLASSES)
    probabilities = np.array([found.probabilities[name] for name in CLASSES])
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=allowed)
    classes = np.array(found.map)
    # What was answered as a map is what was answered as probabilities.
    np.testing.assert_array_equal(classes, probabilities.argmax(0))
    shares = [entry.share for entry in found.classes]
    assert shares == [np.mean(classes == number) for number in range(len(CLASSES))]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert [(c.name, c.colour) for c in found.classes] == list(zip(CLASSES, COLOURS, strict=True))


@pytest.mark.parametrize(
    ("tall", "wide"),
    [(16, 16), (64, 64), (65, 64), (64, 65), (17, 129), (100, 75), (127, 127), (128, 128)],
)
def test_tiled_equals_whole_within_the_certificates_limit(
    http: httpx.Client, colour: Path, tall: int, wide: int
) -> None:
    image = scaled(picture(tall, wide))
    expected = answer(image[None], "f8")["probabilities"][0]
    assert_segmented(segment(http, image, probabilities=True), expected, limit(colour))
    np.testing.assert_allclose(ask_whole(colour, image), expected, rtol=0, atol=limit(colour))


def test_a_large_photograph_is_answered_pixel_by_pixel(http: httpx.Client, colour: Path) -> None:
    photograph = picture(1100, 1500)
    expected = ask_whole(colour, scaled(photograph))
    response = upload(http, encoded(photograph), answer="json", probabilities="border")
    assert response.status_code == 200, response.text
    found = orjson.loads(response.content)
    assert list(found["probabilities"]) == ["border"]
    # Each of the two is that far from the exact answer.
    allowed = 2 * limit(colour)
    border = np.array(found["probabilities"]["border"])
    np.testing.assert_allclose(border, expected[CLASSES.index("border")], rtol=0, atol=allowed)
    doubtful = np.subtract(*np.sort(expected, 0)[:-3:-1]) <= 2 * allowed
    assert doubtful.mean() < 0.01
    assert (doubtful | (np.array(found["map"]) == expected.argmax(0))).all()


def test_pictures_at_once_each_get_their_own_answer(http: httpx.Client) -> None:
    sizes = [(20, 30), (64, 64), (100, 110), (90, 64), (33, 130), (128, 70)] * 2
    data = [encoded(picture(*size, seed)) for seed, size in enumerate(sizes)]

    def one(content: bytes) -> bytes:
        return upload(http, content, answer="map").content

    alone = [one(content) for content in data]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, data)) == alone
    assert len(set(alone)) == len(alone)


def test_a_model_that_cannot_answer_says_so_as_one_error(colour: Path) -> None:
    model = next(iter(models_of(open_bundle(colour))))
    with pytest.raises(NotReady, match="is still replaying"):
        asyncio.run(segment_picture(model, scaled(picture(100, 100))))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 5), (15, 70)])
def test_what_is_too_small_is_mirrored_and_cut_off_again(
    http: httpx.Client, colour: Path, size: tuple[int, int]
) -> None:
    image = scaled(picture(*size))
    missing = [(0, max(0, SMALLEST - side)) for side in size]
    mirrored = np.pad(image, [(0, 0), *missing], mode="symmetric")
    expected = answer(mirrored[None], "f8")["probabilities"][0, :, : size[0], : size[1]]
    assert_segmented(segment(http, image, probabilities=True), expected, limit(colour))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("model", ["colour", "grey"])
def test_an_upload_is_converted_and_never_resized(
    http: httpx.Client, format: str, model: str
) -> None:
    data = encoded(picture(70, 81), format)
    array = pixels(open_picture(data), 3 if model == "colour" else 1) / np.float32(255)
    # Quoted, as BentoML's own client writes text in forms.
    uploaded = upload(http, data, model=f'"{model}"', answer="json", probabilities="true")
    posted = segment(http, array, model=model, probabilities=list(CLASSES))
    assert said(uploaded) == said(posted)
    assert (said(uploaded).height, said(uploaded).width) == (70, 81)


@pytest.mark.parametrize("size", [(30, 47), (90, 131)])
def test_a_map_is_a_png_of_class_numbers_with_a_palette(
    http: httpx.Client, size: tuple[int, int]
) -> None:
    data = encoded(picture(*size))
    response = upload(http, data, answer="map")
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.mode, image.size) == ("PNG", "P", size[::-1])
    classes = np.array(said(upload(http, data, answer="json")).map)
    assert len(np.unique(classes)) > 1
    np.testing.assert_array_equal(np.asarray(image), classes)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[classes])


@pytest.mark.parametrize("model", ["colour", "grey"])
@pytest.mark.parametrize("opacity", [None, "0", "0.25", "1"])
def test_an_overlay_is_the_picture_in_the_classes_colours(
    http: httpx.Client, model: str, opacity: str | None
) -> None:
    photograph = picture(75, 90)
    data = encoded(photograph)
    form = {"model": model} | ({} if opacity is None else {"opacity": opacity})
    response = upload(http, data, **form)
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.mode) == ("PNG", "RGB")
    colours = PALETTE[np.array(said(upload(http, data, model=model, answer="json")).map)]
    share = 0.5 if opacity is None else float(opacity)
    expected = photograph * (1 - share) + colours * share
    # A byte is cut, not rounded; without anything to mix nothing is.
    allowed = 0 if share in (0, 1) else 1
    np.testing.assert_allclose(np.asarray(image), expected, rtol=0, atol=allowed)


def test_what_a_camera_turned_or_left_clear_is_seen_as_a_person_sees_it(
    http: httpx.Client,
) -> None:
    array = picture(40, 60)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned by 90 degrees to the right
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", exif=orientation.tobytes())
    turned = said(upload(http, file.getvalue(), answer="json"))
    upright = said(upload(http, encoded(np.rot90(array, -1)), answer="json"))
    assert turned == upright
    clear = np.dstack([array, np.zeros((40, 60), np.uint8)])
    white = upload(http, encoded(np.full((40, 60, 3), 255, np.uint8)), answer="json")
    assert said(upload(http, encoded(clear), answer="json")) == said(white)


FLAT = np.full((3, 20, 20), 0.5, np.float32)


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "the body is empty"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object: got list"),
        (b'{"model": "colour"}', 400, "field 'image' is missing"),
        (b'{"image": []}', 400, "'model' is missing and several are served"),
        (b'{"model": "none", "image": []}', 404, "model 'none' is unknown"),
        ({"picture": []}, 400, "field 'picture' is unknown"),
        ({"image": "http://127.0.0.1/"}, 400, "field 'image' is of a wrong type: got str"),
        ({"image": None}, 400, "field 'image' is of a wrong type: got NoneType"),
        ({"image": []}, 400, "field 'image' has a wrong shape: got [0], expected [3, height,"),
        ({"image": [[[]], [[]], [[]]]}, 400, "wrong shape: got [3, 1, 0]"),
        ({"image": FLAT[0].tolist()}, 400, "wrong shape: got [20, 20]"),
        ({"image": [FLAT.tolist()]}, 400, "wrong shape: got [1, 3, 20, 20]"),
        ({"image": FLAT[:1].tolist()}, 400, "got [1, 20, 20], expected [3, height, width]"),
        ({"image": [[[1, 0]], [[1]], [[1, 1]]]}, 400, "'image' is ragged at depth 2"),
        ({"image": [[["1"]], [[0]], [[0]]]}, 400, "wrong type: got '1'"),
        ({"image": [[[None]], [[0]], [[0]]]}, 400, "wrong type: got null"),
        ({"image": [[[True]], [[0]], [[0]]]}, 400, "wrong type: got True"),
        ({"image": [[[float("nan")]], [[0]], [[0]]]}, 400, "out of range: got nan"),
        ({"image": [[[float("inf")]], [[0]], [[0]]]}, 400, "out of range: got 0.0 to inf"),
        ({"image": [[[255]], [[0]], [[0]]]}, 400, "got 0.0 to 255.0, expected 0 to 1"),
        ({"image": [[[10**400]], [[0]], [[0]]]}, 400, "out of range"),
        ({"image": FLAT.tolist(), "probabilities": ["soil"]}, 400, "class 'soil' is unknown"),
        ({"image": FLAT.tolist(), "probabilities": [1]}, 400, "'probabilities' is of a wrong type"),
        ({"image": FLAT.tolist(), "probabilities": "cell"}, 400, "got str, expected true, false"),
        ({"image": FLAT.tolist(), "probabilities": 1}, 400, "got int, expected true, false"),
    ],
)
def test_what_is_refused_is_one_clear_line(
    http: httpx.Client, body: bytes | dict[str, Any], status: int, expected: str
) -> None:
    # The standard library writes NaN and Infinity, as Python clients do.
    content = body if isinstance(body, bytes) else json.dumps({"model": "colour"} | body)
    response = http.post("/segment", content=content)
    assert response.status_code == status, response.text
    assert expected in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert segment(http, FLAT).status_code == 200


@pytest.mark.parametrize(
    ("files", "form", "expected"),
    [
        ({"image": b"no picture"}, {}, "a PNG or JPEG file"),
        ({"image": b""}, {}, "a PNG or JPEG file"),
        ({"image": encoded(picture(40, 40))[:300]}, {}, "the image is corrupt"),
        ({"image": encoded(picture(40, 40), "GIF")}, {}, "a PNG or JPEG file"),
        ({"other": encoded(picture(9, 9))}, {}, "the form does not fit: got 'model', 'other'"),
        ({}, {"image": "http://127.0.0.1:9/x.png"}, "got text"),
        ({"image": encoded(picture(9, 9))}, {"invert": "true"}, "the form does not fit"),
        ({"image": encoded(picture(9, 9))}, {"answer": "tiff"}, "an unknown value: got 'tiff'"),
        ({"image": encoded(picture(9, 9))}, {"opacity": "1.5"}, "'opacity' is out of range"),
        ({"image": encoded(picture(9, 9))}, {"opacity": "nan"}, "'opacity' is out of range"),
        ({"image": encoded(picture(9, 9))}, {"opacity": "much"}, "got 'much', expected 0 to 1"),
        (
            {"image": encoded(picture(9, 9))}, {"opacity": "1", "answer": "map"},
            "'opacity' is of no use: got answer 'map', expected overlay",
        ),
        ({"image": encoded(picture(9, 9))}, {"probabilities": "true"}, "expected json"),
        (
            {"image": encoded(picture(9, 9))}, {"probabilities": "soil", "answer": "json"},
            "class 'soil' is unknown: expected 'ground', 'cell', 'border'",
        ),
        (
            {"image": encoded(np.zeros((1200, 1200, 3), np.uint8))},
            {"probabilities": "true", "answer": "json"},
            f"too many for one answer: got 4320000, expected at most {MOST_PROBABILITIES}",
        ),
        (
            {"image": encoded(np.zeros((4001, 4000), np.uint8))}, {},
            f"4000 x 4001 pixels, expected at most {LARGEST_SEGMENTED} pixels",
        ),
    ],
)  # fmt: skip
def test_an_upload_that_is_refused(
    http: httpx.Client, files: dict[str, bytes], form: dict[str, str], expected: str
) -> None:
    parts = {"model": (None, "colour")} | {k: (None, v) for k, v in form.items()}
    parts |= {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    response = http.post("/segment_image", files=parts)
    assert response.status_code == 400, response.text
    assert expected in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert segment(http, FLAT).status_code == 200


def test_stock_clients_ask_single_tiles_over_both_transports(server: Server, colour: Path) -> None:
    image = np.stack([scaled(picture(33, 64, seed)) for seed in range(3)])
    expected = open_bundle(colour).open_engine(TARGET).run({"image": image})["probabilities"]
    address = server.http.removeprefix("http://")
    clients: list[tuple[Any, Any]] = [
        (triton_http, triton_http.InferenceServerClient(address)),
        (triton_grpc, triton_grpc.InferenceServerClient(server.grpc)),
    ]
    for module, client in clients:
        with client:
            sent = module.InferInput("image", list(image.shape), "FP32")
            sent.set_data_from_numpy(image)
            found = client.infer("colour", [sent]).as_numpy("probabilities")
            np.testing.assert_array_equal(found, expected)


def test_both_transports_reproduce_every_recorded_case(server: Server, colour: Path) -> None:
    for findings in ask(server.http, server.grpc, open_bundle(colour)).values():
        assert findings
        assert all(finding.passed for finding in findings)


def test_the_schema_is_typed(http: httpx.Client) -> None:
    paths = http.get("/docs.json").json()["paths"]
    asked = paths["/segment"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {"model", "image", "probabilities"}
    lists = asked["properties"]["image"]
    for _ in range(3):
        assert lists["type"] == "array"
        lists = lists["items"]
    assert lists == {"type": "number"}
    told = paths["/segment"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"height", "width", "classes", "map", "probabilities"} <= set(told["properties"])
    form = paths["/segment_image"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["answer"]["enum"] == ["overlay", "map", "json"]
    assert list(paths["/segment_image"]["post"]["responses"]["200"]["content"]) == ["image/png"]


def test_the_serving_process_loads_no_training_library(
    http: httpx.Client, forbidden_imports: Path
) -> None:
    assert segment(http, FLAT).status_code == 200
    assert not forbidden_imports.exists(), forbidden_imports.read_text()


def test_a_codec_that_does_not_fit_is_refused(colour: Path) -> None:
    codec = json.loads((colour / "codec.json").read_bytes())
    signature = open_bundle(colour).manifest.signature
    kept = (colour / "codec.json").read_bytes()
    try:
        codec["tiled"]["margin"] = 40
        (colour / "codec.json").write_text(json.dumps(codec))
        write_manifest(colour, name="colour", kind="segmentation", signature=signature)
        with pytest.raises(BundleError, match="cuts no tiles of this size: got height 16"):
            open_bundles([colour])
    finally:
        (colour / "codec.json").write_bytes(kept)
        write_manifest(colour, name="colour", kind="segmentation", signature=signature)
