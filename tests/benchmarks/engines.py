"""Engines beside PyTorch in one run: python -m tests.benchmarks.engines [RECIPE...]

Each recipe is trained briefly and exported; then PyTorch eager and `torch.compile`, on the CPU and
on a GPU where one is, and the engine of every target that this machine can run answer recorded rows
in alternating rounds. All take numpy arrays and return them, one thread each on the CPU, TF32 off
but where it is asked for. One table: milliseconds a call by number of rows, rows a second at the
most rows, times as fast as eager on the CPU, the worst error against the fp64 module as a share of
the output's scale, and of TensorRT engines the device memory that they hold and the time until they
are warm. What did not run is named with its reason. What is trained stays in
build/engines and is not trained again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from flows import stages
from flows.stages import Job
from models.errors import FucinaError, first_line
from pipeline.backends import TARGETS, Session, Target, backend, facts_of
from pipeline.candidates import Way, calls, mean, measure
from pipeline.cases import HELD_OUT, Case, read_cases
from pipeline.compare import Run, array_scale, relative_error
from pipeline.machine import driver, host
from pipeline.train import load_module
from pipeline.values import OnnxModel, Refusal, TrainedModel

RECIPES = ("mlp", "lenet5", "resnet20", "unet", "lstm", "transformer", "vae")
OUT = Path("build/engines")
PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "numpy"
)  # fmt: skip


@dataclass
class Field:
    """Who takes part in a recipe's run, and who does not and why."""

    ways: list[Way] = field(default_factory=list)
    absent: list[tuple[str, str]] = field(default_factory=list)


def main(names: list[str]) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    # As in an fp32 engine: what PyTorch rounds to TF32 by default is no fp32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    console = Console(width=160, highlight=False)
    console.print(surroundings())
    for name in names or RECIPES:
        job = Job(name, changes={"floor": "none", "epochs": 1}, out=OUT)
        trained = stages.train(job)
        model = stages.export(job, trained)
        cases = [case for case in read_cases(model.folder) if case.origin == HELD_OUT]
        asked = calls(model.signature, cases)
        field = gather(job, trained, model)
        for way in field.ways[:]:
            if why := warmed(way, [*asked.values(), *(case.inputs for case in cases)]):
                field.ways.remove(way)
                field.absent.append((way.name, why))
        console.print(table(name, field.ways, measure(field.ways, asked), cases))
        for why in dict.fromkeys(why for _, why in field.absent):  # many for the same reason
            who = ", ".join(name for name, reason in field.absent if reason == why)
            console.print(f"not run: {who}: {why}", markup=False, soft_wrap=True)


def surroundings() -> str:
    """Machine, GPUs, versions and date."""
    facts, nvidia = host(), driver()
    gpus = [f"{gpu.name} ({gpu.memory / 2**30:.0f} GiB)" for gpu in nvidia.gpus]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['os']}; "
        f"{', '.join(gpus) or nvidia.problem}"
        + (f", driver {nvidia.version}, CUDA {nvidia.cuda}" if gpus else "")
        + f"; Python {facts['python']}, {', '.join(versions)}; {date.today()}"
    )


def gather(job: Job, trained: TrainedModel, model: OnnxModel) -> Field:
    """PyTorch and the engine of each target, eager on the CPU first."""
    found = Field()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if len(devices) == 1:
        found.absent.append(("torch on a GPU", "torch.cuda.is_available() is false"))
    for device in devices:
        module = load_module(job.recipe, trained).to(device)
        found.ways.append(Way(f"torch eager, {device}", "fp32", {}, eager(module, device)))
        compiled = torch.compile(module)
        found.ways.append(Way(f"torch.compile, {device}", "fp32", {}, eager(compiled, device)))
    for target in TARGETS.values():
        try:
            session = engine(job, model, target)
        except FucinaError as error:
            found.absent.append((target.name, str(error)))
        else:
            opened = facts_of(session)
            found.ways.append(Way(target.name, target.precision, {}, session.run, opened))
    return found


def eager(module: Callable[..., Any], device: str) -> Run:
    """A module that takes and returns numpy arrays, as engines do."""

    @torch.inference_mode()
    def run(inputs: Any) -> Any:
        answers = module(**{n: torch.from_numpy(a).to(device) for n, a in inputs.items()})
        return {name: answer.cpu().numpy() for name, answer in answers.items()}

    return run


def engine(job: Job, model: OnnxModel, target: Target) -> Session:
    """The engine as `optimize` would have it served. Raises `FucinaError` where there is none."""
    if lacks := backend(target).missing(target):
        raise FucinaError(lacks[0])
    made = stages.optimize(job, model, target.name)
    if isinstance(made, Refusal):
        raise FucinaError(made.why)
    if not (certificate := stages.verify(job, made, model)):
        raise FucinaError(f"not certified: {certificate.failures[0]}")
    return backend(target).open(made.folder, made.files, made.options)


def warmed(way: Way, asked: list[Any]) -> str:
    """Have a way see every shape before it is timed; why it cannot, where it fails."""
    try:
        for inputs in asked:
            way.run(inputs)
    except Exception as error:  # a compiler of PyTorch raises what it likes
        return first_line(error)
    return ""


def table(name: str, ways: list[Way], times: list[dict[int, float]], cases: list[Case]) -> Table:
    """A row for each way, eager on the CPU first."""
    rows = [*times[0]]
    found = Table(
        name,
        *(f"ms at {count}" for count in rows),
        "rows/s",
        "over eager",
        "error",
        "MiB",
        "warm in s",
        box=None,
    )
    for way, own in zip(ways, times, strict=True):
        found.add_row(
            way.name,
            *(f"{own[count]:.3f}" for count in rows),
            f"{1e3 * rows[-1] / own[rows[-1]]:.0f}",
            f"{mean(times[0]) / mean(own):.2f}",
            f"{worst(way.run, cases):.1e}",
            f"{way.opened['device_bytes'] / 2**20:.0f}" if way.opened else "",
            f"{way.opened['open_seconds']:.2f}" if way.opened else "",
        )
    return found


def worst(run: Run, cases: list[Case]) -> float:
    """The largest error over held-out cases, infinite where an answer is no number."""
    errors = []
    for case in cases:
        answers = run(case.inputs)
        for name, reference in case.reference.items():
            error = relative_error(answers[name], reference, array_scale(reference))
            errors.append(float("inf") if error is None else error)
    return max(errors)


if __name__ == "__main__":
    main(sys.argv[1:])
