"""The interface of everything that compiles and runs a graph, and the table of targets.

A backend is a module with the functions of `Backend`. It is imported when its target is asked
for, so a machine needs only the libraries of the targets it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from models.errors import TargetUnavailable
from models.signature import Arrays, Signature


@dataclass(frozen=True)
class Target:
    """What an engine is built for, by name: library, device and precision.

    `symmetric` says of eight bits with sign that 0 is 0, which costs what is never negative a bit.
    """

    name: str
    library: str
    device: str
    precision: str
    symmetric: bool = False

    @property
    def rounding(self) -> str:
        """What `pipeline.floors` calls the rounding of its engines."""
        return f"{self.precision}-symmetric" if self.symmetric else self.precision


@dataclass(frozen=True)
class Built:
    """What a backend made: file names in the output folder, options that open them, host facts.

    `report` is what a compiler tells of its work, such as `profiles`, `layers` and `seconds`; it
    may differ from build to build.
    """

    files: tuple[str, ...]
    options: dict[str, Any]
    built_on: dict[str, str]
    report: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An engine that is open: named arrays in, named arrays out; safe to call from threads."""

    def run(self, inputs: Mapping[str, Any]) -> Arrays: ...


class Backend(Protocol):
    """What a module under `pipeline.backends` provides."""

    def build(
        self,
        model: Path,
        signature: Signature,
        target: Target,
        out: Path,
        *,
        keep: Collection[str] = (),
        scratch: Path | None = None,
    ) -> Built:
        """Compile `model` into files under `out`. Raises `BuildFailed` with the first complaint.

        Of a lower precision than fp32, nodes named in `keep` stay in fp32. In `scratch` it may
        leave what is the same for every `keep`.
        """
        ...

    def host(self, target: Target) -> dict[str, str]:
        """What an engine built here is bound to: its library's version, perhaps GPU and OS."""
        ...

    def bound(self) -> tuple[str, ...]:
        """Which facts of `host` are to be the same where an engine runs; none: it fits anywhere."""
        ...

    def rebuild(self, graph: Path, signature: Signature, target: Target, out: Path) -> Built:
        """Compile a graph that `build` left beside an engine, whose precision is in it."""
        ...

    def missing(self, target: Target, *, to_run: bool = True) -> tuple[str, ...]:
        """What this machine lacks to build a target, and to run it; each with how to get it."""
        ...

    def lowered(self, model: Path, target: Target) -> tuple[str, ...]:
        """The nodes that a target of lower precision computes in it, unless they are kept."""
        ...

    def sensitive(self, model: Path, signature: Signature, target: Target) -> dict[str, str]:
        """Those of `lowered` that are kept in fp32 from the start, each with the reason.

        Found from operators, and from the ranges that the calibration rows beside `model` lead to.
        """
        ...

    def ways(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Options that open an engine and are worth measuring, by name; these are the first."""
        ...

    def open(self, folder: Path, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """Open what `build` made, exactly as it will be served."""
        ...

    def as_written(self, model: Path) -> Session:
        """Open a graph to be run node by node, as it is written."""
        ...

    def effective(
        self,
        folder: Path,
        files: Mapping[str, str],
        options: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> tuple[dict[str, Any], Arrays]:
        """What really ran, measured on one call of a session of its own, and what that answered.

        `declared` (each input and output as `TensorSpec.declared` writes it), `nodes` (name,
        operator, device, precision), counts by `devices` and `precisions` in the words of
        `Target`, and whether `tf32` was allowed.
        """
        ...


def facts_of(session: Session) -> Mapping[str, Any]:
    """What an open engine takes, where that is measured, such as `device_bytes`."""
    return getattr(session, "facts", {})


# The module that serves each library.
_MODULES = {"ort": "pipeline.backends.ort", "tensorrt": "pipeline.backends.trt"}

TARGETS = {
    target.name: target
    for target in (
        Target("ort-cpu-fp32", "ort", "cpu", "fp32"),
        Target("ort-cpu-int8", "ort", "cpu", "int8"),
        Target("ort-cuda-fp32", "ort", "cuda", "fp32"),
        Target("ort-cuda-fp16", "ort", "cuda", "fp16"),
        Target("tensorrt-fp32", "tensorrt", "cuda", "fp32"),
        Target("tensorrt-tf32", "tensorrt", "cuda", "tf32"),
        Target("tensorrt-fp16", "tensorrt", "cuda", "fp16"),
        Target("tensorrt-bf16", "tensorrt", "cuda", "bf16"),
        Target("tensorrt-int8", "tensorrt", "cuda", "int8", symmetric=True),
        Target("tensorrt-fp8", "tensorrt", "cuda", "fp8"),
    )
}
DEFAULT_TARGET = "ort-cpu-fp32"


def target(name: str) -> Target:
    """The target of that name. Raises `TargetUnavailable` with those there are."""
    if name in TARGETS:
        return TARGETS[name]
    raise TargetUnavailable(
        f"there is no target {name!r}",
        expected=" or ".join(TARGETS),
        fix=f"use --target {DEFAULT_TARGET}",
    )


def rival(lower: Target) -> Target:
    """The target of the same library and device in fp32."""
    return TARGETS[f"{lower.name.rpartition('-')[0]}-fp32"]


def backend_module(target: Target) -> str:
    """The module that builds and runs a target."""
    return _MODULES[target.library]


def backend(target: Target) -> Backend:
    """The backend of a target. Raises `TargetUnavailable` when its library is not installed."""
    try:
        return cast(Backend, importlib.import_module(backend_module(target)))
    except ModuleNotFoundError as error:
        raise TargetUnavailable(
            f"target {target.name!r} needs the package {error.name!r}",
            got="not installed",
            fix="pip install 'fucina[cpu]'"
            if target.device == "cpu"
            else "pip install 'fucina[gpu]'",
        ) from error


def require(target: Target, *, to_run: bool = True) -> None:
    """Raise `TargetUnavailable` with the first thing that this machine lacks for a target."""
    if missing := backend(target).missing(target, to_run=to_run):
        does = "run" if to_run else "build"
        raise TargetUnavailable(
            f"this machine cannot {does} {target.name!r}: {missing[0]}"
            + (f" (and {len(missing) - 1} more, see `fucina doctor`)" if missing[1:] else "")
        )
