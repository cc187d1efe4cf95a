"""The 5x5 branch of an inception block with and without its 1x1 bottleneck: counted and timed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from flows.experiments import Experiment, Figure, Outcome, Setup
from flows.latency import alternate, machine
from models.errors import CertificateFailed
from models.googlenet import GOOGLENET
from models.layers import Block, inspect
from models.recipe import Recipe
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline import plots
from pipeline.artifacts import digest_files
from pipeline.backends import DEFAULT_TARGET, Session, backend
from pipeline.backends import target as find_target
from pipeline.compare import BOUNDS, relative_error
from pipeline.values import MODEL

BRANCH = "inception3a.branch5"
BATCHES = (1, 2, 4, 8)

_INPUT, _OUTPUT = "maps", "answer"


@dataclass(frozen=True)
class Timing:
    """Median milliseconds a call on one thread, in alternating rounds."""

    library: str
    batch: int
    without: float
    reduced: float

    @property
    def ratio(self) -> float:
        return self.without / self.reduced


def count(recipe: Recipe) -> Block:
    """Look the branch up among a net's blocks."""
    return next(block for block in inspect(recipe).blocks if block.name == BRANCH)


def judge(
    without: Block, reduced: Block, timings: Sequence[Timing], where: str
) -> tuple[str, bool]:
    """The verdict and whether the claim held: fewer multiplications, and faster wherever timed."""
    ratio = without.multiplications / reduced.multiplications
    batches = [timing.batch for timing in timings]
    medians = {
        library: median(t.ratio for t in timings if t.library == library)
        for library in dict.fromkeys(timing.library for timing in timings)
    }
    verdict = (
        f"The branch costs {without.multiplications:,} multiplications and "
        f"{without.parameters:,} parameters without the bottleneck, "
        f"{reduced.multiplications:,} and {reduced.parameters:,} with it: {ratio:.1f} times fewer "
        "multiplications. Measured, it is "
        + " and ".join(f"{faster:.1f} times faster in {name}" for name, faster in medians.items())
        + f" (medians over batches {min(batches)} to {max(batches)}, one thread of {where})."
    )
    return verdict, ratio > 1 and all(timing.ratio > 1 for timing in timings)


def run(setup: Setup) -> Outcome:
    """Count the branch in the net, then run it alone both ways, by PyTorch and as an engine."""
    nets = [GOOGLENET.override({**setup.changes, "bottleneck": kept}) for kept in (False, True)]
    without, reduced = map(count, nets)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = _time(nets, without.output_shape)
    finally:
        torch.set_num_threads(threads)
    verdict, holds = judge(without, reduced, timings, machine())
    rows = [
        _row("multiplications a row", without.multiplications, reduced.multiplications),
        _row("parameters", without.parameters, reduced.parameters),
        *(_row(f"ms, {t.library}, batch {t.batch}", t.without, t.reduced) for t in timings),
    ]
    return Outcome(verdict, holds, rows, [_times(timings), _ratios(timings, rows[0]["ratio"])])


def _row(what: str, without: float, reduced: float) -> dict[str, Any]:
    return {"cost": what, "without": without, "with": reduced, "ratio": without / reduced}


def _time(nets: Sequence[Recipe], shape: Sequence[int]) -> list[Timing]:
    """Time the branch of each net, without and with the bottleneck, on maps of that side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        branches = [net.build().eval().get_submodule(f"network.{BRANCH}") for net in nets]
        channels = next(branches[0].parameters()).shape[1]
        maps = torch.rand(max(BATCHES), channels, *shape[1:])  # as after a ReLU: none is negative
    with TemporaryDirectory() as scratch:
        engines = [engine_of(b, maps, Path(scratch) / str(n)) for n, b in enumerate(branches)]
        timings = []
        for batch in BATCHES:
            rows = maps[:batch]
            calls = [partial(_answer, branch, rows) for branch in branches]
            calls += [partial(engine.run, {_INPUT: rows.numpy()}) for engine in engines]
            times = alternate(*calls)
            timings.append(Timing("PyTorch", batch, *times[:2]))
            timings.append(Timing("ONNX Runtime", batch, *times[2:]))
    return timings


def engine_of(branch: nn.Module, maps: Tensor, folder: Path) -> Session:
    """Export the branch, build its engine and hold it against the module.

    Raises `CertificateFailed` when they differ: the time of something else is no measurement.
    """
    folder.mkdir()
    graph = folder / MODEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter speaks about itself
        torch.onnx.export(
            branch, (maps[:2],), graph, dynamo=False, opset_version=18,
            input_names=[_INPUT], output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: BATCH}, _OUTPUT: {0: BATCH}},
        )  # fmt: skip
    expected = _answer(branch, maps)
    rows = Axis(BATCH, 1, len(maps), len(maps))
    signature = Signature(
        inputs=(TensorSpec(_INPUT, "float32", (rows, *maps.shape[1:])),),
        outputs=(TensorSpec(_OUTPUT, "float32", (rows, *expected.shape[1:])),),
    )
    target = find_target(DEFAULT_TARGET)
    tools = backend(target)
    built = tools.build(graph, signature, target, folder)
    session = tools.open(folder, digest_files(folder, list(built.files)), built.options)
    answer = session.run({_INPUT: maps.numpy()})[_OUTPUT]
    error = relative_error(answer, expected.numpy(), float(expected.abs().max()))
    if error is None or error > BOUNDS["fp32"].ceiling:
        raise CertificateFailed(
            f"the engine of {BRANCH} does not answer as the module does",
            got=f"error {error} of its scale",
            expected=f"{BOUNDS['fp32'].ceiling} or less",
        )
    return session


@torch.inference_mode()
def _answer(branch: nn.Module, maps: Tensor) -> Tensor:
    return branch(maps)


def _times(timings: Sequence[Timing]) -> Figure:
    series = {}
    for library in dict.fromkeys(t.library for t in timings):
        own = [t for t in timings if t.library == library]
        batches = [t.batch for t in own]
        series[f"{library}, without"] = (batches, [t.without for t in own])
        series[f"{library}, with"] = (batches, [t.reduced for t in own])
    return Figure(
        "Median milliseconds a call of the branch over the batch, in alternating rounds.",
        plots.lines(
            "bottleneck",
            series,
            "Milliseconds a call of the 5x5 branch without and with its bottleneck over batches",
            xlabel="batch (rows in one call)",
            ylabel="milliseconds a call (logarithmic)",
            log_x=True,
            log_y=True,
        ),
    )


def _ratios(timings: Sequence[Timing], multiplications: float) -> Figure:
    batches = [t.batch for t in timings if t.library == timings[0].library]
    series = {"multiplications": (batches, [multiplications] * len(batches))}
    for library in dict.fromkeys(t.library for t in timings):
        series[library] = (batches, [t.ratio for t in timings if t.library == library])
    return Figure(
        "How many times cheaper the branch is with its bottleneck: counted and measured.",
        plots.lines(
            "bottleneck ratio",
            series,
            "Ratio of multiplications and of measured times over batches",
            xlabel="batch (rows in one call)",
            ylabel="cost without / cost with",
            log_x=True,
        ),
    )


EXPERIMENT = Experiment(
    name="bottleneck",
    title="The 1x1 bottleneck of an inception block",
    claim="A 1x1 convolution to 16 channels before the 5x5 convolutions of inception block 3a cuts "
    "their multiplications about ten times, and that makes the branch faster.",
    paper="Szegedy and others 2015, Going deeper with convolutions; Lin, Chen, Yan 2013, Network "
    "in network",
    run=run,
    varied=("bottleneck",),
)
