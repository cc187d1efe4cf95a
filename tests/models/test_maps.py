"""Segmentation as it is served: any size, mirrored outside, tiles that make the whole."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cells import cells
from models.codec import Codec
from models.datasets import Dataset
from models.fcn import FCN8S
from models.recipe import Recipe
from models.segmentation_losses import SegmentationLoss, segmentation_loss
from models.segmented import Segmenter
from models.unet import UNET
from pipeline.export import _check_declared, _trace
from serving.tiles import tileable

VALID = UNET.override({"width": 2, "depth": 2, "classes": 3, "largest": 128})
PADDED = VALID.override({"padded": True})
SKIPS = FCN8S.override(
    {
        "channels": 1, "classes": 3, "width": 2, "stages": 3, "dense": 4, "kernel": 3,
        "largest": 128,
    }
)  # fmt: skip
RECIPES = {"valid": VALID, "padded": PADDED, "fcn": SKIPS}
each = pytest.mark.parametrize("name", RECIPES)


def build(recipe: Recipe) -> nn.Module:
    """The served module with weights drawn by chance, zeros among the initial ones too."""
    torch.manual_seed(0)
    module = recipe.build().eval()
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return module


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def reach(recipe: Recipe, cell: int) -> int:
    """How far away a pixel may lie that an answer's gradient comes from, over a cell's pixels.

    ReLUs are made to let everything through and poolings to mean, so that no path is missed.
    """
    module = recipe.build().eval().double()
    assert isinstance(module, Segmenter)
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(2))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.1)
    if isinstance(last := getattr(module.network, "enlarge_last", None), nn.ConvTranspose2d):
        nn.init.constant_(last.weight, 0.1)
    side = 24 * cell
    channels = recipe.make_signature().input("image").shape[1]
    assert isinstance(channels, int)
    image = torch.ones(1, channels, 1, side, dtype=torch.float64, requires_grad=True)
    tall = image.expand(1, channels, 2 * cell, side)
    logits = module(image=tall)["logits"]
    farthest = 0
    for place in range(12 * cell, 13 * cell):
        (gradient,) = torch.autograd.grad(logits[..., place].sum(), image, retain_graph=True)
        seen = gradient.sum((0, 1, 2)).nonzero()
        farthest = max(farthest, place - int(seen.min()), int(seen.max()) - place)
    return farthest


@each
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 64), (33, 47), (96, 101)])
def test_an_answer_is_as_large_as_its_picture(name: str, size: tuple[int, int]) -> None:
    module = build(RECIPES[name])
    with torch.no_grad():
        answer = module(image=picture(2, 1, *size))
    assert answer["logits"].shape == (2, 3, *size)
    torch.testing.assert_close(answer["probabilities"], answer["logits"].softmax(1))


@each
@pytest.mark.parametrize("size", [(5, 9), (16, 16), (33, 47)])
def test_what_lies_outside_is_the_mirror(name: str, size: tuple[int, int]) -> None:
    """As numpy pads, however often the mirror has to turn."""
    module = build(RECIPES[name])
    assert isinstance(module, Segmenter)
    seen: list[Tensor] = []
    module.network.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    image = picture(1, 1, *size)
    with torch.no_grad():
        module(image=image)
    pads = [
        (module.border, large - small - module.border)
        for large, small in zip(seen[0].shape[2:], size, strict=True)
    ]
    assert all(0 <= after - module.border < module.multiple for _, after in pads)
    expected = np.pad(image[0, 0].numpy(), pads, mode="symmetric")
    np.testing.assert_array_equal(seen[0][0, 0].numpy(), expected)


@each
@pytest.mark.parametrize("size", [(90, 90), (131, 97), (96, 150)])
def test_tiles_make_the_whole(name: str, size: tuple[int, int]) -> None:
    """Tiles from multiples on, without their margins at inner edges, are the whole answer."""
    assert stitching_error(name, size, 1.0) < 1e-5


@each
def test_without_margins_seams_show(name: str) -> None:
    assert stitching_error(name, (131, 97), 0.0) > 1e-3


def stitching_error(name: str, size: tuple[int, int], share: float) -> float:
    """The largest difference of probabilities, with that share of the margin that is said."""
    tiled = codec(RECIPES[name]).tiled
    assert tiled is not None
    margin, side = int(share * tiled.margin), 2 * tiled.margin + 3 * tiled.multiple
    module, image = build(RECIPES[name]), picture(1, 1, *size)

    def spans(length: int) -> list[tuple[int, int]]:
        """Where tiles begin and end along an axis, until one reaches the end."""
        found = [(0, min(side, length))]
        while found[-1][1] < length:
            begin = found[-1][0] + (side - 2 * margin) // tiled.multiple * tiled.multiple
            found.append((begin, min(begin + side, length)))
        return found

    with torch.no_grad():
        whole = module(image=image)["probabilities"]
        stitched = torch.full_like(whole, torch.nan)
        for top, bottom in spans(size[0]):
            for left, right in spans(size[1]):
                tile = module(image=image[:, :, top:bottom, left:right])["probabilities"]
                first = [margin if begin else 0 for begin in (top, left)]
                last = [
                    end - begin - (margin if end < length else 0)
                    for begin, end, length in zip((top, left), (bottom, right), size, strict=True)
                ]
                stitched[:, :, top + first[0] : top + last[0], left + first[1] : left + last[1]] = (
                    tile[:, :, first[0] : last[0], first[1] : last[1]]
                )
    error = (stitched - whole).abs().max()
    assert bool(error >= 0), "a pixel that no tile covers"
    return float(error)


@cache
def dataset() -> Dataset:
    return cells()


def codec(recipe: Recipe) -> Codec:
    return recipe.make_codec(dataset())


def test_the_graph_of_valid_convolutions_answers_every_size() -> None:
    """Traced at one size, right at others: odd, smallest, largest, of one row and of four."""
    recipe = VALID
    module, signature = build(recipe), recipe.make_signature()
    graph, _ = _trace(recipe, module, signature)
    _check_declared(graph, signature, recipe.name)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in [(1, 32, 32), (2, 33, 47), (3, 97, 64), (4, 127, 128), (1, 128, 35)]:
        image = picture(shape[0], 1, *shape[1:])
        with torch.no_grad():
            expected = module(image=image)
        found = session.run(["logits", "probabilities"], {"image": image.numpy()})
        for array, tensor in zip(found, expected.values(), strict=True):
            error = np.abs(np.asarray(array) - tensor.numpy()).max()
            assert error < 2e-6 * float(tensor.abs().max())


both = pytest.mark.parametrize("recipe", [UNET, FCN8S], ids=lambda recipe: recipe.name)


@both
def test_a_codec_says_what_the_data_has(recipe: Recipe) -> None:
    recipe = recipe.on("embedded")
    found, signature = codec(recipe), recipe.make_signature()
    assert found.tiled is not None
    assert found.pixels is not None
    assert found.classes == ("background", "cytoplasm", "nucleus")
    assert len(set(found.colours)) == 3
    assert signature.output(found.pixels).shape[1] == 3
    assert signature.input(found.tiled.name).shape[1] == found.tiled.channels


@both
def test_the_largest_tile_keeps_something(recipe: Recipe) -> None:
    for size in (recipe, recipe.on("embedded"), recipe.on("full")):
        tiled = codec(size).tiled
        assert tiled is not None
        assert all(tileable(axis, tiled) for axis in size.make_signature().input("image").axes[1:])


def outputs(classes: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    logits = 3 * picture(2, classes, 6, 7)
    mask = logits.argmax(1).flip(1)
    return {"logits": logits}, {"mask": mask}


def test_losses_are_their_formulas() -> None:
    said, there = outputs()
    logits, mask = said["logits"].double(), there["mask"]
    cross_entropy = functional.cross_entropy(logits, mask)
    scores = []
    for number in range(3):
        p, y = logits.softmax(1)[:, number], (mask == number).double()
        scores.append((2 * (p * y).sum() + 1) / ((p + y).sum() + 1))
    dice = 1 - torch.stack(scores).mean()
    wanted: dict[SegmentationLoss, Tensor] = {
        "cross-entropy": cross_entropy,
        "dice": dice,
        "both": cross_entropy + dice,
    }
    for loss, expected in wanted.items():
        found = segmentation_loss({"logits": logits}, there, loss)
        torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("loss", ["cross-entropy", "dice", "both"])
def test_a_loss_falls_to_nothing_as_the_answer_gets_right(loss: SegmentationLoss) -> None:
    _, there = outputs()
    right = functional.one_hot(there["mask"], 3).movedim(3, 1).float()
    losses = [float(segmentation_loss({"logits": s * right}, there, loss)) for s in (-9, 0, 3, 99)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)
