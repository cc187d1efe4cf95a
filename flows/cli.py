"""The command line: `fucina`. Exit codes: 0, 1 (one line says what is wrong), 2 (usage)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows import (
    RUN_FILE,
    certifying,
    doctor,
    experimenting,
    keys,
    mutating,
    operating,
    scheduling,
    storing,
)
from flows.operating import run_folder
from flows.spreading import (
    placement_options,
    released_on_cluster,
    runner_options,
    take_part,
    train_together,
)
from models.errors import BadSetting, FucinaError, UnknownRecipe
from pipeline.backends import DEFAULT_TARGET

if TYPE_CHECKING:
    from flows.launching import Placement
    from flows.stages import Job
    from pipeline.bundle import Bundle

# Heavy imports are inside the commands: `fucina --help` answers at once.


def main() -> None:
    """Run a command and exit with its code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("fucina: interrupted; what is finished is kept", file=sys.stderr)
        sys.exit(130)
    except FucinaError as error:
        print(f"fucina: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # who read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PermissionError as error:
        print(f"fucina: {error.filename} cannot be used: got {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        print(
            f"fucina: this command needs the package {error.name!r}: got not installed; "
            "pip install 'fucina[all]'",
            file=sys.stderr,
        )
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("fucina"), prog_name="fucina")
def cli() -> None:
    """Train a PyTorch architecture, export it, prove that the numbers did not change, serve it."""


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"),
    show_default=True, help="Folder of runs and bundles.",
)  # fmt: skip


def job_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that works on a run has in common."""
    for option in (
        as_json,
        out_option,
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=_settings,
            help="Override a setting, such as epochs=3. Repeat.",
        ),
        click.option("--data", default="embedded", show_default=True, help="embedded, full, ..."),
    ):  # fmt: skip
        command = option(command)
    return command


targets_option = click.option(
    "--target", "targets", multiple=True, default=(DEFAULT_TARGET,), show_default=True,
    help="What to build for. Repeat.",
)  # fmt: skip


def _settings(_context: object, _option: object, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        pairs[name] = text
    return pairs


def _limits(context: object, option: object, values: tuple[str, ...]) -> dict[str, float]:
    try:
        return {stage: float(text) for stage, text in _settings(context, option, values).items()}
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@cli.command("list")
@as_json
def list_command(as_json: bool) -> None:
    """The zoo: name, kind, paper, parameters, data sets, metric."""
    from flows import output
    from models.zoo import ZOO

    rows = [output.describe_recipe(recipe) for recipe in ZOO.values()]
    output.print_json(rows) if as_json else output.print_recipes(rows)


@cli.command()
@click.argument("name")
@click.option("--data", help="Look at the size that is trained on this data, not the published.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", callback=_settings)
@as_json
def inspect(name: str, data: str | None, settings: dict[str, str], as_json: bool) -> None:
    """Layer table: output shape, parameters, multiplications, receptive field; totals."""
    from flows import output
    from models.layers import inspect as look
    from models.zoo import find

    recipe = find(name).override(settings)
    inspection = look(recipe.on(data) if data else recipe)
    output.print_json(inspection.to_json()) if as_json else output.print_layers(inspection)


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--kind", "kinds", multiple=True, help="Every recipe of this kind; repeat it.")
@click.option("--all", "everything", is_flag=True, help="Every recipe of the zoo.")
@targets_option
@placement_options
@runner_options
@click.option(
    "--limit", "limits", multiple=True, metavar="STAGE=SECONDS", callback=_limits,
    help="End a stage, and all that it started, that takes longer. Repeat.",
)  # fmt: skip
@job_options
def run(
    names: tuple[str, ...], kinds: tuple[str, ...], everything: bool, targets: tuple[str, ...],
    data: str, settings: dict[str, str], device: str, out: Path, as_json: bool,
    placement: Placement, runner: str | None, address: str, limits: dict[str, float],
) -> None:  # fmt: skip
    """Take recipes the whole way: train, export, optimize, verify, package. Resumes."""
    from flows.children import children
    from flows.environment import prefect_server

    if placement.node_rank:
        for name in _chosen(names, kinds, everything):
            take_part(replace(_job(name, data, settings, device, out), placement=placement))
        return
    if runner:
        found = released_on_cluster(
            _chosen(names, kinds, everything), runner, address, targets, data, settings, device,
            out, placement,
        )  # fmt: skip
        return _print_released(found, out, as_json)
    _require(targets, to_run=True)
    with children(), prefect_server() as ready:
        from flows.console import shown
        from flows.release import release

        jobs = [
            replace(_job(name, data, settings, device, out, targets), placement=placement)
            for name in _chosen(names, kinds, everything)
        ]
        ready()
        rows: list[dict[str, Any]] = []
        with shown():
            for job in jobs:
                rows.append(_release(job, partial(release, limits=limits)))
    _print_released(rows, out, as_json)


def _print_released(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Say what became of each recipe; ends with 1 where one failed."""
    from flows import output

    for row in rows:
        if "error" in row:
            print(f"fucina: {row['error']}", file=sys.stderr)
    if as_json:
        output.print_json(rows)
    else:
        output.print_released(rows)
        output.print_next([row for row in rows if "error" not in row], out)
    if any("error" in row for row in rows):
        sys.exit(1)


def _release(job: Job, release: Callable[..., dict[str, dict[str, str]]]) -> dict[str, Any]:
    from flows.console import listener
    from flows.output import describe_bundle
    from pipeline.bundle import open_bundle

    start = time.perf_counter()
    try:
        train_together(job, listener.get()(job.recipe.name, "train"))
        records = release(
            job.reference, job.data, list(job.targets), job.changes, str(job.out), job.device
        )
        bundle = open_bundle(Path(records["package"]["path"]))
    except FucinaError as error:
        return {"name": job.recipe.name, "error": str(error)}
    return describe_bundle(job, bundle) | {"seconds": round(time.perf_counter() - start, 2)}


def _chosen(names: tuple[str, ...], kinds: tuple[str, ...], everything: bool) -> list[str]:
    from models.zoo import ZOO

    chosen = list(names)
    known = sorted({recipe.kind for recipe in ZOO.values()})
    for kind in kinds:
        if kind not in known:
            raise UnknownRecipe(f"no recipe of kind {kind!r}", expected=", ".join(known))
    chosen += [n for n, recipe in ZOO.items() if everything or recipe.kind in kinds]
    if not chosen:
        raise click.UsageError("give recipe names, --kind or --all; see `fucina list`")
    return list(dict.fromkeys(chosen))


def _job(
    name: str, data: str, settings: dict[str, str], device: str, out: Path,
    targets: tuple[str, ...] = (DEFAULT_TARGET,),
) -> Job:  # fmt: skip
    """A job whose name, data, settings and targets have been found to exist."""
    from flows.stages import Job
    from pipeline.artifacts import sweep
    from pipeline.backends import target

    for wanted in targets:
        target(wanted)
    job = Job(name, data, targets, dict(settings), out, _device(device))
    sweep(job.folder)
    return job


def _require(targets: tuple[str, ...], *, to_run: bool) -> None:
    """Refuse what this machine cannot run, or build, before any work is done."""
    from pipeline.backends import require, target

    for wanted in targets:
        require(target(wanted), to_run=to_run)


def _device(wanted: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if wanted != "cpu" and not (wanted.startswith("cuda") and available):
        raise BadSetting(
            f"device {wanted!r} is not here", expected="cpu" + (", cuda" if available else "")
        )
    return wanted


def _stage_command(stage: str, help_text: str, *options: Callable[..., Any]) -> None:
    def command(
        name: str, targets: tuple[str, ...], data: str, settings: dict[str, str], device: str,
        out: Path, as_json: bool, **more: Any,
    ) -> None:  # fmt: skip
        from flows import output, stages
        from flows.console import listener, shown
        from pipeline.verify import require

        only = more.pop("build_only", False)
        if stage not in ("train", "export"):
            _require(targets, to_run=not only)
        job = _job(name, data, settings, device, out, targets)
        job = replace(job, placement=more.pop("placement", job.placement))
        if take_part(job):
            return
        parts = stages.resumed(job, stage)
        if only:
            with shown():
                document = stages.build_only(job, parts, listener.get()(job.recipe.name, "build"))
            output.print_json(document) if as_json else output.print_builds(document)
            return
        with shown():
            made = stages.advance(job, stage, parts, listener.get()(job.recipe.name, stage))
            bento = _bento(made.bundle, job, **more) if made.bundle else {}
        if stage == "verify" and not as_json:
            output.print_certificates(made.certificates)
        else:
            if bento and not as_json:
                del bento["bento"]["packages"]  # a line for each of many
            document = output.describe_stage(job, made) | bento
            output.print_json(document) if as_json else output.print_facts(document)
            if stage == "package" and not as_json:
                output.print_next([document], out)
        if stage == "verify":
            for certificate in made.certificates:
                require(certificate)

    for option in (job_options, targets_option, *options, click.argument("name")):
        command = option(command)
    cli.command(stage, help=help_text)(command)


def _bento(bundle: Bundle, job: Job, *, bento: bool, base_image: str | None) -> dict[str, Any]:
    from flows.bento import packaged

    return packaged(bundle, job.folder, base_image) if bento else {}


_stage_command("train", "Train NAME, or take the trained model that is there.", placement_options)
_stage_command("export", "Export the trained NAME to ONNX and record its cases.")
_stage_command(
    "optimize",
    "Build the engines of the exported NAME.",
    click.option(
        "--build-only", is_flag=True,
        help="Only compile, into NAME/build-only/TARGET; this machine need not be able to run it.",
    ),
)  # fmt: skip
_stage_command("verify", "Certify the engines of NAME against the original module.")
_stage_command(
    "package",
    "Package the certified engines of NAME into a bundle, and that into a Bento.",
    click.option("--base-image", help="Of the Bento's Dockerfile, such as NAME@sha256:DIGEST."),
    click.option("--bento/--no-bento", default=True, show_default=True, help="Build a Bento."),
)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--latency/--no-latency", default=True, help="Measure against PyTorch eager.")
@out_option
@as_json
def report(run: str, latency: bool, out: Path, as_json: bool) -> None:
    """Write the HTML report of RUN, a name or a run's folder, with its plots."""
    from flows import output
    from flows.reporting import write

    folder = Path(run)
    if not (folder / RUN_FILE).is_file():
        folder = run_folder(run, out)
    path, measured = write(folder, latency)
    if as_json:
        output.print_json({"report": str(path), "latency": measured})
    else:
        print(path)


experimenting.register(cli, job_options, _job, _device)
mutating.register(cli, out_option, as_json, _chosen)
certifying.register(cli)
operating.register(cli, out_option, as_json)
keys.register(cli, as_json)
doctor.register(cli, as_json)
scheduling.register(cli, job_options, targets_option, as_json, _job)
storing.register(cli, out_option, as_json)
