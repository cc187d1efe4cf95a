"""Observations in, actions out, over a real server."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st

from models.codec import Codec
from models.errors import BadInput, BundleError
from models.signature import Arrays
from pipeline.artifacts import write_json
from pipeline.bundle import open_bundle
from pipeline.values import CODEC
from serving.acting import choose, read_observation
from serving.ask import ask
from serving.launch import Server, serve
from serving.opening import open_bundles
from tests.serving.conftest import TARGET, write_manifest
from tests.serving.control_bundle import GRID, MOST, POLE, Agent, make_bundle

# BentoML uses a deprecated name of pydantic's when it makes a message.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from serving.act_messages import ActResponse

AGENTS = pytest.mark.parametrize("agent", [POLE, GRID], ids=["pole", "grid"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("control")
    return {agent.name: make_bundle(agent, folder) for agent in (POLE, GRID)}


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, forbidden_imports: Path
) -> Iterator[Server]:
    """Two agents, and a model of this kind that names no actions."""
    mute = tmp_path_factory.mktemp("mute") / "mute"
    shutil.copytree(bundles["pole"], mute)
    write_json(mute / CODEC, Codec().model_dump(mode="json"))
    write_manifest(mute, name="mute", kind="control", signature=POLE.signature)
    with serve([*bundles.values(), mute], port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def act(http: httpx.Client, agent: Agent, observation: np.ndarray) -> ActResponse:
    body = {"model": agent.name, "observation": observation.tolist()}
    response = http.post("/act", json=body)
    assert response.status_code == 200, response.text
    return ActResponse.model_validate(response.json())


def limit(bundle: Path) -> float:
    found = open_bundle(bundle).certificate(TARGET).limits["q_values"]
    return found.limit * found.scale


@AGENTS
@pytest.mark.parametrize("rows", [1, 2, 7, MOST])
def test_every_observation_is_answered_with_its_best_action(
    http: httpx.Client, bundles: dict[str, Path], agent: Agent, rows: int
) -> None:
    seen = agent.observations(rows, seed=rows)
    answer = act(http, agent, seen)
    assert (answer.model, answer.version) == (agent.name, "1")
    assert len(answer.actions) == rows
    values = np.array([list(action.q_values.values()) for action in answer.actions])
    expected = agent.answer(seen)
    np.testing.assert_allclose(values, expected, rtol=0, atol=limit(bundles[agent.name]))
    for action, row in zip(answer.actions, expected, strict=True):
        assert tuple(action.q_values) == agent.actions
        assert action.action == row.argmax()
        assert action.name == agent.actions[action.action]


@AGENTS
def test_one_observation_and_a_list_of_one_are_told_apart_by_their_rank(
    http: httpx.Client, agent: Agent
) -> None:
    seen = agent.observations(1)
    assert act(http, agent, seen[0]) == act(http, agent, seen)


@AGENTS
def test_what_is_answered_is_what_the_engine_says_to_the_bit(
    http: httpx.Client, bundles: dict[str, Path], agent: Agent
) -> None:
    seen = agent.observations(5, seed=9)
    expected = open_bundle(bundles[agent.name]).open_engine(TARGET).run({"observation": seen})
    answer = act(http, agent, seen)
    values = [list(action.q_values.values()) for action in answer.actions]
    np.testing.assert_array_equal(np.array(values, np.float32), expected["q_values"])


@pytest.mark.parametrize(("agent", "first"), [(POLE, 0), (GRID, 1)])
def test_of_equal_values_the_first_is_taken(http: httpx.Client, agent: Agent, first: int) -> None:
    """Where nothing is seen the values are the biases, the best of which are equal."""
    (action,) = act(http, agent, np.zeros(agent.shape)).actions
    assert tuple(action.q_values.values()) == agent.bias
    assert agent.bias.count(max(agent.bias)) == 2
    assert action.action == first


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_action_is_the_lowest_index_of_the_greatest_value(rows: list[list[int]]) -> None:
    actions = GRID.codec.actions
    assert actions is not None
    taken = choose(actions, {"q_values": np.array(rows, np.float32)})
    assert [one["action"] for one in taken] == [row.index(max(row)) for row in rows]


def test_agents_that_ask_at_once_each_get_their_own_answer(http: httpx.Client) -> None:
    asked = [(a, a.observations(1 + n % 5, seed=n)) for n in range(12) for a in (POLE, GRID)]

    def one(question: tuple[Agent, np.ndarray]) -> list[int]:
        return [action.action for action in act(http, *question).actions]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, asked))
    assert answers == [agent.answer(seen).argmax(1).tolist() for agent, seen in asked]


SEEN = [0.5, -0.5, 0.25, 1]
HUGE = [3e38, 3e38, 3e38, 3e38]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "the body is empty"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object: got list"),
        (b'{"model": "pole"}', 400, 'field \'observation\' is missing: expected {"observation"'),
        (b'{"observation": [0, 0, 0, 0]}', 400, "'model' is missing and several are served"),
        ({"model": "none", "observation": SEEN}, 404, "model 'none' is unknown"),
        ({"model": 3, "observation": SEEN}, 400, "field 'model' is of a wrong type"),
        (
            {"model": "mute", "observation": SEEN}, 400,
            "model 'mute' names no actions: expected POST /v2/models/mute/infer",
        ),
        ({"observations": SEEN}, 400, "field 'observations' is unknown"),
        ({"observation": SEEN, "greedy": True}, 400, "field 'greedy' is unknown"),
        ({"observation": None}, 400, "field 'observation' is of a wrong type: got NoneType"),
        ({"observation": "up"}, 400, "got str, expected numbers in lists"),
        ({"observation": True}, 400, "got bool, expected numbers in lists"),
        ({"observation": {"x": 1}}, 400, "got dict, expected numbers in lists"),
        ({"observation": 1.5}, 400, "got [], expected one observation [4], or a list of them"),
        ({"observation": [[SEEN]]}, 400, "got [1, 1, 4], expected one observation [4], or a list"),
        ({"observation": []}, 400, "float32[batch 1..32, 4]"),
        ({"observation": [[]]}, 400, "float32[batch 1..32, 4]"),
        ({"observation": SEEN[:3]}, 400, "got [1, 3], expected float32[batch 1..32, 4]"),
        ({"observation": [SEEN] * 33}, 400, "'batch'"),
        ({"observation": [SEEN, SEEN[:3]]}, 400, "'observation' is ragged at depth 1"),
        ({"observation": [0, 0, 0, "1"]}, 400, "holds values of a wrong type: got '1'"),
        ({"observation": [0, 0, 0, None]}, 400, "holds values of a wrong type: got null"),
        ({"observation": [0, 0, 0, True]}, 400, "holds values of a wrong type: got True"),
        ({"observation": [0, 0, 0, float("nan")]}, 400, "1 NaN or infinite of 4"),
        ({"observation": [SEEN, [0, 0, 0, float("inf")]]}, 400, "1 NaN or infinite of 8"),
        ({"observation": [0, 0, 0, 1e39]}, 400, "1 NaN or infinite of 4"),
        ({"observation": [0, 0, 0, 10**400]}, 400, "out of range"),
        ({"observation": HUGE}, 400, "output 'q_values' is not finite for these inputs"),
        ({"model": "grid", "observation": SEEN}, 400, "expected one observation [3, 5, 5], or a"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_clear_line(
    http: httpx.Client, body: bytes | dict[str, Any], status: int, expected: str
) -> None:
    # The standard library writes NaN and Infinity, as Python clients do.
    content = body if isinstance(body, bytes) else json.dumps({"model": "pole"} | body)
    response = http.post("/act", content=content)
    assert response.status_code == status, response.text
    assert expected in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert http.post("/act", json={"model": "pole", "observation": SEEN}).status_code == 200


def test_an_observation_may_be_a_single_number() -> None:
    """As of an environment whose states are counted."""
    agent = Agent("counted", (), ("stay", "go"), (0.0, 0.0))
    actions = agent.codec.actions
    assert actions is not None
    for value, shape in ((2, (1,)), ([2, 1, 0], (3,))):
        arrays: Arrays = read_observation(actions, agent.signature, value)
        assert arrays["observation"].shape == shape
    with pytest.raises(BadInput, match="expected one observation \\[\\], or a list of them"):
        read_observation(actions, agent.signature, [[1]])


@AGENTS
def test_stock_clients_ask_over_both_transports(
    server: Server, bundles: dict[str, Path], agent: Agent
) -> None:
    seen = agent.observations(6, seed=4)
    expected = open_bundle(bundles[agent.name]).open_engine(TARGET).run({"observation": seen})
    clients: list[tuple[Any, Any]] = [
        (triton_http, triton_http.InferenceServerClient(server.http.removeprefix("http://"))),
        (triton_grpc, triton_grpc.InferenceServerClient(server.grpc)),
    ]
    for module, client in clients:
        with client:
            assert client.is_model_ready(agent.name)
            sent = module.InferInput("observation", list(seen.shape), "FP32")
            sent.set_data_from_numpy(seen)
            found = client.infer(agent.name, [sent]).as_numpy("q_values")
            np.testing.assert_array_equal(found, expected["q_values"])


@AGENTS
def test_both_transports_reproduce_every_recorded_case(
    server: Server, bundles: dict[str, Path], agent: Agent
) -> None:
    for findings in ask(server.http, server.grpc, open_bundle(bundles[agent.name])).values():
        assert findings
        assert all(finding.passed for finding in findings)


def test_the_schema_is_typed_by_the_served_signatures(http: httpx.Client) -> None:
    document = http.get("/docs.json").json()
    post = document["paths"]["/act"]["post"]
    asked = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {"model", "observation"}
    assert asked["required"] == ["observation"]
    ways = {way["title"]: way for way in asked["properties"]["observation"]["oneOf"]}
    assert list(ways) == [
        f"{name}: {what}" for name in ("pole", "grid") for what in ("one observation", "several")
    ]
    assert ways["pole: one observation"]["maxItems"] == 4
    assert ways["pole: several"]["maxItems"] == MOST
    assert ways["pole: several"]["items"]["items"] == {"type": "number"}
    told = post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert set(told) == {"model", "version", "actions"}
    action = document["components"]["schemas"]["Action"]["properties"]
    assert action["action"]["type"] == "integer"
    assert action["q_values"]["additionalProperties"] == {"type": "number"}


def test_the_serving_process_loads_no_training_library(
    http: httpx.Client, forbidden_imports: Path
) -> None:
    act(http, POLE, POLE.observations(1))
    assert not forbidden_imports.exists(), forbidden_imports.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation": "picture"}, "acts on an observation: got float32.*one input 'picture'"),
        ({"values": "worth"}, "its codec names 2 actions.*a floating output 'worth' of as many"),
        (
            {"names": ["left", "stay", "right"]},
            "its codec names 3 actions: got float32.batch 1..32, 2.",
        ),
        ({"names": []}, "its codec names 0 actions"),
        ({"names": ["left", "left"]}, "its codec names its actions: got left, left, expected diff"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(
    bundles: dict[str, Path], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    bundle = tmp_path / "pole"
    shutil.copytree(bundles["pole"], bundle)
    codec = POLE.codec.model_dump(mode="json")
    codec["actions"] |= change
    write_json(bundle / CODEC, codec)
    write_manifest(bundle, name="pole", kind="control", signature=POLE.signature)
    with pytest.raises(BundleError, match=words):
        open_bundles([bundle])
