"""Our client: the engine's own numbers over both transports, and no failure that can be mended."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.errors import (
    BadInput,
    BadSetting,
    Forbidden,
    UnknownModel,
)
from pipeline.backends import Session
from serving import client as client_module
from serving.client import Client
from serving.client_connections import ERRORS
from serving.client_grpc import GrpcClient
from serving.client_messages import describe, from_bytes, read_answer, to_bytes, write_question
from serving.failures import FAILURES
from serving.launch import Server, serve
from tests.serving.sequence_bundle import RNN, write_alone
from tests.serving.sequence_bundle import make_bundle as make_text_bundle

ROOT = Path(__file__).parents[2]
DTYPES = [
    "?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">f4", ">i8", ">u2",
]  # fmt: skip

# Every installed package but numpy refuses to be imported.
ALONE = """
import sys, importlib.abc, importlib.metadata
packages = importlib.metadata.packages_distributions()
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = ("numpy", "models", "serving", "pipeline", "flows")
        if top in packages and top not in ours:
            raise ImportError(f"{name} is not numpy")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.http) as client:
        yield client


@pytest.fixture(scope="module", params=["http", "grpc"])
def either(request: pytest.FixtureRequest, server: Server) -> Iterator[Client | GrpcClient]:
    with Client(server.http) if request.param == "http" else GrpcClient(server.grpc) as client:
        yield client


def test_the_documented_example_runs_with_numpy_alone(server: Server) -> None:
    assert client_module.__doc__
    found = re.search(r"```python\n(.*?)```", client_module.__doc__, re.DOTALL)
    assert found
    example = found[1].replace("http://127.0.0.1:3000", server.http)
    assert server.http in example

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ALONE + code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(example)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'logits': (1, 10), 'probabilities': (1, 10)}\n"
    assert "is not numpy" in run("import httpx").stderr  # others are refused indeed


def test_answers_are_the_engines_own_numbers(
    either: Client | GrpcClient, session: Session, images: np.ndarray
) -> None:
    answer = either.ask("digits", {"image": images}, id="seven")
    assert (answer.model, answer.version, answer.id) == ("digits", "1", "seven")
    expected = session.run({"image": images})
    assert answer.outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert answer.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(answer.outputs[name], array)
    some = either.infer("digits", {"image": images}, ["logits"], version="1")
    assert some.keys() == {"logits"}
    np.testing.assert_array_equal(some["logits"], expected["logits"])


def test_answers_are_bit_for_bit_the_stock_clients(
    server: Server, client: Client, images: np.ndarray
) -> None:
    sent = triton_http.InferInput("image", list(images.shape), "FP32")
    sent.set_data_from_numpy(images)
    with closing(triton_http.InferenceServerClient(server.http[7:])) as stock:
        answer = stock.infer("digits", [sent])
    for name, array in client.infer("digits", {"image": images}).items():
        theirs = answer.as_numpy(name)
        assert theirs is not None
        assert array.tobytes() == theirs.tobytes()


def test_inputs_of_several_types_and_layouts(either: Client | GrpcClient) -> None:
    left = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3) / 10)
    right = np.arange(12).reshape(2, 6)[:, ::2].astype(">i8") % 9
    answer = either.infer("pair", {"left": left, "right": right})
    np.testing.assert_array_equal(answer["total"], left + right.astype("f4"))
    np.testing.assert_array_equal(answer["count"], right * 2)


def test_what_the_server_says_of_itself(client: Client) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready("digits", "1")
    assert client.models() == ["digits", "level", "pair", "words"]
    assert client.metadata()["name"] == "fucina"
    assert client.metadata("digits")["versions"] == ["1"]
    assert {entry["state"] for entry in client.index()} == {"READY"}


def test_grpc_says_who_is_ready(server: Server) -> None:
    with GrpcClient(server.grpc) as client:
        assert client.ready()
        assert client.ready("digits")
    with GrpcClient("127.0.0.1:1", timeout=2) as nobody:
        assert not nobody.ready()


def test_errors_are_the_servers_own(either: Client | GrpcClient, images: np.ndarray) -> None:
    with pytest.raises(UnknownModel, match="model 'nothing' is unknown"):
        either.infer("nothing", {})
    with pytest.raises(UnknownModel, match="has no version '9'"):
        either.infer("digits", {"image": images}, version="9")
    with pytest.raises(BadInput, match="'image'"):
        either.infer("digits", {"image": images[:, :, :5]})
    with pytest.raises(BadInput, match=r"input 'image' has a dtype that cannot be sent"):
        either.infer("digits", {"image": images.astype(complex)})


def test_administration_is_refused_where_it_is_off(client: Client) -> None:
    for call in (client.load, client.unload):
        with pytest.raises(Forbidden):
            call("digits")


@pytest.mark.parametrize("address", ["127.0.0.1:3000", "grpc://host", "http://", "http://a/b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadSetting, match="the address is malformed"):
        Client(address)


def test_every_error_of_the_table_has_its_kind_here() -> None:
    for kind, row in FAILURES.items():
        assert row.status in ERRORS, kind


@given(
    arrays.arrays(
        st.sampled_from(DTYPES).map(np.dtype), arrays.array_shapes(min_dims=0, min_side=0)
    )
)
@settings(max_examples=100, deadline=None)
def test_tensors_survive_their_bytes(array: np.ndarray) -> None:
    for one in (array, np.asfortranarray(array), array[..., ::-1] if array.ndim else array):
        back = from_bytes(describe("x", one), bytes(to_bytes(one)))
        assert back.shape == one.shape
        assert back.dtype == one.dtype.newbyteorder("=")
        assert back.tobytes() == one.astype(one.dtype.newbyteorder("="), order="C").tobytes()
        assert not back.flags.writeable


def test_contiguous_arrays_are_sent_without_a_copy() -> None:
    array = np.ones((3, 4), np.float32)
    (piece,) = write_question({"x": array})[1]
    assert np.shares_memory(np.frombuffer(piece, np.uint8), array)


def test_an_answer_in_json_is_read_as_well() -> None:
    document = {
        "model_name": "m",
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]}],
    }
    body = json.dumps(document).encode()
    np.testing.assert_array_equal(read_answer(body, len(body)).outputs["y"], [[1], [2]])


def test_threads_share_a_client(server: Server, images: np.ndarray, session: Session) -> None:
    expected = session.run({"image": images[:1]})["logits"]
    wrong: list[Any] = []

    def one(client: Client) -> None:
        try:
            for _ in range(20):
                got = client.infer("digits", {"image": images[:1]}, ["logits"])["logits"]
                # Among others a row's sums may be taken in another order.
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        except BaseException as error:
            wrong.append(error)

    with Client(server.http) as client:
        threads = [threading.Thread(target=one, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert 1 <= len(client._connections.idle) <= 8


def test_a_text_comes_as_it_is_written(tmp_path: Path) -> None:
    bundle = make_text_bundle(RNN, tmp_path)
    with serve([bundle], port=0, grpc_port=0) as server, Client(server.http) as client:
        *pieces, last = client.generate("abc", "rnn", temperature=0, max_tokens=40)
        text = "".join(event["text"] for event in [*pieces, last])
        assert len(pieces) > 1
        assert (text, last["finish"]) == (write_alone(RNN, "abc", 40), "length")
        for _ in client.generate("abc", "rnn", max_tokens=4000):
            break  # who leaves is not waited for
        with pytest.raises(BadInput, match="max_tokens"):
            next(client.generate("abc", "rnn", max_tokens=-1))
