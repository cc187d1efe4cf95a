"""Tests of this folder need an NVIDIA GPU; where they are skipped the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.machine import driver


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and skip it unless -m asks for it and a GPU is here."""
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = (
        driver().problem
        if "gpu" in config.option.markexpr
        else "needs an NVIDIA GPU; runs with -m gpu"
    )
    for item in own:
        item.add_marker("gpu")
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
