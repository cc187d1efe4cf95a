"""A client that goes away ends the work: counted in the engine, over real connections."""

from __future__ import annotations

import importlib
import json
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import uvicorn

from models.signature import Arrays
from serving.front import front, served
from serving.model import Model
from serving.ports import free_port
from tests.serving.sequence_bundle import RNN, endless, make_bundle

with warnings.catch_warnings():  # as in conftest: BentoML's own
    warnings.simplefilter("ignore")
    service: Any = importlib.import_module("serving.sequence")

# BentoML reads the fields of a model from its instance.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince211")

LONG = 4000
STEP = 0.002  # seconds; the whole text would take eight


class Slow:
    """A net that counts its steps and takes its time."""

    def __init__(self) -> None:
        self.net = endless(RNN)
        self.steps = 0

    def run(self, inputs: Arrays) -> Arrays:
        time.sleep(STEP)
        self.steps += 1
        return self.net.run(inputs)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Slow]]:
    """A server in this process: where it answers over HTTP and gRPC, and its engine."""
    bundle = make_bundle(RNN, tmp_path_factory.mktemp("readers"))
    port, grpc_port = free_port("127.0.0.1"), free_port("127.0.0.1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUCINA_BUNDLES", json.dumps([str(bundle)]))
        patch.setenv("FUCINA_GRPC_PORT", str(grpc_port))
        # Its metrics can be registered but once in a process, and another test may have a server.
        app: Any = bentoml.Service.to_asgi(service.Sequence)
        app.user_middleware = [m for m in app.user_middleware if "Metrics" not in m.cls.__name__]
        fronted = front(app, served, service.Sequence)
        server = uvicorn.Server(uvicorn.Config(fronted, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        http = f"http://127.0.0.1:{port}"
        while not _ready(http):
            time.sleep(0.02)
        model: Model = bentoml.get_current_service().runtime.models.get("rnn")
        assert model._writer is not None
        engine = Slow()
        model._writer._run = engine.run
        yield http, f"127.0.0.1:{grpc_port}", engine
        server.should_exit = True
        thread.join(20)


def _ready(http: str) -> bool:
    try:
        return httpx.get(f"{http}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def assert_stops(engine: Slow, before: int) -> None:
    """The engine has begun and takes no further step, soon."""
    last = -1
    deadline = time.monotonic() + 4
    while last != engine.steps:
        assert time.monotonic() < deadline, "the engine goes on"
        last = engine.steps
        time.sleep(30 * STEP)
    assert before < engine.steps < before + LONG / 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_over_http_stops_the_work(
    address: tuple[str, str, Slow], stream: bool
) -> None:
    http, _, engine = address
    before = engine.steps
    request = {"prompt": "abc", "max_tokens": LONG, "stream": stream}
    with httpx.Client(base_url=http) as client:
        if stream:
            with client.stream("POST", "/generate", json=request) as response:
                assert next(response.iter_text()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/generate", json=request, timeout=0.1)
    assert_stops(engine, before)


def test_a_client_that_leaves_over_grpc_stops_the_work(address: tuple[str, str, Slow]) -> None:
    _, grpc, engine = address
    before = engine.steps
    sent = triton_grpc.InferInput("prompt", [1], "BYTES")
    sent.set_data_from_numpy(np.array([b"abc"], object))
    begun = threading.Event()
    with triton_grpc.InferenceServerClient(grpc) as client:
        client.start_stream(lambda result, error: begun.set())
        client.async_stream_infer("rnn", [sent], parameters={"max_tokens": LONG})
        assert begun.wait(10)
        client.stop_stream(cancel_requests=True)
    assert_stops(engine, before)


def test_an_error_in_the_middle_is_the_last_event(
    address: tuple[str, str, Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    http, _, engine = address
    net = engine.net
    steps = engine.steps

    def run(inputs: Arrays) -> Arrays:
        if engine.steps > steps + 3:
            raise ValueError("a secret of the server's")
        return net.run(inputs)

    monkeypatch.setattr(engine, "net", type("Broken", (), {"run": staticmethod(run)}))
    request: dict[str, Any] = {"prompt": "abc", "max_tokens": 50}
    answer = httpx.post(f"{http}/generate", json=request)
    assert answer.status_code == 200
    *pieces, last = [json.loads(e.removeprefix("data: ")) for e in answer.text.split("\n\n")[:-1]]
    assert pieces
    assert list(last) == ["error"]
    assert "internal error" in last["error"]
    whole = httpx.post(f"{http}/generate", json=request | {"stream": False})
    assert whole.status_code == 500
    assert "secret" not in whole.text + answer.text
