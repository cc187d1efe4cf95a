"""The contract of every recipe of the zoo: what it declares is there, and it goes the whole way."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.datasets import Dataset
from models.recipe import Training
from models.recurrence import state_names
from models.signature import Signature
from models.zoo import ZOO
from pipeline.backends import target as find_target
from pipeline.backends import trt
from pipeline.backends.trt_build import LAYERS
from pipeline.bundle import SERVICES
from pipeline.compare import worst_ratio
from pipeline.requested import other_than_requested
from pipeline.values import EXHIBITS, MODEL, Engine
from tests.conftest import Releases


@pytest.mark.parametrize("name", ZOO)
def test_a_recipe_declares_itself(name: str) -> None:
    recipe = ZOO[name]
    assert recipe.name == name
    assert re.fullmatch(r"[a-z0-9-]+", name)
    assert recipe.kind in SERVICES
    assert re.search(r"\b(19|20)\d\d\b", recipe.paper), "a paper has a year"
    assert set(recipe.data) >= {"embedded"}
    assert set(recipe.data) == set(recipe.floor) == set(recipe.training)
    assert isinstance(recipe.make_signature(), Signature)
    for data in recipe.data:
        preset = recipe.presets.get(data, {})
        assert recipe.override(preset).settings == preset, "a preset holds settings of the recipe"
        settings = recipe.all_settings(data)
        assert settings.keys() == recipe.published().keys() | Training.model_fields.keys()
        assert {name: settings[name] for name in preset} == preset


@pytest.mark.parametrize("name", ZOO)
def test_each_deviation_is_named_where_it_happens(name: str) -> None:
    """The card lists them; the file of the recipe says each on its line."""
    recipe = ZOO[name]
    assert recipe.deviations
    assert all(text.strip() and "\n" not in text for text in recipe.deviations)
    source = Path(inspect.getsourcefile(recipe.network) or "").read_text()
    assert source.count("# deviation: ") >= len(recipe.deviations)


@pytest.mark.parametrize("name", ZOO)
def test_embedded_data_is_whole_and_the_same_every_time(name: str) -> None:
    recipe = ZOO[name].on("embedded")
    dataset: Dataset = recipe.load("embedded")
    assert dataset.digest == recipe.load("embedded").digest
    assert dataset.licence
    assert dataset.source
    signature = recipe.make_signature()
    seen: set[bytes] = set()
    for split in (dataset.train, dataset.validation, dataset.test):
        for spec in signature.inputs:
            if spec.name in state_names(signature):
                continue
            array = split.inputs[spec.name]
            assert array.dtype.name == spec.dtype
            assert spec.low is None or array.min() >= spec.low
            assert spec.high is None or array.max() <= spec.high
        first = signature.inputs[0].name
        rows = {np.ascontiguousarray(row).tobytes() for row in split.inputs[first]}
        if dataset.exhaustive:
            assert len(rows) == len(split), "a row stands twice where each split has all rows"
            assert not seen or rows == seen
        else:
            assert not rows & seen, "a row stands in two splits"
        seen |= rows


@pytest.mark.parametrize("name", ZOO)
def test_dropout_and_batch_norm_are_in_the_net_when_they_are_set(name: str) -> None:
    recipe = ZOO[name]
    parts = {
        "dropout": (0.25, lambda m: isinstance(m, torch.nn.Dropout) and m.p == 0.25),
        "batchnorm": (True, lambda m: "BatchNorm" in type(m).__name__),
    }
    declared = recipe.published()
    if name not in ("perceptron", "xor"):  # the two that are too small for either
        assert "dropout" in declared
    for setting, (value, is_part) in parts.items():
        if setting in declared:
            small = recipe.on("embedded").override({setting: value})
            assert any(is_part(module) for module in small.build().modules())


@pytest.mark.parametrize("name", ZOO)
def test_the_initial_weights_follow_the_seed(name: str) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return [p.detach() for p in ZOO[name].on("embedded").build().parameters()]

    assert all(map(torch.equal, weights(1), weights(1)))
    if any(weight.any() for weight in weights(1)):  # else it starts from zeros
        assert not all(map(torch.equal, weights(1), weights(2)))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_a_recipe_is_compiled_by_tensorrt(
    name: str, precision: str, releases: Releases, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model, target = releases[name].model, find_target(f"tensorrt-{precision}")
    graph, signature = model.folder / MODEL, model.signature
    kept, lowered = {}, ()
    if precision != "fp32":
        kept = trt.sensitive(graph, signature, target)
        lowered = tuple(node for node in trt.lowered(graph, target) if node not in kept)
        assert lowered
    built = trt.build(graph, signature, target, tmp_path, keep=tuple(kept))
    assert built.report["profiles"][0] == signature.profile()
    specs = signature.inputs + signature.outputs
    declared = json.loads((tmp_path / LAYERS).read_bytes())["declared"]
    assert declared == {spec.name: spec.declared() for spec in specs}
    engine = Engine(
        folder=tmp_path, target=target.name, parent=model.digest, signature=signature, options={},
        built_on=built.built_on, files={}, kept=tuple(kept), lowered=lowered,
    )  # fmt: skip
    facts = {
        "nodes": [{**layer, "device": "cuda"} for layer in built.report["layers"]],
        "tf32": built.report["tf32"],
    }
    assert list(other_than_requested(target, engine, facts)) == []


@pytest.mark.parametrize("name", ZOO)
def test_a_recipe_goes_the_whole_way(name: str, releases: Releases) -> None:
    release = releases[name]
    assert release.certificate
    assert release.bundle.manifest.name == name
    codec = release.bundle.codec
    declared = release.job.recipe.make_codec(release.job.dataset)
    assert codec.model_copy(update={"anomaly": declared.anomaly}) == declared
    said = codec.scores or codec.sign or codec.values or codec.pixels or codec.generation
    assert said or codec.pictures or codec.actions
    assert (codec.block is not None) == (codec.pictures is not None)
    assert release.bundle.parts.keys() == release.job.recipe.parts.keys()
    metric = release.job.recipe.metric
    assert metric in release.trained.intervals or "distance" in metric  # which resampling shifts
    report = (release.bundle.folder / "report.html").read_text()
    assert ("What it writes" in report) == (codec.generation is not None)
    assert ("the class of each pixel" in report) == (codec.pixels is not None)
    for bundle in (release.bundle, *release.bundle.parts.values()):
        worst = worst_ratio(bundle.replay(bundle.open_engine()))
        assert worst is not None
        assert 0 < worst <= 1
    checks = {finding.check for finding in release.certificate.findings}
    assert ("position" in checks) == (codec.block is not None)
    assert release.certificate.drift, "a recipe has a task, and the task may drift"
    assert release.certificate.samples["drift_rows"] >= 4
    assert [edge.end for edge in release.certificate.budget]
    assert ("parts" in checks) == bool(release.bundle.parts)
    assert (release.trained.folder / EXHIBITS).is_file() or not codec.pictures
    if release.model.signature.recurrence:
        assert checks >= {"carried", "cut"}
        assert ("greedy" in checks) == (codec.generation is not None)
    corners = release.model.signature.corners()
    swept = [f.sizes for f in release.certificate.findings if f.check == "samples"]
    assert all(corner in swept for corner in corners)
