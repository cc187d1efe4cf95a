"""The model card: what a model is, how good it was measured to be, and where that stops."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from models.recipe import Recipe
from models.signature import TensorSpec
from pipeline.artifacts import write_bytes
from pipeline.compare import worst_ratio
from pipeline.values import EVALUATION, Certificate, TrainedModel

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """One metric over the test rows; of a proportion also its 95 % confidence interval."""

    name: str
    value: float
    rows: int
    interval: tuple[float, float] | None


def write_card(
    recipe: Recipe, trained: TrainedModel, certificates: Sequence[Certificate], path: Path
) -> None:
    """Write a model's card as Markdown; the same values give the same bytes."""
    text = _MARKDOWN.get_template("card.md.j2").render(
        recipe=recipe,
        trained=trained,
        signature=recipe.make_signature(),
        metrics=measured(trained, read_evaluation(trained)),
        certificates=certificates,
        worst={c.target: worst_ratio(c.findings) for c in certificates},
    )
    write_bytes(path, text.encode())


def read_evaluation(trained: TrainedModel) -> dict[str, Any]:
    """What `train` wrote about the test split."""
    return json.loads((trained.folder / EVALUATION).read_bytes())


def measured(trained: TrainedModel, evaluation: dict[str, Any]) -> list[Measured]:
    """Every test metric, in order; an accuracy that counts rows has an interval."""
    rows = evaluation["rows"]
    found = []
    for name, value in sorted(trained.metrics.items()):
        hits = value * rows
        counted = "accuracy" in name and 0 <= value <= 1 and math.isclose(hits, round(hits))
        interval = wilson(round(hits), rows) if counted else None
        found.append(Measured(name, value, rows, interval))
    return found


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = hits / rows
    centre = share + z * z / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    whole = 1 + z * z / rows
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def number(value: object) -> str:
    """A number as people read it: thousands marked, four digits, small ones as 1.2e-05."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}"


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


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def times(value: float | None) -> str:
    """Error over limit in words that stay true: nothing is rounded to 0."""
    if value is None:
        return "not a number"
    if value == 0:
        return "0"
    if value < 0.001:
        return "below 0.001"
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


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
_MARKDOWN.filters.update(text=_escape, number=number, percent=percent, times=times, span=span)
