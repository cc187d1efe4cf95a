"""Workers: the calls of a campaign in processes of one thread each, which an interrupt ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from flows.console import listener
from models.errors import CertificateFailed, FucinaError

# A worker imports this module first: nothing heavy, so that it is soon ready for an interrupt.

# Of each call, what it was called with, and its result or the error that ended it.
Results = list[tuple[tuple[Any, ...], Any]]
# each(function, calls, stage) calls the function on each tuple of arguments.
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], str], Results]


@contextmanager
def workers(jobs: int, title: str) -> Iterator[Each]:
    """Something that calls a function on many tuples of arguments, in this many processes.

    The results come in the order of the calls. One job is this process itself.
    """
    if jobs <= 1:
        yield partial(_in_turn, title)
        return
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_prepare_worker
    ) as pool:
        try:
            yield partial(_at_once, pool, title)
        except BrokenProcessPool:
            raise CertificateFailed(
                "a process that trained or tried mutants died", fix="use --jobs 1 to see of what"
            ) from None
        except BaseException:
            # Nobody waits for trainings whose results nobody takes; what is finished is on disk.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _in_turn(
    title: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], stage: str
) -> Results:
    progress = listener.get()(title, stage)
    found = []
    for done, call in enumerate(calls, 1):
        found.append((call, _caught(function, call)))
        progress(done, len(calls), _label(call))
    return found


def _at_once(
    pool: ProcessPoolExecutor, title: str, function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]], stage: str,
) -> Results:  # fmt: skip
    progress = listener.get()(title, stage)
    futures = {pool.submit(_caught, function, call): call for call in calls}
    for done, future in enumerate(as_completed(futures), 1):
        future.result()
        progress(done, len(futures), _label(futures[future]))
    return [(call, future.result()) for future, call in futures.items()]


def _caught(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    try:
        return function(*call)
    except FucinaError as error:
        return error


def _prepare_worker() -> None:
    """A worker is one thread of computation, and dies of an interrupt without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)


def _label(call: tuple[Any, ...]) -> str:
    name, which = (*call, "")[:2]
    return f"{name} seed {which}" if isinstance(which, int) else f"{name} {which}".strip()
