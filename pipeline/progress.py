"""How a stage says how far it is; who listens (a bar, plain lines, nobody) is not its business."""

from __future__ import annotations

from collections.abc import Callable

# progress(done, total, text): `text` is short, such as "loss 0.12".
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, text: str) -> None:
    """Say nothing."""
