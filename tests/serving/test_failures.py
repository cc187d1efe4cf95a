"""The table of failures is total over what a client can be answered."""

from __future__ import annotations

import logging

import grpc
import pytest

from models.errors import BadInput, NotReady, Overloaded, RequestError
from serving.failures import FAILURES, INTERNAL, failure
from serving.inference_rest import failed


def kinds(kind: type[RequestError]) -> set[type[RequestError]]:
    """Every kind below this one."""
    below = kind.__subclasses__()
    return set(below).union(*(kinds(child) for child in below))


def test_the_table_answers_every_request_error() -> None:
    assert set(FAILURES) == kinds(RequestError)


def test_requests_are_told_what_is_wrong_with_them() -> None:
    row, text = failure(BadInput("input 'x' has a wrong dtype", got="a", expected="b"))
    assert (row.status, row.code) == (400, grpc.StatusCode.INVALID_ARGUMENT)
    assert text == "input 'x' has a wrong dtype: got a, expected b"


def test_anything_else_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        row, text = failure(KeyError("secret"))
    assert row == INTERNAL
    assert "secret" not in text
    assert "secret" in caplog.text


@pytest.mark.parametrize("kind", [NotReady, Overloaded])
def test_who_may_come_back_is_told_when(kind: type[RequestError]) -> None:
    response = failed(kind("not now"))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
