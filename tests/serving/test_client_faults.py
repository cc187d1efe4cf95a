"""When things go wrong between a client and a server: what is mended, and what is said."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import FucinaError, NotReady, ServingFailed, TimedOut
from serving.client import Client
from serving.client_connections import ERRORS
from serving.client_retries import Unanswered, asking
from serving.launch import Server

# A server that does what servers do when things go wrong, connection after connection.

Deed = Callable[[socket.socket], None]


def answers(status: int, body: bytes = b'{"error": "said"}', **headers: str) -> Deed:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def answer(connection: socket.socket) -> None:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)

    return answer


def breaks_off(connection: socket.socket) -> None:
    """No answer at all."""


def breaks_inside(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def says_nothing(connection: socket.socket) -> None:
    connection.settimeout(5)
    connection.recv(1)


GOOD = answers(200, b'{"model_name": "m", "outputs": []}')


class Faulty:
    """Deeds for one connection after the other; the last one goes on for ever."""

    def __init__(self, *deeds: Deed) -> None:
        self.deeds = list(deeds)
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                whole = b""
                while b"\r\n\r\n" not in whole:
                    whole += connection.recv(65536)
                deed = self.deeds[min(self.asked, len(self.deeds) - 1)]
                self.asked += 1
                deed(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def ask(faulty: Faulty, **how: Any) -> Any:
    with closing(faulty), Client(faulty.address, **how) as client:
        return client.metadata("m")


@pytest.mark.parametrize(
    "fault", [breaks_off, breaks_inside, resets, answers(503), answers(429, Retry_After="0")]
)
def test_what_had_no_answer_is_asked_again(fault: Deed) -> None:
    faulty = Faulty(fault, fault, GOOD)
    assert ask(faulty) == {"model_name": "m", "outputs": []}
    assert faulty.asked == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500, 501, 504])
def test_what_was_answered_is_not_asked_again(status: int) -> None:
    faulty = Faulty(answers(status))
    with pytest.raises(ERRORS.get(status, ServingFailed), match="said"):
        ask(faulty)
    assert faulty.asked == 1


def test_the_pause_is_the_one_that_the_server_asks_for() -> None:
    begun = time.monotonic()
    ask(Faulty(answers(503, Retry_After="1"), GOOD))
    assert time.monotonic() - begun >= 1


def test_in_the_end_it_gives_up_and_says_why() -> None:
    faulty = Faulty(answers(503))
    with pytest.raises(NotReady, match="said"):
        ask(faulty, retries=2)
    assert faulty.asked == 3
    with pytest.raises(ServingFailed, match=r"does not answer: got RemoteDisconnected"):
        ask(Faulty(breaks_off), retries=1)
    # A pause that would end too late is not begun.
    faulty = Faulty(answers(503, Retry_After="3600"))
    with pytest.raises(NotReady):
        ask(faulty)
    assert faulty.asked == 1
    with pytest.raises(TimedOut, match="does not answer in time"):
        ask(Faulty(says_nothing), timeout=0.1)
    assert not Client("http://127.0.0.1:1").ready()


def test_a_kept_connection_that_the_server_has_closed_is_replaced(server: Server) -> None:
    with Client(server.http, retries=1) as client:
        kept = client._connections.idle
        for _ in range(3):
            client.metadata("digits")
        assert len(kept) == 1  # one after the other need no second one
        assert kept[0].sock
        kept[0].sock.shutdown(socket.SHUT_RDWR)
        assert client.metadata("digits")["name"] == "digits"


EVENTS = [
    {"text": "a", "index": 0},
    {"text": "b", "index": 1, "finish": "length", "tokens": 2},
]


def streamed(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def test_a_text_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    for body, said in (
        (streamed(*EVENTS[:1]), "the end of the answer"),
        (streamed(EVENTS[0], {"error": "the engine failed"}), "the engine failed"),
    ):
        faulty = Faulty(breaks_off, answers(200, body))
        seen = []
        with (
            closing(faulty),
            Client(faulty.address) as client,
            pytest.raises(ServingFailed, match=said),
        ):
            for event in client.generate("x"):
                seen.append(event)
        assert seen == EVENTS[:1]
        assert faulty.asked == 2  # before its beginning it was asked again


@given(st.lists(st.booleans(), max_size=8), st.integers(0, 6))
@settings(max_examples=50, deadline=None)
def test_asking_ends_with_the_first_answer_or_the_last_retry(
    fails: list[bool], retries: int
) -> None:
    asked = 0

    def attempt(seconds: float) -> int:
        nonlocal asked
        asked += 1
        if asked <= len(fails) and fails[asked - 1]:
            raise Unanswered(FucinaError("no"))
        return asked

    first = next((n for n, failed in enumerate([*fails, False], 1) if not failed), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.client_retries.FIRST", 0.0)
        if first <= retries + 1:
            assert asking(attempt, 60, retries) == first
        else:
            with pytest.raises(FucinaError, match="no"):
                asking(attempt, 60, retries)
            assert asked == retries + 1
