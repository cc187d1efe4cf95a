"""What a person sees while stages work: bars on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pipeline.progress import Progress, silent

# listen(recipe, stage) gives the progress callback of one stage.
Listen = Callable[[str, str], Progress]

# Prefect calls a task in the context of its caller; so the listener need not be a parameter.
listener: ContextVar[Listen] = ContextVar("listener", default=lambda recipe, stage: silent)

_LINES_PER_STAGE = 10


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[None]:
    """Show the progress of every stage that runs inside the block."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _bars() as listen, _listening(listen):
            yield
    else:
        with _listening(_lines):
            yield


@contextlib.contextmanager
def _listening(listen: Listen) -> Iterator[None]:
    token = listener.set(listen)
    try:
        yield
    finally:
        listener.reset(token)


@contextlib.contextmanager
def _bars() -> Iterator[Listen]:
    columns = (
        TextColumn("{task.fields[recipe]:<12} [bold]{task.fields[stage]:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def listen(recipe: str, stage: str) -> Progress:
            task = bars.add_task(stage, total=None, recipe=recipe, stage=stage, text="")

            def progress(done: int, total: int, text: str) -> None:
                bars.update(task, completed=done, total=total, text=text)

            return progress

        yield listen


def _lines(recipe: str, stage: str) -> Progress:
    def progress(done: int, total: int, text: str) -> None:
        step = max(1, total // _LINES_PER_STAGE)
        if done % step == 0 or done == total:
            print(f"{recipe} {stage} {done}/{total} {text}", file=sys.stderr, flush=True)

    return progress
