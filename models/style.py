"""Style transfer: Gram matrices of feature maps, and a picture that is optimised to have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Maps = Mapping[str, Tensor]  # by layer, [batch, channels, height, width]
See = Callable[[Tensor], Maps]

_EDGE = 0.02  # how far the first picture is kept from black and white, of which a sigmoid has none


@dataclass(frozen=True)
class Aim:
    """Which layers a picture is to resemble its content and its style in, and how much that counts.

    `variation` is the weight of what neighbouring pixels differ by.
    """

    content: str
    style: tuple[str, ...]
    content_weight: float
    style_weight: float
    variation_weight: float


@dataclass(frozen=True)
class Moment:
    """The three losses at one evaluation, without their weights."""

    content: float
    style: float
    variation: float


def gram(maps: Tensor) -> Tensor:
    """Which maps answer together, wherever: F F^T / (h w), [batch, c, c] of [batch, c, h, w]."""
    rows = maps.flatten(2)
    return rows @ rows.mT / rows.shape[2]


def grams(maps: Maps, layers: Sequence[str]) -> dict[str, Tensor]:
    """The Gram matrix of each of these layers."""
    return {layer: gram(maps[layer]) for layer in layers}


def style_distance(maps: Maps, wanted: Mapping[str, Tensor]) -> Tensor:
    """The mean over layers of |G - A|^2 / |A|^2, of Gram matrices G of `maps` and `wanted` A.

    Gatys 2016 divides by 4 c^2 instead, with a weight for each layer; by |A|^2 all weigh alike,
    whatever the scale of their maps.
    """
    return torch.stack([_relative(gram(maps[n]), a) for n, a in wanted.items()]).mean()


def content_distance(maps: Tensor, wanted: Tensor) -> Tensor:
    """|F - P|^2 / |P|^2, of the maps of one layer, place by place."""
    return _relative(maps, wanted)


def _relative(actual: Tensor, wanted: Tensor) -> Tensor:
    return (actual - wanted).square().sum() / wanted.square().sum()


def total_variation(picture: Tensor) -> Tensor:
    """The mean squared difference of neighbours, along both axes of [batch, c, h, w]."""
    return picture.diff(dim=2).square().mean() + picture.diff(dim=3).square().mean()


def transfer(
    see: See,
    content: Tensor,
    style: Tensor,
    aim: Aim,
    *,
    steps: int,
    watch: Callable[[int, Tensor], None] = lambda step, picture: None,
) -> tuple[Tensor, list[Moment]]:
    """The content's picture [1, 3, h, w], changed towards the style of another, in [0, 1].

    `see` gives the maps of a picture; its parameters stay as they are. L-BFGS evaluates the losses
    about `steps` times, and the last of the moments is of the picture that is given back; `watch`
    is given each picture that is evaluated. Gatys, Ecker, Bethge 2016, Image style transfer using
    convolutional neural networks. Here the pixels are sigmoids of what is optimised, so that they
    stay in [0, 1], and begin as the content, not as noise.
    """
    with torch.no_grad():
        kept = see(content)[aim.content]
        wanted = grams(see(style), aim.style)
    free = content.clamp(_EDGE, 1 - _EDGE).logit().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=steps, max_eval=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    history: list[Moment] = []

    def closure() -> Tensor:
        picture = free.sigmoid()
        watch(len(history), picture.detach())
        maps = see(picture)
        parts = (
            content_distance(maps[aim.content], kept),
            style_distance(maps, wanted),
            total_variation(picture),
        )
        weights = (aim.content_weight, aim.style_weight, aim.variation_weight)
        loss = torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum()
        (slope,) = torch.autograd.grad(loss, free)
        free.grad = slope.contiguous()  # L-BFGS reads it as a vector
        history.append(Moment(*(float(part.detach()) for part in parts)))
        return loss.detach()

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    closure()  # what was evaluated last may be a trial of the line search that was given up
    return free.detach().sigmoid(), history


def patch_distance(first: Tensor, second: Tensor, side: int = 5, directions: int = 128) -> float:
    """How unlike the patches [side, side] of two pictures [1, 3, h, w] are, wherever they are.

    The sliced Wasserstein distance: along each of some random directions of unit length, the mean
    difference of the sorted patches (Rabin, Peyré, Delon, Bernot 2012, Wasserstein barycenter and
    its application to texture mixing). No net has a part in it. The pictures are of one size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        axes = torch.randn(directions, first.shape[1] * side**2, dtype=first.dtype)
    axes = axes / axes.norm(dim=1, keepdim=True)
    one, two = ((axes @ functional.unfold(p, side)[0]).sort(1).values for p in (first, second))
    return float((one - two).abs().mean())
