"""BentoML's command line with another supervisor: quicker, and on no port of its own.

BentoML's looks for dead workers every ten seconds, and takes orders, which programs to start among
them, on two ports of the loopback device, which any user of the machine reaches. Such a port may
also be one that was just found free for the server itself.
"""

from __future__ import annotations

import os
import runpy
import shutil
from typing import Any

from bentoml._internal.utils import circus

from serving.workers import SCRATCH

_SECONDS = 1.0


def main() -> None:
    """Run `bentoml` with the arguments that were given."""
    # BentoML takes no such options; it looks this function up when it starts a server.
    circus.create_standalone_arbiter = _arbiter
    try:
        runpy.run_module("bentoml", run_name="__main__", alter_sys=True)
    finally:  # who started us may have been killed
        shutil.rmtree(os.environ[SCRATCH], ignore_errors=True)


def _arbiter(watchers: list[Any], *, threaded: bool = False, **more: Any) -> circus.Arbiter:
    own = os.environ[SCRATCH]
    return (circus.ThreadedArbiter if threaded else circus.Arbiter)(
        watchers,
        endpoint=f"ipc://{own}/orders",
        pubsub_endpoint=f"ipc://{own}/events",
        **{**more, "check_delay": _SECONDS},
    )


if __name__ == "__main__":
    main()
