"""What a certificate costs beside its export: python -m tests.benchmarks.certificate_time [NAME...]

Every recipe, or those named, trained for one epoch; then its export and its verify one after the
other, in one process that is warm. Prints the medians of the rounds, their ratio, and the ratios'
median. With --profile, where each recipe's verify spends its time as well.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from flows import stages
from flows.latency import machine
from flows.stages import Job, Parts
from models.zoo import ZOO
from pipeline.backends import DEFAULT_TARGET
from pipeline.export import export
from pipeline.optimize import optimize
from pipeline.values import Engine, TrainedModel
from pipeline.verify import verify

GOAL = 3.0  # certificate over export, median over the zoo
TINY = {"epochs": 1, "floor": "none"}
Made = TypeVar("Made")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    names = arguments.names or list(ZOO)
    print(f"{machine()}; seconds, medians of {arguments.rounds} rounds in one warm process")
    print(f"{'recipe':<28} {'export':>8} {'verify':>8} {'ratio':>7}")
    ratios = []
    for index, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            job = Job(name, changes=dict(TINY), out=Path(folder))
            trained = stages.advance(job, "train", Parts()).trained
            assert trained is not None
            if index == 0:  # what is loaded for the first time
                once(job, trained, None)
            profile = cProfile.Profile() if arguments.profile else None
            times = [once(job, trained, profile) for _ in range(arguments.rounds)]
        exported, verified = (statistics.median(column) for column in zip(*times, strict=True))
        ratios.append(verified / exported)
        print(f"{name:<28} {exported:8.2f} {verified:8.2f} {ratios[-1]:7.2f}", flush=True)
        if profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats("/pipeline/|onnx", 45)
    middle = statistics.median(ratios)
    print(f"median ratio {middle:.2f} of {len(ratios)} recipes (goal: at most {GOAL:g})")


def once(job: Job, trained: TrainedModel, profile: cProfile.Profile | None) -> tuple[float, float]:
    """Seconds of an export, and of the verify of the engine that is built of it."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("model", "engine", "certificate")]
        for place in places:
            place.mkdir()
        model, exported = timed(lambda: export(job.recipe, job.dataset, trained, places[0]))
        engine = optimize(model, DEFAULT_TARGET, places[1])
        assert isinstance(engine, Engine)
        certify = partial(profile.runcall, verify) if profile else verify
        certificate, verified = timed(lambda: certify(engine, model, places[2]))
        assert certificate, certificate.failures
    return exported, verified


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start


if __name__ == "__main__":
    main()
