"""What turns a person's request into named arrays, and named arrays back into an answer.

A recipe declares it, a bundle carries it as `codec.json`, the service follows it. Rounding and
formatting belong here, never in the graph.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ImageInput(BaseModel):
    """An uploaded picture becomes the float input `name`: grey or RGB, resized, in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    height: int
    width: int
    channels: int = 1


class Codec(BaseModel):
    """How requests are read and answers are said; empty means arrays in, arrays out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: ImageInput | None = None
    # `scores` names the output that holds one probability per class, in the order of `classes`.
    classes: tuple[str, ...] = ()
    scores: str | None = None
