"""One running server of sequence models, asked as people and stock clients ask it."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from pipeline.bundle import open_bundle
from serving.ask import ask
from serving.launch import Server, serve
from serving.prompts import MOST_TOKENS
from tests.serving.conftest import WORDS, write_manifest
from tests.serving.sequence_bundle import CAPACITY, NETS, RNN, make_bundle, write_alone

NAMES = {net.name: net for net in NETS}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sequence")
    return {net.name: make_bundle(net, folder) for net in NETS}


@pytest.fixture(scope="module")
def texts(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier of plain texts as a bundle of this kind."""
    out = Path(shutil.copytree(words, tmp_path_factory.mktemp("texts") / "words"))
    write_manifest(out, name="words", signature=WORDS, kind="sequence")
    return out


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path], texts: Path, forbidden_imports: Path) -> Iterator[Server]:
    with serve([*bundles.values(), texts], port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def events(http: httpx.Client, **request: Any) -> list[dict[str, Any]]:
    """Every event of a stream, as a reader of server-sent events finds them."""
    with http.stream("POST", "/generate", json=request) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def whole(http: httpx.Client, **request: Any) -> dict[str, Any]:
    response = http.post("/generate", json=request | {"stream": False})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_the_text_that_the_net_writes(http: httpx.Client, name: str) -> None:
    said = events(http, model=name, prompt="abc", temperature=0, max_tokens=40)
    text = "".join(event["text"] for event in said)
    assert text == write_alone(NAMES[name], "abc", 40)
    assert [e["index"] for e in said] == [
        len("".join(event["text"] for event in said[:i])) for i in range(len(said))
    ]
    *pieces, last = said
    assert all(piece.keys() == {"text", "index"} for piece in pieces)
    assert last["finish"] == ("length" if len(text) == 40 else "end")
    assert (last["model"], last["version"], last["prompt"]) == (name, "1", "abc")
    assert last["prompt_tokens"] == 3


def test_one_json_is_the_same_text(http: httpx.Client) -> None:
    request = {"model": "rnn", "prompt": "hello", "max_tokens": 50, "temperature": 0.7, "seed": 9}
    answer = whole(http, **request)
    said = events(http, **request)
    assert answer["text"] == "".join(event["text"] for event in said)
    assert {**said[-1], "text": answer["text"]}.items() >= answer.items()
    assert answer["seed"] == 9


def test_a_seed_that_was_drawn_writes_the_same_again(http: httpx.Client) -> None:
    request = {"model": "mean", "prompt": "abc", "temperature": 1.3, "max_tokens": 60}
    first, other = whole(http, **request), whole(http, **request)
    assert first["seed"] != other["seed"]
    assert whole(http, **request, seed=first["seed"]) == first


def test_the_settings_do_what_they_say(http: httpx.Client) -> None:
    greedy = whole(http, model="rnn", prompt="abc", temperature=0, max_tokens=30)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}):
        text = whole(http, model="rnn", prompt="abc", max_tokens=30, **narrow)["text"]
        assert text == greedy["text"]
    stop = greedy["text"][4:6]
    stopped = whole(http, model="rnn", prompt="abc", temperature=0, stop=[stop, "\n"])
    assert stopped["text"] == greedy["text"][: greedy["text"].index(stop)]
    assert stopped["finish"] == "stop"
    again = whole(http, model="rnn", prompt="abc", temperature=0, stop=stop)
    assert again["text"] == stopped["text"]


def test_no_prompt_continues_the_opening(http: httpx.Client) -> None:
    answer = whole(http, model="rnn", temperature=0, max_tokens=8)
    assert answer["prompt"] == "\n"
    assert answer["text"] == write_alone(RNN, "\n", 8)


def test_forty_at_once_are_the_forty_alone(server: Server) -> None:
    requests = [
        {"model": name, "prompt": prompt, "max_tokens": 60, "temperature": 0.9, "seed": seed}
        for seed, (name, prompt) in enumerate(
            (name, prompt) for name in ("rnn", "mean") for prompt in ("abc", "the dog", "a", "qu")
        )
    ] * 5
    limits = httpx.Limits(max_connections=40)
    with httpx.Client(base_url=server.http, timeout=60, limits=limits) as client:

        def text(request: dict[str, Any]) -> str:
            return "".join(event["text"] for event in events(client, **request))

        alone = [text(request) for request in requests[:8]]
        with ThreadPoolExecutor(40) as pool:
            together = list(pool.map(text, requests))
    assert together == alone * 5


# gRPC, by the stock client.


def asking(model: str, prompt: str, request_id: str = "1", **parameters: Any) -> dict[str, Any]:
    sent = triton_grpc.InferInput("prompt", [1], "BYTES")
    sent.set_data_from_numpy(np.array([prompt.encode()], object))
    return {
        "model_name": model, "inputs": [sent], "request_id": request_id, "parameters": parameters,
    }  # fmt: skip


def written(server: Server, *requests: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """By request of one stream: the whole text, and the parameters of its last response."""
    answers: queue.Queue[Any] = queue.Queue()
    texts = dict.fromkeys((request["request_id"] for request in requests), "")
    ended: dict[str, tuple[str, Any]] = {}
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for request in requests:
            client.async_stream_infer(**request)
        while len(ended) < len(requests):
            result, error = answers.get(timeout=20)
            if error:
                raise error
            response = result.get_response()
            texts[response.id] += result.as_numpy("text")[0].decode()
            if response.parameters["triton_final_response"].bool_param:
                ended[response.id] = (texts[response.id], response.parameters)
        client.stop_stream()
    assert answers.empty()
    return ended


def test_the_stock_client_streams_a_text_over_grpc(server: Server) -> None:
    request = asking("rnn", "hello", temperature=0.0, max_tokens=25)
    text, parameters = written(server, request)["1"]
    assert text == write_alone(RNN, "hello", 25)
    assert parameters["finish"].string_param in ("end", "length")
    assert parameters["prompt_tokens"].int64_param == 5


def test_requests_of_one_stream_are_written_at_once(server: Server, http: httpx.Client) -> None:
    settings = {"max_tokens": 40, "temperature": 0.8, "top_k": 12, "top_p": 0.9}
    requests = [asking("mean", "ab", str(seed), seed=seed, **settings) for seed in range(6)]
    for seed, (text, parameters) in written(server, *requests).items():
        expected = whole(http, model="mean", prompt="ab", seed=int(seed), **settings)
        assert text == expected["text"]
        assert parameters["seed"].uint64_param == int(seed)
        assert parameters["finish"].string_param == expected["finish"]


def test_several_stop_strings_are_an_input_and_one_a_parameter(
    server: Server, http: httpx.Client
) -> None:
    greedy = whole(http, model="rnn", prompt="abc", temperature=0, max_tokens=30)["text"]
    stop = greedy[5:7]
    request = asking("rnn", "abc", temperature=0, stop=stop)
    several = asking("rnn", "abc", "2", temperature=0)
    stops = triton_grpc.InferInput("stop", [2], "BYTES")
    stops.set_data_from_numpy(np.array([b"\n\n\n", stop.encode()], object))
    several["inputs"].append(stops)
    for text, parameters in written(server, request, several).values():
        assert text == greedy[: greedy.index(stop)]
        assert parameters["finish"].string_param == "stop"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (asking("nothing", "abc"), "model 'nothing' is unknown"),
        (asking("words", "abc"), "model 'words' writes no text"),
        (asking("rnn", "A"), "a character that the model does not know"),
        (asking("rnn", "a", temperature=-1.0), "field 'temperature' is out of range"),
        (asking("rnn", "a", temperature=True), "parameter 'temperature' is of a wrong type"),
        (asking("rnn", "a", heat=1), "parameter 'heat' is unknown"),
    ],
)
def test_a_refusal_is_an_error_message_and_the_stream_goes_on(
    server: Server, request_: dict[str, Any], said: str
) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(**request_)
        assert said in str(answers.get(timeout=20)[1])
        client.async_stream_infer(**asking("rnn", "a", max_tokens=1))
        assert answers.get(timeout=20)[1] is None
        client.stop_stream()


def test_a_client_may_step_the_engine_itself(server: Server) -> None:
    state = np.zeros((1, 1, 12), np.float32)
    said = ""
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tokens = RNN.generation.tokens.encode("hello")[None]
        while len(said) < 10:
            inputs = [
                triton_grpc.InferInput("tokens", list(tokens.shape), "INT64"),
                triton_grpc.InferInput("hidden", list(state.shape), "FP32"),
            ]
            inputs[0].set_data_from_numpy(tokens)
            inputs[1].set_data_from_numpy(state)
            answer: Any = client.infer("rnn", inputs)
            state, logits = answer.as_numpy("next_hidden"), answer.as_numpy("logits")
            tokens = logits[:, -1, 3:].argmax(1)[:, None] + 3
            said += RNN.generation.tokens.decode(tokens[0])
    assert said == write_alone(RNN, "hello", 10)[:10]


def test_tensors_on_a_stream_are_answered_once(server: Server) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    tokens = triton_grpc.InferInput("tokens", [1, 3], "INT64")
    tokens.set_data_from_numpy(np.array([[2, 3, 0]]))
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("words", [tokens])
        result, error = answers.get(timeout=20)
        client.stop_stream()
    assert error is None
    assert result.as_numpy("logits").shape == (1, 2)
    assert result.get_response().parameters["triton_final_response"].bool_param


# What is refused, and what else the server answers.


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prompt": 5}, "field 'prompt' is of a wrong type: got int, expected a string"),
        ({"prompt": None}, "field 'prompt' is of a wrong type"),
        ({"prompt": "aBc"}, "a character that the model does not know: got 'B' at place 1"),
        ({"prompt": "\ud800"}, "a character that the model does not know"),
        ({"prompt": "a" * 10_001}, "the prompt is too long: got 10001"),
        ({"max_tokens": 0}, "field 'max_tokens' is out of range: got 0, expected 1 to 4096"),
        ({"max_tokens": MOST_TOKENS + 1}, "field 'max_tokens' is out of range"),
        ({"max_tokens": 3.0}, "field 'max_tokens' is of a wrong type: got float"),
        ({"max_tokens": True}, "field 'max_tokens' is of a wrong type: got bool"),
        ({"temperature": -0.1}, "field 'temperature' is out of range"),
        ({"temperature": float("nan")}, "field 'temperature' is out of range: got nan"),
        ({"temperature": float("inf")}, "field 'temperature' is out of range: got inf"),
        ({"temperature": "1"}, "field 'temperature' is of a wrong type: got str"),
        ({"top_k": -1}, "field 'top_k' is out of range"),
        ({"top_p": 0}, "field 'top_p' is out of range: got 0, expected more than 0"),
        ({"top_p": 1.1}, "field 'top_p' is out of range"),
        ({"seed": -1}, "field 'seed' is out of range"),
        ({"seed": 2**64}, "field 'seed' is of a wrong type: got float"),
        ({"stop": [""]}, "a stop string is of a wrong length"),
        ({"stop": ["a"] * 17}, "too many stop strings"),
        ({"stop": [1]}, "field 'stop' is of a wrong type"),
        ({"stream": "yes"}, "field 'stream' is of a wrong type"),
        ({"format": "wav"}, "field 'format' is of a wrong type"),
        ({"format": "midi"}, "model 'rnn' writes no music"),
        ({"tokens": 5}, "field 'tokens' is unknown"),
    ],
)
def test_a_wrong_request_is_one_clear_400(
    http: httpx.Client, request_: dict[str, Any], said: str
) -> None:
    body = json.dumps({"model": "rnn"} | request_)
    for stream in ({}, {"stream": False}):
        raw = json.dumps(json.loads(body) | stream) if "stream" not in request_ else body
        response = http.post("/generate", content=raw)
        assert response.status_code == 400, response.text
        assert said in response.json()["error"]
    assert whole(http, model="rnn", prompt="a", max_tokens=2)["tokens"] <= 2


def test_other_refusals(http: httpx.Client) -> None:
    too_long = {"model": "mean", "prompt": "a" * (CAPACITY + 1)}
    assert f"expected 1 to {CAPACITY}" in http.post("/generate", json=too_long).json()["error"]
    empty = http.post("/generate", json={"model": "echo"})
    assert "the prompt is empty" in empty.json()["error"]
    none = http.post("/generate", json={"prompt": "abc"})
    assert "'model' is missing" in none.json()["error"]
    unknown = http.post("/generate", json={"prompt": "abc", "model": "nothing"})
    assert unknown.status_code == 404
    other = http.post("/generate", json={"prompt": "abc", "model": "words"})
    assert other.json()["error"] == "model 'words' writes no text"
    assert http.post("/generate", content=b"").json()["error"].startswith("the body is empty")
    assert http.post("/generate", content=b"[1]").status_code == 400


def test_texts_are_classified_in_batches(http: httpx.Client) -> None:
    batch = http.post("/classify", json={"model": "words", "text": ["win free", "see you"]})
    assert [row["class"] for row in batch.json()["predictions"]] == ["offer", "chat"]
    one = http.post("/classify", json={"model": "words", "text": "win free"}).json()
    np.testing.assert_allclose(
        one["predictions"][0]["probability"], batch.json()["predictions"][0]["probability"]
    )


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "field 'text' is missing"),
        ({"text": []}, "field 'text' is empty"),
        ({"text": [1]}, "field 'text' is of a wrong type at place 0"),
        ({"text": 1}, "field 'text' is of a wrong type"),
        ({"text": "a", "model": "rnn"}, "model 'rnn' takes no text"),
        ({"text": "a", "inputs": {}}, "field 'inputs' is unknown"),
        ({"text": ["a"] * 65}, "too many texts"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    http: httpx.Client, request_: dict[str, Any], said: str
) -> None:
    response = http.post("/classify", json={"model": "words"} | request_)
    assert response.status_code == 400
    assert said in response.json()["error"]


@pytest.mark.parametrize("name", NAMES)
def test_both_transports_reproduce_every_recorded_case(
    server: Server, bundles: dict[str, Path], name: str
) -> None:
    for findings in ask(server.http, server.grpc, open_bundle(bundles[name])).values():
        assert findings
        assert all(finding.passed for finding in findings)


def test_the_schema_describes_the_requests(http: httpx.Client) -> None:
    paths = http.get("/docs.json").json()["paths"]
    schema = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["max_tokens"]["maximum"] == MOST_TOKENS
    assert "/classify" in paths


def test_the_serving_process_loads_no_training_library(
    server: Server, forbidden_imports: Path
) -> None:
    assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
    assert not forbidden_imports.exists(), forbidden_imports.read_text()
