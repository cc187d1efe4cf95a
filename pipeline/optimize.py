"""Optimize: a backend turns the portable graph into an engine for one target, or it is refused."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from models.errors import BuildFailed
from pipeline.artifacts import digest_files, save, write_json
from pipeline.backends import Built, Target, backend, facts_of, require, rival
from pipeline.backends import target as find_target
from pipeline.candidates import Way, calls, mean, measure, settle
from pipeline.cases import HELD_OUT, Case, read_cases
from pipeline.compare import derive_limits, replay
from pipeline.lowering import lower, lower_at_first
from pipeline.parts import new_part, part, save_value
from pipeline.progress import Progress, silent
from pipeline.values import (
    BUILD,
    CANDIDATES,
    MODEL,
    REFUSAL_VALUE,
    Candidate,
    Engine,
    OnnxModel,
    Refusal,
)

# An engine of lower precision answers otherwise than the module; for less than this it is not
# worth it.
_PAYS = 1.2


def optimize(
    model: OnnxModel, target: str, out: Path, *, progress: Progress = silent
) -> Engine | Refusal:
    """Build the engine of a target into `out`, and its parts', to be opened the fastest way.

    Of a target of lower precision nodes stay in fp32 until the task's answers hold; it is refused
    where that leaves nothing, or nothing that is faster than fp32. All ways that were measured
    are in candidates.json. Raises `TargetUnavailable` or `BuildFailed`.
    """
    wanted = find_target(target)
    require(wanted)
    return _optimize(model, wanted, out, progress, whole=True)


def build_only(model: OnnxModel, target: str, out: Path) -> dict[str, Any]:
    """Build the engine of a target, and its parts', into `out` and open nothing; what was built.

    This needs no machine that can run it, so nobody knows what it answers: it is no `Engine`.
    The same is written to build.json. Raises `TargetUnavailable` or `BuildFailed`.
    """
    wanted = find_target(target)
    require(wanted, to_run=False)
    lowered = lower_at_first(model, wanted, out)
    built = lowered.built
    if built is None:
        raise BuildFailed(
            f"{model.recipe} has no engine for {wanted.name}: {lowered.why}",
            fix="build it for another precision",
        )
    facts = {
        "target": wanted.name,
        "model": model.digest,
        "built_on": built.built_on,
        "files": digest_files(out, list(built.files)),
        **built.report,
        "kept": [{"name": name, "reason": lowered.reasons.get(name, "")} for name in lowered.kept],
        "parts": {n: build_only(part(model, n), target, new_part(out, n)) for n in model.parts},
    }
    write_json(out / BUILD, facts)
    return facts


def _optimize(
    model: OnnxModel, target: Target, out: Path, progress: Progress, whole: bool
) -> Engine | Refusal:
    cases = read_cases(model.folder)
    progress(0, 2, f"building {target.name}")
    lowered = lower(model, target, cases, out)
    if lowered.built is None:
        return _refuse(model, target, out, lowered.why)
    built, kept = lowered.built, lowered.kept
    progress(1, 2, f"measuring {target.name}")
    candidates, against = _measure(model, target, cases, built, out)
    ours = next(candidate for candidate in candidates if candidate.kept)
    if against:
        faster = mean(against.milliseconds) / mean(ours.milliseconds)
        # A part is there for its whole, whether it alone is faster or not.
        if whole and faster < _PAYS:
            why = (
                f"{ours.name}, is {faster:.2f} times as fast as {against.name}, "
                f"expected {_PAYS} or more" + (f", with {len(kept)} nodes in fp32" if kept else "")
            )
            return _refuse(model, target, out, why, candidates)
    parts: dict[str, str] = {}
    for name in model.parts:
        piece = _optimize(part(model, name), target, new_part(out, name), silent, whole=False)
        if isinstance(piece, Refusal):
            return _refuse(model, target, out, f"part {name!r}: {piece.why}", candidates)
        parts[name] = piece.digest
    write_json(out / CANDIDATES, [candidate.model_dump(mode="json") for candidate in candidates])
    if built.report:
        write_json(out / BUILD, built.report)
    value = Engine(
        folder=out,
        target=target.name,
        parent=model.digest,
        signature=model.signature,
        options=ours.options,
        built_on=built.built_on,
        files=digest_files(out, list(built.files)),
        lowered=lowered.lowered,
        kept=kept,
        reasons=dict(lowered.reasons),
        parts=parts,
    )
    save_value(value)
    progress(2, 2, f"built {target.name}")
    return value


def _measure(
    model: OnnxModel, target: Target, cases: list[Case], built: Built, out: Path
) -> tuple[list[Candidate], Candidate | None]:
    """Every way to open the engine and, below fp32, those of fp32 and which would be kept there."""
    held_out = [case for case in cases if case.origin == HELD_OUT]
    floors = model.floors.get(target.rounding, {})
    limits = derive_limits(cases, target.precision, floors)

    def why_not(way: Way) -> str:
        failed = [f for f in replay(way.run, held_out, limits) if not f.passed]
        return f"output {failed[0].output!r} at {failed[0].case}" if failed else ""

    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(target, built, out)
        if target.precision != "fp32":
            other = rival(target)
            plain = backend(other).build(model.folder / MODEL, model.signature, other, Path(folder))
            ways += _ways(other, plain, Path(folder))
        times = measure(ways, calls(model.signature, cases))
    own = [way for way in ways if way.precision == target.precision]
    candidates = settle(own, times[: len(own)], why_not)
    if len(own) == len(ways):
        return candidates, None
    # What fp32 would be opened as, by the same rule.
    rivals = settle(ways[len(own) :], times[len(own) :], lambda way: "")
    beside = {"kept": False, "outcome": "measured beside it"}
    return (
        candidates + [rival.model_copy(update=beside) for rival in rivals],
        next(rival for rival in rivals if rival.kept),
    )


def _ways(target: Target, built: Built, folder: Path) -> list[Way]:
    tools = backend(target)
    files = digest_files(folder, list(built.files))
    return [
        Way(
            f"{target.precision}, {name}",
            target.precision,
            options,
            session.run,
            facts_of(session),
        )
        for name, options in tools.ways(built.options).items()
        for session in [tools.open(folder, files, options)]
    ]


def _refuse(
    model: OnnxModel, target: Target, out: Path, why: str, candidates: list[Candidate] | None = None
) -> Refusal:
    """Say why there is no engine, with what was measured, and leave nothing else in `out`."""
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = [
        candidate.model_copy(update={"kept": False, "outcome": "refused"})
        if candidate.kept
        else candidate
        for candidate in candidates or []
    ]
    write_json(out / CANDIDATES, [candidate.model_dump(mode="json") for candidate in said])
    value = Refusal(
        folder=out,
        target=target.name,
        parent=model.digest,
        why=f"{model.recipe} has no engine for {target.name}: {why}",
    )
    save(value, out, REFUSAL_VALUE)
    return value
