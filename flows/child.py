"""A child that does stages for its parent, and ends with it: `python -m flows.child FD`."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

# What takes seconds to import; done while the parent has nothing to ask yet.
_HEAVY = ("flows.steps", "pipeline.train", "pipeline.export", "pipeline.optimize",
    "pipeline.verify", "pipeline.package", "torch._dynamo")  # fmt: skip


def main() -> None:
    """Answer what the parent asks over an inherited socket, until it closes its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    wire = Connection(int(sys.argv[1]))
    for name in _HEAVY:
        with contextlib.suppress(ImportError):  # a stage that needs it says so
            if not wire.poll():
                importlib.import_module(name)
    while True:
        try:
            stage, arguments = wire.recv()
        except EOFError:
            return
        wire.send(_done(wire, stage, arguments))


def _done(wire: Connection, stage: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    try:
        from flows.steps import do

        record = do(stage, lambda *said: wire.send(("progress", *said)), **arguments)
    except Exception as error:  # whatever it is, the parent raises it
        return "failed", *_sendable(error)
    return "done", record, not _on_gpu()


def _sendable(error: Exception) -> tuple[Exception, Exception | None]:
    """An error and its cause, as they arrive at the parent, with where it was raised as a note."""
    text = traceback.format_exc()
    try:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
        pickle.loads(pickle.dumps((error, cause)))  # noqa: S301 - own bytes
    except Exception:  # an error of somebody else's that does not survive the way
        return RuntimeError(text.strip().splitlines()[-1]), None
    error.add_note(text)
    return error, cause


def _on_gpu() -> bool:
    """Whether this process holds a GPU's memory, of which only its end lets go."""
    torch = sys.modules.get("torch")
    return bool(torch and torch.cuda.is_initialized())


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock a thread that waits would hold while the interpreter ends.
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
