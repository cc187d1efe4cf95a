"""The page of an experiment or a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.experiments import Figure
from flows.latency import machine
from pipeline import page as pages
from pipeline.versions import libraries


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows; of a comparison there is no claim, so nothing that holds or does not."""

    title: str
    command: str
    verdict: str
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()
    claim: str = ""
    paper: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table; numbers stand on the right."""

    name: str
    numeric: bool


def columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Every key of the rows, in the order of their first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [Column(name, any(_is_number(row.get(name)) for row in rows)) for name in names]


def write_page(page: Page, path: Path) -> None:
    """Write the page whole or not at all; it names this machine and its library versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages.write_page(
        "experiment.html.j2", path,
        page=page, columns=columns(page.rows), machine=machine(),
        libraries=libraries("fucina", "torch", "numpy"),
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
