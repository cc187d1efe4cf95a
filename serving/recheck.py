"""Recheck: a share of live answers is held to the graph as it was exported, off the hot path.

The certificate's limits decide, as they did before the engine was served. The reference runs in a
thread of the lowest priority, and what it has no time for is skipped.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from models.errors import first_line
from models.signature import Arrays
from pipeline.backends import Session, backend, target
from pipeline.bundle import Bundle
from pipeline.cases import Case
from pipeline.compare import compare, worst_ratio
from pipeline.values import MODEL
from serving.telemetry import Telemetry

logger = logging.getLogger("fucina.recheck")

MOST = 8  # answers that may wait
QUIET = 60.0  # seconds between two lines of the log about one model
_LIVE = "live"


class Recheck:
    """The rechecks of one model in one event loop; the first of them opens the reference."""

    def __init__(self, bundle: Bundle, target: str, share: float, telemetry: Telemetry) -> None:
        self._bundle = bundle
        self._name, self._version = bundle.manifest.name, bundle.manifest.version
        self._target = target
        self._limits = bundle.certificate(target).limits
        self._share = share
        self._telemetry = telemetry
        self._waiting = 0
        self._reference: Session | None = None
        self._thread = ThreadPoolExecutor(1, "fucina-recheck", _yield_to_others)
        self._worst = 0.0
        self._said = -math.inf

    def offer(self, inputs: Arrays, answers: Arrays) -> None:
        """Compare these answers some time soon, or not, as the share and the queue have it."""
        if random.random() >= self._share:  # noqa: S311  # a share, no secret
            return
        if self._waiting >= MOST:
            self._telemetry.recheck_skipped(self._name, self._version)
            return
        self._waiting += 1
        asking = asyncio.wrap_future(self._thread.submit(self._compare, inputs, answers))
        asking.add_done_callback(self._tell)

    def close(self) -> None:
        """End without those that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compare(self, inputs: Arrays, answers: Arrays) -> float | None:
        """Error over limit, infinite where an answer is no number; in the thread.

        None where the reference has none either: the inputs are beyond what the model can answer.
        """
        if self._reference is None:
            graph = self._bundle.folder / MODEL
            self._reference = backend(target(self._target)).as_written(graph)
        sizes = self._bundle.manifest.signature.check(inputs)
        case = Case(_LIVE, _LIVE, sizes, inputs)
        expected = self._reference.run(inputs)
        if not all(np.isfinite(array).all() for array in expected.values()):
            return None
        ratio = worst_ratio(compare(_LIVE, case, answers, expected, self._limits))
        return math.inf if ratio is None else ratio

    def _tell(self, asked: asyncio.Future[float | None]) -> None:
        self._waiting -= 1
        if asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            self._log("model %r version %s cannot be rechecked: %s", first_line(error))
            self._telemetry.recheck_skipped(self._name, self._version)
            return
        ratio = asked.result()
        if ratio is None:
            self._telemetry.recheck_skipped(self._name, self._version)
            return
        self._worst = max(self._worst, ratio)
        self._telemetry.rechecked(self._name, self._version, ratio, self._worst)
        if ratio > 1:
            self._log(
                "ALARM: model %r version %s no longer answers as certified: %s",
                f"its error is {ratio:.3g} of the limit",
            )

    def _log(self, text: str, why: str) -> None:
        now = time.monotonic()
        if now - self._said >= QUIET:
            self._said = now
            logger.error(text, self._name, self._version, why)


def _yield_to_others() -> None:
    # Of a thread alone where the system has such priorities, as Linux does.
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
