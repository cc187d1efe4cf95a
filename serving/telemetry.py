"""Telemetry: what is counted, traced and logged of calls, batches and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.calls import Call


@dataclass(frozen=True)
class Telemetry:
    """Everything that one worker tells about itself."""

    access_log: bool = True

    def begin(self, call: Call) -> None:
        """A request has arrived."""

    def end(self, call: Call) -> None:
        """A request has been answered, with its code and sizes in `call`."""

    def batched(
        self, model: str, version: str, rows: int, waited: Sequence[float], seconds: float
    ) -> None:
        """An engine has answered a batch: rows, seconds each request waited and it took."""

    def model_state(self, model: str, version: str, target: str, ready: bool) -> None:
        """A model became ready, or is no longer."""
