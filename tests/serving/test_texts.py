"""Plain text in, and numbers out: the typed endpoint over models whose codec says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput, BundleError, NotABundle
from pipeline.bundle import open_bundle
from serving.launch import Server
from serving.opening import open_bundles
from serving.predict_messages import PredictResponse, ValuePrediction, respond
from serving.texts import LONGEST_TEXT, read_texts
from tests.serving.conftest import (
    SLOPE,
    TARGET,
    TEXT,
    WORDS,
    assert_alive,
    models_of,
    write_manifest,
)


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/predict", content=json.dumps({"model": "words"} | fields))


def test_a_text_is_read_by_the_codec_and_answered_by_class(http: httpx.Client, words: Path) -> None:
    texts = ["WIN a free call!", "See you", "", "¿?"]
    answer = ask(http, text=texts, outputs=["logits"]).json()
    expected = open_bundle(words).open_engine(TARGET).run({"tokens": TEXT.encode(texts)})
    assert [p["class"] for p in answer["predictions"]] == ["offer", "chat", "chat", "chat"]
    np.testing.assert_array_equal(np.array(answer["outputs"]["logits"], "f4"), expected["logits"])
    for prediction, row in zip(answer["predictions"], expected["probabilities"], strict=True):
        assert list(prediction["probabilities"]) == ["chat", "offer"]
        assert np.float32(prediction["probability"]) == row.max()


def test_one_text_equals_a_list_of_it_and_its_ids(http: httpx.Client) -> None:
    text = "Win, win! Call you?"
    ids = TEXT.encode([text]).tolist()
    answers = [ask(http, text=text), ask(http, text=[text]), ask(http, inputs={"tokens": ids})]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1


def test_fields_that_are_null_or_empty_are_not_given(http: httpx.Client) -> None:
    assert ask(http, text="win", inputs={}).status_code == 200
    assert ask(http, text=None, inputs={"tokens": [[3]]}).status_code == 200


def test_protocol_clients_post_ids_that_metadata_names(http: httpx.Client, server: Server) -> None:
    described = http.get("/v2/models/words").json()["inputs"]
    assert described == [{"name": "tokens", "datatype": "INT64", "shape": [-1, -1]}]
    text = ["you win", "see you"]
    ids = TEXT.encode(text)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        sent = triton_grpc.InferInput("tokens", list(ids.shape), "INT64")
        sent.set_data_from_numpy(ids)
        answered = client.infer("words", [sent])
    assert answered is not None
    said = ask(http, text=text, outputs=["logits"]).json()["outputs"]["logits"]
    np.testing.assert_array_equal(answered.as_numpy("logits"), np.array(said, "f4"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": "a", "model": "digits"}, "model 'digits' takes no text: expected 'inputs'"),
        ({"text": "a", "model": "level"}, "model 'level' takes no text"),
        ({"text": "a", "inputs": {"tokens": [[1]]}}, "given twice: got 'text' and 'inputs'"),
        ({}, "the request is empty: expected 'text' or 'inputs'"),
        ({"text": []}, "field 'text' is empty: got 0, expected 1 to 64 texts"),
        ({"text": ["a"] * 65}, "too many texts: got 65, expected 1 to 64 texts"),
        ({"text": 3}, "field 'text' is of a wrong type: got int"),
        ({"text": {"a": 1}}, "field 'text' is of a wrong type: got dict"),
        ({"text": ["a", 3]}, "wrong type at place 1: got int, expected a string"),
        ({"text": ["a", None]}, "wrong type at place 1: got NoneType"),
        ({"text": "a" * (LONGEST_TEXT + 1)}, "too long at place 0: got 100001 characters"),
        ({"text": "a", "outputs": ["z"]}, "output 'z' is unknown"),
        ({"inputs": {"tokens": [[7]]}}, "'tokens' holds a value out of range: got 7, expected 0"),
        ({"inputs": {"tokens": [[1, -1]]}}, "got -1, expected 0 to 6"),
        ({"inputs": {"tokens": [["win"]]}}, "'tokens' holds values of a wrong type: got 'win'"),
        ({"inputs": {"tokens": [[1] * 7]}}, "axis 'length' is out of range: got 7, expected 1 to"),
    ],
)
def test_what_is_refused_is_one_clear_line(
    http: httpx.Client, fields: dict[str, Any], said: str
) -> None:
    response = ask(http, **fields)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert_alive(http)


def test_a_text_of_any_content_is_answered(http: httpx.Client) -> None:
    for text in ("\x00", "\ud800", "e" + "\u0301" * (LONGEST_TEXT - 1), " " * LONGEST_TEXT, "😀"):
        assert ask(http, text=text).status_code == 200


@given(st.lists(st.text() | st.integers() | st.none(), max_size=9))
def test_what_is_read_fits_the_signature_or_is_refused(texts: list[Any]) -> None:
    try:
        ids = read_texts(texts, TEXT, most=8)
    except BadInput:
        assert not texts or len(texts) > 8 or any(not isinstance(text, str) for text in texts)
    else:
        assert WORDS.check({"tokens": ids})["batch"] == len(texts)


def test_a_regression_answers_values_in_their_unit(http: httpx.Client) -> None:
    rows = np.array([[0.5, 1, 0], [-1, 0.25, 1]], np.float32)
    body = {"model": "level", "inputs": {"features": rows.tolist()}, "outputs": ["value"]}
    response = http.post("/predict", json=body)
    assert response.status_code == 200, response.text
    answer = PredictResponse.model_validate(response.json())
    expected = (rows @ SLOPE)[:, 0].tolist()
    assert answer.predictions == [ValuePrediction(value=v, unit="mg/dl") for v in expected]
    assert answer.outputs == {"value": [[v] for v in expected]}


def test_a_sign_tells_two_classes_apart(level: Path, tmp_path: Path) -> None:
    folder = changed(level, tmp_path, {"sign": "value", "classes": ["below", "above"]})
    (model,) = models_of(*open_bundles([folder]))
    answers = {"value": np.array([[0.5], [-2], [0]], np.float32)}
    said = json.loads(bytes(respond(model, answers, []).body))["predictions"]
    assert said == [
        {"class": "above", "score": 0.5},
        {"class": "below", "score": -2.0},
        {"class": "below", "score": 0.0},
    ]


def test_a_value_that_is_not_finite_is_refused_and_never_null(http: httpx.Client) -> None:
    body = {"model": "level", "inputs": {"features": [[0, 0, 0], [3e38, 0, 0]]}}
    response = http.post("/predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(
        "output 'value' is not finite for these inputs: got 1 NaN or infinite of 2"
    )
    assert_alive(http)


def test_the_schema_shows_texts_and_both_kinds_of_prediction(http: httpx.Client) -> None:
    document = http.get("/docs.json").json()
    post = document["paths"]["/predict"]["post"]
    fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    texts = {"type": "array", "items": {"type": "string"}}
    assert fields["text"]["oneOf"] == [{"type": "string"}, texts, {"type": "null"}]
    assert isinstance(fields["text"]["examples"][0], str)
    words = next(m for m in fields["inputs"]["oneOf"] if m["title"] == "words")
    ids = words["properties"]["tokens"]["items"]["items"]
    assert ids == {"type": "integer", "minimum": 0, "maximum": TEXT.largest}
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    kinds = answer["properties"]["predictions"]["items"]["anyOf"]
    named = [document["components"]["schemas"][k["$ref"].rpartition("/")[2]] for k in kinds]
    assert [list(kind["properties"]) for kind in named] == [
        ["class", "probability", "probabilities"], ["class", "score"], ["value", "unit"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bundle", "codec", "said"),
    [
        ("words", {"text": {"name": "zz"}}, "reads text into 'zz': expected an input of integers"),
        ("words", {"text": {"longest": 7}}, r"got int64\[batch 1..64, length 1..6\].*1..7\]"),
        ("words", {"text": {"vocabulary": list("abcdef")}}, "larger vocabulary.*got 7.*ids to 6"),
        ("level", {"text": {"name": "features"}}, r"got float32\[batch 1..64, 3\]"),
        ("level", {"values": "nothing"}, "an output of numbers: expected a floating output"),
        ("words", {"sign": "logits", "classes": ["a", "b"]}, r"an output of numbers: got float32"),
        ("words", {"values": "logits"}, r"an output of numbers: got float32\[batch 1..64, 2\]"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, bundle: str, codec: Any, said: str
) -> None:
    folder = changed(request.getfixturevalue(bundle), tmp_path, codec)
    with pytest.raises(BundleError, match=said):
        open_bundles([folder])


@pytest.mark.parametrize(
    "codec",
    [
        {"scores": "probabilities", "values": "value"},
        {"sign": "logits", "classes": ["a"]},
        {"text": {"vocabulary": ["a", "a"]}},
        {"text": {"shortest": 7}},
    ],
)
def test_a_codec_that_contradicts_itself_is_no_codec(
    words: Path, tmp_path: Path, codec: Any
) -> None:
    with pytest.raises(NotABundle, match=r"codec.json is not valid"):
        open_bundles([changed(words, tmp_path, codec)])


def changed(bundle: Path, tmp_path: Path, codec: Any) -> Path:
    """A copy of a bundle with another codec, vouched for by its manifest."""
    folder = Path(shutil.copytree(bundle, tmp_path / "changed"))
    if "text" in codec:
        codec = codec | {"text": TEXT.model_dump(mode="json") | codec["text"]}
    (folder / "codec.json").write_text(json.dumps(codec))
    manifest = open_bundle(bundle).manifest
    write_manifest(folder, name=manifest.name, signature=manifest.signature)
    return folder
