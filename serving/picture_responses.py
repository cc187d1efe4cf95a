"""Responses of pictures and codes, typed; where a PNG is wanted its headers say the rest."""

from __future__ import annotations

import bentoml
from pydantic import BaseModel, Field

Values = list[list[list[float]]]


class PicturesResponse(bentoml.IODescriptor):
    """Pictures that were drawn; a PNG tells model, version and seed in `Fucina-` headers."""

    model: str
    version: str
    seed: int | None = Field(description="the same pictures again; null where nothing was drawn")
    classes: list[str] = Field(description="of each picture; empty for a model without classes")
    latent: list[list[float]] = Field(description="the code of each picture, for `/decode`")
    images: list[Values] = Field(description="[pictures, channels, height, width] in [0, 1]")


class EncodeResponse(bentoml.IODescriptor):
    """The code of each picture, without noise."""

    model: str
    version: str
    latent: list[list[float]] = Field(description="for `/decode` and `/traverse`")


class ReconstructResponse(bentoml.IODescriptor):
    """What each picture became; a PNG has each row of pictures above the row they became."""

    model: str
    version: str
    seed: int | None = Field(description="of the noise; null where there was none")
    images: list[Values] = Field(description="[pictures, channels, height, width] in [0, 1]")
    errors: list[float] = Field(description="of each picture, the mean squared error per pixel")


class TraverseResponse(bentoml.IODescriptor):
    """Pictures of one code with one latent changed at a time; a row of the PNG for each latent."""

    model: str
    version: str
    seed: int | None = Field(description="of the code; null where it was given")
    classes: list[str] = Field(description="the one drawn; empty for a model without classes")
    latent: list[float] = Field(description="the code that was changed")
    latents: list[int] = Field(description="which latent each row changes")
    values: list[float] = Field(description="what it becomes in each column")
    images: list[list[Values]] = Field(
        description="[latents, steps, channels, height, width] in [0, 1]"
    )


class Judged(BaseModel):
    """How unlike what the model has learned one picture is."""

    error: float
    anomalous: bool = Field(description="whether the error is above the threshold")


class AnomalyResponse(bentoml.IODescriptor):
    """Which pictures are unlike those that the model was trained on."""

    model: str
    version: str
    threshold: float
    pictures: list[Judged]
