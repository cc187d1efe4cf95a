"""What each route of pictures and codes answers, from its fields to JSON or one PNG.

All raise `BadInput` that names the field, and what `Model.predict` raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.responses import Response

from models.errors import BadInput, RequestError
from models.signature import BATCH
from serving.coding import (
    check_able,
    decode_codes,
    draw_codes,
    encode_pictures,
    judge_pictures,
    latent_input,
    picture_input,
    reconstruct_pictures,
    traverse_code,
)
from serving.drawing import LARGEST_SEED, check_whole, new_seed
from serving.grids import LARGEST_SCALE, columns_of, grid_png, paired
from serving.images import read_image
from serving.inference_rest import json_response
from serving.model import Model
from serving.picture_messages import FURTHEST, MOST, MOST_STEPS
from serving.predictor import Models
from serving.tensors import from_json

Fields = Mapping[str, Any]

MOST_TRAVERSED = 1024  # pictures
# Numbers in one answer, about 50 MB of JSON.
MOST_NUMBERS = 4_000_000


async def sample(models: Models, fields: Fields) -> Response:
    """Pictures drawn from the prior by a seed: row i depends on the seed and i alone."""
    model, count = _model(models, fields, "/sample"), fields["n"]
    check_whole("field 'n'", count, 1, MOST)
    given = _seed(fields)
    seed = new_seed() if given is None else given
    classes, labels = _classes(model, fields, count)
    codes = draw_codes(model, seed, count)
    images = await decode_codes(model, codes, labels)
    answer = {"seed": seed, "classes": classes, "latent": codes, "images": images}
    return await _respond(model, fields, answer, images)


async def encode(models: Models, fields: Fields) -> Response:
    """The codes of pictures."""
    model = _model(models, fields, "/encode")
    images = await asyncio.to_thread(_images, model, fields)
    return await _respond(model, fields, {"latent": await encode_pictures(model, images)})


async def decode(models: Models, fields: Fields) -> Response:
    """The pictures of codes."""
    model = _model(models, fields, "/decode")
    codes = await asyncio.to_thread(_codes, model, fields["latent"], MOST)
    classes, labels = _classes(model, fields, len(codes))
    images = await decode_codes(model, codes, labels)
    answer = {"seed": None, "classes": classes, "latent": codes, "images": images}
    return await _respond(model, fields, answer, images)


async def reconstruct(models: Models, fields: Fields) -> Response:
    """Pictures made of pictures' codes, and how far they are from those."""
    model, seed = _model(models, fields, "/reconstruct"), _seed(fields)
    images = await asyncio.to_thread(_images, model, fields)
    found = await reconstruct_pictures(model, images, seed)
    columns = _columns(fields, len(images))
    answer = {"seed": seed, "images": found.images, "errors": found.errors}
    pictures = await asyncio.to_thread(paired, images, found.images, columns)
    return await _respond(model, fields, answer, pictures, columns)


async def traverse(models: Models, fields: Fields) -> Response:
    """Pictures of one code, of which one latent at a time takes every value in reach."""
    model, steps, reach = _model(models, fields, "/traverse"), fields["steps"], fields["reach"]
    check_whole("field 'steps'", steps, 2, MOST_STEPS)
    if not 0 < reach <= FURTHEST:  # nor is NaN
        raise BadInput(
            "field 'reach' is out of range", got=reach, expected=f"more than 0, at most {FURTHEST}"
        )
    latents = _latents(model, fields["latents"], steps)
    code, seed = await _start(model, fields)
    values, codes = traverse_code(code, latents, reach, steps)
    classes, labels = _classes(model, fields, 1)
    if labels is not None:
        labels = labels.repeat(len(codes))
    images = await decode_codes(model, codes, labels)
    answer = {
        "seed": seed,
        "classes": classes,
        "latent": code,
        "latents": latents,
        "values": values,
        "images": images.reshape(len(latents), steps, *images.shape[1:]),
    }
    return await _respond(model, fields, answer, images, steps)


async def anomaly(models: Models, fields: Fields) -> Response:
    """Which pictures are unlike those that the model was trained on."""
    model = _model(models, fields, "/anomaly")
    images = await asyncio.to_thread(_images, model, fields)
    threshold, errors = await judge_pictures(model, images)
    judged = [{"error": error, "anomalous": error > threshold} for error in errors]
    return await _respond(model, fields, {"threshold": threshold, "pictures": judged})


def _model(models: Models, fields: Fields, route: str) -> Model:
    if isinstance(fields["model"], RequestError):
        raise fields["model"]
    model = models.get(fields["model"])
    check_able(model, route)
    return model


def _seed(fields: Fields) -> int | None:
    if fields["seed"] is not None:
        check_whole("field 'seed'", fields["seed"], 0, LARGEST_SEED)
    return fields["seed"]


def _images(model: Model, fields: Fields, most: int = MOST) -> np.ndarray:
    """Nested lists or uploaded files as pictures [rows, channels, height, width] in [0, 1]."""
    wanted, given = picture_input(model), fields["image"]
    if given and isinstance(given[0], bytes):
        how = {"invert": fields["invert"], "largest": model.largest_pixels}
        return np.concatenate([read_image(file, wanted, **how) for file in given])
    images = from_json(model.signature.input(wanted.name), given)
    size = (wanted.channels, wanted.height, wanted.width)
    images = _rows("image", images, size, most)
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # a NaN is in no range
        raise BadInput(
            "field 'image' holds values out of range", got=f"{low} to {high}", expected="0 to 1"
        )
    return images


def _codes(model: Model, given: object, most: int) -> np.ndarray:
    """Nested lists as codes [rows, latents]."""
    spec = latent_input(model)
    return _rows("latent", from_json(spec, given), spec.at({BATCH: 1})[1:], most)


def _rows(name: str, given: np.ndarray, size: tuple[int, ...], most: int) -> np.ndarray:
    """One array of that size, or 1 to `most` of them, as rows."""
    rows = given[None] if given.ndim == len(size) else given
    if rows.shape[1:] != size or not 1 <= len(rows) <= most:
        many = f", or 1 to {most} of them" if most > 1 else ""
        raise BadInput(
            f"field {name!r} has a wrong shape",
            got=list(given.shape),
            expected=f"{list(size)}{many}",
        )
    return rows


def _classes(model: Model, fields: Fields, count: int) -> tuple[list[str], np.ndarray | None]:
    """The class of each picture by name and by number: those given, or all in turn."""
    known, given = model.codec.classes, fields["classes"]
    assert model.codec.pictures is not None
    if model.codec.pictures.label is None:
        if given:
            raise BadInput(f"field 'class' is of no use: model {model.name!r} draws no classes")
        return [], None
    names = [given] * count if isinstance(given, str) else given
    names = names or [known[place % len(known)] for place in range(count)]
    if len(names) != count:
        raise BadInput(
            "field 'class' has a wrong length", got=len(names), expected=f"one class or {count}"
        )
    for name in names:
        if name not in known:
            raise BadInput(f"class {name!r} is unknown", expected=", ".join(map(repr, known)))
    return names, np.array([known.index(name) for name in names])


def _latents(model: Model, given: list[int] | None, steps: int) -> list[int]:
    """Which latents to traverse."""
    count = latent_input(model).shape[1]
    assert isinstance(count, int)
    latents = list(range(count)) if given is None else given
    for latent in latents:
        check_whole("field 'latents' holds a number that", latent, 0, count - 1)
    if not latents or len(set(latents)) < len(latents):
        raise BadInput("field 'latents' is empty or names one twice", got=latents)
    if len(latents) * steps > MOST_TRAVERSED:
        raise BadInput(
            "the pictures are too many for one answer",
            got=f"{len(latents)} latents x {steps} steps",
            expected=f"at most {MOST_TRAVERSED}",
            fix="name fewer in 'latents'",
        )
    return latents


async def _start(model: Model, fields: Fields) -> tuple[np.ndarray, int | None]:
    """The code [latents] to traverse: of a picture, given, or drawn by a seed, which is told."""
    given = [name for name in ("image", "latent", "seed") if fields.get(name) is not None]
    if len(given) != 1:
        raise BadInput(
            "a traversal starts from one code",
            got=" and ".join(map(repr, given)) or "none",
            expected="one of 'image', 'latent' and 'seed'",
        )
    if given == ["latent"]:
        return (await asyncio.to_thread(_codes, model, fields["latent"], 1))[0], None
    if given == ["image"]:
        check_able(model, "/encode")
        images = await asyncio.to_thread(_images, model, fields, 1)
        return (await encode_pictures(model, images))[0], None
    check_able(model, "/sample")
    seed = _seed(fields)
    assert seed is not None
    return draw_codes(model, seed, 1)[0], seed


def _columns(fields: Fields, count: int) -> int:
    if fields["columns"] is None:
        return columns_of(count)
    check_whole("field 'columns'", fields["columns"], 1, MOST)
    return fields["columns"]


async def _respond(
    model: Model,
    fields: Fields,
    answer: dict[str, Any],
    pictures: np.ndarray | None = None,
    columns: int | None = None,
) -> Response:
    """The answer as JSON, or its pictures as one PNG whose headers say the rest."""
    about = {"model": model.name, "version": model.version}
    if pictures is None or fields["format"] == "json":
        for name in ("scale", "columns"):
            if fields.get(name) is not None:
                raise BadInput(f"field {name!r} is of no use", got="format 'json'", expected="png")
        if pictures is not None and pictures.size > MOST_NUMBERS:
            raise BadInput(
                "the pictures are too many for one answer",
                got=f"{pictures.size} numbers",
                expected=f"at most {MOST_NUMBERS}",
                fix="ask for fewer, or for the format 'png'",
            )
        return await asyncio.to_thread(json_response, about | answer)
    scale = 1 if fields["scale"] is None else fields["scale"]
    check_whole("field 'scale'", scale, 1, LARGEST_SCALE)
    columns = columns or _columns(fields, len(pictures))
    content = await asyncio.to_thread(grid_png, pictures, columns, scale)
    headers = {"Fucina-Model": model.name, "Fucina-Version": model.version}
    if answer["seed"] is not None:
        headers["Fucina-Seed"] = str(answer["seed"])
    return Response(content, headers=headers, media_type="image/png")
