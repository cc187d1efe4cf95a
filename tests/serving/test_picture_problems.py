"""A codec that does not fit its graphs is refused before anybody is served by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.codec import Anomaly, Codec, ImageInput, Pictures
from models.errors import BundleError
from models.signature import Axis, Signature, TensorSpec
from serving.opening import open_bundles
from serving.picture_problems import picture_problem
from tests.serving.conftest import write_manifest
from tests.serving.generative_bundle import (
    BATCH,
    CODER,
    DRAWER,
    FINDER,
    LATENT,
    Coded,
    make_bundle,
)

WIDE = TensorSpec("latent", "float32", (BATCH, Axis("length", 1, 2, 3)))
SMALL = (TensorSpec("x", "float32", (Axis("batch", 1, 2, 4), 1)),)


def problem(coded: Coded, changes: dict[str, Any] | None = None, **pictures: Any) -> object:
    codec, parts = coded.codec, {name: graph.signature for name, graph in coded.parts.items()}
    if pictures and codec.pictures:
        codec = codec.model_copy(update={"pictures": codec.pictures.model_copy(update=pictures)})
    return picture_problem(codec.model_copy(update=changes or {}), coded.whole.signature, parts)


@pytest.mark.parametrize("coded", [CODER, FINDER, DRAWER])
def test_what_fits_has_no_problem(coded: Coded) -> None:
    assert problem(coded) is None


def test_a_model_that_draws_nothing_has_no_problem() -> None:
    assert picture_problem(Codec(), CODER.whole.signature, {}) is None


@pytest.mark.parametrize(
    ("coded", "pictures", "said"),
    [
        (CODER, {"decoder": "painter"}, "draws with the part 'painter'"),
        (CODER, {"latent": "code"}, "reads codes into 'code'"),
        (CODER, {"drawn": "picture"}, "draws 'picture'"),
        (CODER, {"decoder": ""}, "reads codes into 'latent'"),  # which the whole answers
        (CODER, {"label": "label"}, "reads classes into 'label'"),
        (CODER, {"encoder": None}, "names an encoder or a code alone"),
        (CODER, {"code": None}, "names an encoder or a code alone"),
        (CODER, {"encoder": "reader"}, "encodes with the part 'reader'"),
        (CODER, {"code": "codes"}, "reads codes off 'codes'"),
        (CODER, {"encoder": "", "code": "error"}, "reads codes off 'error'"),
        (CODER, {"reconstruction": "copy"}, "reconstructs 'copy'"),
        (CODER, {"reconstruction": "mean"}, "reconstructs 'mean'"),
        (DRAWER, {"label": None}, "leaves inputs out"),
        (DRAWER, {"reconstruction": "image"}, "reads pictures"),
    ],
)
def test_pictures_that_no_graph_makes(coded: Coded, pictures: dict[str, Any], said: str) -> None:
    found = problem(coded, **pictures)
    assert isinstance(found, tuple)
    assert said == found[0]


@pytest.mark.parametrize(
    ("coded", "changes", "said"),
    [
        (CODER, {"noise": ("latent", "dust")}, "draws the noise 'dust'"),
        (DRAWER, {"noise": ("latent", "label")}, "draws the noise 'label'"),
        (CODER, {"noise": ("latent",)}, "leaves inputs out"),  # the encoder's noise
        (CODER, {"block": 65}, "asks in blocks"),
        (CODER, {"image": None}, "reads pictures"),
        (CODER, {"image": ImageInput(name="image", height=28, width=27)}, "reads pictures"),
        (CODER, {"image": ImageInput(name="photo", height=28, width=28)}, "reads pictures"),
        (DRAWER, {"classes": ("disc", "ring")}, "reads classes into 'label'"),
        (FINDER, {"anomaly": Anomaly(error="wrong", threshold=1)}, "tells anomalies by 'wrong'"),
        (FINDER, {"anomaly": Anomaly(error="latent", threshold=1)}, "tells anomalies by 'latent'"),
        (FINDER, {"anomaly": Anomaly(error="error", threshold=float("nan"))}, "has a threshold"),
        (DRAWER, {"anomaly": Anomaly(error="image", threshold=1)}, "tells anomalies by 'image'"),
    ],
)
def test_a_codec_of_other_inputs_than_there_are(
    coded: Coded, changes: dict[str, Any], said: str
) -> None:
    found = problem(coded, changes)
    assert isinstance(found, tuple)
    assert said == found[0]


def test_noise_and_codes_are_of_one_size() -> None:
    whole = Signature((WIDE,), (TensorSpec("image", "float32", (BATCH, 1, 8, 8)),))
    pictures = Pictures(latent="latent", drawn="image")
    for codec in (Codec(noise=("latent",)), Codec(pictures=pictures)):
        assert picture_problem(codec, whole, {}) is not None
    fixed = replace(whole, inputs=(LATENT,))
    for codec in (Codec(noise=("latent",)), Codec(pictures=pictures)):
        assert picture_problem(codec, fixed, {}) is None


def test_a_block_fits_every_part() -> None:
    part = Signature(SMALL, (TensorSpec("y", "float32", SMALL[0].shape),))
    whole = CODER.whole.signature
    assert picture_problem(Codec(block=8), whole, {"part": part}) is not None
    assert picture_problem(Codec(block=4), whole, {"part": part}) is None


def test_a_bundle_with_such_a_codec_is_not_opened(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, "coder", CODER)
    codec = json.loads((folder / "codec.json").read_bytes())
    codec["pictures"]["code"] = "latents"
    (folder / "codec.json").write_text(json.dumps(codec))
    write_manifest(
        folder, name="coder", kind="generative", signature=CODER.whole.signature,
        parts={name: graph.signature for name, graph in CODER.parts.items()},
    )  # fmt: skip
    with pytest.raises(BundleError, match="its codec reads codes off 'latents': expected an"):
        open_bundles([folder])
