"""What came of all trials: counts and rates by fault and by peer, and where sound ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flows.mutation.trials import Sound, Trial
from pipeline.backends import target as find_target
from pipeline.peers import PEERS

LEAST_RATE = 0.95

Row = dict[str, Any]


def tally(
    faults: Mapping[str, str], trials: Sequence[Trial], sound: Sequence[Sound]
) -> dict[str, Any]:
    """The counts; `faults` says of each fault by name where it comes from in practice.

    Rates are of mutants that are not equivalent, and None where there is none.
    """
    alarms = [
        {"recipe": place(s), "seed": s.seed, "failure": text} for s in sound for text in s.failures
    ]
    damaged = [t for t in trials if t.equivalent is None]
    return {
        "fault_kinds": len({t.fault for t in damaged}),
        "mutants": len(trials),
        "equivalent": len(trials) - len(damaged),
        "detection_rate": rate(t.check is not None for t in damaged),
        "sound_engines": len(sound),
        "false_alarms": sum(bool(s.failures) for s in sound),
        "alarms": alarms,
        "faults": [
            _fault(name, says, [t for t in trials if t.fault == name])
            for name, says in faults.items()
        ],
        "peers": {
            peer.name: {
                "detection_rate": rate(t.peers[peer.name] for t in damaged),
                "false_alarms": sum(s.peers[peer.name] for s in sound),
                "tolerances": dict(peer.tolerances),
                "asks": peer.asks,
                "says": peer.says,
            }
            for peer in PEERS
        },
    }


def passed(document: Mapping[str, Any]) -> bool:
    """At least 95 % detected of something, no false alarm of some sound engines, none left out.

    Below fp32, whose rounding hides what is smaller, the rate is told and nothing is asked of it.
    """
    detected = document["detection_rate"]
    exact = find_target(document["target"]).precision == "fp32"
    return (
        detected is not None
        and (detected >= LEAST_RATE or not exact)
        and document["sound_engines"] > 0
        and not document["false_alarms"]
        and not any("error" in recipe for recipe in document["recipes"])
    )


def place(of: Sound | Trial) -> str:
    """A recipe, or its part as RECIPE/PART."""
    return f"{of.recipe}/{of.part}" if of.part else of.recipe


def rate(seen: Any) -> float | None:
    """The share that is true, to four digits."""
    verdicts = list(seen)
    return round(sum(verdicts) / len(verdicts), 4) if verdicts else None


def _fault(name: str, says: str, trials: Sequence[Trial]) -> Row:
    damaged = [t for t in trials if t.equivalent is None]
    return {
        "fault": name,
        "says": says,
        "mutants": len(trials),
        "equivalent": [
            {"recipe": place(t), "where": t.where, "why": t.equivalent, "refused": bool(t.check)}
            for t in trials
            if t.equivalent is not None
        ],
        "detected": sum(t.check is not None for t in damaged),
        "rate": rate(t.check is not None for t in damaged),
        "checks": dict(Counter(t.check for t in damaged if t.check).most_common()),
        "missed": [f"{place(t)}: {t.where}" for t in damaged if t.check is None],
        "peers": {p.name: rate(t.peers[p.name] for t in damaged) for p in PEERS},
    }
