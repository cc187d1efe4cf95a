"""Comparing variants of a recipe: which there are, what each came to, their ranks, a page of it."""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import stages
from flows.experiments import Figure, common_settings, read_history
from flows.experiments.page import Page, write_page
from flows.stages import Job
from models.errors import BadSetting, MissingArtifact
from models.recipe import Recipe
from pipeline import plots
from pipeline.artifacts import digest_json, load
from pipeline.card import number
from pipeline.progress import Progress
from pipeline.values import TRAINED_VALUE, TrainedModel

Settings = dict[str, Any]
Row = dict[str, Any]  # settings, and either an error or what the training came to

_MOST_COLOURS = 6  # of unordered lines in a plot


def grid(job: Job, vary: Mapping[str, Sequence[str]]) -> list[Settings]:
    """Every combination of the values, each once, as the recipe reads them.

    Raises `BadSetting` for a name or a value that the recipe refuses, before anything is trained.
    """
    for name in vary:
        if name in job.changes:
            raise BadSetting(f"setting {name!r} is both set and varied", fix="leave one out")
    if "floor" in {*vary, *job.changes}:
        raise BadSetting("a comparison has no floor, so it cannot be set", fix="leave floor out")
    found: list[Settings] = []
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        recipe = replace(job, changes=job.changes | chosen).recipe
        every = recipe.all_settings(job.data)
        variant = {name: every[name] for name in vary}
        if variant not in found:
            found.append(variant)
    return found


def variant(job: Job, settings: Mapping[str, Any], progress: Progress) -> Row:
    """What training a job with these settings came to, or what lies in the run folder of it."""
    job = replace(job, changes={**job.changes, **settings, "floor": "none"})
    try:
        model, seconds = stages.train(job, only_resume=True), None
    except MissingArtifact:
        model, seconds = _timed(job, progress)
    history = read_history(model)
    best = history[model.best_epoch - 1]
    return {
        "best_epoch": model.best_epoch,
        "epochs": len(history),
        "validation": {name: _finite(value) for name, value in best["validation"].items()},
        "seconds": None if seconds is None else round(seconds, 2),
        "resumed": seconds is None,
        "path": str(model.folder),
        "digest": model.digest,
    }


def concluded(
    job: Job, variants: Sequence[Settings], rows: Sequence[Row], command: str
) -> dict[str, Any]:
    """The variants ranked on the validation split, as a document, of which a page is written.

    Only of the best one is the test split told, for it was chosen without it.
    """
    found = ranked(rows, job.recipe)
    every = job.recipe.all_settings(job.data)
    fixed = {name: every[name] for name in job.changes}
    key = digest_json([job.reference, job.data, fixed, variants, job.device])[:12]
    page = job.folder / f"compare-{key}.html"
    document: dict[str, Any] = {
        "name": job.recipe.name,
        "data": job.data,
        "metric": job.recipe.metric,
        "settings": fixed,
        "variants": found,
        "chosen": _chosen(found),
        "page": str(page),
    }
    _write(document, command, page)
    return document


def _timed(job: Job, shown: Progress) -> tuple[TrainedModel, float | None]:
    """Train, and say how long it took; None where it went on with what a killed run had left."""
    first: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        first.append(done)
        shown(done, total, text)

    # An optimizer imports it at its first step, which takes seconds once in a process.
    importlib.import_module("torch._dynamo")
    start = time.perf_counter()
    model = stages.train(job, progress)
    return model, time.perf_counter() - start if first[:1] == [1] else None


def label(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def ranked(rows: Sequence[Row], recipe: Recipe) -> list[Row]:
    """The best validation metric first, among equals the lowest validation loss, failures last."""

    def order(row: Row) -> tuple[float, ...]:
        if "error" in row:
            return (math.inf,)
        value, loss = row["validation"][recipe.metric], row["validation"]["loss"]
        worth = 0.0 if value is None else recipe.rank({recipe.metric: value})
        return 0 if value is not None else 1, -worth, math.inf if loss is None else loss

    return sorted(rows, key=order)


def table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a comparison as people read them."""
    metric = document["metric"]
    found = []
    for rank, row in enumerate(document["variants"], 1):
        if "error" in row:
            found.append({"rank": "failed", **row["settings"]})
            continue
        found.append(
            {
                "rank": rank,
                **row["settings"],
                f"validation {metric}": row["validation"][metric],
                "validation loss": row["validation"]["loss"],
                "best epoch": f"{row['best_epoch']} of {row['epochs']}",
                "seconds": "resumed" if row["resumed"] else row["seconds"],
            }
        )
    return found


def verdict(document: Mapping[str, Any]) -> str:
    """What a comparison came to, in a sentence."""
    rows, metric, chosen = document["variants"], document["metric"], document["chosen"]
    if chosen is None:
        return "No variant could be trained."
    best = rows[0]["validation"][metric]
    return (
        f"Of {len(rows)} variants {label(chosen['settings'])} has the best validation {metric}, "
        f"{number(best)}; its test {metric} is {number(chosen['test'][metric])}."
    )


def failures(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each variant that could not be trained."""
    failed = [row for row in document["variants"] if "error" in row]
    return [f"{label(row['settings'])} failed: {row['error']}" for row in failed]


def next_settings(document: Mapping[str, Any]) -> Settings:
    """What to set to get the chosen variant again."""
    return {**document["settings"], **document["chosen"]["settings"]}


def _chosen(rows: Sequence[Row]) -> Row | None:
    """The best variant, and what it does on the test split."""
    if not rows or "error" in rows[0]:
        return None
    model = load(TrainedModel, Path(rows[0]["path"]), TRAINED_VALUE)
    test = {name: _finite(value) for name, value in model.metrics.items()}
    return {"settings": rows[0]["settings"], "test": test}


def _write(document: Mapping[str, Any], command: str, path: Path) -> None:
    models = {
        ", ".join(map(str, row["settings"].values())): load(
            TrainedModel, Path(row["path"]), TRAINED_VALUE
        )
        for row in document["variants"]
        if "error" not in row
    }
    page = Page(
        title=f"{document['name']}: {len(document['variants'])} variants",
        command=command,
        verdict=verdict(document),
        notes=failures(document),
        rows=table(document),
        figures=_figures(models, document["metric"]) if models else [],
        settings={"data": document["data"], **common_settings(models.values())},
    )
    write_page(page, path)


def _figures(models: Mapping[str, TrainedModel], metric: str) -> list[Figure]:
    """Validation metric and loss over the epochs, a line for each variant, the best one first."""
    histories = {variant: read_history(model) for variant, model in models.items()}
    many = len(histories) > _MOST_COLOURS
    drawn = []
    for name, what in ((metric, f"validation {metric}"), ("loss", "validation loss")):
        series = {
            variant: ([e["epoch"] for e in epochs], [e["validation"][name] for e in epochs])
            for variant, epochs in histories.items()
        }
        markup = plots.lines(
            f"compare {name}",
            series,
            f"{what} over the epochs of {len(histories)} variants",
            xlabel="epoch",
            ylabel=what.replace("_", " "),
            log_y=name == "loss" and _wide(y for _, ys in series.values() for y in ys),
            ordered=many,
        )
        order = " From blue, the best, to orange." if many else ""
        drawn.append(Figure(f"{what.capitalize()} after each epoch.{order}", markup))
    return drawn


def _wide(values: Iterable[float]) -> bool:
    """Whether numbers are better read on a logarithmic axis."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > 20 * min(known)


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None
