"""The commands `fucina compare` and `fucina experiment`, and what they print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.errors import TrainingFailed

if TYPE_CHECKING:
    from flows.stages import Job

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
# Heavy imports are inside the commands: `fucina --help` answers at once.


def register(
    group: click.Group,
    job_options: Decorator,
    make_job: Callable[..., Job],
    device_here: Callable[[str], str],
) -> None:
    """Add both commands to `fucina`, with the options and checks that its others have."""

    @group.command()
    @click.argument("name")
    @click.option(
        "--vary", required=True, multiple=True, metavar="KEY=VALUE,VALUE,...", callback=varied,
        help="A setting and the values to try. Repeat for every combination.",
    )  # fmt: skip
    @job_options
    def compare(
        name: str, vary: dict[str, list[str]], data: str, settings: dict[str, str], device: str,
        out: Path, as_json: bool,
    ) -> None:  # fmt: skip
        """Train NAME with every combination of some settings; a table, and a page of plots."""
        from flows.environment import prefect_server

        with prefect_server() as ready:
            from flows.compare import compare as flow
            from flows.comparing import grid
            from flows.console import shown

            job = make_job(name, data, settings, device, out)
            variants = grid(job, vary)
            ready()
            with shown():
                document = flow(
                    name, variants, data, settings, str(out), job.device, typed(sys.argv)
                )
        _print_comparison(document, name, out, as_json)

    @group.command()
    @click.argument("name", required=False)
    @job_options
    def experiment(
        name: str | None, data: str, settings: dict[str, str], device: str, out: Path,
        as_json: bool,
    ) -> None:  # fmt: skip
        """Run the experiment NAME and judge its claim by the runs; without NAME, list them."""
        if name is None:
            _list_experiments(as_json)
            return
        from flows.environment import prefect_server

        with prefect_server() as ready:
            from flows.console import shown
            from flows.experiments import find
            from flows.experiments.flow import check
            from flows.experiments.flow import experiment as flow
            from pipeline.artifacts import sweep

            check(find(name), settings)
            where = device_here(device)
            sweep(out / "experiments" / name)
            ready()
            with shown():
                document = flow(name, data, settings, str(out), where, typed(sys.argv))
        _print_experiment(document, as_json)


def varied(_context: object, _option: object, values: tuple[str, ...]) -> dict[str, list[str]]:
    """Settings and the values to try, of KEY=VALUE,VALUE,... options."""
    found: dict[str, list[str]] = {}
    for value in values:
        name, equals, text = value.partition("=")
        choices = [choice.strip() for choice in text.split(",")]
        if not equals or not all(choices):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE,VALUE,...")
        if name in found:
            raise click.BadParameter(f"{name!r} is varied twice")
        found[name] = choices
    return found


def typed(words: Sequence[str]) -> str:
    """What was typed, as somebody else can type it."""
    return shlex.join(["fucina", *(word for word in words[1:] if word != "--json")])


def _print_comparison(document: dict[str, Any], name: str, out: Path, as_json: bool) -> None:
    from flows import output
    from flows.comparing import failures, next_settings, table, verdict

    if as_json:
        output.print_json(document)
    elif document["chosen"]:
        print_rows(table(document))
        again = [f"--set {shlex.quote(f'{n}={v}')}" for n, v in next_settings(document).items()]
        if document["data"] != "embedded":
            again.append(f"--data {document['data']}")
        if out != Path("runs"):
            again.append(f"--out {out}")
        said = "\n".join([verdict(document), *failures(document)])
        print(
            f"\n{said}\n\n{document['page']}\nnext: {output.program()} run {name} {' '.join(again)}"
        )
    if not document["chosen"]:
        first = document["variants"][0]["error"]
        raise TrainingFailed(f"no variant of {document['name']} could be trained; first: {first}")


def _print_experiment(document: dict[str, Any], as_json: bool) -> None:
    from flows import output

    if as_json:
        output.print_json(document)
        return
    print_rows(document["rows"])
    verdict = "holds" if document["holds"] else "does not hold"
    print(f"\nclaim: {document['claim']}\nhere it {verdict}. {document['verdict']}")
    print(f"\n{document['report']}")


def _list_experiments(as_json: bool) -> None:
    from flows import output
    from flows.experiments import EXPERIMENTS, find

    rows = [
        {"name": found.name, "title": found.title, "paper": found.paper}
        for found in map(find, EXPERIMENTS)
    ]
    output.print_json(rows) if as_json else print_rows(rows)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table, with a column for each key; numbers stand on the right."""
    from rich.console import Console
    from rich.table import Table

    from flows.experiments.page import columns
    from pipeline.card import number

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = columns(rows)
    for column in shown:
        title = column.name.replace("_", " ")
        table.add_column(
            title,
            justify="right" if column.numeric else "left",
            min_width=max(map(len, title.split())),
            overflow="fold",
        )
    for row in rows:
        values = [row.get(column.name) for column in shown]
        table.add_row(*("–" if value is None else number(value) for value in values))
    Console().print(table)
