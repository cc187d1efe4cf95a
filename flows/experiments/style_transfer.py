"""Photographs in other styles, by the features of a classifier of textures and Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from flows import stages
from flows.console import listener
from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings
from flows.stages import Job
from models.style import Aim, Moment, See, content_distance, patch_distance, transfer
from models.textures import Pattern, TextureNet, cells, mosaic, paint, waves
from pipeline import plots
from pipeline.pictures import Tile, grid
from pipeline.train import load_module

HEIGHT, WIDTH = 128, 192
STEPS = 150  # evaluations of the losses
SHOWN = (0, 10, 30, 70)  # of which a picture is kept, beside the last
FACTOR = 10  # by which the style distance is to fall

AIM = Aim(
    content="conv3_1",
    style=("conv1_1", "conv2_1", "conv3_1", "conv3_3"),
    content_weight=1,
    style_weight=10,
    variation_weight=1,
)

_PHOTOGRAPHS = {"temple": "china.jpg", "flower": "flower.jpg"}  # CC BY, with scikit-learn
# Of generated styles the pattern and its colours, as #rrggbb.
_GENERATED: dict[str, tuple[Pattern, str]] = {
    "mosaic": (mosaic, "#1a2666 #e64d1a #ffd94d #1a8080 #f2f2d9"),
    "waves": (waves, "#0d1a59 #3373cc #f2e699 #f2b333"),
    "cells": (cells, "#0d0d1a #bf261a #f2bf33"),
}
PAIRS = (
    ("temple", "mosaic"), ("temple", "waves"), ("temple", "cells"), ("temple", "flower"),
    ("flower", "cells"),
)  # fmt: skip


@dataclass(frozen=True)
class Painted:
    """A photograph in another style: the picture, what it was on the way, and how far it got.

    `places` are the content distances to its own photograph and to the other pictures, by name.
    `patches` are patch distances to the style, of the photograph and of the picture, and `grey` is
    the correlation of its grey values with the photograph's: no net has a part in these.
    """

    content: str
    style: str
    picture: Tensor
    steps: Mapping[int, Tensor]
    history: Sequence[Moment]
    places: Mapping[str, float]
    patches: tuple[float, float]
    grey: float

    @property
    def name(self) -> str:
        return f"{self.content}, {self.style}"

    @property
    def fall(self) -> float:
        """How many times smaller the style distance has become."""
        return self.history[0].style / self.history[-1].style

    @property
    def left(self) -> float:
        """The share of the patch distance to the style that is left."""
        return self.patches[1] / self.patches[0]

    @property
    def nearest(self) -> str:
        return min(self.places, key=lambda name: self.places[name])


def pictures() -> dict[str, Tensor]:
    """Every content and style by name, float32 [1, 3, height, width] in [0, 1]."""
    found = {}
    for name, file in _PHOTOGRAPHS.items():
        small = Image.fromarray(load_sample_image(file)).resize(
            (WIDTH, HEIGHT), Image.Resampling.LANCZOS
        )
        found[name] = np.asarray(small, np.float32).transpose(2, 0, 1) / 255
    for name, (pattern, text) in _GENERATED.items():
        colours = np.array([list(bytes.fromhex(c[1:])) for c in text.split()]) / 255
        chance = np.random.default_rng(1)
        found[name] = paint(pattern, colours, (HEIGHT, WIDTH), 13.0, 0.6, chance)
    return {name: torch.from_numpy(array[None].copy()) for name, array in found.items()}


def paint_pair(see: See, every: Mapping[str, Tensor], content: str, style: str) -> Painted:
    """Transfer one style, and measure the result."""
    progress = listener.get()(f"{content}, {style}", "transfer")
    steps: dict[int, Tensor] = {}

    def watch(step: int, picture: Tensor) -> None:
        progress(min(step, STEPS), STEPS, "")
        if step in SHOWN:
            steps[step] = picture

    photograph, wanted = every[content], every[style]
    picture, history = transfer(see, photograph, wanted, AIM, steps=STEPS, watch=watch)
    others = {name: other for name, other in every.items() if name in (*_PHOTOGRAPHS, style)}
    mirrored = {f"{name}, mirrored": other.flip(3) for name, other in others.items()}
    with torch.no_grad():
        maps = see(picture)[AIM.content]
        places = {
            name: float(content_distance(maps, see(other)[AIM.content]))
            for name, other in (others | mirrored).items()
        }
    patches = patch_distance(photograph, wanted), patch_distance(picture, wanted)
    greys = torch.stack([p.mean(1).flatten() for p in (photograph, picture)])
    grey = float(torch.corrcoef(greys)[0, 1])
    return Painted(content, style, picture, steps, history, places, patches, grey)


def judge(painted: Sequence[Painted], untrained: Sequence[Painted]) -> tuple[str, bool]:
    """The verdict and whether the claim held; the untrained net is told of, and not judged."""
    lost = [one for one in painted if one.nearest != one.content]
    falls = [one.fall for one in painted]
    left = [one.left for one in painted]
    verdict = (
        f"Over {len(painted)} pairs the distance of the Gram matrices to the style's falls "
        f"{min(falls):.3g} to {max(falls):.3g} times. "
    )
    if lost:
        strays = "; ".join(f"{one.name} to {one.nearest}" for one in lost)
        verdict += f"Nearest in content to another picture: {strays}. "
    else:
        verdict += (
            "By the maps of the content layer every picture is nearest to its own photograph, "
            "among photographs, styles and all of these mirrored. "
        )
    verdict += (
        f"Measured without a net, patches come to {min(left):.0%} to {max(left):.0%} of their "
        "distance to the style, and grey values keep a correlation of "
        f"{fmean(one.grey for one in painted):.2f} with the photograph's on average; by the same "
        "net untrained, patches come to "
        f"{fmean(one.left for one in untrained):.0%} and grey values to "
        f"{fmean(one.grey for one in untrained):.2f} on average."
    )
    return verdict, not lost and min(falls) >= FACTOR and max(left) < 1


def run(setup: Setup) -> Outcome:
    """Train the classifier, then let it and its untrained twin paint every pair."""
    changes = {"floor": "none", **setup.changes}
    job = Job(
        "models.textures:TEXTURES", setup.data, changes=changes, out=setup.out, device=setup.device
    )
    trained = stages.train(job, listener.get()(job.recipe.name, "train"))
    module = load_module(job.recipe, trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trained.settings["seed"])
        initial = job.recipe.build().eval()
    scale = module.get_buffer("mean"), module.get_buffer("deviation")
    nets = [_eyes(part.get_submodule("network"), *scale) for part in (module, initial)]
    every = pictures()
    painted, untrained = ([paint_pair(see, every, *pair) for pair in PAIRS] for see in nets)
    verdict, holds = judge(painted, untrained)
    told = (
        f" The classifier tells {len(job.dataset.classes)} generated textures apart with a test "
        f"accuracy of {trained.metrics['accuracy']:.1%}, and has seen no photograph."
    )
    rows = [_row(one, twin) for one, twin in zip(painted, untrained, strict=True)]
    figures = [_results(every, painted, untrained), _ways(painted), *_curves(painted)]
    return Outcome(verdict + told, holds, rows, figures, common_settings([trained]))


def _eyes(network: Any, mean: Tensor, deviation: Tensor) -> See:
    assert isinstance(network, TextureNet)
    network.requires_grad_(False)
    return lambda picture: network.maps((picture - mean) / deviation)


def _row(one: Painted, twin: Painted) -> dict[str, Any]:
    other = min((n for n in one.places if n != one.content), key=lambda name: one.places[name])
    return {
        "content": one.content,
        "style": one.style,
        "style distance, first": one.history[0].style,
        "style distance, last": one.history[-1].style,
        "content distance": one.places[one.content],
        "to the nearest other": one.places[other],
        "which is": other,
        "patches left": one.left,
        "untrained: patches left": twin.left,
        "grey correlation": one.grey,
        "untrained: grey correlation": twin.grey,
    }


def _results(
    every: Mapping[str, Tensor], painted: Sequence[Painted], untrained: Sequence[Painted]
) -> Figure:
    rows = [
        [
            _tile(every[one.content], one.content),
            _tile(every[one.style], one.style),
            _tile(one.picture, "trained net"),
            _tile(twin.picture, "untrained net"),
        ]
        for one, twin in zip(painted, untrained, strict=True)
    ]
    return Figure(
        "Photograph, style, and what the pixels become by the features of the trained and of the "
        "untrained net. Mosaic, waves and cells are generated, the others photographs.",
        _grid(rows, f"{len(rows)} photographs, styles and results"),
    )


def _ways(painted: Sequence[Painted]) -> Figure:
    rows = [
        [_tile(p, str(step)) for step, p in one.steps.items()]
        + [_tile(one.picture, str(len(one.history)))]
        for one in painted
    ]
    return Figure(
        "Each picture on its way, by the trained net: beneath it, how many times the losses had "
        "been evaluated.",
        _grid(rows, f"{len(rows)} pictures after some evaluations of the losses"),
    )


def _curves(painted: Sequence[Painted]) -> list[Figure]:
    return [
        Figure(
            caption,
            plots.lines(
                f"{part} losses",
                {
                    one.name: (range(len(one.history)), [getattr(m, part) for m in one.history])
                    for one in painted
                },
                f"{part} distance of {len(painted)} pictures over the evaluations",
                xlabel="evaluations of the losses",
                ylabel=f"{part} distance (logarithmic)",
                log_y=True,
            ),
        )
        for part, caption in (
            (
                "style",
                "Style distance: of the Gram matrices to the style's, relative, over layers.",
            ),
            ("content", "Content distance: of the maps to the photograph's, place by place."),
        )
    ]


def _grid(rows: Sequence[Sequence[Tile]], alt: str) -> Any:
    return grid(rows, alt, aspect=HEIGHT / WIDTH, smooth=True)


def _tile(picture: Tensor, words: str) -> Tile:
    return Tile(plots.picture(picture[0].numpy(), 0.0, 1.0, largest=max(picture.shape)), words)


EXPERIMENT = Experiment(
    name="style-transfer",
    title="Style transfer by Gram matrices",
    claim="By gradient descent on its pixels alone a photograph takes on the style of another "
    "picture, by the features of a classifier that was trained for something else: the distance of "
    f"its Gram matrices to the style's falls at least {FACTOR} times and its patches come nearer "
    "to the style's, while the maps of its content stay nearer to its own photograph's than to "
    "those of the photograph mirrored, of the other photograph or of the style.",
    paper="Gatys, Ecker, Bethge 2016, Image style transfer using convolutional neural networks; "
    "Rabin, Peyré, Delon, Bernot 2012, Wasserstein barycenter and its application to texture "
    "mixing",
    run=run,
)
