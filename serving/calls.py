"""A call: one request of any transport, from its first byte to its last."""

from __future__ import annotations

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Call:
    """What is known of a request while it is answered; filled in as it goes.

    `route` is a template such as `/v2/models/{model}/infer` or a method's name, never what a client
    made up; `client` is a key's name, or else the peer's address; `code` is an HTTP status or the
    name of a gRPC code.
    """

    transport: str  # http or grpc
    route: str = ""
    id: str = ""
    client: str = ""
    model: str = ""
    version: str = ""
    code: str = ""
    received: int = 0
    sent: int = 0
    started: float = field(default_factory=time.perf_counter)


# The call that this task answers: who chooses a model notes it there.
CALL: ContextVar[Call | None] = ContextVar("call", default=None)


def new_id() -> str:
    """An id for a request that came without one."""
    return uuid.uuid4().hex


def note_model(name: str, version: str) -> None:
    """Say which model and version answers the current call, if there is one."""
    call = CALL.get()
    if call is not None:
        call.model, call.version = name, version
