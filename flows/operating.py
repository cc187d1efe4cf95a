"""The commands `fucina serve`, `bless`, `canary`, `rollback` and `versions`: what is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from models.errors import MissingArtifact
from pipeline.backends import DEFAULT_TARGET
from pipeline.blessed import LAST, RECORD, Entry
from pipeline.bundle import MANIFEST

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
# Heavy imports are inside the commands: `fucina --help` answers at once.

_SERVE = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to."),
    click.option("--port", default=3000, show_default=True, help="REST port; 0 takes a free one."),
    click.option(
        "--grpc-port", default=3001, show_default=True, help="gRPC port; 0 takes a free one."
    ),
    click.option("--workers", default=1, show_default=True, help="Processes that share the ports."),
    click.option("--target", default=DEFAULT_TARGET, show_default=True, help="Engine to run."),
    click.option("--check", is_flag=True, help="Ask every recorded case, then end."),
    click.option(
        "--tune", is_flag=True,
        help="Measure processes, threads and batches here, print what to choose, then end.",
    ),
    click.option(
        "--check-certificate", type=_FILE,
        help="PEM of the certificate and key that --check shows, with --client-ca.",
    ),
    click.option("--playground", is_flag=True, help="A web page at / to try the models with."),
    click.option(
        "--queue", default=512, show_default=True, type=click.IntRange(1),
        help="Requests of a model that may wait; more are refused.",
    ),
    click.option(
        "--latency-target", default=0.0, show_default=True, type=click.FloatRange(0),
        help="Milliseconds that a batch may wait for more requests.",
    ),
    click.option(
        "--longest-wait", default=5000.0, show_default=True, type=click.FloatRange(0),
        help="Milliseconds expected until a request's turn, beyond which it is refused; 0: none.",
    ),
    click.option(
        "--largest-batch", default=0, show_default=True, type=click.IntRange(0),
        help="Rows that are answered together at most; 0 takes the fastest, which is measured.",
    ),
    click.option(
        "--threads", default=0, show_default=True, type=click.IntRange(0),
        help="Threads of an engine; 0 takes as many as it was certified with.",
    ),
    click.option(
        "--rebuild", default=600.0, show_default=True, type=click.FloatRange(0), metavar="SECONDS",
        help="How long building an engine may take that was built for another machine; 0: never.",
    ),
    click.option(
        "--strict-target", is_flag=True,
        help="Rather not ready than served by another engine than --target.",
    ),
    click.option(
        "--timeout", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True),
        help="Seconds until an answer has begun.",
    ),
    click.option(
        "--per-client", default=0, show_default=True, type=click.IntRange(0),
        help="Calls of one client at a time; 0 is without limit.",
    ),
    click.option("--api-keys", type=_FILE, help="File of hashed keys, one of which is required."),
    click.option("--tls-certificate", type=_FILE, help="PEM certificate, for both ports."),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option("--client-ca", type=_FILE, help="PEM of who signs the clients' certificates."),
    click.option("--admin", is_flag=True, help="Let clients load and unload models."),
    click.option(
        "--watch", default=1.0, show_default=True, type=click.FloatRange(0),
        help="Seconds between looks at blessed bundles; 0 never looks.",
    ),
    click.option(
        "--recheck", default=0.0, show_default=True, type=click.FloatRange(0, 1),
        help="Share of requests that the reference engine is asked as well.",
    ),
    click.option(
        "--drain", default=0.0, show_default=True, type=click.FloatRange(0),
        help="Seconds that it says not ready and still answers, once asked to end.",
    ),
    click.option(
        "--access-log/--no-access-log", default=True, show_default=True,
        help="A line on stderr for each request.",
    ),
)  # fmt: skip


def register(group: click.Group, out_option: Decorator, as_json_option: Decorator) -> None:
    """Add the commands to `fucina`, with the options that others have."""

    @group.command()
    @click.argument("names", nargs=-1, required=True, metavar="NAME_OR_BUNDLE...")
    @_all(_SERVE)
    @out_option
    @as_json_option
    def serve(names: tuple[str, ...], out: Path, tune: bool, **options: Any) -> None:
        """Serve bundles over REST and gRPC until interrupted.

        Of a NAME the blessed bundle, which is followed, or the last one while none is blessed.
        """
        folders = [served_folder(name, out) for name in names]
        if tune:
            from flows.tuning import tuned

            tuned(folders, target=options["target"], as_json=options["as_json"])
            return
        from flows.serving import serve as run_server

        run_server(folders, **options)

    @group.command()
    @click.argument("name")
    @click.argument("bundle", required=False, type=click.Path(path_type=Path))
    @out_option
    @as_json_option
    def bless(name: str, bundle: Path | None, out: Path, as_json: bool) -> None:
        """Serve a bundle from now on: the last that was packaged, or BUNDLE."""
        from pipeline import blessed

        run = run_folder(name, out)
        _told(blessed.bless(run, bundle or run / LAST), as_json)

    @group.command()
    @click.argument("name")
    @click.argument("bundle", required=False, type=click.Path(path_type=Path))
    @click.option(
        "--percent",
        default=10.0,
        show_default=True,
        type=click.FloatRange(0, 100),
        help="Share of the requests that it answers; 0 ends it.",
    )
    @out_option
    @as_json_option
    def canary(name: str, bundle: Path | None, percent: float, out: Path, as_json: bool) -> None:
        """Give a share of the requests to another bundle, the last packaged or BUNDLE."""
        from pipeline import blessed

        run = run_folder(name, out)
        if percent:
            _told(blessed.canary(run, bundle or run / LAST, percent), as_json)
        else:
            _told(blessed.end_canary(run), as_json)

    @group.command()
    @click.argument("name")
    @out_option
    @as_json_option
    def rollback(name: str, out: Path, as_json: bool) -> None:
        """Serve the bundle that was blessed before; a canary is only ended."""
        from pipeline import blessed

        _told(blessed.rollback(run_folder(name, out)), as_json)

    @group.command()
    @click.argument("name")
    @out_option
    @as_json_option
    def versions(name: str, out: Path, as_json: bool) -> None:
        """What was blessed, tried and rolled back of NAME, by whom and when, and what stands."""
        from flows import output
        from pipeline.blessed import fold, read_record

        run = run_folder(name, out)
        entries = read_record(run)
        if not entries:
            raise MissingArtifact(
                f"nothing of {name!r} is blessed in {out}", fix=f"run `fucina bless {name}` first"
            )
        history, trial = fold(entries)
        now = {history[-1].version: "stands"} if history else {}
        if trial:
            now[trial.version] = f"canary, {trial.percent:g} %"
        rows = [entry.model_dump(mode="json") for entry in entries]
        if as_json:
            document = {
                "standing": history[-1].version if history else None,
                "canary": {"version": trial.version, "percent": trial.percent} if trial else None,
                "record": rows,
            }
            output.print_json(document)
        else:
            output.print_versions(rows, now)


def served_folder(name: str, out: Path) -> Path:
    """What a server is given: a bundle's folder, or a run's, whose blessed bundle it follows."""
    if "/" in name or (Path(name) / MANIFEST).is_file():
        return Path(name)
    run = run_folder(name, out)
    if not (run / RECORD).is_file() and not (run / LAST).exists():
        raise MissingArtifact(
            f"{name!r} has no bundle in {out}", fix=f"run `fucina run {name}` first, or give --out"
        )
    return run


def run_folder(name: str, out: Path) -> Path:
    """Where the runs of a recipe lie, from its zoo name or its MODULE:RECIPE."""
    if ":" in name:
        from models.zoo import find

        name = find(name).name
    return out / name


def _all(options: tuple[Decorator, ...]) -> Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _told(entry: Entry, as_json: bool) -> None:
    from flows import output

    if as_json:
        output.print_json(entry.model_dump(mode="json"))
        return
    share = f", {entry.percent:g} % of requests" if entry.action == "canary" else ""
    print(f"{entry.action}: version {entry.version}{share}, from {entry.bundle}")
