"""The gate: keys, permissions, and how many calls of one client there may be at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Forbidden, Overloaded, TooMany, Unauthenticated
from serving.calls import CALL, Call, note_model
from serving.gate import PROBES, Gate
from serving.keys import add_key, revoke_key
from serving.settings import Settings

INFER = "/v2/models/{model}/infer"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def call(client: str = "10.0.0.1", route: str = INFER, transport: str = "http") -> Call:
    return Call(transport, route, client=client)


def test_a_known_key_names_the_client(keys: Path) -> None:
    key = add_key(keys, "ada", models=("digits",))
    gate = Gate(Settings(api_keys=keys))
    for scheme in ("Bearer", "bearer", "BEARER"):
        asked = call()
        gate.admit(asked, f"{scheme} {key}")
        gate.leave(asked)
        assert (asked.client, asked.models) == ("ada", ("digits",))


@pytest.mark.parametrize("route", [INFER, "/metrics", "/docs.json", "/", "/predict", "", "/v2"])
def test_without_a_known_key_nothing_is_answered(keys: Path, route: str) -> None:
    key = add_key(keys, "ada")
    gate = Gate(Settings(api_keys=keys))
    for given_ in ("", key, "Bearer", "Bearer ", f"Basic {key}", f"Bearer {key}x", "Bearer \xff"):
        with pytest.raises(Unauthenticated) as caught:
            gate.admit(call(route=route), given_)
        assert key not in str(caught.value)


def test_probes_need_no_key_and_are_not_counted(keys: Path) -> None:
    add_key(keys, "ada")
    gate = Gate(Settings(api_keys=keys, per_client=1))
    routes = [("http", route) for route in PROBES if route.startswith("/")]
    routes += [("grpc", "ServerLive"), ("grpc", "/grpc.health.v1.Health/Check")]
    for transport, route in routes:
        probes = [call(route=route, transport=transport) for _ in range(3)]
        for probe in probes:
            gate.admit(probe)
        for probe in probes:
            gate.leave(probe)
    for transport, route in [("grpc", "ModelInfer"), ("grpc", "/a.B/ModelReady"), ("http", "")]:
        with pytest.raises(Unauthenticated):
            gate.admit(call(route=route, transport=transport))


def test_a_page_is_open_only_where_there_is_one(keys: Path) -> None:
    add_key(keys, "ada")
    Gate(Settings(api_keys=keys, playground=True)).admit(call(route="/"))
    for route in ("/playground/models.json", "/predict"):
        with pytest.raises(Unauthenticated):
            Gate(Settings(api_keys=keys, playground=True)).admit(call(route=route))


def test_who_may_load_and_unload(keys: Path) -> None:
    ada, root = add_key(keys, "ada"), add_key(keys, "root", admin=True)
    closed, opened = Settings(), Settings(admin=True)
    with pytest.raises(Forbidden, match="serve it with --admin"):
        Gate(closed).admit(call(), admin=True)
    Gate(opened).admit(call(), admin=True)
    with pytest.raises(Forbidden, match="serve it with --admin"):
        Gate(Settings(api_keys=keys)).admit(call(), f"Bearer {root}", admin=True)
    gate = Gate(Settings(api_keys=keys, admin=True))
    gate.admit(call(), f"Bearer {root}", admin=True)
    with pytest.raises(Forbidden, match="'ada' may not"):
        gate.admit(call(), f"Bearer {ada}", admin=True)
    with pytest.raises(Unauthenticated):
        gate.admit(call(), admin=True)


def test_a_key_asks_its_own_models_and_their_parts() -> None:
    asked = Call("http", models=("digits", "words"))
    token = CALL.set(asked)
    try:
        note_model("digits", "2")
        note_model("digits.decoder", "2")
        assert (asked.model, asked.version) == ("digits.decoder", "2")
        for other in ("pair", "digit", "pair.digits", ""):
            with pytest.raises(Forbidden, match=f"may not ask model {other!r}"):
                note_model(other, "1")
        assert asked.model == "digits.decoder"
    finally:
        CALL.reset(token)


def test_a_revoked_key_is_refused_by_the_next_call(keys: Path) -> None:
    key = add_key(keys, "ada")
    gate = Gate(Settings(api_keys=keys))
    gate.admit(call(), f"Bearer {key}")
    revoke_key(keys, "ada")
    with pytest.raises(Unauthenticated):
        gate.admit(call(), f"Bearer {key}")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(1, 4))
def test_no_client_has_more_than_its_share_and_none_takes_anothers(
    steps: list[tuple[str, bool]], most: int
) -> None:
    gate = Gate(Settings(per_client=most))
    under_way: dict[str, list[Call]] = {"a": [], "b": [], "c": []}
    for client, arrives in steps:
        calls = under_way[client]
        if not arrives:
            if calls:
                gate.leave(calls.pop())
            continue
        asked = call(client)
        if len(calls) < most:
            gate.admit(asked)
            calls.append(asked)
        else:
            with pytest.raises(TooMany, match=f"at most {most}"):
                gate.admit(asked)
    counts: Any = {client: len(calls) for client, calls in under_way.items() if calls}
    assert gate._under_way == Counter(counts)  # nothing is kept of who has left


def test_the_share_is_of_a_key_not_of_an_address(keys: Path) -> None:
    ada, bob = add_key(keys, "ada"), add_key(keys, "bob")
    gate = Gate(Settings(api_keys=keys, per_client=1))
    gate.admit(call("10.0.0.1"), f"Bearer {ada}")
    gate.admit(call("10.0.0.1"), f"Bearer {bob}")
    with pytest.raises(TooMany):
        gate.admit(call("10.0.0.2"), f"Bearer {ada}")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), max_size=40))
def test_bytes_under_way_are_bounded_and_given_back(steps: list[tuple[int, int]]) -> None:
    gate = Gate(Settings(largest_body=100))  # 800 bytes in all
    calls = [call() for _ in range(4)]
    for one in calls:
        gate.admit(one)
    for which, size in steps:
        held = sum(one.held for one in calls)
        if size == 0:
            gate.leave(calls[which])
            continue
        before = calls[which].held
        try:
            gate.hold(calls[which], size)
        except Overloaded:
            assert held > 0
            assert held + size > 800
            assert calls[which].held == before
        else:
            assert held == 0 or held + size <= 800
    for one in calls:
        gate.leave(one)
    gate.hold(calls[0], 800)  # all of it is there again
    with pytest.raises(Overloaded, match="too many bytes are under way: got 800"):
        gate.hold(calls[1], 1)
