"""A campaign: sound engines of several seeds and all mutants of recipes, in worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flows.latency import machine
from flows.mutation.page import write
from flows.mutation.tally import tally
from flows.mutation.trials import Sound, Trial, examine_sound, try_mutants
from flows.mutation.workers import workers
from models.errors import FucinaError
from models.zoo import find
from pipeline.artifacts import sweep
from pipeline.backends import DEFAULT_TARGET
from pipeline.faults import FAULTS

FOLDER = "mutate"


def campaign(
    references: Sequence[str],
    seeds: int,
    out: Path,
    jobs: int | None = None,
    command: str = "",
    target: str = DEFAULT_TARGET,
) -> dict[str, Any]:
    """Train, export, mutate and ask; the document of `fucina mutate`, and its files in `out`.

    Engines are those of one target; a graph that the target refuses has none, and no mutants.
    Raises `UnknownRecipe` before any work. A recipe that cannot be trained or exported is a row
    that says so.
    """
    start = time.perf_counter()
    names = {reference: find(reference).name for reference in references}
    jobs = min(jobs or os.cpu_count() or 1, len(names) * max(seeds, 2))
    folder = out / FOLDER
    sweep(folder)
    faults = {fault.name: fault.says for fault in FAULTS}
    with workers(jobs, FOLDER) as each:
        # Mutants need two seeds: the weights of the one are put into the graph of the other.
        tasks = [(name, seed, folder, target) for seed in range(max(seeds, 2)) for name in names]
        made = each(examine_sound, tasks, "sound")
        failed = {args[0]: error for args, error in made if isinstance(error, FucinaError)}
        places = [
            (args[0], graph.part, folder, target, tuple(faults))
            for args, rows in made
            if not isinstance(rows, FucinaError) and args[1] == 0 and args[0] not in failed
            for graph in rows
        ]
        tried = each(try_mutants, places, "mutants")
    failed |= {args[0]: error for args, error in tried if isinstance(error, FucinaError)}
    sound = [s for _, rows in made if not isinstance(rows, FucinaError) for s in rows]
    sound = [s for s in sound if s.seed < seeds]
    trials = [t for _, rows in tried if not isinstance(rows, FucinaError) for t in rows]
    document = tally(faults, trials, sound)
    document["recipes"] = [
        _recipe(reference, name, failed.get(reference), sound, trials)
        for reference, name in names.items()
    ]
    document |= write(document, trials, sound, folder / target, command, target)
    return document | {
        "target": target,
        "seeds": seeds,
        "machine": machine(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _recipe(
    reference: str,
    name: str,
    error: FucinaError | None,
    sound: Iterable[Sound],
    trials: Iterable[Trial],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "kind": find(reference).kind,
        "graphs": len({s.part for s in sound if s.recipe == name}),
        "sound_engines": sum(s.recipe == name for s in sound),
        "mutants": sum(t.recipe == name for t in trials),
    }
    return row | ({"error": str(error)} if error else {})
