"""Wire: what a process and its child say to each other, as JSON, errors as well."""

from __future__ import annotations

import json
import traceback
from multiprocessing.connection import Connection
from typing import Any

from models import errors
from models.errors import FucinaError


def send(to: Connection, *message: Any) -> None:
    to.send_bytes(json.dumps(message).encode())


def receive(from_: Connection) -> list[Any]:
    """The next message; raises `EOFError` or `OSError` when none will come."""
    return json.loads(from_.recv_bytes())


def write_error(error: BaseException, *, trace: bool = True) -> dict[str, Any]:
    """An error as JSON, with its cause and, as a note, where it was raised."""
    said: dict[str, Any] = {"kind": "", "text": traceback.format_exception_only(error)[-1].strip()}
    if isinstance(error, FucinaError) and hasattr(errors, type(error).__name__):
        given = (error.got, error.expected)
        got, expected = (None if one is None else str(one) for one in given)
        said |= {"kind": type(error).__name__, "what": error.what}
        said |= {"got": got, "expected": expected, "fix": error.fix}
    elif isinstance(error, OSError):
        name = error.filename
        facts = [error.errno, error.strerror, name and str(name)]
        said |= {"kind": "OSError", "os": facts if error.errno else [str(error)]}
    elif isinstance(error, ModuleNotFoundError):
        said |= {"kind": "ModuleNotFoundError", "name": error.name, "text": str(error)}
    if trace:
        said["trace"] = "".join(traceback.format_exception(error))
    if error.__cause__ is not None:
        said["cause"] = write_error(error.__cause__, trace=False)
    return said


def read_error(said: dict[str, Any]) -> Exception:
    """The same error again; one of another library's is a `RuntimeError` of its last line."""
    match said["kind"]:
        case "OSError":
            error: Exception = OSError(*said["os"])  # of the number's own kind
        case "ModuleNotFoundError":
            error = ModuleNotFoundError(said["text"], name=said["name"])
        case "":
            error = RuntimeError(said["text"])
        case kind:
            error = getattr(errors, kind)(
                said["what"], got=said["got"], expected=said["expected"], fix=said["fix"]
            )
    if "cause" in said:
        error.__cause__ = read_error(said["cause"])
    if "trace" in said:
        error.add_note(said["trace"])
    return error
