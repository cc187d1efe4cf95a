"""What Prometheus reads of a worker; BentoML's `/metrics` is the page of all workers.

Labels are names of served models, templates of routes and codes, never what a client made up.
"""

from __future__ import annotations

import os
import platform
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from serving.calls import Call
from serving.workers import SHARED, lives

# Seconds, of calls, queues and engines: a small engine takes 0.1 ms, a long text tens of seconds.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
    10, 30, 60,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OTHER = "other"  # the route of what no route takes
_PACKAGES = ("fucina", "bentoml", "grpcio", "onnxruntime", "onnxruntime-gpu", "tensorrt")


@dataclass(slots=True)
class _Seen:
    """What was observed since the last flush: how many in each bucket, and their sum."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def flush(self, histogram: Any) -> None:
        """Hand over to a histogram's child, which has no public way to take many at a time."""
        for place, count in enumerate(self.counts):
            if count:
                histogram._buckets[place].inc(count)
                self.counts[place] = 0
        histogram._sum.inc(self.total)
        self.total = 0.0


@dataclass(slots=True)
class _Calls:
    """The calls of one route, model, version and code since the last flush."""

    seconds: _Seen
    received: int = 0
    sent: int = 0


@dataclass(slots=True)
class _Batches:
    """The batches of one model and version since the last flush."""

    rows: _Seen
    queue: _Seen
    engine: _Seen


class Metrics:
    """The numbers of one process, called as `Telemetry` is.

    What happens at each call is added up here first: to write into the files that the workers share
    would take 2 microseconds a number.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fucina_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Gauge:
            return Gauge(f"fucina_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"fucina_{name}", text, labels, buckets=bounds, registry=registry)

        model = ("model", "version")
        call = ("transport", "route", *model)
        self.registry = registry
        self._requests = counter("requests", "Calls answered, by code.", *call, "code")
        self._seconds = histogram("request_seconds", "Seconds a call took.", SECONDS, *call)
        self._received = counter("received_bytes", "Bytes of bodies that came.", *call)
        self._sent = counter("sent_bytes", "Bytes of bodies that went.", *call)
        self._in_flight = gauge("in_flight", "Calls being answered.", "transport")
        self._queue = histogram("queue_seconds", "Seconds until its batch began.", SECONDS, *model)
        self._rows = histogram("batch_rows", "Rows of an engine's batch.", ROWS, *model)
        self._engine = histogram("engine_seconds", "Seconds of a batch.", SECONDS, *model)
        self._worker = gauge("workers_ready", "Workers that answer.")
        # `requested` is another target where the engine stands in for it; `why` says so in a word.
        served = ("target", "requested", "why")
        self._ready = gauge("model_ready", "Workers in which a model answers so.", *model, *served)
        self._loads = counter("model_loads", "Models opened and replayed.", *model, "result")
        self._opening = gauge(
            "model_open_seconds", "Seconds to open, replay and measure.", *model, mode="livemax"
        )
        self._held = gauge("model_device_bytes", "Memory of its device that it holds.", *model)
        self._swaps = counter("model_swaps", "Versions that took over.", *model, "result")
        self._compared = counter("recheck_comparisons", "Answers held to the reference.", *model)
        self._skipped = counter("recheck_skipped", "Answers not held to it: it was busy.", *model)
        self._worst = gauge(
            "recheck_worst_ratio", "Largest error over its limit.", *model, mode="max"
        )
        self._alarms = counter("recheck_alarms", "Answers beyond their limit.", *model)
        self._dropped = counter("access_log_dropped", "Lines that could not be written.")
        packages = {name.replace("-", "_"): _version(name) for name in _PACKAGES}
        build = gauge("build", "What runs here.", "python", *packages, mode="livemax")
        build.labels(platform.python_version(), *packages.values()).set(1)
        self._running: dict[str, int] = {}
        self._calls: dict[tuple[str, str, str, str, str], _Calls] = {}
        self._batches: dict[tuple[str, str], _Batches] = {}
        self._lock = threading.Lock()  # over batches, some of which end in a thread
        self._told = 0
        _forget_dead()

    def begin(self, transport: str) -> None:
        self._running[transport] = self._running.get(transport, 0) + 1

    def end(self, call: Call, seconds: float) -> None:
        self._running[call.transport] -= 1
        key = (call.transport, call.route or OTHER, call.model, call.version, call.code)
        calls = self._calls.get(key)
        if calls is None:
            calls = self._calls[key] = _Calls(_Seen(SECONDS))
        calls.seconds.add(seconds)
        calls.received += call.received
        calls.sent += call.sent

    def batched(
        self, model: str, version: str, rows: int, waited: Sequence[float], seconds: float
    ) -> None:
        with self._lock:
            batches = self._batches.get((model, version))
            if batches is None:
                batches = _Batches(_Seen(ROWS), _Seen(SECONDS), _Seen(SECONDS))
                self._batches[model, version] = batches
            batches.rows.add(rows)
            batches.engine.add(seconds)
            for wait in waited:
                batches.queue.add(wait)

    def model_state(self, model: str, version: str, served: Sequence[str], ready: bool) -> None:
        """Served as which target, instead of which, and why in a word."""
        self._ready.labels(model, version, *served).set(ready)

    def loaded(self, model: str, version: str, ok: bool) -> None:
        self._loads.labels(model, version, _result(ok)).inc()

    def opened(self, model: str, version: str, seconds: float, device_bytes: int) -> None:
        self._opening.labels(model, version).set(seconds)
        self._held.labels(model, version).set(device_bytes)

    def swapped(self, model: str, version: str, ok: bool) -> None:
        self._swaps.labels(model, version, _result(ok)).inc()

    def worker_ready(self, ready: bool) -> None:
        self._worker.set(ready)

    def rechecked(self, model: str, version: str, ratio: float, worst: float) -> None:
        """An answer was compared: its error over the limit, and the largest one yet."""
        self._compared.labels(model, version).inc()
        self._worst.labels(model, version).set(worst)
        if not ratio <= 1:
            self._alarms.labels(model, version).inc()

    def recheck_skipped(self, model: str, version: str) -> None:
        self._skipped.labels(model, version).inc()

    def dropped(self, count: int) -> None:
        """So many lines of the access log were dropped in all."""
        self._dropped.inc(count - self._told)
        self._told = count

    def flush(self) -> None:
        """Hand over what was added up."""
        for transport, count in self._running.items():
            self._in_flight.labels(transport).set(count)
        for (*labels, code), calls in self._calls.items():
            if count := sum(calls.seconds.counts):
                self._requests.labels(*labels, code).inc(count)
                self._received.labels(*labels).inc(calls.received)
                self._sent.labels(*labels).inc(calls.sent)
                calls.seconds.flush(self._seconds.labels(*labels))
                calls.received = calls.sent = 0
        with self._lock:
            for names, batches in self._batches.items():
                if any(batches.rows.counts):
                    batches.rows.flush(self._rows.labels(*names))
                    batches.queue.flush(self._queue.labels(*names))
                    batches.engine.flush(self._engine.labels(*names))


def _result(ok: bool) -> str:
    return "ok" if ok else "failed"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _forget_dead() -> None:
    """Take the state of workers that were killed off the page; what they counted stays."""
    folder = os.environ.get(SHARED)
    for file in Path(folder).glob("gauge_live*_*.db") if folder else ():
        pid = int(file.stem.rpartition("_")[2])
        if not lives(pid):
            mark_process_dead(pid)
