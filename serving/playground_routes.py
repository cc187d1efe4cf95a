"""The playground's routes: a page at `/` to try the served models with, and what it asks for.

Its files are read from this package by a table of their names; nothing of a path that is asked for
reaches the disk. What the page sends to the models goes over the routes of every other client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from models.errors import BadInput, Forbidden, UnknownModel, Unsupported, WrongMediaType
from serving.bodies import Lines
from serving.coding import abilities, latent_input
from serving.first_layer import feature_maps
from serving.grids import columns_of, grid_png
from serving.images import read_image
from serving.inference_rest import Answer, Match
from serving.model import Model
from serving.recorded import as_lists, frame, picture_name, recorded, sources

if TYPE_CHECKING:
    from serving.runtime import Runtime

INDEX = "index.html"
_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}
# Scripts and styles from this server alone, none in the page; nobody may frame it.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = (
    (b"cache-control", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_JSON = (b"content-type", b"application/json")
_PNG = (b"content-type", b"image/png")
_MOST_PICTURES = 6
_MOST_MAPS, _LARGEST_MAP = 32, 64
# Of a codec, what the page has no use for and what may be large.
_UNTOLD = {
    "text": {"vocabulary"},
    "generation": {"tokens": {"alphabet"}, "source": {"alphabet"}},
}


def match(method: str, path: str) -> Match | None:
    """The playground's route of a request; None where it has none."""
    if method == "GET" and path == "/":
        return Match("/", file, {"name": INDEX})
    parts = path.split("/")[1:]
    if parts[0] != "playground":
        return None
    match method, parts[1:]:
        case "GET", ["models.json"]:
            return Match("/playground/models.json", models, {})
        case "GET", [name]:
            return Match("/playground/{file}", file, {"name": name})
        case "GET", ["models", model, "samples"]:
            return Match("/playground/models/{model}/samples", samples, {"model": model})
        case "GET", ["models", model, "samples", number]:
            route = "/playground/models/{model}/samples/{number}"
            return Match(route, sample, {"model": model, "number": number})
        case "POST", ["models", model, "first_layer"]:
            return Match("/playground/models/{model}/first_layer", first_layer, {"model": model})
    return None


async def file(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    """One file of the page."""
    name = parameters["name"]
    content = _files().get(name)
    if content is None:
        raise UnknownModel(f"nothing is at GET /playground/{name}")
    kind = _TYPES[name.rpartition(".")[2]]
    headers = ((b"content-type", kind), (b"content-security-policy", _POLICY), *_SAFE)
    return Answer(content, headers=headers)


async def models(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    """Every model that the key may ask, as the page needs it: kind, codec and signature."""
    known = []
    for name in runtime.models.names:
        with suppress(Forbidden):
            known.append(_describe(runtime.models.get(name)))
    return _json({"models": known})


async def samples(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    """What the bundle recorded of real rows, told in the way that the model is asked."""
    model = runtime.models.get(parameters["model"])
    rows = await asyncio.to_thread(recorded, model.bundle)
    name = picture_name(model.codec)
    lies = frame(rows, name) if name else None
    return _json(
        {
            "pictures": min(len(rows), _MOST_PICTURES) if name else 0,
            "frame": vars(lies) if lies else None,
            "rows": [] if name else as_lists(rows, model.signature),
            "sources": sources(rows, model.codec),
        }
    )


async def sample(runtime: Runtime, parameters: Mapping[str, str], _: Lines, body: bytes) -> Answer:
    """A recorded picture as PNG."""
    model, number = runtime.models.get(parameters["model"]), parameters["number"]
    name = picture_name(model.codec)
    rows = await asyncio.to_thread(recorded, model.bundle)
    if name is None or number not in map(str, range(min(len(rows), _MOST_PICTURES))):
        raise UnknownModel(f"model {model.name!r} recorded no such picture", got=repr(number))
    return _png(rows[int(number)][name][None], 1)


async def first_layer(
    runtime: Runtime, parameters: Mapping[str, str], header: Lines, body: bytes
) -> Answer:
    """The first convolution's maps of a PNG or JPEG, blue below zero and red above, as one PNG."""
    model = runtime.models.get(parameters["model"])
    model.check_ready()
    kind = header.get(b"content-type", b"")
    if kind not in (b"image/png", b"image/jpeg"):  # which no page of another origin may send
        raise WrongMediaType(
            "the body is no picture", got=repr(kind.decode("latin-1")), expected="image/png or jpeg"
        )
    return await asyncio.to_thread(_draw_maps, model, body)


def _draw_maps(model: Model, body: bytes) -> Answer:
    wanted = model.codec.image
    if wanted is None or len(model.signature.inputs) > 1:
        raise Unsupported(f"model {model.name!r} is not asked with one picture")
    found = feature_maps(
        model.bundle, {wanted.name: read_image(body, wanted, largest=model.largest_pixels)}
    )
    step = -(-max(found.maps.shape[1:]) // _LARGEST_MAP)
    maps = found.maps[:_MOST_MAPS, ::step, ::step]
    share = maps / (np.abs(maps).max() or 1.0)
    if not np.isfinite(share).all():
        raise BadInput("the first layer has no finite answer to this picture")
    # White is zero; a colour is as strong as the value is far from it.
    colours = np.stack([1 + share.clip(max=0), 1 - abs(share), 1 - share.clip(min=0)], 1)
    framed = np.pad(colours, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=0.5)
    columns = next(n for n in range(columns_of(len(maps)), 33) if len(maps) % n == 0)
    facts = f"{found.layer}: {len(maps)} of {len(found.maps)} maps of {_size(found.maps)}"
    return _png(framed, columns, ((b"fucina-layer", facts.encode("ascii", "replace")),))


def _size(maps: np.ndarray) -> str:
    return f"{maps.shape[1]} x {maps.shape[2]}"


def _describe(model: Model) -> dict[str, Any]:
    manifest, codec = model.bundle.manifest, model.codec
    return {
        "name": model.name,
        "version": model.version,
        "kind": manifest.kind,
        "title": manifest.title,
        "paper": manifest.paper,
        "target": model.target,
        "problem": model.problem,
        "codec": codec.model_dump(mode="json", exclude=_UNTOLD),
        "signature": model.signature.to_json(),
        "abilities": abilities(model),
        "latents": latent_input(model).shape[1] if codec.pictures else 0,
    }


@cache
def _files() -> Mapping[str, bytes]:
    """The page's files by name, read once."""
    folder = resources.files("serving") / "playground"
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.is_file() and entry.name.rpartition(".")[2] in _TYPES
    }


def _json(content: object) -> Answer:
    return Answer(orjson.dumps(content), headers=(_JSON, *_SAFE))


def _png(pictures: np.ndarray, columns: int, more: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    return Answer(grid_png(pictures, columns, 1), headers=(_PNG, *_SAFE, *more))
