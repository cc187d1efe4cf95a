"""Facts of the GoogLeNet paper, computed from the model, and its heads that stay in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.datasets import Dataset, Split
from models.digits import digits_at
from models.googlenet import GOOGLENET, HEADS, GoogLeNet, Inception, headed_loss
from models.layers import Block, Inspection, inspect
from pipeline.export import export
from pipeline.train import train
from pipeline.values import MODEL


@pytest.fixture(scope="module")
def googlenet() -> Inspection:
    return inspect(GOOGLENET)


def block(inspection: Inspection, name: str) -> Block:
    (found,) = [block for block in inspection.blocks if block.name == name]
    return found


def test_the_inception_blocks_give_the_papers_maps(googlenet: Inspection) -> None:
    blocks = [block for block in googlenet.blocks if block.type == "Inception"]
    assert [block.output_shape[0] for block in blocks] == [
        256, 480, 512, 512, 512, 528, 832, 832, 1024,
    ]  # fmt: skip
    assert [block.output_shape[1] for block in blocks] == [28, 28, 14, 14, 14, 14, 14, 7, 7]
    assert blocks[0].output_shape == [256, 28, 28]


def test_googlenet_is_22_layers_deep() -> None:
    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(part, nn.Conv2d) for part in module.modules())

    network = GoogLeNet(width=0.1)
    blocks = [part for part in network.modules() if isinstance(part, Inception)]
    deepest = [max(convolutions(branch) for branch in block.children()) for block in blocks]
    assert len(blocks) == 9
    assert convolutions(network.stem) + sum(deepest) + 1 == 22


def test_the_bottleneck_of_inception_3a(googlenet: Inspection) -> None:
    branch = block(googlenet, "inception3a.branch5")
    assert branch.output_shape == [32, 28, 28]
    assert branch.multiplications == 28 * 28 * (16 * 192 + 32 * 5 * 5 * 16) == 12_443_648
    without = inspect(GOOGLENET.override({"bottleneck": False}))
    branch = block(without, "inception3a.branch5")
    assert branch.output_shape == [32, 28, 28]
    assert branch.multiplications == 28 * 28 * 32 * 5 * 5 * 192 == 120_422_400
    assert block(without, "inception3a").output_shape == [256, 28, 28]


def test_the_auxiliary_heads_are_counted_apart(googlenet: Inspection) -> None:
    assert googlenet.parameters == 6_998_552
    heads = sum(
        (maps + 1) * 128 + (4 * 4 * 128 + 1) * 1024 + (1024 + 1) * 1000 for maps in (512, 528)
    )
    assert googlenet.training_only_parameters == heads
    module = GOOGLENET.build()
    assert sum(p.numel() for p in module.parameters()) == googlenet.parameters + heads
    names = {part.name for part in (*googlenet.layers, *googlenet.blocks)}
    assert not any("auxiliary" in name for name in names)


def test_the_auxiliary_losses_count_three_tenths() -> None:
    torch.manual_seed(0)
    module = GOOGLENET.on("embedded").override({"width": 0.1}).build()
    image, label = torch.rand(3, 1, 48, 48), torch.tensor([1, 2, 3])
    outputs = module.train()(image=image)
    assert outputs.keys() == {"logits", "probabilities", *HEADS}
    cross_entropy = functional.cross_entropy
    expected = cross_entropy(outputs["logits"], label) + 0.3 * sum(
        cross_entropy(outputs[head], label) for head in HEADS
    )
    torch.testing.assert_close(headed_loss(outputs, {"label": label}), expected)
    headed_loss(outputs, {"label": label}).backward()
    assert all(
        p.grad is not None and p.grad.any()
        for p in module.get_submodule("network.output").parameters()
    )
    for head in HEADS:
        last = list(module.get_submodule(f"network.{head}").parameters())[-1]
        assert last.grad is not None
        assert last.grad.any()
    served = module.eval()(image=image)
    assert served.keys() == {"logits", "probabilities"}
    torch.testing.assert_close(
        headed_loss(served, {"label": label}), cross_entropy(served["logits"], label)
    )


def test_the_auxiliary_heads_are_not_in_the_exported_graph(tmp_path: Path) -> None:
    recipe = GOOGLENET.on("embedded").override(
        {"image": 32, "width": 0.1, "epochs": 1, "floor": "none", "max_batch": 4}
    )
    dataset = few(digits_at(32, 1)["embedded"](), rows=24)
    trained = train(recipe, "embedded", dataset, tmp_path)
    assert all(any(head in name for name in trained.layers) for head in HEADS)
    exported = export(recipe, dataset, trained, tmp_path)
    graph = onnx.load(exported.folder / MODEL).graph
    weights = {t.name: t.dims for t in graph.initializer if t.dims}
    assert not any("auxiliary" in name for name in weights)
    sizes = [int(torch.tensor(list(dims)).prod()) for dims in weights.values() if len(dims) > 1]
    module = recipe.build()
    served = [p for n, p in module.named_parameters() if p.ndim > 1 and "auxiliary" not in n]
    assert sorted(s for s in sizes if s > 64) == sorted(p.numel() for p in served if p.numel() > 64)


def few(dataset: Dataset, rows: int) -> Dataset:
    """The first rows of each split."""

    def cut(split: Split) -> Split:
        inputs, targets = (
            {name: array[:rows] for name, array in arrays.items()}
            for arrays in (split.inputs, split.targets)
        )
        return Split(inputs, targets)

    return replace(
        dataset,
        train=cut(dataset.train),
        validation=cut(dataset.validation),
        test=cut(dataset.test),
    )
