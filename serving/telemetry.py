"""Telemetry: what is counted, traced and logged of calls, batches and models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from serving.access_log import AccessLog
from serving.calls import Call
from serving.gate import PROBES
from serving.metrics import Metrics
from serving.tracing import Tracing

# What a call costs is spread: it adds to plain numbers, which reach Prometheus once in so long.
INTERVAL = 0.5
METRICS = "/metrics"
# Asked every few seconds by who watches the server: only counted.
_QUIET = PROBES | {METRICS}


class Telemetry:
    """Everything that one worker tells about itself; called in its event loop.

    Of calls it keeps no more than `Call` holds: templates of routes, names of served models, codes.
    """

    def __init__(
        self,
        access_log: AccessLog | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._access_log = access_log
        self._tracing = tracing
        self.metrics = metrics or Metrics()

    def begin(self, call: Call, headers: Iterable[tuple[str | bytes, str | bytes]] = ()) -> None:
        """A request has arrived; of its headers or metadata the W3C trace context is read."""
        self.metrics.begin(call.transport)
        if self._tracing is not None and not _quiet(call):
            self._tracing.begin(call, headers)
        if call.route == METRICS:  # its own worker's numbers are there at once
            self.flush()

    def end(self, call: Call) -> None:
        """A request has been answered, with its code and sizes in `call`."""
        seconds = time.perf_counter() - call.started
        self.metrics.end(call, seconds)
        if self._tracing is not None and call.span is not None:
            self._tracing.end(call)
        if self._access_log is not None and not _quiet(call):
            self._access_log.add(call, seconds)

    def batched(
        self, model: str, version: str, rows: int, waited: Sequence[float], seconds: float
    ) -> None:
        """An engine has answered a batch: rows, seconds each request waited and it took.

        The only one that any thread may call.
        """
        self.metrics.batched(model, version, rows, waited, seconds)

    def model_state(self, model: str, version: str, served: Sequence[str], ready: bool) -> None:
        """A model became ready, or is no longer: as a target, instead of which, why in a word."""
        self.metrics.model_state(model, version, served, ready)

    def loaded(self, model: str, version: str, ok: bool) -> None:
        """A model was opened and has reproduced its recorded cases, or has not."""
        self.metrics.loaded(model, version, ok)

    def opened(self, model: str, version: str, seconds: float, device_bytes: int) -> None:
        """An engine was opened and warmed up in so long, and holds so much of its device."""
        self.metrics.opened(model, version, seconds, device_bytes)

    def swapped(self, model: str, version: str, ok: bool, why: str = "") -> None:
        """Another version answers who names none, or `why` the one before still does."""
        self.metrics.swapped(model, version, ok)

    def rechecked(self, model: str, version: str, ratio: float, worst: float) -> None:
        """A live answer was compared with the reference's: its error over the limit, the worst."""
        self.metrics.rechecked(model, version, ratio, worst)

    def recheck_skipped(self, model: str, version: str) -> None:
        """A live answer was to be compared, and there was no time, or no reference."""
        self.metrics.recheck_skipped(model, version)

    def worker_ready(self, ready: bool) -> None:
        """This worker answers, or is not ready or ending."""
        self.metrics.worker_ready(ready)

    def flush(self) -> None:
        """Let Prometheus see all that was counted."""
        if self._access_log is not None:
            self.metrics.dropped(self._access_log.dropped)
        self.metrics.flush()

    async def run(self) -> None:
        """Flush now and then, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.flush()

    async def close(self) -> None:
        """Hand over what is left; takes seconds at most, whoever does not read it."""
        self.flush()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._access_log is not None:
            await asyncio.to_thread(self._access_log.close)


def _quiet(call: Call) -> bool:
    # A gRPC route may be a full name, /package.Service/Method.
    route = call.route if call.transport == "http" else call.route.rpartition("/")[2]
    return route in _QUIET
