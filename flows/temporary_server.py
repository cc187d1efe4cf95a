"""A Prefect API server that ends with its parent: `python -m flows.temporary_server SOCKET`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import uvicorn


def main() -> None:
    """Serve on an inherited listening socket until standard input closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
