"""The page of a campaign: where sound engines end and damaged ones begin, and every fault."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.experiments import Figure
from flows.experiments.page import Page, write_page
from flows.mutation.tally import place
from flows.mutation.trials import Distance, Sound, Trial
from pipeline import plots
from pipeline.artifacts import write_json
from pipeline.backends import target as find_target
from pipeline.compare import BOUNDS, Bounds

PAGE = "mutate.html"
SEPARATION = "separation.json"

Kind = tuple[str, str, Mapping[str, float]]  # field of `Distance`, axis label, limits by name


def write(
    document: Mapping[str, Any],
    trials: Sequence[Trial],
    sound: Sequence[Sound],
    folder: Path,
    command: str,
    target: str,
) -> dict[str, Any]:
    """Write separation.json and the page; where they lie, and the separation in a few numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    damaged = [t for t in trials if t.equivalent is None]
    summary = {
        name: summarised([s.distance for s in sound], [t.distance for t in damaged], name)
        for name in ("scale", "floor", "limit")
    }
    bounds = BOUNDS[find_target(target).precision]
    write_json(
        folder / SEPARATION,
        {
            "bounds": asdict(bounds),
            "summary": summary,
            "sound": [
                {"recipe": place(s), "seed": s.seed, **asdict(s.distance)} for s in sound
            ],
            "damaged": [
                {
                    "recipe": place(t), "fault": t.fault, "where": t.where, "check": t.check,
                    **asdict(t.distance),
                }
                for t in damaged
            ],
        },
    )  # fmt: skip
    page = Page(
        title="Mutation: what the gate sees",
        command=command,
        verdict=verdict(document),
        rows=[table_row(row) for row in document["faults"]],
        figures=_figures(trials, sound, bounds),
        settings=asdict(bounds),
        notes=_notes(document, summary),
    )
    write_page(page, folder / PAGE)
    return {
        "separation": {"file": str(folder / SEPARATION), **summary},
        "page": str(folder / PAGE),
    }


def verdict(document: Mapping[str, Any]) -> str:
    """What a campaign came to, in two sentences."""
    detected = document["detection_rate"]
    best = max((p["detection_rate"] or 0 for p in document["peers"].values()), default=0)
    return (
        f"Of {document['mutants'] - document['equivalent']} mutants of {document['fault_kinds']} "
        f"kinds the certificate refuses {percent(detected)}, with {document['false_alarms']} false "
        f"alarms in {document['sound_engines']} sound engines. The best of the other checks "
        f"refuses {percent(best)}."
    )


def percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A fault as a person reads it, with the rate of every peer."""
    most = next(iter(row["checks"]), None)
    return {
        "fault": row["fault"],
        "mutants": row["mutants"],
        "equivalent": len(row["equivalent"]),
        "detected": row["detected"],
        "certificate": _whole(row["rate"]),
        "seen by": most,
        **{name: _whole(share) for name, share in row["peers"].items()},
    }


def summarised(sound: Iterable[Distance], damaged: Iterable[Distance], name: str) -> dict[str, Any]:
    """The largest of sound engines, and the least and middle of damaged ones that answer amiss."""
    good = [v for d in sound if (v := getattr(d, name)) is not None]
    bad = [v for d in damaged if (v := getattr(d, name)) is not None]
    most = max(good, default=None)
    above = [v for v in bad if most is not None and v > most]
    return {
        "sound_most": most,
        "damaged_least_above": min(above, default=None),
        "damaged_middle": statistics.median(bad) if bad else None,
        "damaged_not_above": len(bad) - len(above),
    }


def _whole(share: float | None) -> int | None:
    """A share in percent, rounded down: only all is 100."""
    return None if share is None else math.floor(100 * share)


def _figures(trials: Sequence[Trial], sound: Sequence[Sound], bounds: Bounds) -> list[Figure]:
    damaged = [t for t in trials if t.equivalent is None]
    kinds: tuple[Kind, ...] = (
        ("scale", "error / output scale",
         {"least limit": bounds.smallest, "greatest limit": bounds.ceiling}),
        ("floor", "error / noise floor", {"limit": bounds.multiple}),
    )  # fmt: skip
    figures = []
    for name, label, limits in kinds:
        groups = {
            "sound": [getattr(s.distance, name) for s in sound],
            "damaged": [getattr(t.distance, name) for t in damaged],
        }
        series = {group: ranked([v for v in values if v]) for group, values in groups.items()} | {
            word: ([0.0, 100.0], [value, value]) for word, value in limits.items()
        }
        markup = plots.lines(
            f"separation-{name}", series,
            f"{label} of sound and of damaged engines, smallest first",
            xlabel="engines, %", ylabel=label, log_y=True,
        )  # fmt: skip
        nothing = sum(d is None for d in groups["damaged"])
        exact = sum(d == 0 for d in groups["damaged"])
        figures.append(
            Figure(
                f"{label.capitalize()} on held-out samples, engines in the order of it. Of "
                f"{len(groups['sound'])} sound engines the worst case; of {len(damaged)} damaged "
                f"ones the case of usual sizes. {nothing} damaged ones gave no number there, and "
                f"{exact} answered it exactly: their fault is in other sizes or in company.",
                markup,
            )
        )
    rows, columns = _by_fault(damaged, sound)
    figures.append(
        Figure(
            "Error over its limit by fault, at usual sizes; a hollow mark at the left is an error "
            "of 0, a cross at the right no number.",
            plots.dots(
                "separation-faults", rows, columns, "Error over limit by fault",
                xlabel="error / limit",
            ),
        )
    )  # fmt: skip
    return figures


def ranked(values: Iterable[float]) -> plots.Points:
    """Values from small to large, at the share of them in percent that is no larger."""
    known = sorted(values)
    return [100 * (place + 1) / len(known) for place in range(len(known))], known


def _by_fault(
    damaged: Sequence[Trial], sound: Sequence[Sound]
) -> tuple[list[str], dict[str, list[float | None]]]:
    groups: dict[str, list[float | None]] = {"sound": [s.distance.limit for s in sound]}
    for trial in damaged:
        groups.setdefault(trial.fault, []).append(trial.distance.limit)
    ends = {name: sorted(_known(values)) for name, values in groups.items()}
    return list(ends), {
        "least": [_drawn(values[0]) for values in ends.values()],
        "middle": [_drawn(statistics.median_low(values)) for values in ends.values()],
        "most": [_drawn(values[-1]) for values in ends.values()],
    }


def _known(values: Iterable[float | None]) -> list[float]:
    """What has no number is farther off than any number."""
    return [math.inf if v is None else v for v in values] or [math.nan]


def _drawn(value: float) -> float | None:
    return None if math.isinf(value) else value


def _notes(document: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    scale = summary["scale"]
    missed = [f"{row['fault']} ({m})" for row in document["faults"] for m in row["missed"]]
    alarms = [f"{a['recipe']} seed {a['seed']}: {a['failure']}" for a in document["alarms"]]
    peers = [
        f"{name}: refuses {percent(peer['detection_rate'])} of the mutants, and "
        f"{peer['false_alarms']} of the sound engines. {peer['says']}."
        for name, peer in document["peers"].items()
    ]
    return [
        f"Error over output scale: sound engines at most {_number(scale['sound_most'])}, damaged "
        f"ones above them at least {_number(scale['damaged_least_above'])}.",
        "Numbers in the table are percent of mutants refused, rounded down.",
        *([f"Missed: {', '.join(missed)}."] if missed else []),
        *(f"False alarm: {text}" for text in alarms),
        *peers,
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1e}"
