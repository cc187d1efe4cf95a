"""Optimize: a backend turns the portable graph into an engine for one target."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import digest_files
from pipeline.backends import backend
from pipeline.backends import target as find_target
from pipeline.parts import new_part, part, save_value
from pipeline.progress import Progress, silent
from pipeline.values import MODEL, Engine, OnnxModel


def optimize(model: OnnxModel, target: str, out: Path, *, progress: Progress = silent) -> Engine:
    """Build the engine of a target into `out`, with the options that open it, and its parts'.

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
        parts={
            name: optimize(part(model, name), target, new_part(out, name)).digest
            for name in model.parts
        },
    )
    save_value(value)
    progress(1, 1, f"built {target}")
    return value
