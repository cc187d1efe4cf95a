"""What a stage says, to the person at the terminal and to the log of the Prefect run it is in."""

from __future__ import annotations

from prefect import get_run_logger

from flows.console import Listen
from pipeline.progress import Progress


def logged(listen: Listen) -> Listen:
    """The same listener, which also tells the log of the flow or task that calls it."""

    def both(label: str, stage: str) -> Progress:
        shown = listen(label, stage)
        logger = get_run_logger()

        def progress(done: int, total: int, text: str) -> None:
            shown(done, total, text)
            logger.info("%s %s %d/%d %s", label, stage, done, total, text)

        return progress

    return both
