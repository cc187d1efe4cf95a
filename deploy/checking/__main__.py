"""The command `deploy/check`: every check that can run here, a table of them, and nothing left."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from deploy.checking import DEPLOY, Outcome, outcome, program, run
from deploy.checking.files import CHECKS
from deploy.checking.images import BUILDING, LARGEST, Engine, answers, release, size

# What no check here can show.
_NEVER = {
    "published images": "their digests are pinned and were not fetched; give --base to build",
    "gpu image": "it takes a GPU to show that its engines run; --gpu builds it",
    "GPU in containers": "it takes a GPU and the NVIDIA Container Toolkit",
    "Grafana": "its published image is not fetched; its queries are checked",
    "live Kubernetes": "it takes a cluster; schemas are checked",
}
_COLOURS = {"passed": "green", "FAILED": "red", "NOT RUN": "yellow"}


@click.command()
@click.option("--files", "only_files", is_flag=True, help="Only what needs no image.")
@click.option("--base", help="Image with Python to build from; else one is made by debootstrap.")
@click.option("--volume", "volumes", multiple=True, metavar="SOURCE:PLACE:ro",
    help="Mounted while images are built, such as a CA file and a pip configuration.")  # fmt: skip
@click.option("--build-arg", "arguments", multiple=True, metavar="NAME=VALUE",
    help="Of the Dockerfile, such as TORCH=torch==2.13.0.")  # fmt: skip
@click.option("--storage", type=click.Path(path_type=Path), help="Keeps images for the next time.")
@click.option("--gpu", is_flag=True, help="Also build the image for GPUs; some GB.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(
    only_files: bool,
    base: str | None,
    volumes: tuple[str, ...],
    arguments: tuple[str, ...],
    storage: Path | None,
    gpu: bool,
    as_json: bool,
) -> None:
    """Check what is deployed: files, images, and the whole stack from schedule to answer."""
    with tempfile.TemporaryDirectory(prefix="fucina-", ignore_cleanup_errors=True) as scratch:
        engine = Engine(storage or Path(scratch) / "storage", base, volumes, arguments)
        found = [*_files()]
        if not only_files:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            try:
                for one in _images(engine, Path(scratch) / "runs", gpu):
                    print(f"{one.check}: {one.state} {one.said}", file=sys.stderr, flush=True)
                    found.append(one)
            finally:
                engine.clear()
    found += [Outcome(f"never here: {name}", "NOT RUN", why) for name, why in _NEVER.items()]
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        table = Table("check", "state", "", box=None)
        for one in found:
            table.add_row(one.check, f"[{_COLOURS[one.state]}]{one.state}[/]", one.said)
        Console().print(table)
    sys.exit(any(one.state == "FAILED" for one in found))


def _files() -> Iterator[Outcome]:
    for name, check in CHECKS.items():
        yield outcome(name, check)


def _images(engine: Engine, runs: Path, gpu: bool) -> Iterator[Outcome]:
    yield outcome("image cpu", partial(size, engine, "cpu", LARGEST))
    yield outcome("image train", partial(size, engine, "train"))
    if gpu:
        yield outcome("image gpu", partial(size, engine, "gpu"))
    released = outcome("release in image train", partial(release, engine, runs))
    yield released
    if released.state == "passed":
        yield outcome("answers of image cpu", partial(answers, engine, runs))
        yield outcome("stack", partial(_stack, engine))
    else:  # nothing is waited for that cannot come
        yield Outcome("answers of image cpu", "NOT RUN", "there is no bundle to serve")
        yield Outcome("stack", "NOT RUN", "a release in it would fail as well")


def _stack(engine: Engine) -> str:
    for needed in ("podman-compose", "podman", "buildah"):
        program(needed)
    # Its packages are fetched here: in there, no network is reached.
    engine.build("services", DEPLOY / "checking" / "services.Dockerfile")
    own = 'ip link set lo up && exec "$0" -m deploy.checking.stack'
    command = ("unshare", "--net", "sh", "-c", own, sys.executable)
    given = asdict(engine) | {"folder": str(engine.folder)}
    return run(*command, folder=DEPLOY.parent, seconds=3 * BUILDING, text=json.dumps(given)).strip()


if __name__ == "__main__":
    main()
