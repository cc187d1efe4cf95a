"""The model card: what a model is, how good it was measured to be, and where that stops."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from models.recipe import Recipe
from models.signature import TensorSpec
from pipeline.artifacts import write_bytes
from pipeline.certificate_text import (
    budget_words,
    contract_words,
    drift_words,
    located,
    ran_words,
    why,
)
from pipeline.compare import worst_ratio
from pipeline.values import EVALUATION, Certificate, TrainedModel
from pipeline.wording import number, percent, times


@dataclass(frozen=True)
class Measured:
    """One metric over the test rows, and its 95 % confidence interval."""

    name: str
    value: float
    rows: int
    interval: tuple[float, float] | None

    @property
    def share(self) -> bool:
        """Whether it is a share of rows, which people read in percent."""
        return "accuracy" in self.name


def write_card(
    recipe: Recipe, trained: TrainedModel, certificates: Sequence[Certificate], path: Path
) -> None:
    """Write a model's card as Markdown; the same values give the same bytes."""
    text = _MARKDOWN.get_template("card.md.j2").render(
        recipe=recipe,
        trained=trained,
        signature=recipe.make_signature(),
        metrics=measured(trained, read_evaluation(trained)),
        changed=changed(trained),
        certificates=certificates,
        worst={c.label: worst_ratio(c.findings) for c in certificates},
    )
    write_bytes(path, text.encode())


def read_evaluation(trained: TrainedModel) -> dict[str, Any]:
    """What `train` wrote about the test split."""
    return json.loads((trained.folder / EVALUATION).read_bytes())


def measured(trained: TrainedModel, evaluation: dict[str, Any]) -> list[Measured]:
    """Every test metric, in order, with its confidence interval where it has one."""
    rows = evaluation["rows"]
    return [
        Measured(name, value, rows, trained.intervals.get(name))
        for name, value in sorted(trained.metrics.items())
    ]


def changed(trained: TrainedModel) -> list[tuple[str, Any, Any]]:
    """The recipe's own settings that are not as published: name, published value, value here."""
    return [
        (name, value, trained.settings[name])
        for name, value in trained.published.items()
        if trained.settings[name] != value
    ]


def span(spec: TensorSpec) -> str:
    """The range of values that a tensor is meant to hold."""
    match spec.low, spec.high:
        case None, None:
            return "any"
        case low, None:
            return f"{number(low)} or more"
        case None, high:
            return f"{number(high)} or less"
        case low, high:
            return f"{number(low)} to {number(high)}"


def interval(metric: Measured) -> str:
    """A metric's confidence interval, in its own unit."""
    if metric.interval is None:
        return "not computed"
    low, high = (percent(v) if metric.share else number(v) for v in metric.interval)
    return f"{low} to {high}"


def _escape(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", text)


_MARKDOWN = Environment(
    loader=PackageLoader("pipeline"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # for HTML; `text` escapes what Markdown would read
)
_MARKDOWN.filters.update(
    text=_escape, number=number, percent=percent, times=times, span=span, interval=interval
)
_MARKDOWN.globals.update(
    why=why,
    contract_words=contract_words,
    drift_words=drift_words,
    budget_words=budget_words,
    ran_words=ran_words,
    located=located,
)
