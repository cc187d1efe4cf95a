"""One graph at a time: its sound engine and its mutants, asked by the gate and by the peers."""

from __future__ import annotations

import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows import stages
from flows.mutation.choice import DATA
from flows.stages import Job, Parts
from models.errors import BuildFailed
from models.signature import Signature
from models.zoo import find
from pipeline import verify
from pipeline.artifacts import digest_files
from pipeline.backends import backend
from pipeline.backends import target as find_target
from pipeline.cases import HELD_OUT, Case, read_cases
from pipeline.compare import Run, compare, ratio
from pipeline.faults import FAULTS, Fault, Mutant, Subject, mutate
from pipeline.intermediates import unoptimised
from pipeline.lowering import lower
from pipeline.parts import part
from pipeline.peers import PEERS, Question, questions, refusals
from pipeline.samples import CALIBRATION_ROWS
from pipeline.values import MODEL, Engine, Finding, Limit, OnnxModel

BUILD = "build"  # what sees a graph that cannot be built, opened or run
RAISED = "raised"  # what sees a mutant on which the gate itself breaks down
_GIVEN = re.compile(r"(\w+):")


@dataclass(frozen=True)
class Distance:
    """The worst error of held-out answers: over the output's scale, noise floor and limit.

    None where there is no number to compare or no floor to divide by.
    """

    scale: float | None
    floor: float | None
    limit: float | None


@dataclass(frozen=True)
class Sound:
    """What was said of an engine without a fault."""

    recipe: str
    part: str  # none is the whole
    seed: int
    failures: tuple[str, ...]
    peers: Mapping[str, bool]  # by name, whether it refuses the engine
    distance: Distance


@dataclass(frozen=True)
class Trial:
    """What was said of a mutant. `check` is the gate's check that saw it, None where none did."""

    fault: str
    recipe: str
    part: str
    where: str
    equivalent: str | None
    check: str | None
    failure: str
    peers: Mapping[str, bool]
    distance: Distance


@dataclass(frozen=True)
class Graph:
    """An exported graph with its sound engine: the whole of a recipe, or a part."""

    recipe: str
    part: str
    model: OnnxModel
    engine: Engine


def job(reference: str, seed: int, out: Path) -> Job:
    """One epoch of training, whatever it comes to: real weights, cheaply."""
    return Job(reference, DATA, changes={"epochs": 1, "floor": "none", "seed": seed}, out=out)


def examine_sound(reference: str, seed: int, out: Path, target: str) -> list[Sound]:
    """Train, export and build with that seed, or take what is there, and ask every sound engine.

    None of a graph that the target refuses.
    """
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in models(reference, seed, out):
            graph = build(reference, name, model, target, Path(scratch) / name)
            found += [_examine(graph, seed)] if graph else []
    return found


def _examine(graph: Graph, seed: int) -> Sound:
    evidence, seen = verify.gather(graph.model), verify.Examined()
    failures = tuple(verify.examine(graph.engine, evidence, seen))
    limits = evidence.limits(find_target(graph.engine.target))
    held_out = [f for f in seen.findings if f.check == "samples"]
    peers = dict.fromkeys((p.name for p in PEERS), True)
    if seen.run:
        peers = refusals(seen.run, _asked(graph))
    return Sound(graph.recipe, graph.part, seed, failures, peers, worst(held_out, limits))


def try_mutants(
    reference: str, part_name: str, out: Path, target: str, faults: Iterable[str]
) -> list[Trial]:
    """Every fault in one graph, each where its own random numbers put it.

    The weights of the next seed are there to be confused with.
    """
    import onnx

    model, other = (dict(models(reference, seed, out))[part_name] for seed in (0, 1))
    exported = onnx.load_model(model.folder / MODEL)
    evidence = verify.gather(model)
    subject = Subject(model.signature, evidence.codec, onnx.load_model(other.folder / MODEL))
    wanted = [fault for fault in FAULTS if fault.name in set(faults)]
    with tempfile.TemporaryDirectory() as scratch:
        graph = build(reference, part_name, model, target, Path(scratch))
        if graph is None:
            return []
        asked = _asked(graph)
        made = (mutate(exported, fault, subject, _seed(graph, fault)) for fault in wanted)
        return [_try(mutant, graph, evidence, asked) for mutant in made if mutant]


def models(reference: str, seed: int, out: Path) -> list[tuple[str, OnnxModel]]:
    """The graphs of a recipe trained with that seed: its whole, and its parts by name.

    Each is asked by itself, so that the whole is one without parts.
    """
    own, parts = job(reference, seed, out), Parts()
    for stage in ("train", "export"):
        parts = stages.advance(own, stage, parts)
    model = parts.model
    assert model is not None
    whole = model.model_copy(update={"parts": {}})
    return [("", whole), *((name, part(model, name)) for name in sorted(model.parts))]


def build(reference: str, part_name: str, model: OnnxModel, target: str, out: Path) -> Graph | None:
    """A graph with its sound engine in `out`, whether it would pay or not; None where none holds.

    It is opened the usual way of the target.
    """
    wanted = find_target(target)
    out.mkdir(parents=True, exist_ok=True)
    lowered = lower(model, wanted, read_cases(model.folder), out)
    if lowered.built is None:
        return None
    engine = Engine(
        folder=out,
        target=target,
        parent=model.digest,
        signature=model.signature,
        options=lowered.built.options,
        built_on=lowered.built.built_on,
        files=digest_files(out, list(lowered.built.files)),
        kept=lowered.kept,
        reasons=dict(lowered.reasons),
    )
    return Graph(find(reference).name, part_name, model, engine)


def worst(findings: Iterable[Finding], limits: Mapping[str, Limit]) -> Distance:
    """The largest of every output's errors; None as soon as one could not be compared."""
    findings = list(findings)
    ratios = [ratio(f) for f in findings]
    if not findings or None in ratios:
        return Distance(None, None, None)
    errors = [(f.error or 0.0, limits[f.output].noise_floor) for f in findings]
    return Distance(
        scale=max(error for error, _ in errors),
        floor=max((error / floor for error, floor in errors if floor), default=None),
        limit=max(r for r in ratios if r is not None),
    )


def _try(
    mutant: Mutant, graph: Graph, evidence: verify.Evidence, asked: Mapping[str, Question]
) -> Trial:
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        onnx.save_model(mutant.graph, folder / MODEL)
        failure, peers, distance = _ask(folder, graph, evidence, asked)
    return Trial(
        fault=mutant.fault, recipe=graph.recipe, part=graph.part, where=mutant.where,
        equivalent=mutant.equivalent, check=_check(failure), failure=failure, peers=peers,
        distance=distance,
    )  # fmt: skip


def _ask(
    folder: Path, graph: Graph, evidence: verify.Evidence, asked: Mapping[str, Question]
) -> tuple[str, dict[str, bool], Distance]:
    """The first failure, if any, of an engine of the graph in `folder`; the peers; its error.

    The engine says that it is the sound graph's, as one would whose fault came in while building.
    """
    wanted = find_target(graph.engine.target)
    tools = backend(wanted)
    all_refuse = dict.fromkeys((p.name for p in PEERS), True)
    try:
        if wanted.precision != "fp32":  # it is calibrated, as the sound one was
            shutil.copy2(graph.model.folder / CALIBRATION_ROWS, folder)
        built = tools.build(
            folder / MODEL,
            graph.model.signature,
            wanted,
            folder,
            keep=graph.engine.kept,
            scratch=folder,
        )
        files = digest_files(folder, list(built.files))
        run = tools.open(folder, files, built.options).run
    except BuildFailed as error:
        return f"{BUILD}: {error}", all_refuse, Distance(None, None, None)
    update = {"folder": folder, "files": files, "options": built.options}
    engine = graph.engine.model_copy(update=update)
    try:
        failure = next(verify.examine(engine, evidence), "")
    except Exception as error:  # a gate that breaks down gives no certificate either
        failure = f"{RAISED}: {type(error).__name__}: {error}"
    limits = evidence.limits(wanted)
    return failure, refusals(run, asked), _distance(run, graph.model.signature, evidence, limits)


def _distance(
    run: Run, signature: Signature, evidence: verify.Evidence, limits: Mapping[str, Limit]
) -> Distance:
    """The error on the held-out case of usual sizes."""
    case = usual(signature, evidence.cases)
    try:
        answers = run(case.inputs)
    except Exception:  # whatever a backend raises, there is no number
        return Distance(None, None, None)
    return worst(compare("samples", case, answers, case.reference, limits), limits)


def usual(signature: Signature, cases: Iterable[Case]) -> Case:
    sizes = {name: axis.opt for name, axis in signature.axes.items()}
    return next(case for case in cases if case.origin == HELD_OUT and case.sizes == sizes)


def _asked(graph: Graph) -> dict[str, Question]:
    rng = np.random.default_rng(zlib.crc32(graph.part.encode()))
    # The sound graph as exported: proven against the module, and torch is spared.
    sound = unoptimised(graph.model.folder / MODEL)
    return questions(graph.model.signature, sound, rng)


def _check(failure: str) -> str | None:
    """The word before the colon of a failure: the check that saw it."""
    given = _GIVEN.match(failure)
    return given[1] if given else ("coverage" if failure else None)


def _seed(graph: Graph, fault: Fault) -> int:
    return zlib.crc32(f"{graph.recipe}/{graph.part}/{fault.name}".encode())
