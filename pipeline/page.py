"""The HTML pages: one file each that needs nothing else, and the words of its templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.artifacts import write_bytes
from pipeline.card import interval, span
from pipeline.compare import ratio
from pipeline.wording import error, number, percent, times


def write_page(template: str, path: Path, **values: Any) -> None:
    """Write a template with its values; the same values give the same bytes."""
    write_bytes(path, _PAGES.get_template(template).render(values).encode())


def words(name: str) -> str:
    return name.replace("_", " ")


_PAGES = Environment(
    loader=PackageLoader("pipeline"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters.update(
    number=number, percent=percent, times=times, error=error, span=span, ratio=ratio, words=words,
    interval=interval,
)  # fmt: skip
