"""Every recipe on every GPU target: built, certified, packaged; laws of batches, threads, memory.

Not run by `make test`: on a GPU machine, `python -m pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.zoo import ZOO
from pipeline.backends import TARGETS, Session, backend
from pipeline.bundle import open_bundle
from pipeline.cases import HELD_OUT, read_cases
from pipeline.compare import derive_limits, replay
from pipeline.machine import driver
from pipeline.optimize import optimize
from pipeline.package import package
from pipeline.values import Engine, Refusal
from pipeline.verify import verify
from tests.conftest import Release, Releases

GPU_TARGETS = [name for name, one in TARGETS.items() if one.device == "cuda"]
FP32_TARGETS = [name for name in GPU_TARGETS if TARGETS[name].precision == "fp32"]
CALLS = 50
THREADS = 4
# A closed engine gives back what it held; the driver keeps pages of this size for the process.
ROOM = 32 << 20


@pytest.fixture(params=GPU_TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """The name of a GPU target that this machine lacks nothing for."""
    one = TARGETS[request.param]
    if lacks := backend(one).missing(one):
        pytest.skip(f"{one.name} cannot run here: {lacks[0]}")
    return one.name


def build(release: Release, target: str, folder: Path) -> Engine:
    """The engine, unless the target is refused, which fp32 never is."""
    made = optimize(release.model, target, folder)
    if isinstance(made, Refusal):
        assert target not in FP32_TARGETS
        pytest.skip(made.why)
    return made


def opened(engine: Engine) -> Session:
    tools = backend(TARGETS[engine.target])
    return tools.open(engine.folder, engine.files, engine.options)


@pytest.mark.parametrize("name", ZOO)
def test_a_recipe_is_certified_and_packaged(
    name: str, target: str, releases: Releases, tmp_path: Path
) -> None:
    """The certificate holds the batch laws, the drift of the task, and what ran where, in what."""
    release = releases[name]
    engine = build(release, target, _new(tmp_path / "engine"))
    certificate = verify(engine, release.model, _new(tmp_path / "certificate"))
    drifted = [failure for failure in certificate.failures if failure.startswith("drift: ")]
    if target not in FP32_TARGETS and drifted and drifted == [*certificate.failures]:
        # Of what was trained for an epoch or two, many answers are as good as tied.
        pytest.skip(f"not certified, as it may be in lower precision: {drifted[0]}")
    assert certificate, certificate.failures[:5]
    facts, wanted = certificate.effective, TARGETS[target]
    assert facts["tf32"] is (wanted.precision == "tf32")
    assert all(node["device"] == "cuda" or node.get("shape") for node in facts["nodes"])
    if wanted.precision not in ("fp32", "tf32"):
        assert any(wanted.precision in node["precision"] for node in facts["nodes"])
    assert {"gpu", "compute_capability"} <= engine.built_on.keys()
    bundle = package(
        release.job.recipe, release.trained, release.model, [(engine, certificate)],
        _new(tmp_path / "bundle"),
    )  # fmt: skip
    session = open_bundle(bundle.folder).open_engine(target)
    limits = _limits(release, target)
    assert all(finding.passed for finding in replay(session.run, bundle.cases(), limits))


def test_rows_answer_alone_as_in_company(target: str, lenet5: Release, tmp_path: Path) -> None:
    run = opened(build(lenet5, target, _new(tmp_path / "engine"))).run
    limits = _limits(lenet5, target)
    cases = [case for case in read_cases(lenet5.model.folder) if case.origin == HELD_OUT]
    case = max(cases, key=lambda one: one.sizes.get("batch", 1))
    whole = run(case.inputs)
    rows = len(next(iter(case.inputs.values())))
    for row in range(rows):
        alone = run({name: array[row : row + 1] for name, array in case.inputs.items()})
        for name, limit in limits.items():
            worst = np.abs(alone[name] - whole[name][row : row + 1]).max()
            assert worst <= limit.limit * limit.scale, (name, row)


def test_threads_do_not_disturb_one_another(target: str, lenet5: Release, tmp_path: Path) -> None:
    run = opened(build(lenet5, target, _new(tmp_path / "engine"))).run
    limits = _limits(lenet5, target)
    cases = [case for case in read_cases(lenet5.model.folder) if case.origin == HELD_OUT]
    orders = [cases[turn:] + cases[:turn] for turn in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for findings in pool.map(lambda some: replay(run, some, limits), orders):
            assert findings
            assert all(finding.passed for finding in findings)


def test_a_closed_engine_gives_its_memory_back(
    target: str, lenet5: Release, tmp_path: Path
) -> None:
    engine = build(lenet5, target, _new(tmp_path / "engine"))
    cases = [case for case in read_cases(lenet5.model.folder) if case.origin == HELD_OUT]

    def free() -> Iterator[int]:
        for _ in range(4):
            session = opened(engine)
            for _ in range(CALLS):
                for case in cases:
                    session.run(case.inputs)
            del session
            left = driver().gpus[0].free
            if left is None:
                pytest.skip("nothing tells the free memory of the GPU: pip install nvidia-ml-py")
            yield left

    _, first, *others = free()  # the very first call makes the context, which stays
    assert all(left >= first - ROOM for left in others)


def _limits(release: Release, target: str) -> dict:
    one, model = TARGETS[target], release.model
    floors = model.floors.get(one.rounding, {})
    return derive_limits(read_cases(model.folder), one.precision, floors)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
