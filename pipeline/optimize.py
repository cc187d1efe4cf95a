"""Optimize: a backend turns the portable graph into an engine for one target."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import digest_files, save
from pipeline.backends import backend
from pipeline.backends import target as find_target
from pipeline.progress import Progress, silent
from pipeline.values import ENGINE_VALUE, MODEL, Engine, OnnxModel


def optimize(model: OnnxModel, target: str, out: Path, *, progress: Progress = silent) -> Engine:
    """Build the engine of a target into `out`, with the options that open it.

    Raises `TargetUnavailable` or `BuildFailed`.
    """
    wanted = find_target(target)
    progress(0, 1, f"building {target}")
    built = backend(wanted).build(model.folder / MODEL, model.signature, wanted, out)
    value = Engine(
        folder=out,
        target=target,
        parent=model.digest,
        signature=model.signature,
        options=built.options,
        built_on=built.built_on,
        files=digest_files(out, list(built.files)),
    )
    save(value, out, ENGINE_VALUE)
    progress(1, 1, f"built {target}")
    return value
