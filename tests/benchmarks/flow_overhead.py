"""What `fucina run` costs over the bare stages: python -m tests.benchmarks.flow_overhead

Whole processes, alternating, each on an empty run folder: the stages without Prefect, the flow with
a temporary Prefect server, the flow against a standing one. Prints medians and ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.latency import machine
from tests.standing_server import standing_server

ROUNDS = 5
SETTINGS = ("--set", "epochs=30")
STAGES_ONLY = """
import sys
from flows import stages
from flows.console import listener, shown
from flows.stages import Job
job = Job("lenet5", changes={"epochs": 30})
parts = stages.Parts()
with shown():
    for stage in stages.STAGES:
        parts = stages.advance(job, stage, parts, listener.get()("lenet5", stage))
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as home, standing_server(Path(home)) as api:
        quiet = {**os.environ, "PREFECT_HOME": home}
        quiet.pop("PREFECT_API_URL", None)
        run = [sys.executable, "-m", "flows", "run", "lenet5", *SETTINGS]
        variants = {
            "bare stages": ([sys.executable, "-c", STAGES_ONLY], quiet),
            "temporary server": (run, quiet),
            "standing server": (run, {**quiet, "PREFECT_API_URL": api}),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, (command, environment) in variants.items():
                seconds[name].append(timed(command, environment))
    print(f"{machine()}; median of {ROUNDS} alternating rounds of whole processes")
    bare = statistics.median(seconds["bare stages"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"{name:<18} {middle:6.2f} s ({min(times):.2f} to {max(times):.2f}), "
            f"{middle - bare:+.2f} s, {middle / bare:.2f} times the bare stages"
        )


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
