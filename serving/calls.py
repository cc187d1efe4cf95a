"""A call: one request of any transport, from its first byte to its last."""

from __future__ import annotations

import random
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from models.errors import Forbidden


@dataclass(slots=True)
class Call:
    """What is known of a request while it is answered; filled in as it goes.

    `route` is a template such as `/v2/models/{model}/infer` or a method's name, never what a client
    made up; `client` is a key's name, or else the peer's address; `models` are those that a key may
    ask, or None; `code` is an HTTP status or the name of a gRPC code.
    """

    transport: str  # http or grpc
    route: str = ""
    id: str = ""
    client: str = ""
    models: tuple[str, ...] | None = None
    model: str = ""
    version: str = ""
    code: str = ""
    received: int = 0
    held: int = 0  # bytes of its body, until it is answered
    sent: int = 0
    rows: int = 0  # of the batch that it was answered with
    queued: float = 0.0  # seconds until that batch began
    engine: float = 0.0  # seconds that it took
    trace: str = ""  # its trace's id, where calls are traced
    span: Any = None
    started: float = field(default_factory=time.perf_counter)


_LONGEST_ID = 128

# The call that this task answers: who chooses a model notes it there.
CALL: ContextVar[Call | None] = ContextVar("call", default=None)


def new_id() -> str:
    """An id for a request that came without one."""
    # It names a request and protects nothing: no system call for it.
    return f"{random.getrandbits(128):032x}"


def sound_id(id: str) -> bool:
    """Whether a client's id can stand in a header and a log."""
    return 0 < len(id) <= _LONGEST_ID and id.isascii() and id.isprintable()


def note_model(name: str, version: str) -> None:
    """Say which model and version answers the current call, if there is one.

    Raises `Forbidden` for a model, or a part of one, that the call's key may not ask.
    """
    call = CALL.get()
    if call is not None:
        if call.models is not None and not {name, name.rpartition(".")[0]} & {*call.models}:
            raise Forbidden(f"this key may not ask model {name!r}")
        call.model, call.version = name, version
