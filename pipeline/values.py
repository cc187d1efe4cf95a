"""The values that flow from stage to stage: small, frozen, on disk, each naming its parent.

A value is a JSON file in a folder beside the files whose digests it holds. Its own digest is
that of its JSON, so a bundle can be walked back to weights, data and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.signature import Signature
from pipeline.artifacts import digest_value

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
REFUSAL_VALUE = "refusal.json"
CANDIDATES = "candidates.json"
BUILD = "build.json"  # what a compiler says of its work, beside an engine
CERTIFICATE_VALUE = "certificate.json"
KIT = "kit"  # a folder that reproduces a failure, beside its certificate
PARTS = "parts"  # a folder with a folder for each part

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TrainedModel(BaseModel):
    """`train`'s result: weights, codec, and what happened in training and on the test split.

    `data` has the data set's name, source, licence and digest, and `held_out` is false where no row
    could be kept from training; `layers` are the names of the parameter tensors from input to
    output; `intervals` are 95 % confidence intervals of `metrics`, `baselines` test metrics of
    reference models by name; `processes` is how many trained it together. history.json is a list of
    epochs: epoch, loss, learning_rate, gradient_norms by parameter, validation (loss and metrics).
    evaluation.json has the
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
    processes: int = 1

    @property
    def digest(self) -> str:
        return digest_value(self)


class OnnxModel(BaseModel):
    """`export`'s result: model.onnx, the recorded cases and codec.json in `folder`.

    `declared` is each tensor as the graph declares it, `ranges` the sizes of each axis as the
    exporter understood them, None where it says nothing of them. `floors` are what lower precision
    costs the module itself, by rounding, output and origin, as a share of the output's scale; see
    `pipeline.floors`. `drift` is the greatest share of answers that lower precision may change.
    `spelled` translates, by tensor, how a graph that was not exported here declares it.
    `apart` are files by sha256 that stay here when the others go into a bundle. `parts` are the
    digests of its parts by name, each an `OnnxModel` of the same parent; see `pipeline.parts`.
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
    declared: dict[str, str] = {}
    spelled: dict[str, dict[str, str]] = {}
    ranges: dict[str, tuple[int, int]] | None = None
    floors: dict[str, dict[str, dict[str, float]]] = {}
    drift: float = 0.01
    apart: dict[str, str] = {}
    parts: dict[str, str] = {}

    @property
    def digest(self) -> str:
        return digest_value(self)


class Engine(BaseModel):
    """`optimize`'s result: what a backend built for one target, and how it must be opened.

    Where the target is of lower precision, `lowered` are the nodes that are computed in it, `kept`
    those that stayed in fp32, and `reasons` say of some why that was so from the start.
    """

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    target: str
    parent: str
    signature: Signature
    options: dict[str, Any]
    built_on: dict[str, str]
    files: dict[str, str]
    lowered: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    reasons: dict[str, str] = {}
    parts: dict[str, str] = {}

    @property
    def digest(self) -> str:
        return digest_value(self)


class Candidate(BaseModel):
    """One way to build or open an engine, measured beside the others in one run.

    `milliseconds` are the least a call by number of rows; `outcome` says why it was kept or not.
    `opened` is what opening it took, as far as its backend measures that: see `facts_of`.
    Times differ from run to run, so they are beside an engine and not in it: see CANDIDATES.
    """

    model_config = _FROZEN

    name: str
    precision: str
    options: dict[str, Any]
    milliseconds: dict[int, float]
    outcome: str
    kept: bool = False
    opened: dict[str, Any] = {}


class Refusal(BaseModel):
    """`optimize`'s result where an engine of a target is not worth having, and why."""

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    target: str
    parent: str
    why: str

    @property
    def digest(self) -> str:
        return digest_value(self)


class Limit(BaseModel):
    """How far one output may be from the fp64 module, as a share of its scale, and why.

    `edges` is the limit of edge cases where the module's own rounding costs more on these,
    `carried` below fp32 that of sequences whose state goes from call to call. `by_row` says what an
    error is: else the largest difference, there the root mean square of a row's.
    """

    model_config = _FROZEN

    scale: float
    noise_floor: float
    limit: float
    edges: float | None = None
    carried: float | None = None
    by_row: bool = False


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


class Promise(BaseModel):
    """What each place says of one tensor's shape or of one axis's sizes; they have to agree.

    None: that place says nothing of it.
    """

    model_config = _FROZEN

    what: str
    signature: str
    exporter: str | None
    graph: str | None
    engine: str | None
    profile: str | None
    service: str | None

    @property
    def agreed(self) -> bool:
        said = (self.exporter, self.graph, self.engine, self.profile, self.service)
        return all(text in (None, self.signature) for text in said)


class Swallowed(BaseModel):
    """What becomes of an input that is not a number: shares of that row's values that are finite.

    The service refuses such input; this is what the engine by itself does.
    """

    model_config = _FROZEN

    case: str
    output: str
    module: float
    engine: float


class Drift(BaseModel):
    """How far the answers to the task moved from the fp64 module's, over held-out rows.

    `changed` is the share of answers (rows, pixels, tokens, pairs) that the engine gives otherwise,
    with its 95 % interval, and `allowed` how much of that is. `measures` are what the task is
    measured by, each as the module's value, the engine's, and the 95 % interval of their
    difference. `ties` are further answers that changed and do not count, for the limit leaves open
    which of two is the better: those that led by at most `tie`. `leads` are the margins of all
    flips in the fp64 module, at most 1000, like `tie` as shares of the output's scale.
    """

    model_config = _FROZEN

    measure: str
    output: str
    answers: int
    changed: float
    interval: tuple[float, float]
    allowed: float
    passed: bool
    note: str = ""
    measures: dict[str, tuple[float, float, float, float]] = {}
    ties: int = 0
    tie: float = 0.0
    leads: tuple[float, ...] = ()


class Edge(BaseModel):
    """What one step of the way adds: the worst error over the output's scale, and its share.

    `total` is the error up to there against the fp64 module.
    """

    model_config = _FROZEN

    start: str
    end: str
    output: str
    error: float | None
    total: float | None
    limit: float


class Diagnosis(BaseModel):
    """Where an engine that failed first goes another way than its graph or module.

    `kind` is "values" of the first node that computes something else, "optimiser" of one that is
    right alone and wrong with its neighbours, "declared" of a tensor that is declared otherwise.
    `tensor` is the engine's, `inputs` are what the node reads that the reference computes too.
    """

    model_config = _FROZEN

    kind: str = "values"
    case: str
    node: str
    operator: str
    tensor: str
    error: float | None
    inputs: tuple[str, ...]
    note: str = ""


class Certificate(BaseModel):
    """`verify`'s result: what one engine, by digest, was held against, and whether it passed."""

    model_config = _FROZEN

    folder: Path = Field(exclude=True)
    schema_version: int = 2
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
    contract: tuple[Promise, ...]
    swallowed: tuple[Swallowed, ...]
    drift: tuple[Drift, ...]
    budget: tuple[Edge, ...]
    failures: tuple[str, ...]
    diagnosis: Diagnosis | None = None
    not_run: tuple[str, ...]
    libraries: dict[str, str]
    parts: dict[str, str] = {}

    @property
    def label(self) -> str:
        return f"{self.target}, {self.part}" if self.part else self.target

    def __bool__(self) -> bool:
        """Passed, and nothing that it records says otherwise; nothing compared is a failure."""
        agreed = all(f.passed and f.error is not None for f in self.findings)
        agreed = agreed and all(d.passed for d in self.drift)
        agreed = agreed and all(promise.agreed for promise in self.contract)
        return self.passed and bool(self.findings) and agreed and not self.failures

    @property
    def digest(self) -> str:
        return digest_value(self)
