"""The typed endpoints: arrays as JSON and uploaded pictures, answered with class names."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from models.codec import ImageInput
from pipeline.backends import Session
from serving.images import read_image
from serving.predict_messages import ClassPrediction, PredictResponse
from tests.serving.conftest import CLASSES, assert_alive

GREY = ImageInput(name="image", height=28, width=28)


def classified(response: httpx.Response) -> list[ClassPrediction]:
    predictions = PredictResponse.model_validate(response.json()).predictions
    return [p for p in predictions if isinstance(p, ClassPrediction)]


def test_predict_names_classes_and_probabilities(
    http: httpx.Client, session: Session, images: np.ndarray
) -> None:
    request = {"model": "digits", "inputs": {"image": images.tolist()}, "outputs": ["logits"]}
    response = http.post("/predict", json=request)
    assert response.status_code == 200, response.text
    answer = PredictResponse.model_validate(response.json())
    expected = session.run({"image": images})
    assert (answer.model, answer.version) == ("digits", "1")
    assert [p.label for p in classified(response)] == [
        CLASSES[i] for i in expected["probabilities"].argmax(1)
    ]
    for row, prediction in zip(expected["probabilities"], classified(response), strict=True):
        values = np.array([prediction.probabilities[name] for name in CLASSES], np.float32)
        np.testing.assert_array_equal(values, row)
        assert np.float32(prediction.probability) == row.max()
    np.testing.assert_array_equal(
        np.array(answer.outputs["logits"], np.float32), expected["logits"]
    )


def test_predict_serves_a_model_without_classes(http: httpx.Client) -> None:
    inputs = {"left": [[0.5, 1.5]], "right": [[1, 2]]}
    response = http.post("/predict", json={"model": "pair", "inputs": inputs})
    answer = PredictResponse.model_validate(response.json())
    assert answer.predictions == []
    assert answer.outputs == {"total": [[1.5, 3.5]], "count": [[2, 4]]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not JSON"),
        (b'{"inputs": {}}', 400, "'model' is missing and several are served"),
        (b'{"model": "none", "inputs": {}}', 404, "model 'none' is unknown"),
        (b'{"model": "digits"}', 400, "input 'image' is missing"),
        (b'{"model": 3}', 400, "field 'model' is of a wrong type: got int"),
        (b'{"model": "digits", "inputs": []}', 400, "field 'inputs' is of a wrong type"),
        (b'{"model": "digits", "outputs": ["z"], "inputs": {}}', 400, "output 'z' is unknown"),
        (b'{"model": "digits", "input": {}}', 400, "field 'input' is unknown"),
        (b'{"model": "digits", "inputs": {"image": "http://127.0.0.1/"}}', 400, "wrong type"),
        (b'{"model": "pair", "inputs": {"left": [["1", 2]]}}', 400, "got '1', expected FP32"),
        (b'{"model": "pair", "inputs": {"left": [[1, 2], [1]]}}', 400, "'left' is ragged"),
        (b'{"model": "pair", "inputs": {"left": [[null, 2]]}}', 400, "got null"),
        (b'{"model": "pair", "inputs": {"left": [[NaN, 2]]}}', 400, "1 NaN or infinite of 2"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "a/b"])
def test_predict_refuses_whatever_the_content_type(
    http: httpx.Client, body: bytes, status: int, said: str, kind: str
) -> None:
    response = http.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert said in response.json()["error"]
    assert_alive(http)


def picture(format: str, size: tuple[int, int] = (28, 28)) -> bytes:
    gradient = np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("invert", [True, False])
def test_an_uploaded_picture_is_classified(
    http: httpx.Client, session: Session, format: str, invert: bool
) -> None:
    data = picture(format, (40, 50))
    # Quoted, as BentoML's own client writes text in forms.
    form = {"model": '"digits"' if invert else "digits", "invert": str(invert).lower()}
    # Neither the name nor the content type is what the file is.
    files = {"image": ("x.txt", data, "text/plain")}
    response = http.post("/predict_image", data=form, files=files)
    assert response.status_code == 200, response.text
    pixels = read_image(data, GREY, invert=invert)
    expected = session.run({"image": pixels})["probabilities"]
    assert classified(response)[0].label == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize(
    ("files", "form", "said"),
    [
        ({"image": b"no picture"}, {}, "a PNG or JPEG file"),
        ({"image": picture("PNG")[:60]}, {}, "the image"),
        ({"image": b""}, {}, "a PNG or JPEG file"),
        ({"other": picture("PNG")}, {}, "'other'"),
        ({}, {"image": "http://127.0.0.1:9/x.png"}, "got text"),
        ({"image": picture("PNG")}, {"invert": "maybe"}, "'maybe'"),
        ({"image": picture("PNG")}, {"model": "pair"}, "model 'pair' takes no picture"),
        ({"image": picture("PNG"), "model": b"x"}, {}, "Too many files"),
    ],
)
def test_an_upload_that_is_refused(
    http: httpx.Client, files: dict[str, bytes], form: dict[str, str], said: str
) -> None:
    parts = {"model": (None, "digits")} | {k: (None, v) for k, v in form.items()}
    parts |= {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    response = http.post("/predict_image", files=parts)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "image/png"])
def test_an_upload_that_is_no_form_is_refused(http: httpx.Client, kind: str) -> None:
    response = http.post("/predict_image", content=b"abc", headers={"Content-Type": kind})
    assert response.status_code == 400, response.text
    assert "the form cannot be read" in response.text or "not a form" in response.text
