"""A Prefect API server on an inherited listening socket: `python -m flows.temporary_server FD`."""

from __future__ import annotations

import socket
import sys

import uvicorn
from prefect.server.api.server import create_app


def main() -> None:
    """Serve until SIGTERM: without the UI, schedules and other services of a standing server."""
    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
