"""Pictures, their codes and back: a generative model asked for what its graphs can do.

What is asked here has been found answerable by `check_able`, and the codec to fit the graphs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.codec import ImageInput, Pictures
from models.errors import BadInput
from models.signature import Arrays, TensorSpec
from serving.drawing import draw, noise_inputs
from serving.model import Model
from serving.tensors import check_finite


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """Pictures [rows, channels, height, width], and the mean squared error per pixel [rows]."""

    images: np.ndarray
    errors: np.ndarray


# Why a route is refused, by a model that cannot answer it.
_LACKS = {
    "/sample": "has no prior that codes could be drawn from",
    "/encode": "has no encoder",
    "/decode": "draws no pictures",
    "/reconstruct": "reconstructs no pictures",
    "/traverse": "draws no pictures",
    "/anomaly": "has no threshold for anomalies",
}


def abilities(model: Model) -> tuple[str, ...]:
    """What can be asked of a model: the routes that answer for it."""
    pictures = model.codec.pictures
    able = {
        "/sample": pictures is not None and pictures.latent in model.codec.noise,
        "/encode": pictures is not None and pictures.encoder is not None,
        "/decode": pictures is not None,
        "/reconstruct": pictures is not None and pictures.reconstruction is not None,
        "/traverse": pictures is not None,
        "/anomaly": model.codec.anomaly is not None,
    }
    return tuple(route for route in _LACKS if able[route])


def check_able(model: Model, route: str) -> None:
    """Raise `BadInput` that says what the model can do, unless it answers on that route."""
    able = abilities(model)
    if route not in able:
        raise BadInput(
            f"model {model.name!r} {_LACKS[route]}",
            got=f"POST {route}",
            expected=", ".join(able) or f"POST /v2/models/{model.name}/infer",
        )


def latent_input(model: Model) -> TensorSpec:
    """The input of codes that the model draws pictures of."""
    pictures = _pictures(model)
    return _graph(model, pictures.decoder).signature.input(pictures.latent)


def picture_input(model: Model) -> ImageInput:
    """How the model reads pictures."""
    assert model.codec.image is not None
    return model.codec.image


def draw_codes(model: Model, seed: int, rows: int) -> np.ndarray:
    """Codes [rows, latents] from the prior, by the seed."""
    return draw(seed, rows, latent_input(model))


async def decode_codes(model: Model, codes: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The pictures [rows, channels, height, width] of codes, of any number."""
    pictures = _pictures(model)
    inputs = {pictures.latent: codes}
    if pictures.label is not None and labels is not None:
        inputs[pictures.label] = labels
    return await _ask(_graph(model, pictures.decoder), inputs, pictures.drawn)


async def encode_pictures(model: Model, images: np.ndarray) -> np.ndarray:
    """The codes [rows, latents] of pictures, without noise."""
    pictures = _pictures(model)
    graph = _graph(model, str(pictures.encoder))
    inputs = {picture_input(model).name: images} | _noise(graph, None, len(images))
    return await _ask(graph, inputs, str(pictures.code))


async def reconstruct_pictures(model: Model, images: np.ndarray, seed: int | None) -> Reconstructed:
    """Pictures made of the pictures' codes: without noise, or with what the seed says."""
    if seed is not None and not noise_inputs(model.signature, model.codec):
        raise BadInput(f"field 'seed' is of no use: model {model.name!r} takes no noise")
    inputs = {picture_input(model).name: images} | _noise(model, seed, len(images))
    drawn = await _ask(model, inputs, str(_pictures(model).reconstruction))
    errors = await asyncio.to_thread(_mean_squares, drawn, images)
    return Reconstructed(drawn, errors)


async def judge_pictures(model: Model, images: np.ndarray) -> tuple[float, list[float]]:
    """The threshold of anomalies, and the error of each picture, without noise."""
    judging = model.codec.anomaly
    assert judging is not None
    inputs = {picture_input(model).name: images} | _noise(model, None, len(images))
    return judging.threshold, (await _ask(model, inputs, judging.error)).ravel().tolist()


def traverse_code(
    code: np.ndarray, latents: Sequence[int], reach: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The values [steps] from -reach to reach, and the codes [latents * steps, n].

    Each of these latents in turn takes every value while the others stay.
    """
    values = np.linspace(-reach, reach, steps, dtype=code.dtype)
    codes = np.tile(code, (len(latents) * steps, 1))
    codes[np.arange(len(codes)), np.repeat(latents, steps)] = np.tile(values, len(latents))
    return values, codes


def _mean_squares(drawn: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.square(drawn.astype(float) - images).mean((1, 2, 3))


def _pictures(model: Model) -> Pictures:
    assert model.codec.pictures is not None
    return model.codec.pictures


def _graph(model: Model, part: str) -> Model:
    return model.parts[part] if part else model


def _noise(graph: Model, seed: int | None, rows: int) -> Arrays:
    """Its noise by the seed; zeros, the middle of all noise, without one."""
    return {
        spec.name: np.zeros((rows, *spec.at({"batch": rows})[1:]), spec.dtype)
        if seed is None
        else draw(seed, rows, spec)
        for spec in noise_inputs(graph.signature, graph.codec)
    }


async def _ask(graph: Model, inputs: Arrays, output: str) -> np.ndarray:
    """One output for any number of rows, asked in batches of at most what the graph takes."""
    rows = len(next(iter(inputs.values())))
    most = graph.signature.batch.max if graph.signature.batch else 1
    answers = []
    for start in range(0, rows, most):
        batch = {name: array[start : start + most] for name, array in inputs.items()}
        answers.append((await graph.predict(batch))[output])
    whole = np.concatenate(answers)
    check_finite(output, whole)
    return whole
