"""Verify: an engine, opened as it will be served, is held against the original module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.codec import Codec
from models.errors import CertificateFailed, first_line
from models.signature import BATCH
from pipeline.backends import Target, backend
from pipeline.backends import target as find_target
from pipeline.budget import spend
from pipeline.carrying import replay_sequences
from pipeline.cases import (
    CARRIED,
    CASES_FILE,
    EDGE,
    HELD_OUT,
    NONFINITE,
    Case,
    read_cases,
)
from pipeline.compare import BOUNDS, Run, derive_limits, replay
from pipeline.contract import contract, disagreements
from pipeline.diverge import diverge
from pipeline.drift import check_drift
from pipeline.invariance import composition, invariances, largest, reloaded
from pipeline.kit import write_kit
from pipeline.nonfinite import check_nonfinite
from pipeline.parts import check, new_part, part, save_value
from pipeline.progress import Progress, silent
from pipeline.requested import other_than_requested
from pipeline.samples import HELD_OUT_ROWS, Samples, read_samples
from pipeline.values import (
    CERTIFICATE_VALUE,
    CODEC,
    KIT,
    Certificate,
    Drift,
    Edge,
    Engine,
    Finding,
    Limit,
    OnnxModel,
    Swallowed,
)
from pipeline.versions import libraries

NOT_SERVED = (
    "error budget: the HTTP and gRPC answer of the service; `fucina certify BUNDLE` adds it"
)
_THREADS = "intra_op_threads"


@dataclass(frozen=True)
class Evidence:
    """What engines of one graph are held against, read once: see `gather`."""

    model: OnnxModel
    codec: Codec
    cases: list[Case]
    samples: Samples | None

    def limits(self, target: Target) -> dict[str, Limit]:
        floors = self.model.floors.get(target.rounding, {})
        return derive_limits(self.cases, target.precision, floors)


@dataclass
class Examined:
    """An engine that is being examined: what was found so far."""

    findings: list[Finding] = field(default_factory=list)
    swallowed: list[Swallowed] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    run: Run | None = None


def gather(model: OnnxModel) -> Evidence:
    """The recorded cases and rows of a graph.

    Raises `BundleError` when a file is not the recorded one, `CertificateFailed` when there is no
    case to derive a limit from.
    """
    codec = Codec.model_validate_json((model.folder / CODEC).read_bytes())
    rows = model.folder / HELD_OUT_ROWS
    samples = read_samples(rows) if HELD_OUT_ROWS in model.apart and rows.is_file() else None
    evidence = Evidence(model, codec, read_cases(model.folder), samples)
    if not any(case.origin == HELD_OUT for case in evidence.cases):
        raise CertificateFailed(
            f"{model.folder} holds no recorded case of real samples, so there is no limit to hold "
            f"an engine of {model.recipe!r} to",
            fix="export it again",
        )
    return evidence


def examine(engine: Engine, evidence: Evidence, seen: Examined | None = None) -> Iterator[str]:
    """Ask an engine everything that one graph alone is asked; each failure as it is found.

    Whoever needs one failure stops there; at the end `seen` holds all that was found.
    """
    seen = seen if seen is not None else Examined()
    model, cases, codec = evidence.model, evidence.cases, evidence.codec
    wanted = find_target(engine.target)
    tools = backend(wanted)
    limits = evidence.limits(wanted)

    def opened(**changes: Any) -> Run:
        return tools.open(engine.folder, engine.files, {**engine.options, **changes}).run

    def told(findings: Iterator[Finding] | list[Finding]) -> Iterator[str]:
        for finding in findings:
            seen.findings.append(finding)
            yield from said(finding)

    yield from _broken_lineage(engine, model)
    try:
        seen.run = run = opened()
    except Exception as error:  # whatever a backend raises, the engine did not run
        seen.facts = _nothing_ran(error)
        yield f"effective: the engine cannot be opened: {seen.facts['error']}"
        return
    yield from told(replay(run, cases, limits))
    case = largest([c for c in cases if _answered(c, seen.findings)] or cases)
    try:
        seen.facts, answers = tools.effective(
            engine.folder, engine.files, engine.options, case.inputs
        )
    except Exception as error:
        seen.facts = _nothing_ran(error)
        yield f"effective: the engine did not run at {case.name}: {seen.facts['error']}"
        return
    if not seen.facts["declared"]:
        yield "declared: the engine declares no tensor"
    yield from disagreements(contract(model, seen.facts["declared"], seen.facts.get("profiles")))
    yield from told(replay_sequences(run, model.signature, cases, limits))
    yield from told(reloaded(run, case, answers, limits))
    threads = engine.options.get(_THREADS)
    other = None if threads is None else _another(threads)
    threaded = (lambda: opened(**{_THREADS: other})) if other else None
    yield from told(invariances(run, threaded, model.signature, cases, limits, codec.block))
    findings, seen.swallowed = check_nonfinite(run, cases, limits)
    yield from told(findings)
    if evidence.samples:
        seen.drift = check_drift(
            run, evidence.samples, model.signature, codec, limits, wanted.precision, model.drift
        )
        yield from _drifted(seen.drift)
    yield from _uncovered(model, cases, seen.findings)
    yield from other_than_requested(wanted, engine, seen.facts)


def verify(
    engine: Engine, model: OnnxModel, out: Path, *, name: str = "", progress: Progress = silent
) -> Certificate:
    """Write the certificate of an engine, and of its parts, into `out`; true when all passed.

    `name` says which part of a model this engine is of.

    Every recorded case is asked again and compared with the fp64 module, laws that need no
    reference are checked, the task's answers over held-out rows are compared, and what each place
    says of shapes, and what ran on which device in which precision, with the signature and the
    target. Nothing compared is a failure. Of an engine that failed, the first node that goes
    another way than its graph is looked for, and `out` holds a kit that reproduces it.

    Raises `BundleError` when a file is not the recorded one, `CertificateFailed` when there is no
    case to derive a limit from.
    """
    check(model, apart=False)  # which a bundle is without
    check(engine)
    return _certify(engine, model, out, name, progress)[0]


def _certify(
    engine: Engine, model: OnnxModel, out: Path, name: str, progress: Progress
) -> tuple[Certificate, Run | None]:
    """The certificate, and the engine as it was opened for it."""
    evidence = gather(model)
    cases = evidence.cases
    certified = {  # parts that the engine lacks are a failure of its lineage
        n: _certify(part(engine, n), part(model, n), new_part(out, n), n, silent)
        for n in sorted(model.parts.keys() & engine.parts.keys())
    }
    parts = {n: value for n, (value, _) in certified.items()}
    opened = {n: (run, part(model, n).signature) for n, (_, run) in certified.items() if run}
    wanted = find_target(engine.target)
    limits = evidence.limits(wanted)
    progress(1, 3, f"asking {len(cases)} recorded cases")
    seen = Examined()
    failures = list(examine(engine, evidence, seen))
    progress(2, 3, "spending the error budget")
    budget: list[Edge] = []
    if seen.run:
        if parts and opened.keys() == parts.keys():
            findings = composition(seen.run, opened, cases, limits)
            seen.findings += findings
            failures += [text for finding in findings for text in said(finding)]
        budget = spend(seen.run, model, cases, limits)
    failures += [f"part {n!r}: {f}" for n, value in parts.items() for f in value.failures]
    found = None
    if failures:
        progress(3, 3, "looking for the first node that diverges")
        found = diverge(engine, model, cases, seen.findings)
        if found:
            write_kit(out / KIT, found)
    value = Certificate(
        folder=out,
        recipe=model.recipe,
        target=engine.target,
        part=name,
        passed=not failures,
        engine=engine.digest,
        model=model.digest,
        subject=engine.files,
        limits=limits,
        findings=tuple(seen.findings),
        samples=_samples(evidence),
        requested={
            "device": wanted.device,
            "precision": wanted.precision,
            "kept_in_fp32": list(engine.kept),
            "options": engine.options,
            "bounds": asdict(BOUNDS[wanted.precision]),
        },
        effective=seen.facts,
        contract=contract(model, seen.facts["declared"], seen.facts.get("profiles")),
        swallowed=tuple(seen.swallowed),
        drift=tuple(seen.drift),
        budget=tuple(budget),
        failures=tuple(dict.fromkeys(failures)),
        diagnosis=found.diagnosis if found else None,
        not_run=tuple(_not_run(evidence, seen, name)),
        libraries=libraries("numpy") | engine.built_on,
        parts={n: value.digest for n, value in parts.items()},
    )
    save_value(value)
    return value, seen.run


def _not_run(evidence: Evidence, seen: Examined, part_name: str) -> Iterator[str]:
    """What DESIGN's certificate names and this one does not speak of."""
    yield NOT_SERVED
    if HELD_OUT_ROWS not in evidence.model.apart:
        yield "task drift: nobody has said what the task is"
    elif evidence.samples is None:
        yield "task drift: the held-out rows are not here"
    elif not seen.drift:
        why = "a part's task is its whole's" if part_name else "the codec names no answer"
        yield f"task drift: {why}"
    if not any(case.origin == NONFINITE for case in evidence.cases):
        yield "inputs that are not numbers: no input holds floats"
    if evidence.model.ranges is None:
        yield "shapes: this exporter does not say which sizes it understood"
    if evidence.model.signature.batch is None:
        yield "invariances over rows: the signature has no batch axis"


def _nothing_ran(error: Exception) -> dict[str, Any]:
    return {"declared": {}, "nodes": [], "tf32": False, "error": first_line(error)}


def _answered(case: Case, findings: list[Finding]) -> bool:
    """Whether a held-out case was answered at all."""
    return case.origin == HELD_OUT and any(
        f.case == case.name and f.check == "samples" and f.error is not None for f in findings
    )


def _another(threads: int) -> int:
    """A number of threads that the engine is not opened with: as many as cores, or one."""
    cores = max(2, os.cpu_count() or 1)
    return cores if threads == 1 else 1


def require(certificate: Certificate) -> None:
    """Raise `CertificateFailed` with the first failure unless the certificate holds."""
    if not certificate:
        first, *more = certificate.failures or ("it records a comparison that failed",)
        raise CertificateFailed(
            f"{certificate.recipe} on {certificate.target} is not certified: {first}"
            + (f" (and {len(more)} more)" if more else ""),
            fix=f"see {certificate.folder / CERTIFICATE_VALUE}",
        )


def _broken_lineage(engine: Engine, model: OnnxModel) -> Iterator[str]:
    if engine.parent != model.digest:
        yield "lineage: the engine was built from another graph than this one"
    if engine.parts.keys() != model.parts.keys():
        yield "lineage: the engine has other parts than its graph"
    if engine.signature != model.signature:
        yield "lineage: the engine has another signature than its graph"


def _uncovered(model: OnnxModel, cases: list[Case], findings: list[Finding]) -> Iterator[str]:
    """What a certificate must speak of and these findings do not."""
    covered = [case.sizes for case in cases if case.origin == HELD_OUT]
    for sizes in model.signature.corners():
        if sizes not in covered:
            yield f"shapes: no recorded case at {sizes}"
    compared = {finding.output for finding in findings if finding.error is not None}
    for spec in model.signature.outputs:
        if spec.name not in compared:
            yield f"nothing was compared of output {spec.name!r}"
    if model.signature.recurrence and not any(finding.check == CARRIED for finding in findings):
        yield "carried: no recorded sequence, so nothing is known of state after many steps"


def said(finding: Finding) -> Iterator[str]:
    """The line of a finding that failed; none of one that passed."""
    if not finding.passed:
        got = finding.note or f"error {finding.error:.1e}"
        yield (
            f"{finding.check}: output {finding.output!r} at {finding.case}: got {got}, "
            f"expected {finding.limit:.1e} or less of its scale"
        )


def _drifted(drift: Iterable[Drift]) -> Iterator[str]:
    for one in drift:
        if not one.passed:
            yield (
                f"drift: {one.measure} of output {one.output!r}: got {one.changed:.2%} of "
                f"{one.answers} answers changed, expected {one.allowed:.2%} or less"
                + (f" ({one.note})" if one.note else "")
            )


def _samples(evidence: Evidence) -> dict[str, Any]:
    model, cases = evidence.model, evidence.cases
    held_out = [case for case in cases if case.origin == HELD_OUT]
    return {
        "held_out_cases": len(held_out),
        "held_out_rows": sum(case.sizes.get(BATCH, 1) for case in held_out),
        "edge_cases": [case.name for case in cases if case.origin == EDGE],
        "sha256": model.files[CASES_FILE],
        "drift_rows": len(evidence.samples) if evidence.samples else 0,
        "drift_sha256": model.apart.get(HELD_OUT_ROWS),
    }
