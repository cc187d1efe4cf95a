"""Traces, read by a receiver of OTLP; and the access log."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import generate_latest

from models.errors import BadSetting
from serving import access_log
from serving.access_log import AccessLog
from serving.calls import Call
from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import serve
from serving.telemetry import Telemetry
from serving.tracing import open_tracing

IMAGE = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_PARENT = f"00-{TRACE}-{PARENT}-01"
REQUEST = MESSAGES["ModelInferRequest"](
    model_name="digits",
    id="asked",
    inputs=[{"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28]}],
    raw_input_contents=[bytes(4 * 784)],
)
INFER = "/v2/models/{model}/infer"


@dataclass
class Receiver:
    """What came to a receiver: spans as flat dictionaries."""

    address: str
    spans: list[dict[str, Any]] = field(default_factory=list)

    def wait(self, count: int) -> list[dict[str, Any]]:
        for _ in range(300):
            if len(self.spans) >= count:
                return self.spans
            time.sleep(0.1)
        raise AssertionError(f"{len(self.spans)} of {count} spans came")


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in request.resource_spans:
                for span in [span for scope in resource.scope_spans for span in scope.spans]:
                    said = {
                        a.key: a.value for a in (*resource.resource.attributes, *span.attributes)
                    }
                    receiver.spans.append(
                        {k: getattr(v, v.WhichOneof("value") or "") for k, v in said.items()}
                        | {
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "failed": span.status.code == span.status.STATUS_CODE_ERROR,
                        }
                    )
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


def test_a_call_is_traced_and_logged(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with serve([digits], port=0, grpc_port=0) as server:
            infer = f"{server.http}/v2/models/digits/infer"
            headers = {"traceparent": _PARENT, "x-request-id": 'a"b'}
            answer = httpx.post(infer, json={"inputs": [IMAGE]}, headers=headers)
            assert answer.status_code == 200
            assert httpx.post(infer, content=b"secret", params={"k": "v"}).status_code == 400
            assert httpx.get(f"{server.http}/made-up%0Apath").status_code == 404
            with grpc.insecure_channel(server.grpc) as channel:
                ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                ask(REQUEST.SerializeToString(), metadata=(("traceparent", _PARENT),))
            receiver.wait(4)
    spans = {span["fucina.request.id"]: span for span in receiver.spans}
    span = spans.pop('a"b')
    assert (span["trace"], span["parent"], span["failed"]) == (TRACE, PARENT, False)
    assert (span["name"], span["http.route"], span["service.name"]) == (INFER, INFER, "fucina")
    assert (span["fucina.model"], span["fucina.version"]) == ("digits", "1")
    assert span["http.response.status_code"] == 200
    assert span["fucina.batch.rows"] == 1
    assert span["fucina.engine.seconds"] > 0
    assert span["fucina.queue.seconds"] >= 0
    assert span["fucina.received"] == len(answer.request.content)
    called = spans.pop("asked")
    assert (called["trace"], called["parent"], called["failed"]) == (TRACE, PARENT, False)
    assert (called["name"], called["rpc.method"]) == ("ModelInfer", "ModelInfer")
    assert (called["rpc.response.status_code"], called["fucina.batch.rows"]) == ("OK", 1)
    assert len(spans) == 2  # no probe's
    assert not [other for other in spans.values() if other["failed"] or other["trace"] == TRACE]

    said = capfd.readouterr().err
    # Other servers of this process, which trace nothing, may still be saying something.
    lines = [json.loads(line) for line in said.splitlines() if '"trace"' in line]
    codes = {"200": INFER, "400": INFER, "404": None, "OK": "ModelInfer"}
    assert {line["code"]: line.get("route") for line in lines} == codes  # and no probe
    logged = next(line for line in lines if line["code"] == "200")
    assert (logged["id"], logged["trace"], logged["model"]) == ('a"b', TRACE, "digits")
    assert (logged["client"], logged["transport"]) == ("127.0.0.1", "http")
    assert (logged["received"], logged["sent"]) == (
        len(answer.request.content), len(answer.content),
    )  # fmt: skip
    assert not [word for word in ("secret", "made-up", "k=v") if word in said]


def test_without_the_variables_nothing_is_traced() -> None:
    assert open_tracing({"PATH": "/"}) is None
    assert open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None


def test_an_exporter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match=r"asks for traces.*fucina\[trace\]"):
        open_tracing({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"})


def _ended(number: int = 0, **facts: Any) -> Call:
    return Call("http", INFER, id=str(number), code="200", **facts)


@given(st.text(), st.text(), st.text())
def test_a_line_is_one_line_of_json_whatever_stands_in_it(id: str, client: str, model: str) -> None:
    def encodable(text: str) -> str:  # as names of keys and models, and ids, are
        return text.encode(errors="replace").decode()

    call = Call("http", INFER, encodable(id), encodable(client), model=encodable(model), code="200")
    line = access_log.line(call, 0.5, 0.0)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    said = json.loads(line)
    assert (said["id"], said["client"], said["ms"]) == (call.id, call.client, 500)


@pytest.mark.parametrize("route", ["/livez", "/v2/health/ready", "/metrics", "/startupz"])
def test_probes_are_counted_and_not_logged(route: str) -> None:
    pieces: list[bytes] = []
    log = AccessLog(pieces.append)
    telemetry = Telemetry(log)
    for call in (
        Call("http", route, code="200"),
        Call("http", route, code="503"),
        Call("grpc", "/grpc.health.v1.Health/Check", code="OK"),
        _ended(),
    ):
        telemetry.begin(call)
        telemetry.end(call)
    telemetry.flush()
    log.close()
    assert b"".join(pieces).count(b"\n") == 1
    page = generate_latest(telemetry.metrics.registry).decode()
    assert f'fucina_requests_total{{code="503",model="",route="{route}"' in page


def test_lines_of_several_workers_do_not_mix(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            lines.extend(pipe)

    reader = threading.Thread(target=read)
    reader.start()
    logs = [AccessLog(lambda piece: os.write(writing, piece)) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for log in logs:
            threads.submit(lambda log=log: [log.add(_ended(n), 0.1) for n in range(1000)])
    for log in logs:
        log.close()
    os.close(writing)
    reader.join()
    assert sorted(int(json.loads(line)["id"]) for line in lines) == sorted([*range(1000)] * 4)


def test_a_reader_that_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "MOST", 10)
    free = threading.Event()
    log = AccessLog(lambda piece: free.wait())
    for number in range(100):
        log.add(_ended(number), 0.1)
    assert log.dropped == 90
    log.close()  # a second, and no more
    free.set()


def test_when_nobody_reads_lines_are_counted_as_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = AccessLog(lambda piece: os.write(writing, piece))
    for number in range(3):
        log.add(_ended(number), 0.1)
    log.close()
    os.close(writing)
    assert log.dropped == 3
