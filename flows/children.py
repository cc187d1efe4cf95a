"""Stages in child processes with a session of their own: hard limits of time, nothing left behind.

A child is asked one stage after another, for it takes seconds to import what trains and exports.
It ends with the block that it was started for, when a stage takes too long or is given up, and when
its parent dies, by SIGKILL as well; always with all processes that it has started.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from flows.wire import read_error, receive, send
from models.errors import FucinaError

Record = dict[str, Any]
_SLICE = 1.0  # seconds after which a child that is silent is looked at


@dataclass(frozen=True)
class Child:
    """A process that does stages: `wire` carries questions and answers, `output` what it prints."""

    process: subprocess.Popen[bytes]
    wire: Connection
    output: int


@dataclass(frozen=True)
class _Crew:
    """The children of a block, and those of them that have nothing to do.

    Threads share them: each method of a list that is called here is one step for all of them.
    """

    every: list[Child] = field(default_factory=list)
    idle: list[Child] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)  # the block has ended

    def take(self) -> Child:
        try:
            child = self.idle.pop()
        except IndexError:
            child = _start()
            self.every.append(child)
        if self.over.is_set():  # a thread's turn has come only now
            _end(child)
            raise FucinaError("a stage was asked for when its run had ended")
        return child


# Prefect calls a task in the context of its caller; so the children need not be a parameter.
_crew: ContextVar[_Crew | None] = ContextVar("crew", default=None)


@contextlib.contextmanager
def children() -> Iterator[None]:
    """Have a child for the stages inside the block, which starts at once; none is left after it."""
    if _crew.get() is not None:
        yield
        return
    crew = _Crew()
    crew.idle.append(crew.take())
    token = _crew.set(crew)
    try:
        yield
    finally:
        _crew.reset(token)
        crew.over.set()
        for child in crew.every:  # those that are busy as well: whoever asked them hears of it
            _end(child)


def ask(
    stage: str,
    arguments: dict[str, Any],
    *,
    limit: float,
    told: Callable[[str, int, int, str], None],
    printed: Callable[[str], None],
) -> Record:
    """The record of a stage that a child does within `limit` seconds.

    `told` gets its progress, `printed` each line that it or what it starts prints. Raises what the
    stage raises, and `FucinaError` when it takes too long or its process dies.
    """
    with children():
        crew = _crew.get()
        assert crew is not None
        child = crew.take()
        keep = False
        try:
            send(child.wire, stage, arguments)
            kind, *answer = _answer(child, stage, limit, told, printed)
            if kind == "failed":
                keep = True
                raise read_error(answer[0])
            record, keep = answer
            return record
        finally:
            if keep:
                crew.idle.append(child)
            else:
                _end(child)


def _answer(
    child: Child,
    stage: str,
    limit: float,
    told: Callable[[str, int, int, str], None],
    printed: Callable[[str], None],
) -> list[Any]:
    until = time.monotonic() + limit
    rest = b""

    def hear() -> bool:
        """Whether there was something to hear."""
        nonlocal rest
        try:
            data = os.read(child.output, 1 << 16)
        except BlockingIOError:
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                printed(line.decode(errors="replace").rstrip())
        return bool(data)

    with selectors.DefaultSelector() as waiting:
        waiting.register(child.wire, selectors.EVENT_READ)
        waiting.register(child.output, selectors.EVENT_READ)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise FucinaError(
                    f"stage {stage!r} took too long and was ended",
                    got=f"more than {limit:g} s",
                    fix="give it a longer limit; what was finished before is kept",
                )
            ready = {key.fileobj for key, _ in waiting.select(min(left, _SLICE))}
            if child.output in ready and not hear():
                waiting.unregister(child.output)
            if child.wire in ready:
                try:
                    message = receive(child.wire)
                except (EOFError, OSError):
                    message = None
                if message and message[0] == "progress":
                    told(*message[1:])
                    continue
                while hear():
                    pass
                if message:
                    return message
            if child.wire in ready or _has_ended(child):
                _kill(child)
                raise FucinaError(
                    f"stage {stage!r} ended without a result",
                    got=_ending(child.process.wait()),
                    fix="see the log of the run; run it again, what was finished before is kept",
                )


def _start() -> Child:
    ours, theirs = socket.socketpair()
    with theirs:
        paths = [path or os.getcwd() for path in sys.path]
        process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", "flows.child", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,  # which it holds on to: when it closes, we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    return Child(process, Connection(ours.detach()), output)


def _has_ended(child: Child) -> bool:
    """Whether the process has ended, which stays to be waited for: until then its id is its own."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.process.pid, options) is not None


def _kill(child: Child) -> None:
    """End a child, which was not waited for yet, and all that it has started."""
    if child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)


def _end(child: Child) -> None:
    _kill(child)
    with child.process:  # closes its pipes and waits
        child.wire.close()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
