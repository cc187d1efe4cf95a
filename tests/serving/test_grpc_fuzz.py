"""Any message, over any method: no INTERNAL, no crash, and the server is right afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.inference_proto import HEALTH_SERVICE, MESSAGES, SERVICE
from serving.launch import Server

# What says that the request, and not the server, is at fault.
DELIBERATE = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}  # fmt: skip
METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"),
    *("ModelInfer", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)
SHORT, LONG = 150, 20_000  # examples of each test, of which there are four

NAMES = st.sampled_from(
    ["", "digits", "pair", "words", "image", "left", "right", "tokens", "logits", "total", "prompt"]
) | st.text(max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 70) | st.sampled_from([28, 784])
DATATYPES = st.sampled_from(["FP32", "INT64", "FP16", "BYTES", "BOOL", "BF16", ""])
PARAMETER = st.one_of(
    st.fixed_dictionaries({"bool_param": st.booleans()}),
    st.fixed_dictionaries({"int64_param": NUMBERS}),
    st.fixed_dictionaries({"uint64_param": st.integers(0, 2**64 - 1)}),
    st.fixed_dictionaries({"double_param": st.floats()}),
    st.fixed_dictionaries({"string_param": st.text(max_size=10)}),
    st.just({}),
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["seed", "rows", "max_tokens", "binary_data_size"]) | st.text(max_size=9),
    PARAMETER,
    max_size=2,
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "fp32_contents": st.lists(st.floats(width=32), max_size=9),
        "fp64_contents": st.lists(st.floats(), max_size=3),
        "int64_contents": st.lists(NUMBERS, max_size=9),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=9), max_size=3),
    },
)
# Shapes, datatypes and sizes that fit are drawn often enough to reach the engine.
FITTING = st.sampled_from(
    [
        ("digits", [("image", "FP32", [1, 1, 28, 28], 3136)]),
        ("pair", [("left", "FP32", [1, 2], 8), ("right", "INT64", [1, 2], 16)]),
        ("words", [("tokens", "INT64", [2, 3], 48)]),
        ("level", [("features", "FP32", [1, 3], 12)]),
    ]
)

CHANGES = ["shape", "name", "kind", "raw", "drop", "outputs", "more"]


@st.composite
def near(draw: st.DrawFn) -> dict[str, Any]:
    """A request that would be answered, with one or two things wrong, or none."""
    model, tensors = draw(FITTING)
    inputs, raw = [], []
    for name, kind, shape, size in tensors:
        inputs.append({"name": name, "datatype": kind, "shape": shape})
        raw.append(draw(st.binary(min_size=size, max_size=size) | st.just(bytes(size))))
    request: dict[str, Any] = {"model_name": model, "inputs": inputs, "raw_input_contents": raw}
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=2)):
        place = draw(st.integers(0, len(tensors) - 1))
        if change == "shape":
            inputs[place]["shape"] = draw(st.lists(NUMBERS, max_size=5))
        elif change == "name":
            inputs[place]["name"] = draw(NAMES)
        elif change == "kind":
            inputs[place]["datatype"] = draw(DATATYPES)
        elif change == "raw":
            raw[place : place + 1] = [draw(st.binary(max_size=60))]
        elif change == "drop":
            raw.clear()
            inputs[place]["contents"] = draw(CONTENTS)
        elif change == "outputs":
            request["outputs"] = [{"name": draw(NAMES), "parameters": draw(PARAMETERS)}]
        else:
            request |= {
                "id": draw(st.text(max_size=20)), "model_version": draw(NAMES),
                "parameters": draw(PARAMETERS),
            }  # fmt: skip
    return request


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as found:
        yield found
    assert server.process.poll() is None


@pytest.fixture
def right_afterwards(channel: grpc.Channel, session: Any, images: np.ndarray) -> Iterator[None]:
    yield
    request = MESSAGES["ModelInferRequest"](
        model_name="digits",
        inputs=[{"name": "image", "datatype": "FP32", "shape": images.shape}],
        raw_input_contents=[images.tobytes()],
    )
    raw = channel.unary_unary(f"/{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=30)
    response = MESSAGES["ModelInferResponse"].FromString(raw)
    expected = session.run({"image": images})
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        assert content == expected[output.name].tobytes()


def code(channel: grpc.Channel, method: str, raw: bytes) -> str:
    try:
        channel.unary_unary(f"/{method}")(raw, timeout=30)
    except grpc.RpcError as error:
        return error.code().name  # pyright: ignore[reportAttributeAccessIssue]
    return "OK"


def stream(channel: grpc.Channel, messages: list[bytes]) -> tuple[str, int]:
    """The code that a stream ends with, and how many answers it gave."""
    answers = 0
    try:
        for raw in channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
            iter(messages), timeout=30
        ):
            text = MESSAGES["ModelStreamInferResponse"].FromString(raw).error_message
            assert "internal error" not in text
            answers += 1
    except grpc.RpcError as error:
        return error.code().name, answers  # pyright: ignore[reportAttributeAccessIssue]
    return "OK", answers


def check_near(channel: grpc.Channel, request: dict[str, Any]) -> None:
    raw = MESSAGES["ModelInferRequest"](**request).SerializeToString()
    assert code(channel, f"{SERVICE}/ModelInfer", raw) in DELIBERATE


def check_bytes(channel: grpc.Channel, method: str, raw: bytes) -> None:
    assert code(channel, method, raw) in DELIBERATE


def check_damaged(
    channel: grpc.Channel, request: dict[str, Any], places: list[int], value: int
) -> None:
    raw = bytearray(MESSAGES["ModelInferRequest"](**request).SerializeToString())
    for place in places:
        raw[place % len(raw)] = value
    assert code(channel, f"{SERVICE}/ModelInfer", bytes(raw)) in DELIBERATE


def check_stream(channel: grpc.Channel, messages: list[bytes | dict[str, Any]]) -> None:
    sent = [
        one if isinstance(one, bytes) else MESSAGES["ModelInferRequest"](**one).SerializeToString()
        for one in messages
    ]
    assert stream(channel, sent) == ("OK", len(sent))


METHOD = st.sampled_from(
    [*(f"{SERVICE}/{name}" for name in METHODS), f"{HEALTH_SERVICE}/Check", f"{SERVICE}/None"]
)
DAMAGE = {"places": st.lists(st.integers(0, 4000), max_size=3), "value": st.integers(0, 255)}
STARTS = st.sampled_from([b"", b"\x0a\x06digits", b"\x1f\x8b\x08", b"\x78\x9c"])
BYTES = st.builds(lambda start, rest: start + rest, STARTS, st.binary(max_size=200))
MESSAGES_OF_A_STREAM = st.lists(near() | st.binary(max_size=60), max_size=5)
LAWS: list[tuple[Any, dict[str, Any]]] = [
    (check_near, {"request": near()}),
    (check_bytes, {"method": METHOD, "raw": BYTES}),
    (check_damaged, {"request": near(), **DAMAGE}),
    (check_stream, {"messages": MESSAGES_OF_A_STREAM}),
]


def hold(law: Any, strategies: dict[str, Any], channel: grpc.Channel, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(**strategies)
    def each(**drawn: Any) -> None:
        law(channel, **drawn)

    each()


@pytest.mark.parametrize(("law", "strategies"), LAWS)
@pytest.mark.usefixtures("right_afterwards")
def test_no_message_breaks_the_server(
    channel: grpc.Channel, law: Any, strategies: dict[str, Any]
) -> None:
    hold(law, strategies, channel, SHORT)


@pytest.mark.slow  # 80,000 calls take minutes
@pytest.mark.parametrize(("law", "strategies"), LAWS)
@pytest.mark.usefixtures("right_afterwards")
def test_no_message_of_very_many_breaks_the_server(
    channel: grpc.Channel, law: Any, strategies: dict[str, Any]
) -> None:
    hold(law, strategies, channel, LONG)
