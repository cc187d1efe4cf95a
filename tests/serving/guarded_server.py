"""A server with keys and small limits, and what is sent to it byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving.keys import add_key
from serving.launch import Server, serve

LARGEST = 2**20
TIMEOUT = 2.0
PER_CLIENT = 4
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@dataclass(frozen=True)
class Guarded:
    """A server with limits and keys, the keys, and all that it has said."""

    server: Server
    ada: str  # may ask everything
    bob: str  # may ask another model only
    said: Callable[[], str]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.http.removeprefix("http://").split(":")
        return host, int(port)

    def send(self, *pieces: bytes, seconds: float = 30.0) -> bytes:
        """What comes back for these bytes until the connection is closed, or an answer is there."""
        with socket.create_connection(self.address, seconds) as connection:
            got = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while b"\r\n\r\n" not in got and (more := connection.recv(65536)):
                    got += more
            except ConnectionError:  # it had closed before it had read
                pass
            return got


@contextmanager
def guarded_server(digits: Path, pair: Path, keys: Path) -> Iterator[Guarded]:
    """The server; `keys` is a file that does not exist yet."""
    ada, bob = add_key(keys, "ada"), add_key(keys, "bob", models=("pair",))
    lines: list[str] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        serve_listened(patch, lines)(
            [digits, pair], port=0, grpc_port=0, api_keys=keys, largest_body=LARGEST,
            largest_pixels=10_000, timeout=TIMEOUT, per_client=PER_CLIENT,
        ) as running,
    ):  # fmt: skip
        yield Guarded(running, ada, bob, lambda: "".join(lines))


def serve_listened(patch: pytest.MonkeyPatch, lines: list[str]) -> Callable[..., Any]:
    """`serve`, with every line that the server says kept."""
    from serving import launch

    listen = launch._listen

    def keep(process: Any, said: Any) -> None:
        class Kept(type(said)):  # the launcher extends it by the lines
            def extend(self, some: list[str]) -> None:
                lines.extend(f"{line}\n" for line in some)
                super().extend(some)

        listen(process, Kept(said, said.maxlen))

    patch.setattr(launch, "_listen", keep)
    return serve


def authorized(guarded: Guarded, *lines: str) -> bytes:
    return "".join(
        f"{line}\r\n" for line in (f"Authorization: Bearer {guarded.ada}", *lines)
    ).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def refusal(
    guarded: Guarded, model: str, shape: tuple[int, ...] = (1, 1, 28, 28), **how: Any
) -> Any:
    """The code and text of what is refused over gRPC."""
    key = how.pop("key", guarded.ada)
    with triton_grpc.InferenceServerClient(guarded.server.grpc) as client:
        image = triton_grpc.InferInput("image", [*shape], "FP32")
        image.set_data_from_numpy(np.zeros(shape, np.float32))
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [image], headers={"authorization": f"Bearer {key}"}, **how)
    return str(caught.value.status()).removeprefix("StatusCode."), caught.value.message()
