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
    """An engine that is inside its limits as far as these choose it, or why there is none.

    `lowered` are the nodes that it computes in its precision, `kept` those that stayed in fp32.
    """

    built: Built | None
    lowered: tuple[str, ...] = ()
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


def lower_at_first(
    model: OnnxModel, target: Target, out: Path, scratch: Path | None = None
) -> Lowered:
    """Build the engine of a target into `out`, with what is known to be sensitive in fp32.

    Nothing is asked of it, so this needs no machine that can run it. Raises `BuildFailed`.
    """
    tools, path, signature = backend(target), model.folder / MODEL, model.signature
    if target.precision in _WHOLE:
        return Lowered(tools.build(path, signature, target, out))
    if signature.recurrence is not None and target.precision in _ROUNDED:
        return Lowered(None, why="its state would be carried from call to call in eight bits")
    reasons = tools.sensitive(path, signature, target)
    nodes = tuple(node for node in tools.lowered(path, target) if node not in reasons)
    if not nodes:
        return Lowered(None, why="no node of the graph is a product with a weight")
    built = tools.build(path, signature, target, out, keep=tuple(reasons), scratch=scratch)
    return Lowered(built, nodes, tuple(reasons), reasons=reasons)


def lower(model: OnnxModel, target: Target, cases: list[Case], out: Path) -> Lowered:
    """Build the engine of a target into `out`, of lower precision with as few fp32 nodes as can be.

    At first every node that can be is lowered, but those that the backend knows to be sensitive.
    If that is too much, each is lowered alone, and the 1, 2, 4, ... that then do most harm stay in
    fp32 as well. Judged by validation rows, never by held-out ones, and by edge inputs. Raises
    `BuildFailed`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        start = lower_at_first(model, target, out, Path(scratch))
        if start.built is None or target.precision in _WHOLE:
            return start
        return _mend(model, target, cases, out, Path(scratch), start)


def _mend(
    model: OnnxModel, target: Target, cases: list[Case], out: Path, scratch: Path, start: Lowered
) -> Lowered:
    """The engine that was built at first if its answers hold, else one with more nodes in fp32."""
    signature, tools, nodes = model.signature, backend(target), start.lowered
    path = model.folder / VALIDATION_ROWS
    if not path.is_file():
        raise BuildFailed(
            f"nodes of {target.name!r} are chosen by validation rows beside {MODEL}",
            got=f"no {path.name}",
            fix="build it where the model was exported, or export it again",
        )
    samples = read_samples(path)
    codec = Codec.model_validate_json((model.folder / CODEC).read_bytes())
    floors = model.floors.get(target.rounding, {})
    limits = derive_limits(cases, target.precision, floors)
    chosen = derive_limits(cases, target.precision, floors, VALIDATION)
    edges = [case for case in cases if case.origin == EDGE]

    def build(keep: Collection[str]) -> Built:
        return tools.build(
            model.folder / MODEL, signature, target, out,
            keep=[*start.kept, *keep], scratch=scratch,
        )  # fmt: skip

    def opened(built: Built) -> Run:
        return tools.open(out, digest_files(out, list(built.files)), built.options).run

    def judge(run: Run) -> _Trial:
        drift = check_drift(run, samples, signature, codec, limits, target.precision, model.drift)
        shares = [d.changed / (_ROOM * d.allowed) if d.allowed else d.changed for d in drift]
        failed = any(not d.passed for d in drift)
        error = max(_error(run, samples, model, chosen), _worst(replay(run, edges, limits)))
        return _Trial(error, max([*shares, 1.01 * failed]))

    def alone(node: str) -> float:
        run = opened(build([other for other in nodes if other != node]))
        return _error(run, _few(samples), model, chosen)

    assert start.built is not None
    first = last = judge(opened(start.built))
    if first.worst <= 1:
        return start
    near = nodes if len(nodes) <= _RANKED else nodes[: _RANKED // 2] + nodes[-_RANKED // 2 :]
    harm = {node: alone(node) for node in near}
    ranked = sorted(near, key=lambda node: -harm[node])
    count = 1
    while count < len(nodes) and count <= len(ranked):
        keep = ranked[:count]
        built = build(keep)
        last = judge(opened(built))
        if last.worst <= 1:
            lowered = tuple(node for node in nodes if node not in keep)
            kept = (*start.kept, *(node for node in nodes if node in keep))
            return Lowered(built, lowered, kept, reasons=start.reasons)
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
