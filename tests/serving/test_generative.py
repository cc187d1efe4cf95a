"""Pictures drawn, coded and judged over a real server: the same seed, the same bits, everywhere."""

from __future__ import annotations

import io
import queue
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image

from pipeline.bundle import Bundle, open_bundle
from serving.drawing import draw
from serving.launch import Server, serve
from tests.serving.generative_bundle import (
    CLASSES,
    CODER,
    DRAWER,
    FINDER,
    LATENTS,
    NOISE,
    THRESHOLD,
    asked,
    encoded,
    make_bundle,
    pictures,
    single,
)

# BentoML uses a deprecated name of pydantic's when it makes a message.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from serving.picture_responses import (
        AnomalyResponse,
        EncodeResponse,
        PicturesResponse,
        ReconstructResponse,
        TraverseResponse,
    )

SEED = 5


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


@pytest.fixture(scope="module")
def bundles(folders: dict[str, Path]) -> dict[str, Bundle]:
    """Every served graph by its name, opened here."""
    whole = [open_bundle(folder) for folder in folders.values()]
    graphs = [graph for bundle in whole for graph in (bundle, *bundle.parts.values())]
    return {graph.manifest.name: graph for graph in graphs}


def post(http: httpx.Client, route: str, **fields: Any) -> httpx.Response:
    return http.post(route, content=orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY))


def said(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def upload(http: httpx.Client, route: str, data: list[bytes], **form: str) -> httpx.Response:
    # Neither the name nor the content type is what the file is.
    files = [("image", ("x.txt", content, "text/plain")) for content in data]
    return http.post(route, data=form, files=files)


def noise(bundle: Bundle, name: str, rows: int, seed: int = SEED) -> np.ndarray:
    return draw(seed, rows, bundle.manifest.signature.input(name))


@pytest.fixture(scope="module")
def drawn(bundles: dict[str, Bundle]) -> np.ndarray:
    """64 pictures of the coder's prior."""
    decoder = bundles["coder.decoder"]
    return asked(decoder, {"latent": noise(decoder, "latent", 64)})["reconstruction"]


@pytest.mark.parametrize("n", [1, 3, 8, 9, 64])
def test_a_sample_is_the_same_however_many_are_asked(
    http: httpx.Client, bundles: dict[str, Bundle], drawn: np.ndarray, n: int
) -> None:
    found = PicturesResponse.model_validate(
        said(post(http, "/sample", model="coder", n=n, seed=SEED))
    )
    assert (found.model, found.version, found.seed, found.classes) == ("coder", "1", SEED, [])
    np.testing.assert_array_equal(single(found.images), drawn[:n])
    codes = noise(bundles["coder.decoder"], "latent", n)
    np.testing.assert_array_equal(single(found.latent), codes)
    decoded = said(post(http, "/decode", model="coder", latent=codes))
    assert decoded["images"] == found.images
    assert decoded["seed"] is None


def rest_json(server: Server, rows: int) -> bytes:
    output = {"name": "reconstruction"}
    body = {"parameters": {"seed": SEED, "rows": rows}, "outputs": [output]}
    answer = httpx.post(f"{server.http}/v2/models/coder.decoder/infer", json=body).json()
    assert answer["parameters"] == {"seed": SEED}
    return single(answer["outputs"][0]["data"]).tobytes()


def rest_binary(server: Server, rows: int) -> bytes:
    with triton_http.InferenceServerClient(server.http.removeprefix("http://")) as client:
        output = triton_http.InferRequestedOutput("reconstruction", binary_data=True)
        wanted = {"seed": SEED, "rows": rows}
        answer: Any = client.infer("coder.decoder", [], outputs=[output], parameters=wanted)
        assert answer.get_response()["parameters"] == {"seed": SEED}
        return answer.as_numpy("reconstruction").tobytes()


def over_grpc(server: Server, rows: int) -> bytes:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        wanted = {"seed": SEED, "rows": rows}
        answer: Any = client.infer("coder.decoder", [], parameters=wanted)
        assert answer.get_response().parameters["seed"].uint64_param == SEED
        return answer.as_numpy("reconstruction").tobytes()


def over_stream(server: Server, rows: int) -> bytes:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        wanted = {"seed": SEED, "rows": rows}
        client.async_stream_infer("coder.decoder", [], parameters=wanted)
        answer = answers.get(timeout=30)
        client.stop_stream()
    assert answer.get_response().parameters["seed"].uint64_param == SEED
    return answer.as_numpy("reconstruction").tobytes()


def by_sample(server: Server, rows: int) -> bytes:
    body = {"model": "coder", "n": rows, "seed": SEED}
    return single(httpx.post(f"{server.http}/sample", json=body).json()["images"]).tobytes()


TRANSPORTS = (rest_json, rest_binary, over_grpc, over_stream, by_sample)


def test_the_same_bytes_over_every_transport_amid_other_traffic(
    server: Server, drawn: np.ndarray
) -> None:
    def other(number: int) -> None:
        body = {"model": "coder", "n": 1 + number % 13, "seed": 100 + number}
        assert httpx.post(f"{server.http}/sample", json=body).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(other, number) for number in range(40)]
        calls = [(ask_for, rows) for ask_for in TRANSPORTS for rows in (1, 7, 64)]
        found = [(rows, pool.submit(ask_for, server, rows)) for ask_for, rows in calls]
        for rows, answer in found:
            assert answer.result() == drawn[:rows].tobytes()
        for answer in others:
            answer.result()


def test_the_same_bytes_after_a_restart(server: Server, folders: dict[str, Path]) -> None:
    body = {"model": "coder", "n": 9, "seed": SEED, "format": "png"}
    before = [ask_for(server, 9) for ask_for in TRANSPORTS]
    picture = httpx.post(f"{server.http}/sample", json=body).content
    with serve([folders["coder"]], port=0, grpc_port=0) as restarted:
        assert [ask_for(restarted, 9) for ask_for in TRANSPORTS] == before
        # With one model and its parts, the whole is the only one.
        again = httpx.post(f"{restarted.http}/sample", json=body | {"model": None})
        assert again.content == picture


def test_without_a_seed_pictures_differ_and_the_seed_tells_them(http: httpx.Client) -> None:
    first, second = (said(post(http, "/sample", model="drawer", n=2)) for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["images"] != second["images"]
    again = said(post(http, "/sample", model="drawer", n=2, seed=first["seed"]))
    assert again == first
    file = post(http, "/sample", model="drawer", n=2, format="png")
    seed = int(file.headers["fucina-seed"])
    assert post(http, "/sample", model="drawer", n=2, format="png", seed=seed).content == (
        file.content
    )


def test_classes_are_drawn_as_asked_and_in_turn(
    http: httpx.Client, bundles: dict[str, Bundle]
) -> None:
    codes = noise(bundles["drawer"], "latent", 5)
    assert codes.shape == (5, NOISE)

    def expected(numbers: list[int]) -> np.ndarray:
        return asked(bundles["drawer"], {"latent": codes, "label": np.array(numbers)})["image"]

    for given, numbers in (
        ({}, [0, 1, 2, 0, 1]),
        ({"class": "ring"}, [1] * 5),
        ({"class": ["bar", "disc", "bar", "ring", "disc"]}, [2, 0, 2, 1, 0]),
    ):
        found = said(post(http, "/sample", model="drawer", n=5, seed=SEED, **given))
        assert found["classes"] == [CLASSES[number] for number in numbers]
        np.testing.assert_array_equal(single(found["images"]), expected(numbers))
        decoded = said(post(http, "/decode", model="drawer", latent=codes, **given))
        assert decoded["images"] == found["images"]


def test_codes_and_reconstructions_are_the_engines(
    http: httpx.Client, bundles: dict[str, Bundle]
) -> None:
    images = pictures(9)
    silent = np.zeros((9, LATENTS), np.float32)
    coded = EncodeResponse.model_validate(said(post(http, "/encode", model="coder", image=images)))
    encoder = asked(bundles["coder.encoder"], {"image": images, "noise": silent})
    np.testing.assert_array_equal(single(coded.latent), encoder["mean"])
    loud = noise(bundles["coder"], "noise", 9)
    for seed, given in ((None, silent), (SEED, loud)):
        found = ReconstructResponse.model_validate(
            said(post(http, "/reconstruct", model="coder", image=images, seed=seed))
        )
        whole = asked(bundles["coder"], {"image": images, "noise": given})
        assert found.seed == seed
        np.testing.assert_array_equal(single(found.images), whole["reconstruction"])
        np.testing.assert_allclose(found.errors, whole["error"], rtol=1e-5)
    # Without noise the whole is its parts, one after the other.
    decoded = said(post(http, "/decode", model="coder", latent=coded.latent))
    found = said(post(http, "/reconstruct", model="coder", image=images))
    np.testing.assert_allclose(decoded["images"], found["images"], atol=1e-6)


@pytest.mark.parametrize("start", ["image", "latent", "seed"])
def test_a_traversal_changes_one_latent_at_a_time(
    http: httpx.Client, bundles: dict[str, Bundle], start: str
) -> None:
    image = pictures(1)[0]
    code = {
        "image": said(post(http, "/encode", model="coder", image=image))["latent"][0],
        "latent": [0.5, -1.0, 2.0, 0.0],
        "seed": noise(bundles["coder.decoder"], "latent", 1)[0].tolist(),
    }[start]
    given = {"image": image, "latent": code, "seed": SEED}[start]
    fields = {"latents": [2, 0], "reach": 2.0, "steps": 5}
    found = TraverseResponse.model_validate(
        said(post(http, "/traverse", model="coder", **{start: given}, **fields))
    )
    np.testing.assert_array_equal(single(found.latent), single(code))
    assert (found.latents, found.values) == ([2, 0], [-2, -1, 0, 1, 2])
    assert found.seed == (SEED if start == "seed" else None)
    codes = np.tile(single(code), (2, 5, 1))
    codes[0, :, 2] = codes[1, :, 0] = found.values
    decoder = asked(bundles["coder.decoder"], {"latent": codes.reshape(10, LATENTS)})
    drawn = decoder["reconstruction"].reshape(2, 5, 1, 28, 28)
    np.testing.assert_array_equal(single(found.images), drawn)


def test_all_latents_of_a_class_are_traversed_in_more_than_one_batch(
    http: httpx.Client, bundles: dict[str, Bundle]
) -> None:
    found = said(post(http, "/traverse", model="drawer", seed=SEED, **{"class": "bar"}))
    assert (found["latents"], found["classes"]) == (list(range(NOISE)), ["bar"])
    codes = np.tile(noise(bundles["drawer"], "latent", 1)[0], (NOISE, 9, 1))
    for latent in range(NOISE):
        codes[latent, :, latent] = np.linspace(-3, 3, 9)
    inputs = {"latent": codes.reshape(-1, NOISE), "label": np.full(NOISE * 9, 2)}
    drawn = asked(bundles["drawer"], inputs)["image"].reshape(NOISE, 9, 3, 12, 12)
    np.testing.assert_array_equal(single(found["images"]), drawn)


def test_anomalies_are_errors_above_the_threshold(
    http: httpx.Client, bundles: dict[str, Bundle]
) -> None:
    grey = np.full((1, 1, 28, 28), 0.5, np.float32)
    images = np.concatenate([pictures(4), grey])
    found = AnomalyResponse.model_validate(
        said(post(http, "/anomaly", model="finder", image=images))
    )
    errors = asked(bundles["finder"], {"image": images})["error"]
    np.testing.assert_array_equal(single([one.error for one in found.pictures]), errors)
    assert found.threshold == THRESHOLD
    verdicts = [one.anomalous for one in found.pictures]
    assert verdicts == [float(error) > THRESHOLD for error in errors]
    assert set(verdicts) == {True, False}


def test_uploads_answer_as_lists_do(http: httpx.Client) -> None:
    images = pictures(3)
    files = [encoded(picture) for picture in images]
    for route, model in (
        ("/encode", "coder"), ("/encode", "finder"), ("/reconstruct", "coder"),
        ("/reconstruct", "finder"), ("/anomaly", "finder"),
    ):  # fmt: skip
        posted = said(post(http, route, model=model, image=images))
        assert said(upload(http, f"{route}_image", files, model=model)) == posted
    one = said(post(http, "/encode", model="coder", image=images[0]))
    # Quoted, as BentoML's own client writes text in forms.
    assert said(upload(http, "/encode_image", files[:1], model='"coder"')) == one
    noisy = said(post(http, "/reconstruct", model="coder", image=images, seed=SEED))
    form = {"model": "coder", "seed": str(SEED), "format": "json"}
    assert said(upload(http, "/reconstruct_image", files, **form)) == noisy
    fields: dict[str, Any] = {"latents": [3], "steps": 4, "reach": 1.5}
    posted = said(post(http, "/traverse", model="finder", image=images[1], **fields))
    form = {"model": "finder", "latents": "[3]", "steps": "4", "reach": "1.5"}
    assert said(upload(http, "/traverse_image", files[1:2], **form)) == posted


def test_a_large_or_dark_on_light_upload_becomes_what_the_model_reads(http: httpx.Client) -> None:
    image = pictures(1)
    inverted = encoded(1 - image[0])
    wide = encoded(image[0].repeat(4, 1).repeat(4, 2))
    expected = said(post(http, "/encode", model="coder", image=image))["latent"]
    for data, form in ((inverted, {"invert": "true"}), (wide, {})):
        found = said(upload(http, "/encode_image", [data], model="coder", **form))["latent"]
        np.testing.assert_allclose(found, expected, atol=0.2)


def opened(response: httpx.Response) -> np.ndarray:
    """A PNG as [height, width, channels], of one channel where it is grey."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["fucina-version"] == "1"
    image = Image.open(io.BytesIO(response.content))
    assert image.format == "PNG"
    return np.asarray(image).reshape(image.height, image.width, -1)


def bytes_of(images: Any) -> np.ndarray:
    """Pictures of JSON as the bytes of a file, [..., height, width, channels]."""
    return np.moveaxis(np.rint(single(images) * 255).astype(np.uint8), -3, -1)


@pytest.mark.parametrize(
    ("model", "n", "form", "columns"),
    [("coder", 5, {}, 3), ("drawer", 6, {"columns": 4, "scale": 3}, 4), ("drawer", 1, {}, 1)],
)
def test_samples_are_a_grid_row_by_row(
    http: httpx.Client, model: str, n: int, form: dict[str, int], columns: int
) -> None:
    fields = {"model": model, "n": n, "seed": SEED}
    images = bytes_of(said(post(http, "/sample", **fields))["images"])
    response = post(http, "/sample", **fields, format="png", **form)
    assert response.headers["fucina-model"] == model
    assert response.headers["fucina-seed"] == str(SEED)
    found, scale, side = opened(response), form.get("scale", 1), images.shape[1]
    rows = -(-n // columns)
    assert found.shape == (rows * side * scale, columns * side * scale, images.shape[-1])
    # Every pixel became a square.
    small = found[::scale, ::scale]
    np.testing.assert_array_equal(small.repeat(scale, 0).repeat(scale, 1), found)
    cells = small.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
    cells = cells.reshape(rows * columns, side, side, -1)
    np.testing.assert_array_equal(cells[:n], images)
    assert not cells[n:].any()


def test_reconstructions_stand_beneath_their_pictures(http: httpx.Client) -> None:
    images = pictures(5)
    became = bytes_of(said(post(http, "/reconstruct", model="finder", image=images))["images"])
    form = {"format": "png", "columns": 2}
    found = opened(post(http, "/reconstruct", model="finder", image=images, **form))
    files = [encoded(picture) for picture in images]
    text = {name: str(value) for name, value in form.items()}
    again = opened(upload(http, "/reconstruct_image", files, model="finder", **text))
    np.testing.assert_array_equal(found, again)
    assert found.shape == (6 * 28, 2 * 28, 1)
    cells = found.reshape(3, 2, 28, 2, 28)
    for number in range(5):
        above, below = cells[number // 2, :, :, number % 2]
        np.testing.assert_array_equal(above, bytes_of(images[number])[..., 0])
        np.testing.assert_array_equal(below, became[number, ..., 0])


def test_a_traversal_is_a_row_for_each_latent(http: httpx.Client) -> None:
    fields = {"model": "drawer", "seed": SEED, "latents": [1, 7, 4], "steps": 6}
    images = bytes_of(said(post(http, "/traverse", **fields))["images"])
    found = opened(post(http, "/traverse", **fields, format="png"))
    np.testing.assert_array_equal(found, images.swapaxes(1, 2).reshape(36, 72, 3))
