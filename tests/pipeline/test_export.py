"""Export: the graph is what the signature promises at every shape, or there is no graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.codec import Codec
from models.datasets import Dataset, Split
from models.errors import ExportFailed
from models.mlp import MLP_784_512_10
from models.recipe import Recipe
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.artifacts import write_json
from pipeline.cases import EDGE, HELD_OUT, read_cases
from pipeline.export import export
from pipeline.train import load_module
from pipeline.values import CODEC, MODEL, WEIGHTS, OnnxModel, TrainedModel
from tests.conftest import Release

WIDTH = 6


def signature() -> Signature:
    batch, time = Axis(BATCH, 1, 4, 16), Axis("time", 2, 7, 12)
    return Signature(
        (TensorSpec("x", "float32", (batch, time, WIDTH)),),
        (TensorSpec("y", "float32", (batch, WIDTH)),),
    )


def attempt(
    module: Callable[[], nn.Module], out: Path, signature: Callable[[], Signature] = signature
) -> OnnxModel:
    """Export a module with its initial weights."""
    recipe: Recipe = replace(
        MLP_784_512_10, name="probe", network=module, served=lambda network: network,
        signature=signature,
    )  # fmt: skip
    folder = out / "trained"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(recipe.build().state_dict(), folder / WEIGHTS)
    write_json(folder / CODEC, Codec().model_dump(mode="json"))
    trained = TrainedModel(
        folder=folder, recipe="probe", settings={}, data={}, parameters=0, layers=(), metrics={},
        floor=0, best_epoch=1, first_layer=None, libraries={}, files={},
    )  # fmt: skip
    random = np.random.default_rng(0)
    rows = Split({"x": random.normal(size=(20, 12, WIDTH)).astype(np.float32)}, {})
    dataset = Dataset("probe", "", "", rows, rows, rows)
    (out / "onnx").mkdir()
    return export(recipe, dataset, trained, out / "onnx")


class Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.tanh(self.dense(x)).mean(dim=1)}


class BranchesOnSize(Sound):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.tanh(self.dense(x))
        return {"y": y.mean(dim=1) if x.shape[1] > 5 else y.sum(dim=1)}


class FreezesTime(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.rnn(x)[0][:, -1]}


class WrongName(Sound):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"z": self.dense(x).mean(dim=1)}


class WrongShape(Sound):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.dense(x)[:, 0, :2]}


def test_a_sound_module_is_exported_at_every_corner(tmp_path: Path) -> None:
    model = attempt(Sound, tmp_path)
    graph = onnx.load_model(model.folder / MODEL)
    declared = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    ]
    assert declared == [["batch", "time", WIDTH], ["batch", WIDTH]]
    assert 17 <= model.opset <= 20
    cases = read_cases(model.folder)
    assert [c.sizes for c in cases if c.origin == HELD_OUT] == signature().corners()
    assert {c.name for c in cases if c.origin == EDGE} >= {"zeros", "low", "high", "denormal"}
    assert all(c.reference["y"].dtype == np.float64 for c in cases)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (BranchesOnSize, "range constraints|cannot export|does not answer"),
        (FreezesTime, "range constraints|other tensors than its signature|cannot export"),
        (WrongName, "cannot export|outputs are not the signature's"),
        (WrongShape, "other tensors than its signature"),
    ],
)
def test_what_tracing_freezes_is_refused(
    module: type[nn.Module], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportFailed, match=words):
        attempt(module, tmp_path)


def test_the_reference_is_the_module_in_fp64(lenet5: Release) -> None:
    module = load_module(lenet5.job.recipe, lenet5.trained)
    case = read_cases(lenet5.model.folder)[2]
    image = torch.from_numpy(case.inputs["image"])
    with torch.inference_mode():
        eager = module(image=image)["logits"].numpy()
        exact = module.double()(image=image.double())["logits"].numpy()
    np.testing.assert_array_equal(case.eager["logits"], eager)
    np.testing.assert_array_equal(case.reference["logits"], exact)


def test_cases_hold_rows_of_the_test_split(lenet5: Release) -> None:
    test = lenet5.job.dataset.test.inputs["image"]
    rows = {row.tobytes() for row in test}
    for case in read_cases(lenet5.model.folder):
        if case.origin == HELD_OUT:
            assert {row.tobytes() for row in case.inputs["image"]} <= rows


def test_the_graph_says_nothing_of_the_machine_that_wrote_it(lenet5: Release) -> None:
    written = (lenet5.model.folder / MODEL).read_bytes()
    for word in (b"site-packages", b".py", b"/models/", str(Path.home()).encode()):
        assert word not in written


def test_export_is_reproducible_and_in_one_file(lenet5: Release, tmp_path: Path) -> None:
    again = export(lenet5.job.recipe, lenet5.job.dataset, lenet5.trained, tmp_path)
    assert again.digest == lenet5.model.digest
    assert not list(tmp_path.glob("*.data"))
