"""Rebuilding: an engine of another machine is built and certified here within its time, or not."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psutil
import pytest

from models.errors import BuildFailed
from pipeline.bundle import ENGINES, Bundle, open_bundle
from pipeline.fitting import misfit
from pipeline.rebuild import rebuild, rebuilt_before
from pipeline.values import CERTIFICATE_VALUE, ENGINE_VALUE
from tests.serving.conftest import TARGET
from tests.serving.generative_bundle import CODER, make_bundle
from tests.serving.plans import (
    COMPILER,
    MACHINE,
    PLAN,
    PLANNED,
    add_plan,
    told,
)

NAME = PLANNED.name


def again(bundle: Bundle, cache: Path, seconds: float = 60.0) -> Bundle:
    return asyncio.run(rebuild(bundle, NAME, cache, seconds))


def test_what_fits_is_said(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = packaged.engine(NAME)
    assert misfit(plan) is None  # though the driver is another one each time
    monkeypatch.setenv(MACHINE, "new")
    found = misfit(plan)
    assert found
    assert found.curable
    assert "built for machine 'old', here is 'new'" in found.why
    monkeypatch.setenv(MACHINE, "")
    found = misfit(plan)
    assert found
    assert not found.curable
    assert "it has no plans" in found.why
    assert misfit(packaged.engine(TARGET)) is None  # a graph, which fits anywhere


def test_what_is_rebuilt_is_certified_here_and_kept(
    moved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rebuilt_before(moved, NAME, tmp_path) is None
    here = again(moved, tmp_path)
    assert misfit(here.engine(NAME)) is None
    assert here.certificate(NAME).engine == here.engine(NAME).digest != moved.engine(NAME).digest
    findings = here.replay(here.open_engine(NAME), NAME)
    assert findings
    assert all(finding.passed for finding in findings)
    compiled = told("compiled")
    assert compiled == 1
    found = rebuilt_before(moved, NAME, tmp_path)
    assert found
    assert found.rebuilt == here.rebuilt
    assert told("compiled") == compiled
    assert moved.certificate(NAME).engine == moved.engine(NAME).digest  # the bundle is as it was
    monkeypatch.setenv(MACHINE, "newer")
    assert rebuilt_before(moved, NAME, tmp_path) is None
    with pytest.raises(BuildFailed, match="the plan is of new"):
        here.open_engine(NAME)


def test_a_changed_cache_is_not_opened_and_built_anew(moved: Bundle, tmp_path: Path) -> None:
    kept = again(moved, tmp_path).rebuilt[NAME]
    opened = told("opened")
    for name in (CERTIFICATE_VALUE, ENGINE_VALUE, PLAN):
        sound = (kept / name).read_bytes()
        changed = sound.replace(b'"passed": true', b'"passed": false').replace(b"new", b"old")
        (kept / name).write_bytes(changed)
        assert changed != sound
        assert rebuilt_before(moved, NAME, tmp_path) is None
        if name != PLAN:
            (kept / name).write_bytes(sound)
            assert rebuilt_before(moved, NAME, tmp_path)
    assert told("opened") == opened
    again(moved, tmp_path)
    assert told("compiled") == 2
    assert rebuilt_before(moved, NAME, tmp_path)
    (tmp_path / "engines").chmod(0o777)
    assert rebuilt_before(moved, NAME, tmp_path) is None
    with pytest.raises(BuildFailed, match="others may write into"):
        again(moved, tmp_path)


def children() -> set[psutil.Process]:
    """What this process, or what it started, has started: other tests' servers as well."""
    return set(psutil.Process().children(recursive=True))


def left(cache: Path) -> list[str]:
    """What lies in the folder of rebuilt engines; nothing but locks where none was."""
    return [path.name for path in (cache / "engines").iterdir() if path.suffix != ".lock"]


def test_what_takes_too_long_is_killed_and_leaves_nothing(
    moved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILER, "slow")
    before = children()
    with pytest.raises(BuildFailed, match=r"not be rebuilt in time: expected at most 0\.5 seconds"):
        again(moved, tmp_path, 0.5)
    assert children() <= before
    assert not left(tmp_path)


def test_what_is_no_longer_wanted_is_killed_with_its_own_processes(
    moved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILER, "slow")
    before = children()

    async def cancelled() -> None:
        work = asyncio.create_task(rebuild(moved, NAME, tmp_path, 600.0))
        while not list(tmp_path.rglob("half-written")) or len(children() - before) < 2:
            await asyncio.sleep(0.05)
            assert not work.done()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancelled())
    assert children() <= before
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("wrong", r"level on plan-cpu-fp32 is not certified: samples: output 'value'"),
     ("crash", "ended with exit code -6")],
)  # fmt: skip
def test_what_cannot_be_certified_is_not_kept(
    moved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, said: str
) -> None:
    monkeypatch.setenv(COMPILER, behaviour)
    with pytest.raises(BuildFailed, match=said):
        again(moved, tmp_path)
    assert rebuilt_before(moved, NAME, tmp_path) is None
    assert not left(tmp_path)


def test_processes_that_rebuild_the_same_compile_it_once(moved: Bundle, tmp_path: Path) -> None:
    async def both() -> None:
        await asyncio.gather(*(rebuild(moved, NAME, tmp_path, 60.0) for _ in range(2)))

    asyncio.run(both())
    assert told("compiled") == 1


def test_a_bundle_that_was_changed_is_not_rebuilt(packaged: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packaged.folder, tmp_path / "copy"))
    bundle = open_bundle(folder)
    graph = folder / ENGINES / NAME / "engine.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BuildFailed, match=r"engine\.onnx is not the file that was recorded"):
        again(bundle, tmp_path)


def test_parts_are_rebuilt_with_their_whole(
    packaged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan").mkdir()
    bundle = open_bundle(add_plan(make_bundle(tmp_path, "coder", CODER), tmp_path / "plan"))
    assert bundle.parts
    monkeypatch.setenv(MACHINE, "new")
    here = again(bundle, tmp_path / "cache")
    for one in (here, *here.parts.values()):
        assert one.engine(NAME).built_on["machine"] == "new"
        assert all(f.passed for f in one.replay(one.open_engine(NAME), NAME))
