"""A certificate in words: lines for a terminal, Markdown for a page, and the sentences of both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.cases import NONFINITE
from pipeline.compare import ratio, worst_ratio
from pipeline.values import (
    KIT,
    Certificate,
    Diagnosis,
    Drift,
    Edge,
    Finding,
    Limit,
    Promise,
    Swallowed,
)
from pipeline.wording import error, number, percent, plural, times

_MOST_OUTPUTS = 3
_MOST_FAILURES = 5  # on a terminal; the certificate has them all


def certificate_text(certificate: Certificate) -> list[str]:
    """10 to 20 lines for a terminal: verdict, worst error of each check, and what was not run."""
    lines = [*_limits(certificate), *_checks(certificate)]
    lines.append(("contract", contract_words(certificate.contract)))
    lines += [("drift", drift_words(drift)) for drift in certificate.drift]
    most = spends_most(certificate.budget)
    if most:
        lines += [
            ("budget", text)
            for text in budget_words(e for e in certificate.budget if e.output == most.output)
        ]
    lines.append(("ran", ran_words(certificate)))
    lines += [(NONFINITE, text) for text in swallowed_words(certificate.swallowed)]
    lines += [("failure", text) for text in certificate.failures[:_MOST_FAILURES]]
    more = len(certificate.failures) - _MOST_FAILURES
    lines += [("", f"and {plural(more, 'more failure')}")] if more > 0 else []
    if certificate.diagnosis:
        lines.append(("located", located(certificate.diagnosis)))
    if (certificate.folder / KIT).is_dir():
        lines.append(("kit", str(certificate.folder / KIT)))
    lines += [("not run", text) for text in certificate.not_run]
    width = max(len(what) for what, _ in lines)
    return [headline(certificate), *(f"  {what:<{width}}  {text}" for what, text in lines)]


def _limits(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """The limit of each of few outputs; of many the least and the most."""
    ordered = sorted(certificate.limits, key=lambda name: certificate.limits[name].limit)
    for name in ordered if len(ordered) <= _MOST_OUTPUTS else (ordered[0], ordered[-1]):
        yield "limit", f"{name}: {why(certificate, name)}"


def _checks(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """The worst of each check, and in one line those in which everything was equal."""
    equal = []
    for finding in worst_findings(certificate):
        count = sum(f.check == finding.check for f in certificate.findings)
        if finding.passed and finding.error == 0:
            equal.append(finding.check)
        else:
            yield finding.check, f"{_said(finding)} ({plural(count, 'comparison')})"
    if equal:
        yield "equal", ", ".join(equal)


def certificate_markdown(certificate: Certificate) -> str:
    """A certificate as a person reads it in the Prefect UI."""
    lines = [
        f"# {headline(certificate)}",
        "",
        "| check | worst case | output | error / scale | limit |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {f.check} | {f.case} | {f.output} | "
            f"{f.note if f.error is None else error(f.error)} | {error(f.limit)} |"
            for f in worst_findings(certificate)
        ),
        "",
        f"- contract: {contract_words(certificate.contract)}",
        *(f"- drift: {drift_words(drift)}" for drift in certificate.drift),
        *(f"- budget: {text}" for text in budget_words(certificate.budget)),
        f"- ran: {ran_words(certificate)}",
        *(f"- failed: {text}" for text in certificate.failures),
        *(f"- located: {located(d)}" for d in (certificate.diagnosis,) if d),
        *(f"- not run: {text}" for text in certificate.not_run),
        "",
        *(f"`{name}` sha256 `{sha}`" for name, sha in certificate.subject.items()),
    ]
    return "\n".join(lines)


def headline(certificate: Certificate) -> str:
    """Which engine, and the verdict."""
    what = f"{certificate.recipe} on {certificate.label}"
    if certificate:
        return f"{what}: passed, worst error / limit {times(worst_ratio(certificate.findings))}"
    return f"{what}: FAILED, must not be served"


def telling(certificate: Certificate) -> str | None:
    """Of the failures the one that says most: of the case that was diagnosed, else the first.

    `verify` asks what explains more before what explains less.
    """
    case = certificate.diagnosis.case if certificate.diagnosis else None
    about = (f for f in certificate.failures if case and f" at {case}:" in f)
    return next(about, next(iter(certificate.failures), None))


def located(diagnosis: Diagnosis) -> str:
    """Where an engine first goes another way, in one sentence."""
    node = f"node {diagnosis.node!r} ({diagnosis.operator})"
    tensor = f"tensor {diagnosis.tensor!r}"
    size = "" if diagnosis.error is None else f", error {error(diagnosis.error)} of its scale"
    text = {
        "values": f"{node} is the first to go another way: its {tensor} at {diagnosis.case}{size}",
        "optimiser": f"{node}, its {tensor} at {diagnosis.case}",
        "declared": tensor,
    }[diagnosis.kind]
    return f"{text}; {diagnosis.note}" if diagnosis.note else text


def why(certificate: Certificate, output: str) -> str:
    """An output's limit, and what it was derived from."""
    limit = certificate.limits[output]
    return (
        f"{error(limit.limit)} of its scale {number(limit.scale)}, "
        f"{reason(limit, certificate.requested.get('bounds') or {})}"
    )


def reason(limit: Limit, bounds: Mapping[str, Any]) -> str:
    """Which term of the formula decided: a multiple of the noise floor, or a bound."""
    if not bounds:
        return f"noise floor {error(limit.noise_floor)}"
    derived = f"{bounds['multiple']:g} × noise floor {error(limit.noise_floor)}"
    if limit.limit == bounds["ceiling"]:
        derived = f"the most that is ever allowed ({derived} is more)"
    elif limit.limit == bounds["smallest"]:
        derived = f"the least that is asked ({derived} is less)"
    if limit.edges is not None:
        derived += f"; {error(limit.edges)} on edges, where the module itself is farther off"
    if limit.carried is not None:
        derived += f"; {error(limit.carried)} over sequences that carry their state"
    return derived


def worst_findings(certificate: Certificate) -> Iterator[Finding]:
    """Of each check the finding nearest to its limit, or over it."""
    for check in dict.fromkeys(finding.check for finding in certificate.findings):
        yield max((f for f in certificate.findings if f.check == check), key=_badness)


def _badness(finding: Finding) -> float:
    size = ratio(finding)
    return math.inf if size is None else size


def _said(finding: Finding) -> str:
    where = f"{finding.output} at {finding.case}"
    if finding.error is None:
        return f"FAILED, {where}: {finding.note or 'not a number'}"
    size = ratio(finding)
    if not finding.limit:
        against = "where none is allowed"
    else:
        against = f"{times(size)} {'of' if finding.passed else 'times'} the limit"
    verdict = "" if finding.passed else "FAILED, "
    return f"{verdict}{against}, {where}: {error(finding.error)}"


def contract_words(rows: Iterable[Promise]) -> str:
    """Whether all places agree on every shape, and who does not."""
    rows = list(rows)
    wrong = [row.what for row in rows if not row.agreed]
    if wrong:
        return f"FAILED, not all places agree on {', '.join(wrong)}"
    return f"all places agree on {plural(len(rows), 'row')} of tensors and axes"


def drift_words(drift: Drift) -> str:
    """How many answers changed, between which bounds, and how many may."""
    low, high = drift.interval
    changed = (
        f"{percent(drift.changed)} of {drift.answers:,} answers changed "
        f"(95 % interval {percent(low)} to {percent(high)}), allowed {percent(drift.allowed)}"
        + (f", and {plural(drift.ties, 'tie')} that count as none" if drift.ties else "")
    )
    verdict = "" if drift.passed else "FAILED, "
    return f"{verdict}{drift.measure} of {drift.output}: {changed}" + (
        f"; {drift.note}" if drift.note else ""
    )


def spends_most(edges: Iterable[Edge]) -> Edge | None:
    """The step that adds most over its limit; one that could not be measured before all."""
    return max(edges, key=_spent, default=None)


def _spent(edge: Edge) -> float:
    return math.inf if edge.error is None else edge.error / edge.limit if edge.limit else edge.error


def budget_words(edges: Iterable[Edge]) -> Iterator[str]:
    """Of each output what every step adds; the one that spends most is named."""
    edges = list(edges)
    most = spends_most(edges)
    for output in dict.fromkeys(edge.output for edge in edges):
        own = [edge for edge in edges if edge.output == output]
        steps = ", ".join(f"{e.end} {error(e.error)}" for e in own)
        named = f"; most by {most.start} to {most.end}" if most in own and most else ""
        yield f"{output}: from {own[0].start} to {steps}{named}"


def ran_words(certificate: Certificate) -> str:
    """What ran on which device in which precision, against what was asked for."""
    effective, requested = certificate.effective, certificate.requested
    kept = requested.get("kept_in_fp32") or []
    return (
        f"asked {requested.get('device', '?')} {requested.get('precision', '?')}, got "
        + (_counts(effective.get("devices") or {}) or "nothing")
        + "; "
        + (_counts(effective.get("precisions") or {}) or "nothing")
        + (f"; kept in fp32: {', '.join(kept)}" if kept else "")
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{plural(n, 'node')} {what or 'none'}" for what, n in sorted(counts.items()))


def operators(certificate: Certificate) -> list[tuple[str, str, str, int]]:
    """The precision histogram: operator, precision, device and nodes, the most frequent first."""
    counted = Counter(
        (node["operator"], node["precision"], node["device"])
        for node in certificate.effective.get("nodes") or ()
    )
    return [(*what, n) for what, n in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


def swallowed_words(swallowed: Iterable[Swallowed]) -> Iterator[str]:
    """What becomes of inputs that are not numbers, a sentence for each way in which cases went."""
    ways: dict[str, dict[str, list[str]]] = {}
    for one in swallowed:
        if one.engine > one.module:
            way = "the engine SWALLOWS it: it answers with numbers where the module does not"
        elif one.engine < one.module:
            way = "the engine answers with fewer numbers than the module"
        elif one.engine == 0:
            way = "no value of that row is a number, in the engine as in the module"
        elif one.engine == 1:
            way = "engine and module both answer that row with numbers: the answer does not show it"
        else:
            way = f"{percent(one.engine)} of that row are numbers, in the engine as in the module"
        ways.setdefault(way, {}).setdefault(one.case, []).append(one.output)
    for way, cases in ways.items():
        yield f"{way}: " + ", ".join(f"{case} ({', '.join(o)})" for case, o in cases.items())
