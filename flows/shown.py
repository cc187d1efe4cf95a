"""What a person sees of a run in the Prefect UI: artifacts in Markdown, tables, progress, links."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.judging import Verdict
from pipeline.certificate_text import certificate_markdown
from pipeline.progress import Progress
from pipeline.values import Certificate

CARD = "card.md"
_SECONDS_UNTOLD = 3.0  # a stage that is shorter needs no bar, and none is moved more often


def certificate(value: Certificate) -> None:
    """A certificate as Markdown."""
    create_markdown_artifact(
        markdown=certificate_markdown(value),
        key=key(f"certificate-{value.recipe}-{value.target}"),
        description=f"Certificate of {value.recipe} on {value.target}",
    )


def released(name: str, stages: Mapping[str, Mapping[str, Any]]) -> None:
    """What each stage left, and whether it had to be made, as a table."""
    create_table_artifact(
        key=key(f"release-{name}"),
        table=[
            {
                "stage": stage,
                "done": "refused: " + record["refused"] if "refused" in record
                else "cached" if record["cached"] else "made",
                "sha256": record["sha256"][:12],
                "folder": record["path"],
            }
            for stage, record in stages.items()
        ],
        description=f"{name} version {stages['package']['version']}: what each stage left, and "
        f"what was taken from the run folder. [Its card](/artifacts/key/{key(f'card-{name}')})",
    )  # fmt: skip
    create_markdown_artifact(
        markdown=(Path(stages["package"]["path"]) / CARD).read_text(),
        key=key(f"card-{name}"),
        description=f"{name}: what the model is, how good it was measured to be, where that stops",
    )


def verdict(name: str, candidate: str, blessed: str | None, value: Verdict, outcome: str) -> str:
    """What became of a candidate and why, as Markdown, which is returned as well."""
    lines = [
        f"# {name}: version {candidate} {outcome}",
        f"Compared with version {blessed}." if blessed else "",
        f"**Why:** {value.reason}",
    ]
    if value.measures:
        lines.append(
            "| measure | blessed | candidate | difference, 95 % | may be worse by | not worse |\n"
            "| --- | --- | --- | --- | --- | --- |\n"
            + "\n".join(
                f"| {one.measure}, {one.how} | {one.blessed:.4g} | {one.candidate:.4g} "
                f"| {one.low:+.3g} to {one.high:+.3g} | {one.allowed:.3g} "
                f"| {'yes' if one.passed else 'no'} |"
                for one in value.measures
            )
        )
    text = "\n\n".join(line for line in lines if line)
    create_markdown_artifact(
        markdown=text, key=key(f"retrain-{name}"), description=f"{name}: {outcome}"
    )
    return text


def rechecked(name: str, bundle: Path, engines: list[dict[str, Any]]) -> None:
    """The certificates of a bundle, as packaged and as made here, as a table."""
    create_table_artifact(
        key=key(f"recheck-{name}"),
        table=[
            one | {part: "; ".join(one[part]) or "-" for part in ("failures", "not run")}
            for one in engines
        ],
        description=f"{name}: certificates as packaged, and here: {bundle}",
    )


def swept(name: str, table: list[dict[str, Any]], said: list[str], page: str) -> None:
    """What a sweep came to, as a table, the best variant first."""
    create_table_artifact(
        key=key(f"sweep-{name}"), table=table, description=f"{' '.join(said)} Plots: {page}"
    )


def zoo(made: Mapping[str, Any]) -> None:
    """What became of many releases, as a table."""
    create_table_artifact(
        key="release-zoo",
        table=[
            {"recipe": name, "outcome": str(one), "bundle": "-"}
            if isinstance(one, Exception)
            else {
                "recipe": name,
                "outcome": f"version {one['package']['version']}",
                "bundle": one["package"]["path"],
            }
            for name, one in made.items()
        ],
        description="Recipes that were released side by side",
    )


def progress(title: str) -> Progress:
    """A bar for a stage that takes a while."""
    last = time.monotonic()
    bar: Any = None  # its id: Prefect's functions are typed as if they might be awaited

    def told(done: int, total: int, text: str) -> None:
        nonlocal last, bar
        if time.monotonic() - last < _SECONDS_UNTOLD:
            return
        share = 100 * done / total if total else 0.0
        if bar is None:
            bar = create_progress_artifact(progress=share, description=f"{title}: {text}")
        else:
            update_progress_artifact(
                artifact_id=bar, progress=share, description=f"{title}: {text}"
            )
        last = time.monotonic()

    return told


def key(text: str) -> str:
    """Prefect's artifact keys hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
