"""What goes between a process and its child arrives as it was, and is never run."""

from __future__ import annotations

import errno
import socket
from multiprocessing.connection import Connection
from urllib.error import URLError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.wire import read_error, receive, send, write_error
from models import errors
from models.errors import FucinaError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FucinaError)
]


@given(
    kind=st.sampled_from(KINDS), what=st.text(), got=st.none() | st.integers() | st.text(),
    fix=st.none() | st.text(),
)  # fmt: skip
def test_an_error_of_ours_arrives_as_it_was(
    kind: type[FucinaError], what: str, got: object, fix: str | None
) -> None:
    error = kind(what, got=got, expected=[1, 2], fix=fix)
    back = read_error(write_error(error))
    assert type(back) is kind
    assert str(back) == str(error)


def test_a_cause_and_where_it_happened_arrive_too() -> None:
    try:
        raise errors.DataUnavailable("no rows") from PermissionError(errno.EACCES, "no", "data.csv")
    except FucinaError as error:
        back = read_error(write_error(error))
    assert isinstance(back.__cause__, PermissionError)
    assert back.__cause__.filename == "data.csv"
    assert "test_wire.py" in back.__notes__[0]


def test_an_address_that_is_not_reached_stays_an_error_of_the_system() -> None:
    back = read_error(write_error(URLError("no route")))  # which has no number
    assert isinstance(back, OSError)
    assert "no route" in str(back)


def test_errors_of_others_keep_their_last_line() -> None:
    back = read_error(write_error(ZeroDivisionError("by none")))
    assert type(back) is RuntimeError
    assert str(back) == "ZeroDivisionError: by none"
    missing = read_error(write_error(ModuleNotFoundError("No module named 'x'", name="x")))
    assert isinstance(missing, ModuleNotFoundError)
    assert missing.name == "x"


def test_what_is_sent_is_json() -> None:
    here, there = (Connection(one.detach()) for one in socket.socketpair())
    send(here, "progress", 1, "text")
    assert receive(there) == ["progress", 1, "text"]
    here.close()
    with pytest.raises(EOFError):
        receive(there)
