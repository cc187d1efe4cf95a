"""What a report shows of a certificate: its findings as tables, and plots of their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from models.signature import Signature
from pipeline import plots
from pipeline.card import times
from pipeline.cases import CARRIED, GREEDY
from pipeline.compare import ratio, worst_ratio
from pipeline.decisions import AGREEMENT, REGRET
from pipeline.values import Certificate, Finding

# What each law of pipeline.invariance says, for readers.
LAWS = {
    "duplicate": "equal rows get equal answers wherever they stand",
    "permute": "the order of the rows does not matter",
    "neighbour": "a row's answer does not depend on the other rows",
    "split": "an answer does not depend on how rows are cut into batches",
    "position": "in a block of fixed size a row has the same answer, to the bit, at every place",
    "cut": "a sequence cut into calls that carry its state is answered as in one call",
    "twice": "a second call answers the same, to the bit",
    "parts": "the parts, each given what those before it answered, together answer as the whole",
    "reload": "a second session answers the same, to the bit",
}


def describe_certificate(certificate: Certificate, signature: Signature) -> dict[str, Any]:
    """What the template shows of one certificate: its findings as tables, and their plot."""
    said = dict.fromkeys(f.output for f in certificate.findings)
    outputs = [spec.name for spec in signature.outputs]
    outputs += [name for name in {**certificate.limits, **said} if name not in outputs]
    tables = {
        "samples": _table(certificate.findings, outputs, {"samples"}),
        "edges": _table(certificate.findings, outputs, {"edges"}),
    }
    apart = {CARRIED, GREEDY, AGREEMENT, REGRET}
    laws = {f.check for f in certificate.findings} - tables.keys() - apart
    cases = tables["samples"] + tables["edges"]
    plot = None
    if cases:
        columns = zip(*(row for _, row in cases), strict=True)
        plot = plots.dots(
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
    return {
        "value": certificate,
        "passed": bool(certificate),
        "outputs": outputs,
        "limits": {n: certificate.limits[n] for n in outputs if n in certificate.limits},
        "worst": worst_ratio(certificate.findings),
        "failed": sum(not f.passed or ratio(f) is None for f in certificate.findings),
        "laws": _table(certificate.findings, outputs, laws),
        "carried": [f for f in certificate.findings if f.check == CARRIED],
        "greedy": [f for f in certificate.findings if f.check == GREEDY],
        "decisions": [f for f in certificate.findings if f.check in (AGREEMENT, REGRET)],
        "growth": _growth(certificate),
        "plot": plot,
        **tables,
    }


def _table(
    findings: Sequence[Finding], outputs: Sequence[str], checks: set[str]
) -> list[tuple[Finding, list[Finding | None]]]:
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
