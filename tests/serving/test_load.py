"""The client of load counts what it asked, and tells answers from refusals and failures."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from serving.launch import Server
from serving.load import Answers, closed_loop, open_loop, request_of

ROW = {"image": np.zeros((1, 1, 28, 28), np.float32)}


def test_every_request_is_answered_and_timed(server: Server) -> None:
    request = request_of(server.http, "digits", ROW)
    answers = asyncio.run(closed_loop(server.http, [request], 4, 0.3))
    assert len(answers.accepted) >= 4
    assert not answers.refused
    assert not answers.failed
    assert all(0 < seconds <= answers.seconds for seconds in answers.accepted)
    assert answers.rate == len(answers.accepted) / answers.seconds


def test_a_rate_is_a_number_of_requests(server: Server) -> None:
    request = request_of(server.http, "digits", ROW)
    answers = asyncio.run(open_loop(server.http, request, 50, 0.5, connections=8))
    assert len(answers.accepted) + len(answers.refused) + answers.failed == 25
    assert not answers.failed


@pytest.mark.parametrize(
    ("model", "row"), [("nothing", ROW), ("digits", {"image": ROW["image"][0]})]
)
def test_a_request_that_is_wrong_fails(
    server: Server, model: str, row: dict[str, np.ndarray]
) -> None:
    request = request_of(server.http, model, row)
    answers = asyncio.run(open_loop(server.http, request, 50, 0.1, connections=2))
    assert answers.failed == 5
    assert not answers.accepted


def test_an_overloaded_answer_is_a_refusal() -> None:
    answers = Answers(seconds=1.0)
    for status in (200, 503, 200, 0, 500):
        answers.add(status, 0.1)
    assert (len(answers.accepted), len(answers.refused), answers.failed) == (2, 1, 2)


def test_a_server_that_goes_away_ends_its_clients() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def main() -> Answers:
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            address = f"http://127.0.0.1:{port}"
            request = request_of(address, "digits", ROW)
            return await asyncio.wait_for(closed_loop(address, [request], 2, 30), 20)

    answers = asyncio.run(main())
    assert (answers.failed, answers.accepted) == (2, [])
