"""A backend for tests: ONNX Runtime behind plans that are bound to the machine that compiled them.

What this machine is, and how its compiler behaves, is said by environment variables, so that a
server and what it starts see the same. `registered` puts it into the table of targets, also of
every Python that is started with the environment that it gives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models.errors import BuildFailed
from models.signature import Arrays, Signature
from pipeline import backends
from pipeline.backends import DEFAULT_TARGET, TARGETS, Built, Session, Target, ort
from pipeline.bundle import ENGINES, open_bundle
from pipeline.optimize import optimize
from pipeline.values import PARTS, Engine
from pipeline.verify import verify
from tests.serving.conftest import TARGET, write_manifest

PLANNED = Target("plan-cpu-fp32", "plan", "cpu", "fp32")
MACHINE = "FUCINA_TEST_MACHINE"  # its name, none: no plan runs here
COMPILER = "FUCINA_TEST_COMPILER"  # "slow" takes for ever, "wrong" scales the weights, "crash"
OPENED = "FUCINA_TEST_OPENED"  # a file with a line for each plan that was opened or compiled
PLAN, GRAPH = "engine.plan", "engine.onnx"
_CPU = TARGETS[DEFAULT_TARGET]


@contextmanager
def registered(folder: Path, machine: str) -> Iterator[pytest.MonkeyPatch]:
    """The target in the table, here and in what is started; this machine has that name."""
    (folder / "sitecustomize.py").write_text(
        "from pipeline import backends\n"
        f"backends.TARGETS[{PLANNED.name!r}] = backends.{PLANNED!r}\n"
        f"backends._MODULES[{PLANNED.library!r}] = {__name__!r}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, PLANNED.name, PLANNED)
        patch.setitem(backends._MODULES, PLANNED.library, __name__)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv(MACHINE, machine)
        patch.setenv(OPENED, str(folder / "opened.txt"))
        patch.setenv("FUCINA_CACHE", str(folder / "cache"))
        yield patch


def add_plan(bundle: Path, out: Path) -> Path:
    """A copy of a bundle that has a certified plan of this machine as well."""
    copy = Path(shutil.copytree(bundle, out / bundle.name))
    opened = open_bundle(copy)
    for name in ("graph", "engine", "certificate"):
        (out / name).mkdir()
    model, _ = opened.unpack(TARGET, out / "graph")
    engine = optimize(model, PLANNED.name, out / "engine")
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, out / "certificate")
    assert certificate, certificate.failures
    for inside in ("", *(f"{PARTS}/{name}" for name in opened.parts)):
        for value in (engine, certificate):
            shutil.copytree(
                value.folder / inside, copy / inside / ENGINES / PLANNED.name,
                ignore=shutil.ignore_patterns(PARTS), dirs_exist_ok=True,
            )  # fmt: skip
    names = ("name", "signature", "version", "kind", "parts")
    facts = {name: getattr(opened.manifest, name) for name in names}
    write_manifest(copy, **facts, engines=(TARGET, PLANNED.name))
    return copy


def told(word: str) -> int:
    """How often a plan was "opened" or "compiled", in any process."""
    path = Path(os.environ[OPENED])
    return path.read_text().split().count(word) if path.exists() else 0


def build(
    model: Path,
    signature: Signature,
    target: Target,
    out: Path,
    *,
    keep: Collection[str] = (),
    scratch: Path | None = None,
) -> Built:
    return rebuild(model, signature, target, out)


def rebuild(graph: Path, signature: Signature, target: Target, out: Path) -> Built:
    _tell("compiled")
    behaviour = os.environ.get(COMPILER)
    if behaviour == "slow":
        (out / "half-written").touch()
        # A compiler that has processes of its own, which a kill of the child alone would leave.
        subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=True)
    if behaviour == "crash":
        os.abort()
    with tempfile.TemporaryDirectory() as folder:
        ort.build(_wrong(graph, Path(folder)) if behaviour == "wrong" else graph, signature, _CPU,
                  Path(folder))  # fmt: skip
        compiled = (Path(folder) / GRAPH).read_bytes()
    (out / PLAN).write_bytes(json.dumps(host(target)).encode() + b"\n" + compiled)
    if graph != out / GRAPH:
        shutil.copyfile(graph, out / GRAPH)
    return Built((PLAN, GRAPH), dict(ort._OPTIONS), host(target))


def _wrong(graph: Path, folder: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph)
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype.kind == "f":
            weight.CopyFrom(numpy_helper.from_array(array * array.dtype.type(1.01), weight.name))
    onnx.save(model, folder / "wrong.onnx")
    return folder / "wrong.onnx"


def host(target: Target) -> dict[str, str]:
    return {"machine": os.environ[MACHINE], "driver": str(time.time())}


def bound() -> tuple[str, ...]:
    return ("machine",)


def missing(target: Target, *, to_run: bool = True) -> tuple[str, ...]:
    return () if os.environ[MACHINE] else ("it has no plans",)


def lowered(model: Path, target: Target) -> tuple[str, ...]:
    return ()


def sensitive(model: Path, signature: Signature, target: Target) -> dict[str, str]:
    return {}


def ways(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {"plain": dict(options)}


def open(folder: Path, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
    with _graph_of(folder) as inside:
        return ort.open(inside, files, options)


def as_written(model: Path) -> Session:
    return ort.as_written(model)


def effective(
    folder: Path, files: Mapping[str, str], options: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], Arrays]:
    with _graph_of(folder) as inside:
        return ort.effective(inside, files, options, inputs)


@contextmanager
def _graph_of(folder: Path) -> Iterator[Path]:
    """What is in a plan, refused where it was compiled on another machine."""
    _tell("opened")
    head, _, graph = (folder / PLAN).read_bytes().partition(b"\n")
    if (machine := json.loads(head)["machine"]) != os.environ[MACHINE]:
        raise BuildFailed(f"the plan is of {machine}, not of {os.environ[MACHINE]}")
    with tempfile.TemporaryDirectory() as inside:
        (Path(inside) / GRAPH).write_bytes(graph)
        yield Path(inside)


def _tell(word: str) -> None:
    with Path(os.environ[OPENED]).open("a") as file:
        file.write(f"{word}\n")
