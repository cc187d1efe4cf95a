"""Engines that TensorRT really compiled, from `optimize` to a bundle, on a machine of doubles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import CertificateFailed
from pipeline import rebuild
from pipeline.artifacts import digest_files
from pipeline.backends import TARGETS, facts_of, trt
from pipeline.bundle import open_bundle
from pipeline.compare import worst_ratio
from pipeline.fitting import misfit
from pipeline.optimize import optimize
from pipeline.package import package
from pipeline.parts import save_value
from pipeline.values import CANDIDATES, MODEL, Engine
from pipeline.verify import require, verify
from tests.conftest import Release, Releases
from tests.pipeline.gpu_double import GPU, Machine, gpu_machine

pytest.importorskip("tensorrt_rtx")

WANTED = [name for name, one in TARGETS.items() if one.library == "tensorrt"]
HALF = ["tensorrt-fp16", "tensorrt-bf16"]


@pytest.fixture(autouse=True)
def machine() -> Iterator[Machine]:
    with gpu_machine() as here:
        yield here


def build(release: Release, target: str, out: Path) -> Engine:
    engine = optimize(release.model, target, new_folder(out))
    assert isinstance(engine, Engine), engine
    return engine


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def keep_more(engine: Engine, release: Release, extra: str) -> Engine:
    """The engine compiled again with one more node in fp32, of which it does not say so."""
    wanted, model = TARGETS[engine.target], release.model
    built = trt.build(
        model.folder / MODEL, model.signature, wanted, engine.folder, keep=[*engine.kept, extra]
    )
    changed = engine.model_copy(update={"files": digest_files(engine.folder, list(built.files))})
    save_value(changed)
    return changed


@pytest.mark.parametrize("target", WANTED)
def test_an_engine_is_certified_packaged_and_answers_from_its_bundle(
    target: str, lenet5: Release, tmp_path: Path
) -> None:
    engine = build(lenet5, target, tmp_path / "engine")
    assert engine.built_on.items() >= GPU.items()
    said = json.loads((engine.folder / CANDIDATES).read_bytes())
    precision = TARGETS[target].precision
    ways = [one["name"] for one in said if one["precision"] == precision]
    assert ways == [f"{precision}, graphs where they pay", f"{precision}, launches"]
    assert engine.options["cuda_graphs"]
    opened = said[0]["opened"]
    assert opened["device_bytes"] >= opened["buffer_bytes"] > 0
    assert opened["warm_up_seconds"] > 0
    assert opened["graphs"]["used"] == [0]
    certificate = verify(engine, lenet5.model, new_folder(tmp_path / "certificate"))
    assert certificate, certificate.failures
    assert certificate.effective["tf32"] == (precision == "tf32")
    assert certificate.effective["devices"].keys() == {"cuda"}
    bundle = package(
        lenet5.job.recipe, lenet5.trained, lenet5.model, [(engine, certificate)],
        new_folder(tmp_path / "bundle"),
    )  # fmt: skip
    session = open_bundle(bundle.folder).open_engine(target)
    worst = worst_ratio(bundle.replay(session, target))
    assert worst is not None
    assert worst <= 1
    assert facts_of(session)["graphs"]["used"] == [0]


@pytest.mark.parametrize("name", ["lstm", "transformer", "unet", "vae"])
@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16"])
def test_engines_of_every_shape_are_certified(
    name: str, target: str, releases: Releases, tmp_path: Path
) -> None:
    """State that is carried, several inputs, sizes of pictures, parts."""
    engine = build(releases[name], target, tmp_path / "engine")
    certificate = verify(engine, releases[name].model, new_folder(tmp_path / "certificate"))
    assert certificate, certificate.failures
    assert certificate.parts.keys() == releases[name].model.parts.keys()


@pytest.mark.parametrize("target", HALF)
def test_an_fp32_layer_that_is_not_named_fails_the_certificate(
    target: str, lenet5: Release, tmp_path: Path
) -> None:
    engine = build(lenet5, target, tmp_path / "engine")
    extra = next(name for name in engine.lowered if "conv" in name.lower())
    mixed = keep_more(engine, lenet5, extra)
    certificate = verify(mixed, lenet5.model, new_folder(tmp_path / "certificate"))
    assert not certificate
    precision = TARGETS[target].precision
    assert certificate.failures == (
        f"effective: node {extra!r} (convolution) ran in fp32, requested {precision}",
    )
    with pytest.raises(CertificateFailed, match="ran in fp32, requested"):
        require(certificate)
    named = mixed.model_copy(update={"kept": (*mixed.kept, extra)})
    save_value(named)
    assert verify(named, lenet5.model, new_folder(tmp_path / "named"))


def test_a_layer_that_ran_otherwise_than_it_was_typed_fails_the_certificate(
    lenet5: Release, tmp_path: Path, machine: Machine
) -> None:
    """What the open engine tells of its layers counts, whatever the graph says."""
    machine.typed_as_fp32 = True
    engine = build(lenet5, "tensorrt-fp16", tmp_path / "engine")
    certificate = verify(engine, lenet5.model, new_folder(tmp_path / "certificate"))
    assert any("(convolution) ran in fp32" in said for said in certificate.failures)


def test_an_engine_of_another_gpu_is_compiled_and_certified_again(
    lenet5: Release, tmp_path: Path
) -> None:
    target = "tensorrt-fp16"
    engine = build(lenet5, target, tmp_path / "engine")
    certificate = verify(engine, lenet5.model, new_folder(tmp_path / "certificate"))
    bundle = package(
        lenet5.job.recipe, lenet5.trained, lenet5.model, [(engine, certificate)],
        new_folder(tmp_path / "bundle"),
    )  # fmt: skip
    assert misfit(bundle.engine(target)) is None
    with gpu_machine(gpu="another"):
        wrong = misfit(bundle.engine(target))
        assert wrong is not None
        assert wrong.curable
        assert "built for gpu 'NVIDIA Double', here is 'another'" in wrong.why
        place = tmp_path / "cache" / "engine"
        place.parent.mkdir()
        rebuild._make(bundle, target, place)
        here = rebuild._adopt(bundle, target, place)
        assert misfit(here.engine(target)) is None
        findings = here.replay(here.open_engine(target), target)
        assert findings
        assert all(finding.passed for finding in findings)
