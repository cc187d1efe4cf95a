"""The command `fucina doctor`: what this machine is, and which targets it can build and run."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from typing import Any

import click

from models.errors import TargetUnavailable
from pipeline.backends import TARGETS, Target, backend, require, target
from pipeline.machine import (
    Driver,
    cuda_libraries,
    declared,
    driver,
    host,
    libraries,
    missing_gpu,
    onnxruntime_cuda,
)

# What engines, their tests and their serving are made of; pyproject.toml has the ranges.
_PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx",
    "cuda-bindings", "nvidia-ml-py", "bentoml", "prefect",
)  # fmt: skip


def register(cli: click.Group, as_json: Any) -> None:
    """Add the command to `fucina`."""

    @cli.command()
    @click.option("--require", "wanted", metavar="TARGET", help="Exit 1 unless it can run here.")
    @as_json
    def doctor(wanted: str | None, as_json: bool) -> None:
        """What this machine can do: hardware, driver, libraries, and targets with what they lack.

        Exits 0 whatever it finds, unless --require names a target that cannot run here.
        """
        from flows.output import print_json

        needed = target(wanted) if wanted else None
        found = examine()
        print_json(found) if as_json else _print(found)
        if needed:
            require(needed)


def examine() -> dict[str, Any]:
    """What `fucina doctor --json` prints; every entry of `targets` is what its backend says."""
    found = driver()
    return {
        "machine": host(),
        "driver": {key: value for key, value in asdict(found).items() if key != "gpus"},
        "gpus": [asdict(gpu) for gpu in found.gpus],
        "libraries": [asdict(one) for one in libraries(cuda_libraries(onnxruntime_cuda()))],
        "packages": [_package(name, declared().get(name)) for name in _PACKAGES],
        "targets": [_target(one, found) for one in TARGETS.values()],
    }


def _target(one: Target, found: Driver) -> dict[str, Any]:
    try:
        tools = backend(one)
        to_build, to_run = tools.missing(one, to_run=False), tools.missing(one)
    except TargetUnavailable as error:  # without its library a backend cannot be asked
        to_build = (str(error),)
        to_run = (*to_build, *(missing_gpu(found) if one.device == "cuda" else ()))
    return {
        "target": one.name,
        "builds": not to_build,
        "runs": not to_run,
        "missing_to_build": list(to_build),
        "missing_to_run": list(to_run),
    }


def _package(name: str, wanted: str | None) -> dict[str, Any]:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        installed = None
    return {
        "name": name,
        "range": wanted,
        "installed": installed,
        "in_range": _fits(installed, wanted) if installed and wanted else None,
    }


def _fits(version: str, wanted: str) -> bool | None:
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:  # comes with ONNX Runtime and BentoML
        return None
    return SpecifierSet(wanted).contains(version, prereleases=True)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    machine, said = found["machine"], found["driver"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {_size(machine['memory_available'])} of "
        f"{_size(machine['memory'])} memory free, {_size(machine['disk_free'])} disk free\n"
        f"{machine['os']}, Python {machine['python']}",
        highlight=False,
    )
    console.print(
        said["problem"]
        or f"NVIDIA driver {said['version'] or 'of unknown version'}, up to CUDA {said['cuda']}",
        highlight=False,
    )
    for gpu in found["gpus"]:
        console.print(
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{_size(gpu['free'])} of {_size(gpu['memory'])} free",
            highlight=False,
        )
    lost = [one["name"] for one in found["libraries"] if one["problem"]]
    console.print(f"CUDA libraries that do not load: {', '.join(lost) or 'none'}", highlight=False)
    packages = Table("package", "here", "expected", box=None, pad_edge=False)
    for one in found["packages"]:
        wrong = " (not in the range)" if one["in_range"] is False else ""
        packages.add_row(one["name"], f"{one['installed'] or '-'}{wrong}", one["range"] or "any")
    # What many targets lack is said once.
    lacks = [*dict.fromkeys(text for one in found["targets"] for text in _lacks(one))]
    targets = Table("target", "builds", "runs", "lacks", box=None, pad_edge=False)
    for one in found["targets"]:
        numbers = [str(lacks.index(text) + 1) for text in dict.fromkeys(_lacks(one))]
        answers = ("yes" if one[key] else "no" for key in ("builds", "runs"))
        targets.add_row(one["target"], *answers, ", ".join(numbers))
    console.print(packages, targets, sep="\n\n")
    for number, text in enumerate(lacks, 1):
        console.print(f"{number}. {text}", markup=False, highlight=False, soft_wrap=True)


def _lacks(one: dict[str, Any]) -> list[str]:
    return one["missing_to_build"] + one["missing_to_run"]


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / (1 << 30):.1f} GiB"
