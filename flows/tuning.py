"""`fucina serve --tune`: processes, threads and batches measured here, and what to type then."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.latency import machine
from flows.output import print_json, program
from serving.tuning import CLIENTS, Choice, Trial, tune

SECONDS = 4.0


def tuned(folders: Sequence[Path], *, target: str, as_json: bool, seconds: float = SECONDS) -> None:
    """Print every trial and the choice as options of `fucina serve`; nothing is served or written.

    Raises what `serving.tuning.tune` raises.
    """
    told = f"asking servers by {CLIENTS} clients, {seconds:g} seconds each"
    print(f"{told}, on {machine()}", file=sys.stderr, flush=True)
    trials, chosen = tune(folders, target, os.cpu_count() or 1, seconds, _progress)
    command = f"{program()} serve {' '.join(map(str, folders))} {options(chosen.choice)}".rstrip()
    if as_json:
        print_json(
            {
                "machine": machine(), "clients": CLIENTS, "seconds": seconds,
                "trials": [trial.row() for trial in trials], "choice": chosen.row(),
                "command": command,
            }
        )  # fmt: skip
        return
    print("workers  threads  batch  requests/s   p50 ms   p99 ms  refused")
    for trial in trials:
        print(_line(trial) + ("  <- chosen" if trial is chosen else ""))
    print(f"\nthe clients ran on the same cores; to serve so: {command}")


def options(choice: Choice) -> str:
    """What of `fucina serve` to type for it; nothing for what is so anyway."""
    return " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(choice).items()
        if value != getattr(Choice(), name)
    )


def _progress(trial: Trial) -> None:
    print(_line(trial), file=sys.stderr, flush=True)


def _line(trial: Trial) -> str:
    choice = trial.choice
    return (
        f"{choice.workers:7}  {choice.threads or 'own':>7}  {choice.largest_batch or 'best':>5}  "
        f"{trial.rate:10.1f}  {trial.p50:7.2f}  {trial.p99:7.2f}  {trial.refused:7}"
    )
