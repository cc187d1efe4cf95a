"""What hand-made 3x3 kernels do to a photograph, and what a trained first layer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flows.experiments import Experiment, Figure, Outcome, Setup, trained
from models.cnn import CNN_32_64_1024
from models.lenet5 import LENET5
from models.recipe import Recipe
from pipeline.pictures import Tile, grid, signed
from pipeline.plots import picture
from pipeline.train import load_module

Kernel = list[list[float]]

KERNELS: dict[str, Kernel] = {
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "edge": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    "emboss": [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
    "mean blur": [[1 / 9] * 3] * 3,
}
LAPLACIAN: Kernel = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]

# A filter is an oriented edge detector when a ramp in one direction is this share of it or more.
ORIENTED = 0.5

_DETAIL = slice(150, 278), slice(60, 252)  # rows and columns of the photograph that are shown
_ROWS, _COLUMNS = 2, 8  # of learned filters, each over its feature map


@dataclass(frozen=True)
class Effect:
    """What one kernel makes of a photograph with pixels in 0..1.

    `sharpness` is the variance of the Laplacian of the answer, `flat` the largest absolute answer
    where every pixel is 0.5.
    """

    kernel: str
    weight_sum: float
    mean: float
    sharpness: float
    flat: float


@dataclass(frozen=True)
class Learned:
    """Filters of a first layer before and after training: how many are oriented edge detectors.

    `share_*` is the mean share of a filter that is a ramp; `share_by_chance` is its expectation
    when every direction of a filter is as likely as any other.
    """

    recipe: str
    filters: int
    oriented_before: int
    oriented_after: int
    share_before: float
    share_after: float
    share_by_chance: float


def correlate(image: Tensor, kernel: Kernel) -> Tensor:
    """A convolution as layers compute it, stride 1, no padding: [h, w] to [h - k + 1, w - k + 1].

    The kernel is not turned round, so this is the cross-correlation.
    """
    weight = torch.tensor(kernel, dtype=image.dtype)
    return functional.conv2d(image[None, None], weight[None, None])[0, 0]


def photograph() -> Tensor:
    """scikit-learn's china.jpg (danielbuechele, CC BY 2.0) in grey, [427, 640] in 0..1."""
    from sklearn.datasets import load_sample_image

    colours = torch.from_numpy(np.array(load_sample_image("china.jpg"))).double() / 255
    return colours @ torch.tensor([0.299, 0.587, 0.114], dtype=colours.dtype)  # ITU-R BT.601


def sharpness(image: Tensor) -> float:
    """The variance of the Laplacian of an image [h, w] (Pech-Pacheco and others 2000)."""
    return float(correlate(image, LAPLACIAN).var())


def measure(name: str, image: Tensor) -> Effect:
    """What the kernel of that name makes of an image [h, w]."""
    kernel = KERNELS[name]
    answer = correlate(image, kernel)
    return Effect(
        kernel=name,
        weight_sum=float(np.sum(kernel)),
        mean=float(answer.mean()),
        sharpness=sharpness(answer),
        flat=float(correlate(torch.full_like(image, 0.5), kernel).abs().max()),
    )


def ramp_shares(filters: Tensor) -> Tensor:
    """The share of each filter [n, k, k], by energy, that is a ramp in its best direction: [n].

    A ramp grows evenly from one side to the other: it answers to an edge across it, and not to a
    flat area. The best direction is a mix of the horizontal and the vertical ramp, which are
    orthogonal, so its share is theirs together. 0 for a filter of zeros.
    """
    side = filters.shape[-1]
    along = torch.arange(side, dtype=filters.dtype) - (side - 1) / 2
    ramps = torch.stack([along.expand(side, side), along[:, None].expand(side, side)])
    ramps = ramps / ramps.flatten(1).norm(dim=1)[:, None, None]
    parts = torch.einsum("nij,rij->nr", filters, ramps).square().sum(1)
    return parts / filters.square().sum((1, 2)).clamp_min(torch.finfo(filters.dtype).tiny)


def compare_filters(recipe: str, before: Tensor, after: Tensor) -> Learned:
    """Count oriented edge detectors in filters [n, k, k] before and after training."""
    first, last = ramp_shares(before), ramp_shares(after)
    return Learned(
        recipe=recipe,
        filters=len(after),
        oriented_before=int((first >= ORIENTED).sum()),
        oriented_after=int((last >= ORIENTED).sum()),
        share_before=float(first.mean()),
        share_after=float(last.mean()),
        share_by_chance=2 / after[0].numel(),  # two of as many directions as there are weights
    )


def judge(
    effects: Sequence[Effect], original: float, learned: Sequence[Learned]
) -> tuple[str, bool]:
    """The verdict and whether the claim held; `original` is the photograph's own sharpness.

    It holds when sharpen sharpens, blur blurs, edge is silent on a flat area, and training made
    every net's filters more of a ramp than they were and than chance would.
    """
    by_name = {effect.kernel: effect for effect in effects}
    sharpen, edge, blur = by_name["sharpen"], by_name["edge"], by_name["mean blur"]
    verdict = (
        f"The variance of the Laplacian of the photograph, {original:.3g}, becomes "
        f"{sharpen.sharpness:.3g} by sharpen ({sharpen.sharpness / original:.3g} times) and "
        f"{blur.sharpness:.3g} by mean blur ({blur.sharpness / original:.2g} times); edge, with "
        f"weights that sum to {edge.weight_sum:g}, answers {edge.flat:.1g} to a flat area."
    )
    for net in learned:
        verdict += (
            f" Of the {net.filters} first-layer filters of {net.recipe}, {net.oriented_after} are "
            f"oriented edge detectors after training and {net.oriented_before} before it: a ramp "
            f"is {net.share_after:.0%} of a trained filter on average, {net.share_before:.0%} of "
            f"an initial one, {net.share_by_chance:.0%} by chance."
        )
    holds = (
        blur.sharpness < original < sharpen.sharpness
        and edge.flat < 1e-9
        and all(n.share_after > max(n.share_before, n.share_by_chance) for n in learned)
    )
    return verdict, holds


def run(setup: Setup) -> Outcome:
    """Filter the photograph, train two small convolutional nets, look at their first layers."""
    image = photograph()
    effects = [measure(name, image) for name in KERNELS]
    figures = [_photographs(image)]
    learned = []
    for recipe in (CNN_32_64_1024, LENET5):
        before, after = _layers(setup, recipe)
        learned.append(compare_filters(recipe.name, _filters(before), _filters(after)))
        digit = torch.from_numpy(recipe.load(setup.data).test.inputs["image"][:1])
        figures.append(_maps(recipe.name, after, digit))
    verdict, holds = judge(effects, sharpness(image), learned)
    rows = [*map(asdict, effects), *map(asdict, learned)]
    return Outcome(verdict, holds, rows, figures)


def _layers(setup: Setup, recipe: Recipe) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The first convolution as training began, and as it ended."""
    value = trained(setup, recipe, recipe.name)
    chosen = recipe.override(value.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.training[setup.data].seed)
        modules = chosen.build(), load_module(chosen, value)
    before, after = (next(p for p in m.modules() if isinstance(p, nn.Conv2d)) for m in modules)
    return before, after


def _filters(layer: nn.Conv2d) -> Tensor:
    return layer.weight.detach()[:, 0]


def _photographs(image: Tensor) -> Figure:
    """A part of the photograph pixel by pixel, beside each kernel's answer."""
    part = image[_DETAIL]
    tiles = [Tile(_grey(part), "photograph")]
    for name, kernel in KERNELS.items():
        answer = correlate(part, kernel)
        low = -1.0 if np.sum(kernel) == 0 else 0.0  # answers around 0 are shown around mid-grey
        tiles.append(Tile(_grey(answer, low), name))
    return Figure(
        "A part of the photograph and each kernel's answer, from black at 0 to white at 1; "
        "of edge, mid-grey is 0.",
        grid(
            [tiles[:3], tiles[3:]],
            "A photograph of a temple, and the same filtered by " + ", ".join(KERNELS),
            aspect=part.shape[0] / part.shape[1],
            smooth=True,
        ),
    )


def _maps(net: str, layer: nn.Conv2d, digit: Tensor) -> Figure:
    """The filters of largest norm in a first layer, each over its answer to one digit."""
    with torch.inference_mode():
        answers = layer(digit)[0]
    filters = _filters(layer)
    strongest = filters.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    strongest = strongest[: _ROWS * _COLUMNS].sort().values
    shares = ramp_shares(filters)
    rows: list[list[Tile]] = []
    for places in strongest.split(_COLUMNS):
        rows.append([Tile(signed(filters[i].numpy()), f"{shares[i]:.0%} ramp") for i in places])
        rows.append([Tile(signed(answers[i].numpy())) for i in places])
    return Figure(
        f"The {len(strongest)} of {len(filters)} learned filters of {net} with the largest norms, "
        "each over its feature map of one test digit: blue negative, white 0, red positive.",
        grid(rows, f"{len(strongest)} learned filters of {net} and their feature maps"),
    )


def _grey(pixels: Tensor, low: float = 0.0) -> str:
    return picture(pixels[None].numpy(), low, 1.0, largest=max(pixels.shape))


EXPERIMENT = Experiment(
    name="kernels",
    title="Fixed kernels and learned filters",
    claim="A 3x3 kernel can sharpen, blur, emboss or find edges; training by gradient descent "
    "moves the first filters of a convolutional network towards oriented edges, which nobody told "
    "it of.",
    paper="LeCun and others 1998, Gradient-based learning applied to document recognition; "
    "Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional "
    "neural networks",
    run=run,
)
