"""What is counted: that the page agrees with what was asked, and that its labels are few."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.calls import Call
from serving.launch import Server, serve
from serving.metrics import SECONDS, Metrics
from serving.telemetry import INTERVAL, Telemetry

IMAGE = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Page:
    """Every sample of a page, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(page: Page, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(v for (n, own), v in page.items() if n == name and labels.items() <= own)


def page_of(metrics: Metrics) -> Page:
    return read(generate_latest(metrics.registry).decode())


def test_what_an_engine_took_to_open_and_holds_is_told() -> None:
    metrics = Metrics()
    metrics.opened("m", "1", 0.5, 1024)
    page = page_of(metrics)
    assert total(page, "fucina_model_open_seconds", model="m", version="1") == 0.5
    assert total(page, "fucina_model_device_bytes", model="m", version="1") == 1024


@given(st.lists(st.floats(0, 100), max_size=50))
def test_what_is_added_up_is_what_prometheus_would_have_counted(seen: list[float]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    plain = Histogram("plain", "", buckets=SECONDS, registry=registry)
    for value in seen:
        plain.observe(value)
        metrics.batched("m", "1", 1, [value], 0.0)
        if value > 50:
            metrics.flush()
    metrics.flush()
    metrics.flush()  # what was handed over is not handed over again
    expected, got = read(generate_latest(registry).decode()), page_of(metrics)
    for (name, labels), value in expected.items():
        if not name.endswith("_created"):
            ours = total(got, name.replace("plain", "fucina_queue_seconds"), **dict(labels))
            assert ours == pytest.approx(value)


def test_calls_are_counted_by_code_and_what_is_under_way_is_known() -> None:
    telemetry = Telemetry()
    calls = [
        Call("http", "/a", model="m", version="1", code=code, received=10, sent=3)
        for code in ("200", "200", "503")
    ]
    for call in calls:
        telemetry.begin(call)
    telemetry.flush()
    assert total(page_of(telemetry.metrics), "fucina_in_flight", transport="http") == 3
    for call in calls[:2]:
        telemetry.end(call)
    telemetry.flush()
    page = page_of(telemetry.metrics)
    assert total(page, "fucina_in_flight") == 1
    assert total(page, "fucina_requests_total", code="200", model="m", version="1") == 2
    assert total(page, "fucina_requests_total", code="503") == 0
    assert total(page, "fucina_received_bytes_total", route="/a") == 20
    assert total(page, "fucina_sent_bytes_total", route="/a") == 6


@pytest.fixture(scope="module")
def pair_of_workers(digits: Path) -> Iterator[Server]:
    with serve([digits], port=0, grpc_port=0, workers=2) as running:
        yield running


def fetch(server: Server) -> Page:
    return read(httpx.get(f"{server.http}/metrics").text)


def settled(server: Server) -> Page:
    """The page once every worker has handed over what it had counted."""
    time.sleep(2 * INTERVAL)
    return fetch(server)


def test_the_page_is_that_of_all_workers(pair_of_workers: Server) -> None:
    server = pair_of_workers
    infer = f"{server.http}/v2/models/digits/infer"
    before = settled(server)
    sizes: dict[str, int] = {"received": 0, "sent": 0}
    for number in range(30):
        document: Any = {"inputs": [IMAGE]} if number % 3 else {"inputs": []}
        # A connection of its own each: the system gives it to either worker.
        answer = httpx.post(infer, json=document)
        assert answer.status_code == (200 if number % 3 else 400)
        sizes["received"] += len(answer.request.content)
        sizes["sent"] += len(answer.content)
    page = settled(server)

    def grown(name: str, **labels: str) -> float:
        return total(page, name, **labels) - total(before, name, **labels)

    route = "/v2/models/{model}/infer"
    assert grown("fucina_requests_total", route=route, code="200") == 20
    assert grown("fucina_requests_total", route=route, code="400", model="digits") == 10
    assert grown("fucina_request_seconds_count", route=route, version="1") == 30
    assert grown("fucina_received_bytes_total", route=route) == sizes["received"]
    assert grown("fucina_sent_bytes_total", route=route) == sizes["sent"]
    assert grown("fucina_queue_seconds_count", model="digits", version="1") == 20
    assert grown("fucina_batch_rows_sum", model="digits") == 20
    assert grown("fucina_engine_seconds_sum", model="digits") > 0
    assert total(page, "fucina_workers_ready") == 2
    assert total(page, "fucina_model_ready", model="digits", target="ort-cpu-fp32") == 2
    assert total(page, "fucina_model_loads_total", result="ok") == 2
    assert total(page, "fucina_model_loads_total", result="failed") == 0
    assert total(page, "fucina_model_open_seconds", model="digits") > 0
    (build,) = [labels for name, labels in page if name == "fucina_build"]
    assert dict(build)["onnxruntime"]


def test_what_a_client_makes_up_is_no_label(pair_of_workers: Server) -> None:
    server = pair_of_workers
    for path in ("/v2/models/x/infer", "/x", "/v2/x"):  # each kind of refusal once
        httpx.post(f"{server.http}{path}", json={"inputs": [IMAGE]})
    before = settled(server)
    with httpx.Client(base_url=server.http) as client:
        for number in range(20):
            made_up = f"made-up-{number}"
            for path in (
                f"/v2/models/{made_up}/infer", f"/{made_up}", f"/v2/{made_up}",
                f"/v2/models/digits/versions/{made_up}/infer",
            ):  # fmt: skip
                headers = {"x-request-id": made_up}
                answer = client.post(path, json={"inputs": [IMAGE]}, headers=headers)
                assert answer.status_code in (404, 405)
    page = settled(server)
    assert not [labels for _, labels in page if any("made-up" in value for _, value in labels)]
    # One route is new, that which names a version.
    new = {dict(labels).get("route") for _, labels in page.keys() - before.keys()}
    assert new <= {"/v2/models/{model}/versions/{version}/infer"}
