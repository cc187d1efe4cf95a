"""A Prefect server as a person starts it, with a database of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 600


@contextlib.contextmanager
def standing_server(home: Path) -> Iterator[str]:
    """Yields the address of its API; `home` becomes its PREFECT_HOME."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(PATIENCE):
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            assert process.poll() is None, "the Prefect server ended"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)
