"""Lowering: which nodes of a graph bear lower precision, chosen by rows of the validation split."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.codec import Codec
from models.errors import BuildFailed
from models.signature import BATCH
from pipeline.artifacts import digest_files
from pipeline.backends import Built, Target, backend
from pipeline.cases import EDGE, VALIDATION, Case
from pipeline.compare import Run, compare, derive_limits, replay, worst_ratio
from pipeline.drift import check_drift
from pipeline.samples import VALIDATION_ROWS, Samples, read_samples
from pipeline.values import CODEC, MODEL, Finding, Limit, OnnxModel

_WHOLE = ("fp32", "tf32")  # graphs stay as they are
_ROUNDED = ("int8", "fp8")
_RANKED = 64  # nodes that are tried one by one; of more, those nearest to input and output
_ROWS = 16  # rows by which they are ranked
# The share of the allowed drift that validation rows may show; held-out ones showed twice as much.
_ROOM = 0.5


@dataclass(frozen=True)
class Lowered:
    """An engine that is inside its limits as far as these choose it, or why there is none."""

    built: Built | None
    kept: tuple[str, ...] = ()
    why: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Trial:
    """How an engine does: error over limit at its worst, and changed answers over allowed."""

    error: float
    drift: float

    @property
    def worst(self) -> float:
        return max(self.error, self.drift)

    def __str__(self) -> str:
        return f"error {self.error:.2f} and drift {self.drift:.2f} times what is allowed"


def lower(model: OnnxModel, target: Target, cases: list[Case], out: Path) -> Lowered:
    """Build the engine of a target into `out`, of lower precision with as few fp32 nodes as can be.

    At first every node that can be is lowered, but those that the backend knows to be sensitive. Is
    that too much, each is lowered alone, and the 1, 2, 4, ... that then do most harm stay in fp32
    as well. Judged by validation rows, never by held-out
    ones, and by edge inputs. Raises `BuildFailed`.
    """
    signature, tools = model.signature, backend(target)
    if target.precision in _WHOLE:
        return Lowered(tools.build(model.folder / MODEL, signature, target, out))
    if signature.recurrence is not None and target.precision in _ROUNDED:
        return Lowered(None, why="its state would be carried from call to call in eight bits")
    path = model.folder / VALIDATION_ROWS
    if not path.is_file():
        raise BuildFailed(
            f"nodes of {target.name!r} are chosen by validation rows beside {MODEL}",
            got=f"no {path.name}",
            fix="build it where the model was exported, or export it again",
        )
    reasons = tools.sensitive(model.folder / MODEL, signature, target)
    nodes = [node for node in tools.lowered(model.folder / MODEL, target) if node not in reasons]
    if not nodes:
        return Lowered(None, why="no node of the graph is a product with a weight")
    samples = read_samples(path)
    codec = Codec.model_validate_json((model.folder / CODEC).read_bytes())
    floors = model.floors.get(target.precision, {})
    limits = derive_limits(cases, target.precision, floors)
    chosen = derive_limits(cases, target.precision, floors, VALIDATION)
    edges = [case for case in cases if case.origin == EDGE]

    with tempfile.TemporaryDirectory() as scratch:

        def build(keep: Collection[str]) -> tuple[Built, Run]:
            built = tools.build(
                model.folder / MODEL, signature, target, out,
                keep=[*reasons, *keep], scratch=Path(scratch),
            )  # fmt: skip
            files = digest_files(out, list(built.files))
            return built, tools.open(out, files, built.options).run

        def judge(run: Run) -> _Trial:
            drift = check_drift(
                run, samples, signature, codec, limits, target.precision, model.drift
            )
            shares = [d.changed / (_ROOM * d.allowed) if d.allowed else d.changed for d in drift]
            failed = any(not d.passed for d in drift)
            error = max(_error(run, samples, model, chosen), _worst(replay(run, edges, limits)))
            return _Trial(error, max([*shares, 1.01 * failed]))

        def alone(node: str) -> float:
            _, run = build([other for other in nodes if other != node])
            return _error(run, _few(samples), model, chosen)

        built, run = build(())
        first = last = judge(run)
        if first.worst <= 1:
            return Lowered(built, tuple(reasons), reasons=reasons)
        near = nodes if len(nodes) <= _RANKED else nodes[: _RANKED // 2] + nodes[-_RANKED // 2 :]
        harm = {node: alone(node) for node in near}
        ranked = sorted(near, key=lambda node: -harm[node])
        count = 1
        while count < len(nodes) and count <= len(ranked):
            keep = ranked[:count]
            built, run = build(keep)
            last = judge(run)
            if last.worst <= 1:
                kept = (*reasons, *(node for node in nodes if node in keep))
                return Lowered(built, kept, reasons=reasons)
            count *= 2
    return Lowered(
        None,
        why=f"with all {len(nodes)} products lowered: {first}; with {count // 2} in fp32: {last}",
    )


def _error(run: Run, samples: Samples, model: OnnxModel, limits: dict[str, Limit]) -> float:
    """Error over limit of the worst output over a table of rows."""
    case = Case("validation", VALIDATION, {BATCH: len(samples)}, {})
    answers = samples.ask(run, model.signature)
    return _worst(compare("samples", case, answers, samples.reference, limits))


def _worst(findings: list[Finding]) -> float:
    ratio = worst_ratio(findings)
    return np.inf if ratio is None and findings else ratio or 0.0


def _few(samples: Samples) -> Samples:
    return Samples(
        {n: a[:_ROWS] for n, a in samples.inputs.items()},
        reference={n: a[:_ROWS] for n, a in samples.reference.items()},
    )
