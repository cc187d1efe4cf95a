"""Parts: each an engine of its own, certified by itself and together, and of one bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.codec import Codec
from models.errors import BundleError, CertificateFailed, MissingFile, TamperedFile
from models.signature import Signature
from pipeline.artifacts import canonical_json, digest_files
from pipeline.bundle import MANIFEST, open_bundle
from pipeline.carrying import Run
from pipeline.cases import HELD_OUT
from pipeline.invariance import composition, invariances
from pipeline.package import package
from pipeline.parts import check, new_part, part
from pipeline.samples import HELD_OUT_ROWS
from pipeline.train import train
from pipeline.values import CODEC, HISTORY, PARTS, Certificate, Engine
from pipeline.verify import verify
from tests.conftest import Release, make_release
from tests.pipeline.coded import CODED, SIZE
from tests.pipeline.test_bundle import reseal

REFERENCE = "tests.pipeline.coded:CODED"


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(REFERENCE, tmp_path_factory.mktemp("coded"))


def test_each_part_is_a_graph_with_cases_an_engine_and_a_certificate(coded: Release) -> None:
    for name in ("decoder", "encoder"):
        model, engine = part(coded.model, name), part(coded.engine, name)
        certificate = part(coded.certificate, name)
        assert engine.parent == model.digest
        assert model.parent == coded.trained.digest
        assert certificate
        assert certificate.subject == engine.files
        assert certificate.label == f"ort-cpu-fp32, {name}"
        assert {f.check for f in certificate.findings} >= {"samples", "position", "twice"}
    assert [spec.name for spec in part(coded.model, "decoder").signature.inputs] == ["latent"]
    assert "parts" in {f.check for f in coded.certificate.findings}


def test_a_parts_samples_are_what_the_part_before_it_answers(coded: Release) -> None:
    encoder, decoder = (coded.bundle.parts[name] for name in ("encoder", "decoder"))
    given = np.concatenate([c.inputs["latent"] for c in decoder.cases() if c.origin == HELD_OUT])
    said = np.concatenate([c.eager["latent"] for c in encoder.cases() if c.origin == HELD_OUT])
    # The corners of both graphs are alike, so that the same rows stand in the same order.
    np.testing.assert_allclose(given, said, rtol=1e-4, atol=1e-5)


def test_parts_open_from_the_bundle_and_together_are_the_whole(coded: Release) -> None:
    bundle = open_bundle(coded.bundle.folder)
    assert list(bundle.parts) == ["decoder", "encoder"]
    image = np.random.default_rng(0).random((5, 1, SIZE, SIZE), np.float32)
    code = bundle.parts["encoder"].open_engine().run({"image": image})
    drawn = bundle.parts["decoder"].open_engine().run(code)
    whole = bundle.open_engine().run({"image": image})
    np.testing.assert_allclose(drawn["reconstruction"], whole["reconstruction"], atol=1e-6)
    for name, one in bundle.parts.items():
        assert one.manifest.name == f"coded.{name}"
        assert one.codec == Codec(noise=("latent",), block=8)
        assert one.replay(one.open_engine())
    assert bundle.parts["decoder"].manifest.signature.output("reconstruction").shape[1:] == (
        1, SIZE, SIZE,
    )  # fmt: skip


def test_a_bundle_unpacks_into_what_was_packaged(coded: Release, tmp_path: Path) -> None:
    model, engine = coded.bundle.unpack("ort-cpu-fp32", tmp_path / "whole")
    assert (model.digest, engine.digest) == (coded.model.digest, coded.engine.digest)
    check(model, apart=False)
    check(engine)
    assert verify(engine, model, new_part(tmp_path, "certificate"))
    # Of what is kept apart, one file that is missing is missed where the others are.
    shutil.copy2(coded.model.folder / HELD_OUT_ROWS, model.folder)
    with pytest.raises(MissingFile):
        check(model, apart=False)


def test_a_part_without_its_own_certificate_spoils_the_whole(
    coded: Release, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(coded.bundle.folder, tmp_path / "bundle"))
    path = folder / PARTS / "decoder" / "engines" / "ort-cpu-fp32" / "certificate.json"
    value = json.loads(path.read_text())
    path.write_bytes(canonical_json(value | {"not_run": ["nothing at all"]}))
    reseal(folder)
    with pytest.raises(CertificateFailed, match="'ort-cpu-fp32' of bundle 'coded' has no passed"):
        open_bundle(folder).open_engine()


def test_every_file_of_a_part_is_guarded(coded: Release, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(coded.bundle.folder, tmp_path / "bundle"))
    files = [name for name in coded.bundle.manifest.files if name.startswith(PARTS)]
    assert len(files) == 2 * 6
    for name in files:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(TamperedFile):
            open_bundle(folder)
        (folder / name).write_bytes(whole)
    # A file that the manifest does not vouch for.
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][f"{PARTS}/decoder/engines/ort-cpu-fp32/engine.onnx"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"engine\.onnx"):
        open_bundle(folder)


def test_a_changed_part_is_not_the_recorded_one(coded: Release, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(coded.engine.folder, tmp_path / "engine"))
    engine = coded.engine.model_copy(update={"folder": folder})
    check(engine)
    encoder = folder / PARTS / "encoder"
    shutil.rmtree(encoder)
    shutil.copytree(folder / PARTS / "decoder", encoder)
    with pytest.raises(TamperedFile, match="encoder"):
        check(engine)


def other(coded: Release, tmp_path: Path) -> Certificate:
    """The certificate of an engine whose decoder is another net's, which is sound by itself."""
    stranger = make_release(REFERENCE, tmp_path / "stranger", seed=1)
    folder = Path(shutil.copytree(coded.engine.folder, tmp_path / "engine"))
    own, strange = folder / PARTS / "decoder", stranger.engine.folder / PARTS / "decoder"
    shutil.copy(strange / "engine.onnx", own / "engine.onnx")
    value = part(coded.engine, "decoder").model_copy(update={"folder": own})
    value = value.model_copy(update={"files": digest_files(own, list(value.files))})
    (own / "engine.json").write_text(value.model_dump_json())
    parts = coded.engine.parts | {"decoder": value.digest}
    engine = coded.engine.model_copy(update={"folder": folder, "parts": parts})
    (tmp_path / "certificate").mkdir()
    return verify(engine, coded.model, tmp_path / "certificate")


def test_a_strange_part_fails_by_itself_and_beside_the_whole(
    coded: Release, tmp_path: Path
) -> None:
    certificate = other(coded, tmp_path)
    assert not certificate
    assert any(failure.startswith("part 'decoder': samples") for failure in certificate.failures)
    assert any(f.check == "parts" and not f.passed for f in certificate.findings)
    with pytest.raises(CertificateFailed):
        package(
            coded.job.recipe, coded.trained, coded.model, [(coded.engine, certificate)],
            tmp_path / "bundle",
        )  # fmt: skip


def test_an_engine_without_its_parts_is_not_certified(coded: Release, tmp_path: Path) -> None:
    engine: Engine = coded.engine.model_copy(update={"parts": {}})
    certificate = verify(engine, coded.model, tmp_path)
    assert "lineage: the engine has other parts than its graph" in certificate.failures


def test_parts_that_do_not_join_are_a_finding(coded: Release) -> None:
    cases, limits = coded.bundle.cases(), coded.certificate.limits
    run = coded.bundle.open_engine().run
    opened: dict[str, tuple[Run, Signature]] = {
        name: (one.open_engine().run, one.manifest.signature)
        for name, one in coded.bundle.parts.items()
    }
    assert all(f.passed for f in composition(run, opened, cases, limits))
    unjoined = {"decoder": opened["decoder"]}
    findings = composition(run, unjoined, cases, limits)
    assert findings
    assert not any(f.passed for f in findings)


def test_a_row_that_depends_on_its_place_in_a_block_is_found(coded: Release) -> None:
    cases, limits = coded.bundle.cases(), coded.certificate.limits
    session = coded.bundle.open_engine()

    def placed(inputs: object) -> dict[str, np.ndarray]:
        answers = session.run(inputs)  # pyright: ignore[reportArgumentType]
        last = answers["reconstruction"]
        last[-1] = np.nextafter(last[-1], np.float32(2))  # by the smallest amount there is
        return answers

    def positions(run: Run) -> list[bool]:
        found = invariances(run, lambda: run, coded.model.signature, cases, limits, 8)
        return [f.passed for f in found if f.check == "position" and f.output == "reconstruction"]

    assert positions(session.run) == [True]
    assert positions(placed) == [False]


def test_what_a_recipe_calibrates_is_in_the_bundle(coded: Release) -> None:
    anomaly = coded.bundle.codec.anomaly
    assert anomaly is not None
    assert 0 < anomaly.threshold < 1
    recorded = (coded.model.folder / CODEC).read_bytes()
    assert (coded.bundle.folder / CODEC).read_bytes() == recorded


def test_the_report_has_parts_and_exhibits(coded: Release) -> None:
    page = (coded.bundle.folder / "report.html").read_text()
    for text in ("ort-cpu-fp32, decoder", "Reconstructions", "The first row of reconstructions"):
        assert text in page
    assert "ort-cpu-fp32, encoder: passed" in (coded.bundle.folder / "card.md").read_text()


def test_gathered_rows_are_what_is_trained_on_and_survive_a_kill(
    coded: Release, tmp_path: Path
) -> None:
    recipe = CODED.override({"epochs": 4})
    dataset = recipe.load("embedded")
    folders = [tmp_path / name for name in ("whole", "killed", "again")]
    for folder in folders:
        folder.mkdir()
    whole = train(recipe, "embedded", dataset, folders[0])

    def stop(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "embedded", dataset, folders[1], checkpoint=checkpoint, progress=stop)
    again = train(recipe, "embedded", dataset, folders[2], checkpoint=checkpoint)
    assert again.digest == whole.digest
    more = train(recipe.override({"gathered": 128}), "embedded", dataset, folders[1])
    assert more.files[HISTORY] != whole.files[HISTORY]
