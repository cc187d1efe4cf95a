"""Latency of a bundle's engines beside PyTorch eager: alternating rounds in one process."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.recipe import Recipe
from models.signature import BATCH
from pipeline.backends import Session
from pipeline.bundle import Bundle
from pipeline.cases import HELD_OUT, Case
from pipeline.train import load_module
from pipeline.values import TrainedModel

_ROUNDS = 7
_SECONDS_A_ROUND = 0.05


def measure(recipe: Recipe, trained: TrainedModel, bundle: Bundle) -> dict[str, Any]:
    """Milliseconds a call of each engine and of the eager module, on the recorded batches.

    Both use the engine's number of threads; medians over alternating rounds.
    """
    module = load_module(recipe, trained)
    rows = []
    threads = 1
    before = torch.get_num_threads()
    try:
        for target in bundle.manifest.engines:
            threads = int(bundle.engine(target).options.get("intra_op_threads", 1))
            torch.set_num_threads(threads)
            session = bundle.open_engine(target)
            cases = [case for case in bundle.cases() if case.origin == HELD_OUT]
            rows += [_measure_case(target, case, module, session) for case in cases]
    finally:
        torch.set_num_threads(before)
    rows.sort(key=lambda row: (row["target"], row["batch"]))
    return {
        "machine": machine(),
        "threads": threads,
        "rows": rows,
        "note": f"median of {_ROUNDS} alternating rounds; torch {torch.__version__} eager, "
        f"inference mode",
    }


def _measure_case(
    target: str, case: Case, module: torch.nn.Module, session: Session
) -> dict[str, Any]:
    tensors = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    eager, engine = alternate(lambda: _call(module, tensors), lambda: session.run(case.inputs))
    return {
        "target": target,
        "case": case.name,
        "batch": case.sizes.get(BATCH, 1),
        "eager_ms": eager,
        "engine_ms": engine,
        "ratio": eager / engine,
    }


def alternate(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds a call, each in turn, so that what disturbs one disturbs all."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(_SECONDS_A_ROUND / (time.perf_counter() - start))))
    rounds: list[list[float]] = [[] for _ in calls]
    for _ in range(_ROUNDS):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeats[index]):
                call()
            rounds[index].append(1000 * (time.perf_counter() - start) / repeats[index])
    return [statistics.median(times) for times in rounds]


@torch.inference_mode()
def _call(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> object:
    return module(**tensors)


def machine() -> str:
    """The processor's name, and how many of it this process may see."""
    names = [platform.processor() or platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names += [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[-1]}, {max(1, len(names) - 1)} cores, {platform.system()}"
