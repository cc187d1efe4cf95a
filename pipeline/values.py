"""The values that flow from stage to stage: small, frozen, on disk, each naming its parent.

A value is a JSON file in a folder beside the files whose digests it holds. Its own digest is
that of the JSON, so a bundle can be walked back to weights, data and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.signature import Signature
from pipeline.artifacts import as_json, digest_json

# File names, the same in a stage's folder and in a bundle.
WEIGHTS = "weights.safetensors"
HISTORY = "history.json"
EVALUATION = "evaluation.json"
GALLERY = "gallery.safetensors"
EXHIBITS = "exhibits.safetensors"
CODEC = "codec.json"
MODEL = "model.onnx"
TRAINED_VALUE = "trained.json"
MODEL_VALUE = "onnx.json"
ENGINE_VALUE = "engine.json"
CERTIFICATE_VALUE = "certificate.json"
PARTS = "parts"  # a folder with a folder for each part

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TrainedModel(BaseModel):
    """`train`'s result: weights, codec, and what happened in training and on the test split.

    `data` has the data set's name, source, licence and digest, and `held_out` is false where no row
    could be kept from training; `layers` are the names of the parameter tensors from input to
    output; `intervals` are 95 % confidence intervals of `metrics`, `baselines` test metrics of
    reference models by name. history.json is a list of epochs: epoch, loss, learning_rate,
    gradient_norms by parameter, validation (loss and metrics). evaluation.json has the
    test split's metrics and rows and, of a classifier, classes, actual and predicted labels, their
    confidences where it gives any, and the rows whose inputs gallery.safetensors holds, as texts
    where they are text. Of a recipe with exhibits, exhibits.safetensors has these as uint8 [rows,
    columns, channels, height, width] by title, and the first row after some epochs.
    """

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    recipe: str
    settings: dict[str, Any]
    data: dict[str, str]
    parameters: int
    layers: tuple[str, ...]
    metrics: dict[str, float]
    floor: float | None
    best_epoch: int
    first_layer: str | None
    libraries: dict[str, str]
    files: dict[str, str]
    published: dict[str, Any] = {}
    held_out: bool = True
    intervals: dict[str, tuple[float, float]] = {}
    baselines: dict[str, float] = {}
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return digest_json(as_json(self))


class OnnxModel(BaseModel):
    """`export`'s result: model.onnx, the recorded cases and codec.json in `folder`.

    `parts` are the digests of its parts by name, each an `OnnxModel` of the same parent; see
    `pipeline.parts`.
    """

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    recipe: str
    parent: str
    signature: Signature
    opset: int
    exporter: str
    libraries: dict[str, str]
    files: dict[str, str]
    parts: dict[str, str] = {}

    @property
    def digest(self) -> str:
        return digest_json(as_json(self))


class Engine(BaseModel):
    """`optimize`'s result: what a backend built for one target, and how it must be opened."""

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    target: str
    parent: str
    signature: Signature
    options: dict[str, Any]
    built_on: dict[str, str]
    files: dict[str, str]
    parts: dict[str, str] = {}

    @property
    def digest(self) -> str:
        return digest_json(as_json(self))


class Limit(BaseModel):
    """How far one output may be from the fp64 module, as a share of its scale, and why."""

    model_config = _FROZEN

    scale: float
    noise_floor: float
    limit: float


class Finding(BaseModel):
    """One comparison: which check, at which sizes, on which output, how far, how far allowed."""

    model_config = _FROZEN

    check: str
    case: str
    sizes: dict[str, int]
    output: str
    error: float | None  # None: not a number, or there was nothing to compare
    limit: float
    passed: bool
    note: str = ""


class Certificate(BaseModel):
    """`verify`'s result: what one engine, by digest, was held against, and whether it passed."""

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    schema_version: int = 1
    recipe: str
    target: str
    part: str = ""  # of the model: none is the whole
    passed: bool
    engine: str  # digest of the Engine
    model: str  # digest of the OnnxModel
    subject: dict[str, str]  # the engine's files by sha256
    limits: dict[str, Limit]
    findings: tuple[Finding, ...]
    samples: dict[str, Any]
    requested: dict[str, Any]
    effective: dict[str, Any]
    failures: tuple[str, ...]
    not_run: tuple[str, ...]
    libraries: dict[str, str]
    parts: dict[str, str] = {}

    @property
    def label(self) -> str:
        return f"{self.target}, {self.part}" if self.part else self.target

    def __bool__(self) -> bool:
        """Passed, and nothing that it records says otherwise; nothing compared is a failure."""
        agreed = all(f.passed and f.error is not None for f in self.findings)
        return self.passed and bool(self.findings) and agreed and not self.failures

    @property
    def digest(self) -> str:
        return digest_json(as_json(self))
