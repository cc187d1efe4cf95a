"""Experiments that the field knows: a claim, runs that test it, a verdict computed from them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows import stages
from flows.console import listener
from flows.stages import Job
from models.errors import BadSetting
from models.recipe import Recipe
from pipeline.values import HISTORY, TrainedModel

# One module each, which ends in its EXPERIMENT; imported when it is asked for.
EXPERIMENTS = (
    "degradation",
    "vanishing",
    "bottleneck",
    "dropout",
    "invariance",
    "adversarial",
    "kernels",
    "memory",
    "disentangle",
    "augmentation",
    "episodes",
    "style-transfer",
)


@dataclass(frozen=True)
class Setup:
    """Where an experiment keeps its runs, on which data and device; `changes` are settings."""

    out: Path
    data: str = "embedded"
    device: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """An inline SVG or a picture as a data address, and what is to be seen on it."""

    caption: str
    markup: Markup


@dataclass(frozen=True)
class Outcome:
    """What came out: sentences with the numbers, whether the claim held, a table, and figures.

    `settings` are those that its runs have in common.
    """

    verdict: str
    holds: bool
    rows: list[dict[str, Any]]
    figures: list[Figure]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A claim of the literature and what tests it; `varied` are settings that only it may set."""

    name: str
    title: str
    claim: str
    paper: str
    run: Callable[[Setup], Outcome]
    varied: tuple[str, ...] = ()


def find(name: str) -> Experiment:
    """The experiment of that name. Raises `BadSetting` with the names there are."""
    if name not in EXPERIMENTS:
        raise BadSetting(f"no experiment {name!r}", expected=", ".join(EXPERIMENTS))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").EXPERIMENT


def trained(setup: Setup, recipe: Recipe, label: str, **changes: Any) -> TrainedModel:
    """A recipe of the zoo, trained or taken from the experiment's folder, whatever its metric.

    What the setup changes goes before `changes`. Progress is shown under `label`.
    """
    settings = {"floor": "none", **changes, **setup.changes}
    job = Job(recipe.name, setup.data, changes=settings, out=setup.out, device=setup.device)
    return stages.train(job, listener.get()(label, "train"))


def read_history(model: TrainedModel) -> list[dict[str, Any]]:
    """The epochs of a training: loss, gradient norms by parameter, validation loss and metrics."""
    return json.loads((model.folder / HISTORY).read_bytes())


def common_settings(models: Iterable[TrainedModel]) -> dict[str, Any]:
    """The settings that are the same in every model, with their values."""
    every = [model.settings for model in models]
    return {n: v for n, v in next(iter(every), {}).items() if all(s.get(n) == v for s in every)}
