"""A child that does stages for its parent, and ends with it: `python -m flows.child FD`."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from flows.wire import receive, send, write_error

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
            stage, arguments = receive(wire)
        except EOFError:
            return
        send(wire, *_done(wire, stage, arguments))


def _done(wire: Connection, stage: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    try:
        from flows.steps import do

        record = do(stage, lambda *said: send(wire, "progress", *said), **arguments)
    except Exception as error:  # whatever it is, the parent raises it
        return "failed", write_error(error)
    return "done", record, not _on_gpu()


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
