"""A certificate as HTML, in a report or by itself: its findings as tables, and its plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from models.signature import Signature
from pipeline import plots
from pipeline.cases import CARRIED, GREEDY, NONFINITE
from pipeline.certificate_text import (
    located,
    operators,
    reason,
    spends_most,
    swallowed_words,
    telling,
)
from pipeline.compare import ratio, worst_ratio
from pipeline.page import write_page
from pipeline.parts import part
from pipeline.values import KIT, Certificate, Edge, Finding, Promise
from pipeline.wording import number, times

Rows = list[tuple[Finding, list[Finding | None]]]

# What each law of pipeline.invariance says, for readers.
LAWS = {
    "duplicate": "equal rows get equal answers wherever they stand",
    "permute": "the order of the rows does not matter",
    "neighbour": "a row's answer does not depend on the other rows",
    "split": "an answer does not depend on how rows are cut into batches",
    "position": "in a block of fixed size a row has the same answer, to the bit, at every place",
    "cut": "a sequence cut into calls that carry its state is answered as in one call",
    "twice": "a second call answers the same, to the bit",
    "threads": "another number of threads answers the same",
    "parts": "the parts, each given what those before it answered, together answer as the whole",
    "reload": "a second session answers the same, to the bit",
    "REST": "the packaged service answers over HTTP as the module does",
    "gRPC": "the packaged service answers over gRPC as the module does",
    "refused": "the packaged service refuses what the signature does not promise",
}


def write_certificate(certificate: Certificate, signature: Signature, path: Path) -> None:
    """Write one HTML file about one certificate and those of its parts; it needs nothing else.

    The kit is named where it lies beside the certificate; the same values give the same bytes.
    """
    parts = [part(certificate, name) for name in sorted(certificate.parts)]
    digests = [
        ("certificate", certificate.digest),
        ("engine", certificate.engine),
        ("ONNX model", certificate.model),
        *sorted(certificate.subject.items()),
    ]
    write_page(
        "certificate_page.html.j2",
        path,
        c=describe_certificate(certificate, signature),
        parts=[describe_certificate(value) for value in parts],
        signature=signature,
        digests=digests,
    )


def describe_certificate(
    certificate: Certificate, signature: Signature | None = None
) -> dict[str, Any]:
    """What the template shows of one certificate: its findings as tables, and its plots."""
    said = dict.fromkeys(f.output for f in certificate.findings)
    outputs = [spec.name for spec in signature.outputs] if signature else []
    said |= dict.fromkeys([*certificate.limits, *(edge.output for edge in certificate.budget)])
    outputs += [name for name in said if name not in outputs]
    tables = {
        name: _table(certificate.findings, outputs, {check})
        for name, check in (("samples", "samples"), ("edges", "edges"), ("nonfinite", NONFINITE))
    }
    apart = {CARRIED, GREEDY}
    laws = {f.check for f in certificate.findings} - tables.keys() - apart
    bounds = certificate.requested.get("bounds") or {}
    budget = sorted(certificate.budget, key=lambda edge: outputs.index(edge.output))
    return {
        "value": certificate,
        "passed": bool(certificate),
        "telling": telling(certificate),
        "located": certificate.diagnosis and located(certificate.diagnosis),
        "kit": KIT if (certificate.folder / KIT).is_dir() else None,
        "outputs": outputs,
        "samples_said": list(_samples(certificate)),
        "limits": [
            (n, certificate.limits[n], reason(certificate.limits[n], bounds))
            for n in outputs
            if n in certificate.limits
        ],
        "places": [name for name in Promise.model_fields if name not in ("what", "signature")],
        "worst": worst_ratio(certificate.findings),
        "failed": sum(not f.passed or ratio(f) is None for f in certificate.findings),
        "what_laws_say": LAWS,
        "laws": _table(certificate.findings, outputs, laws),
        "swallowed": list(swallowed_words(certificate.swallowed)),
        "carried": [f for f in certificate.findings if f.check == CARRIED],
        "greedy": [f for f in certificate.findings if f.check == GREEDY],
        "growth": _growth(certificate),
        "measures": [(n, d.output, m) for d in certificate.drift for n, m in d.measures.items()],
        "flips": list(_flips(certificate)),
        "most": spends_most(certificate.budget),
        "budget": budget,
        "spent": _spent(certificate.label, budget),
        "operators": operators(certificate),
        "plot": _errors(certificate, outputs, tables["samples"] + tables["edges"]),
        **tables,
    }


def _samples(certificate: Certificate) -> Iterator[tuple[str, str]]:
    for name, value in certificate.samples.items():
        if value is not None:
            said = ", ".join(map(str, value)) if isinstance(value, list) else number(value)
            yield name.replace("_", " "), said


def _errors(certificate: Certificate, outputs: Sequence[str], cases: Rows) -> Markup | None:
    """Every case's error over its limit."""
    if not cases:
        return None
    columns = zip(*(row for _, row in cases), strict=True)
    return plots.dots(
        f"errors {certificate.label}",
        [first.case for first, _ in cases],
        {
            name: [ratio(f) if f else math.nan for f in column]
            for name, column in zip(outputs, columns, strict=True)
        },
        f"Error over limit of {len(outputs)} outputs in {len(cases)} cases of "
        f"{certificate.label}; worst {times(worst_ratio(certificate.findings))}",
        xlabel="error / limit (logarithmic)",
    )


def _flips(certificate: Certificate) -> Iterator[tuple[Markup, str]]:
    """Where answers changed: how far the module's own answer was ahead there, and a caption."""
    for drift in certificate.drift:
        if drift.leads:
            name = f"{drift.measure} of {drift.output}"
            yield (
                plots.histogram(
                    f"flips of {name}, {certificate.label}",
                    drift.leads,
                    f"Leads of {len(drift.leads)} changed answers, {name}; the largest "
                    f"{drift.leads[-1]:.1e}",
                    xlabel="lead in the fp64 module / scale (logarithmic)",
                    ylabel="changed answers",
                    limit=(drift.tie, "tie") if drift.tie else None,
                ),
                f"{name}: how far the module was ahead where the engine answers otherwise."
                + (" Left of the line either answer is within the limit." if drift.tie else ""),
            )


def _spent(label: str, edges: Sequence[Edge]) -> Markup | None:
    """What each step adds, and the total up to there, over the limit."""
    if not edges:
        return None
    several = len({edge.output for edge in edges}) > 1

    def share(error: float | None, limit: float) -> float | None:
        return None if error is None else error / limit if limit else math.inf if error else 0.0

    return plots.bars(
        f"budget {label}",
        [f"to {e.end}" + (f", {e.output}" if several else "") for e in edges],
        {
            "adds": [share(e.error, e.limit) for e in edges],
            "total so far": [share(e.total, e.limit) for e in edges],
        },
        f"What {len(edges)} steps of {label} add to the error, over its limit",
        xlabel="error / limit (logarithmic)",
        limit=(1.0, "limit"),
    )


def _table(findings: Sequence[Finding], outputs: Sequence[str], checks: set[str]) -> Rows:
    """A row for each check and case, as its first finding and then one for each output."""
    rows: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        if finding.check in checks:
            rows.setdefault((finding.check, finding.case), {})[finding.output] = finding
    return [(next(iter(r.values())), [r.get(name) for name in outputs]) for r in rows.values()]


def _growth(certificate: Certificate) -> Markup | None:
    """How the error grows over the steps of a sequence whose state the engine carries itself."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for finding in certificate.findings:
        if finding.check == CARRIED and finding.error is not None:
            for name, value in ((finding.output, finding.error), ("limit", finding.limit)):
                steps, values = series.setdefault(name, ([], []))
                steps.append(float(finding.case.removeprefix("step ")))
                values.append(value)
    if not series:
        return None
    return plots.lines(
        f"growth {certificate.label}",
        series,
        f"Error over the steps of a sequence on {certificate.label}, and its limit",
        xlabel="steps, state carried by the engine (logarithmic)",
        ylabel="error / scale (logarithmic)",
        log_x=True,
        log_y=True,
    )
