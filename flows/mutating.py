"""The command `fucina mutate`: what the certificate sees of faults, and what other checks do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.backends import DEFAULT_TARGET

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
# Heavy imports are inside the command: `fucina --help` answers at once.


def register(
    group: click.Group,
    out_option: Decorator,
    as_json_option: Decorator,
    chosen: Callable[[tuple[str, ...], tuple[str, ...], bool], list[str]],
) -> None:
    """Add the command to `fucina`, with the options and the choice of recipes that others have."""

    @group.command()
    @click.argument("names", nargs=-1)
    @click.option("--kind", "kinds", multiple=True, help="Every recipe of this kind; repeat it.")
    @click.option("--all", "everything", is_flag=True, help="Every recipe of the zoo.")
    @click.option(
        "--seeds",
        type=click.IntRange(1, 100),
        default=2,
        show_default=True,
        help="Trainings of each recipe whose sound engines must pass.",
    )
    @click.option(
        "--target", default=DEFAULT_TARGET, show_default=True, help="Engines of which target."
    )
    @click.option(
        "--jobs", type=click.IntRange(1, 1024), help="Processes at a time; as many as cores."
    )
    @out_option
    @as_json_option
    def mutate(
        names: tuple[str, ...], kinds: tuple[str, ...], everything: bool, seeds: int,
        target: str, jobs: int | None, out: Path, as_json: bool,
    ) -> None:  # fmt: skip
        """Put faults into exported graphs; how many the certificate refuses, and other checks.

        Without NAMES, a choice of recipes that has every kind of layer of every kind of recipe.
        """
        from flows import output
        from flows.console import shown
        from flows.experimenting import typed
        from flows.mutation.campaign import campaign
        from flows.mutation.choice import cover
        from flows.mutation.tally import passed

        given = names or kinds or everything
        references = chosen(names, kinds, everything) if given else cover()
        with shown():
            document = campaign(references, seeds, out, jobs, typed(sys.argv), target)
        output.print_json(document) if as_json else print_campaign(document)
        if not passed(document):
            sys.exit(1)


def print_campaign(document: Mapping[str, Any]) -> None:
    """Every fault with the rate of the certificate and of every peer, in percent; then the rest."""
    from rich.console import Console
    from rich.table import Table

    from flows.mutation.page import percent, table_row, verdict

    console = Console()
    peers = list(document["peers"])
    # The names of the peers would be wider than most terminals: letters stand for them.
    letters = dict(zip(peers, "abcdefghijklmnopqrstuvwxyz", strict=False))
    rows = [table_row(row) for row in document["faults"] if row["mutants"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        word = name in ("fault", "seen by")
        title = letters.get(name, name)
        table.add_column(
            title, justify="left" if word else "right", no_wrap=word, min_width=len(title)
        )
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    console.print(table)
    nowhere = [row["fault"] for row in document["faults"] if not row["mutants"]]
    if nowhere:
        print(f"no place in these graphs: {', '.join(nowhere)}")
    others = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "other check", "refuses", "false alarms", "tolerances"):
        others.add_column(name, overflow="fold")
    for name, peer in document["peers"].items():
        tolerances = ", ".join(f"{key} {value:g}" for key, value in peer["tolerances"].items())
        others.add_row(
            letters[name], name, percent(peer["detection_rate"]),
            f"{peer['false_alarms']} of {document['sound_engines']}", tolerances or "none",
        )  # fmt: skip
    console.print()
    console.print(others)
    print(f"\n{verdict(document)}")
    for row in document["faults"]:
        for where in row["missed"]:
            print(f"missed: {row['fault']} in {where}")
        for one in row["equivalent"]:
            said = "refused, though equivalent" if one["refused"] else "equivalent"
            print(f"{said}: {row['fault']} in {one['recipe']}, {one['where']}: {one['why']}")
    for alarm in document["alarms"]:
        print(f"false alarm: {alarm['recipe']} seed {alarm['seed']}: {alarm['failure']}")
    without = [r["name"] for r in document["recipes"] if not r["graphs"] and "error" not in r]
    if without:
        print(f"no engine for {document['target']}: {', '.join(without)}")
    for recipe in document["recipes"]:
        if "error" in recipe:
            print(f"failed: {recipe['name']}: {recipe['error']}")
    print(document["page"])
