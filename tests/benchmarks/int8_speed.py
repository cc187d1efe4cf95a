"""int8 beside fp32 and PyTorch: python -m tests.benchmarks.int8_speed [NAME...]

Each convolutional recipe is trained briefly on the embedded data, at the published image size where
that is feasible, exported and optimised; then PyTorch eager, the fp32 engine and the int8 engine
answer one row in alternating rounds with one thread each. Prints milliseconds, ratios, nodes kept
in fp32 and drift, refusals and failed certificates with their reason, and geometric means of the
others. What is trained stays in build/int8_speed and is not trained again.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows import stages
from flows.latency import machine
from flows.stages import Job
from pipeline.backends import backend
from pipeline.backends import target as find_target
from pipeline.cases import HELD_OUT, read_cases
from pipeline.compare import Run
from pipeline.train import load_module
from pipeline.values import Engine, OnnxModel, Refusal, TrainedModel

PUBLISHED: dict[str, Any] = {"image": 224, "channels": 3, "width": 1.0, "epochs": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet18": PUBLISHED,
    "googlenet": {},  # at 224 it takes hours to train on a CPU
    "alexnet": {**PUBLISHED, "image": 227},
    "resnet20": {"image": 32, "channels": 3, "width": 1.0, "epochs": 4},
    "resnet56": {"image": 32, "channels": 3, "width": 1.0, "epochs": 4},
    "cnn": {},
    "lenet5": {},
    "inception-mini": {},
    "unet": {},
    "fcn": {},
}
OUT = Path("build/int8_speed")
SECONDS = 3.0
ROUNDS = 200


@dataclass(frozen=True)
class Row:
    """What was measured of one recipe: milliseconds of eager, fp32 and int8, or why not."""

    name: str
    milliseconds: tuple[float, float, float] | None
    text: str


def main(names: list[str]) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    print(f"{machine()}; best of alternating rounds, 1 thread, batch 1", flush=True)
    rows = []
    for name in names or SETTINGS:
        rows.append(measure(name, OUT))
        print(told(rows[-1]), flush=True)
    known = [row.milliseconds for row in rows if row.milliseconds]
    if known:
        over_fp32 = statistics.geometric_mean(fp32 / int8 for _, fp32, int8 in known)
        over_eager = statistics.geometric_mean(eager / int8 for eager, _, int8 in known)
        print(
            f"geometric mean of {len(known)} of {len(rows)}: {over_fp32:.2f} times as fast as "
            f"ONNX Runtime fp32, {over_eager:.2f} times as fast as PyTorch eager"
        )


def measure(name: str, folder: Path) -> Row:
    """Take a recipe as far as two certified engines, and time them beside the module."""
    job = Job(name, changes={"floor": "none", **SETTINGS.get(name, {})}, out=folder)
    trained = stages.train(job)
    model = stages.export(job, trained)
    fp32 = stages.optimize(job, model, "ort-cpu-fp32")
    int8 = stages.optimize(job, model, "ort-cpu-int8")
    assert isinstance(fp32, Engine)
    if isinstance(int8, Refusal):
        return Row(name, None, int8.why)
    certificate = stages.verify(job, int8, model)
    if not certificate:
        return Row(name, None, f"not certified: {certificate.failures[0]}")
    changed = ", ".join(f"{d.changed:.2%} of {d.answers} {d.measure}" for d in certificate.drift)
    kept = ", ".join(int8.kept) or "none"
    text = f"kept in fp32: {kept}; changed {changed or 'not measured'}; certified"
    runs = [eager(job, trained, model), opened(fp32), opened(int8)]
    return Row(name, timed(runs, model), text)


def eager(job: Job, trained: TrainedModel, model: OnnxModel) -> Run:
    """The module as it was exported, in PyTorch's inference mode."""
    module = load_module(job.recipe, trained)

    @torch.inference_mode()
    def run(inputs: Any) -> Any:
        return module(**{name: torch.from_numpy(array) for name, array in inputs.items()})

    return run


def opened(engine: Engine) -> Run:
    """The engine with one thread, as all are measured here."""
    options = {**engine.options, "intra_op_threads": 1}
    return backend(find_target(engine.target)).open(engine.folder, engine.files, options).run


def timed(runs: list[Callable[[Any], Any]], model: OnnxModel) -> tuple[float, float, float]:
    """Milliseconds a call of one recorded row, the least of alternating rounds."""
    usual = {name: axis.opt for name, axis in model.signature.axes.items()} | {"batch": 1}
    (inputs,) = [
        case.inputs
        for case in read_cases(model.folder)
        if case.origin == HELD_OUT and case.sizes == usual
    ]
    times: list[list[float]] = [[] for _ in runs]
    begun = time.perf_counter()
    while len(times[0]) < ROUNDS and (len(times[0]) < 5 or time.perf_counter() - begun < SECONDS):
        for run, taken in zip(runs, times, strict=True):
            before = time.perf_counter()
            run(inputs)
            taken.append(time.perf_counter() - before)
    torch_ms, fp32_ms, int8_ms = (1e3 * min(taken) for taken in times)
    return torch_ms, fp32_ms, int8_ms


def told(row: Row) -> str:
    """One line of the table."""
    if row.milliseconds is None:
        return f"{row.name:<16} refused: {row.text}"
    eager_ms, fp32_ms, int8_ms = row.milliseconds
    return (
        f"{row.name:<16} eager {eager_ms:8.3f} ms, fp32 {fp32_ms:8.3f} ms, int8 {int8_ms:8.3f} ms: "
        f"{fp32_ms / int8_ms:.2f} times over fp32, {eager_ms / int8_ms:.2f} over eager; {row.text}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
