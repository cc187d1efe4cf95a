"""The OpenAPI document covers what is served, and no request it leads to breaks the server."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from serving.launch import Server
from tests.serving.conftest import assert_alive

# Requests of each operation, of which schemathesis breaks the schema with about half.
FEW, MANY = 5, 1000


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    response = http.get("/openapi.json")
    assert response.status_code == 200, response.text
    return response.json()


def test_the_document_covers_both_halves(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert document["openapi"] == "3.1.0"
    assert {"/predict", "/predict_image", "/livez", "/metrics", "/v2", "/v2/repository/index"} < (
        paths.keys()
    )
    for name in ("digits", "pair", "words", "level"):
        assert f"/v2/models/{name}/versions/{{version}}/infer" in paths
    assert not any(path.endswith("/load") for path in paths), "admin is off"


def test_the_document_is_typed_by_the_served_signatures(document: dict[str, Any]) -> None:
    def body(path: str) -> Any:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        return content["application/json"]["schema"]["properties"]

    tensor = body("/v2/models/digits/infer")["inputs"]["items"]["properties"]
    assert tensor["name"] == {"const": "image"}
    assert tensor["datatype"] == {"const": "FP32"}
    batch, *rest = tensor["shape"]["prefixItems"]
    assert (batch["minimum"], batch["maximum"]) == (1, 64)
    assert rest == [{"const": 1}, {"const": 28}, {"const": 28}]
    both = body("/v2/models/pair/infer")["inputs"]
    assert both["minItems"] == both["maxItems"] == 2
    typed = {one["title"]: one for one in body("/predict")["inputs"]["oneOf"]}
    assert typed["pair"]["required"] == ["left", "right"]
    assert body("/predict")["text"]["oneOf"][2] == {"type": "null"}


def test_every_reference_is_there(document: dict[str, Any]) -> None:
    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if "$ref" in part else set()
            return own.union(*(references(value) for value in part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    found = references(document)
    assert "#/components/schemas/Error" in found
    for reference in found:
        at = document
        for key in reference.removeprefix("#/").split("/"):
            at = at[key]


def test_the_examples_are_answered(document: dict[str, Any], http: httpx.Client) -> None:
    asked = 0
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        example = content.get("application/json", {}).get("example")
        if example is not None:
            response = http.post(path.replace("{version}", "1"), json=example)
            assert response.status_code == 200, (path, response.text)
            asked += 1
    assert asked == 8


def sweep(server: Server, each: int) -> int:
    """Ask every operation `each` times; how many requests were answered, none with a fault."""
    schema = schemathesis.openapi.from_url(f"{server.http}/openapi.json")
    asked = 0
    with httpx.Client(base_url=server.http, timeout=30) as alive:
        for found in schema.get_all_operations():
            operation = found.ok()  # pyright: ignore[reportAttributeAccessIssue]  # raises

            @given(case=st.one_of(*(operation.as_strategy(generation_mode=m) for m in MODES)))
            @settings(
                max_examples=each,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
                phases=[Phase.generate],
            )
            def ask(case: Any) -> None:
                nonlocal asked
                response = case.call(base_url=server.http, timeout=30)
                asked += 1
                # Deliberate ones say when to come back.
                if response.status_code != 503 or "retry-after" not in response.headers:
                    case.validate_response(response, checks=[not_a_server_error])

            ask()
            assert_alive(alive)
    return asked


MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def test_no_request_out_of_the_document_is_a_fault(server: Server) -> None:
    assert sweep(server, FEW) > 100


@pytest.mark.slow
def test_no_request_of_very_many_is_a_fault(server: Server) -> None:
    """About twenty thousand requests: some minutes."""
    assert sweep(server, MANY) > 15_000
