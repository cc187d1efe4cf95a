"""Four small bundles made without torch, and one server over all for the whole session."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from models.codec import Codec, ImageInput, TextInput
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.artifacts import digest_files, save, write_json
from pipeline.bundle import CASES, ENGINES, MANIFEST, Bundle, Manifest, open_bundle
from pipeline.cases import CASES_FILE, Case, make_inputs, write_cases
from pipeline.optimize import optimize
from pipeline.values import CODEC, MODEL, MODEL_VALUE, Engine, OnnxModel
from pipeline.verify import verify
from serving.launch import Server, serve
from serving.predictor import Models
from serving.settings import Settings
from serving.telemetry import Telemetry

# On import BentoML uses a deprecated name of a dependency, and Starlette's client deprecates httpx.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    importlib.import_module("serving.classification")
    importlib.import_module("starlette.testclient")

TARGET = "ort-cpu-fp32"
CLASSES = tuple("0123456789")
BATCH = Axis("batch", 1, 8, 64)
DIGITS = Signature(
    inputs=(TensorSpec("image", "float32", (BATCH, 1, 28, 28), 0.0, 1.0),),
    outputs=(
        TensorSpec("logits", "float32", (BATCH, 10)),
        TensorSpec("probabilities", "float32", (BATCH, 10)),
    ),
)
LENGTH = Axis("length", 2, 4, 6)
PAIR = Signature(
    inputs=(
        TensorSpec("left", "float32", (BATCH, LENGTH), -1.0, 1.0),
        TensorSpec("right", "int64", (BATCH, LENGTH), 0.0, 9.0),
    ),
    outputs=(
        TensorSpec("total", "float32", (BATCH, LENGTH)),
        TensorSpec("count", "int64", (BATCH, LENGTH)),
    ),
)
TEXT = TextInput(name="tokens", vocabulary=("free", "win", "call", "see", "you"), longest=6)
WORDS = Signature(
    inputs=(TensorSpec("tokens", "int64", (BATCH, Axis("length", 1, 4, 6)), 0, TEXT.largest),),
    outputs=(
        TensorSpec("logits", "float32", (BATCH, 2)),
        TensorSpec("probabilities", "float32", (BATCH, 2)),
    ),
)
LEVEL = Signature(
    inputs=(TensorSpec("features", "float32", (BATCH, 3), -1.0, 1.0),),
    outputs=(TensorSpec("value", "float32", (BATCH, 1)),),
)
RANDOM = np.random.default_rng(7)
WEIGHT = RANDOM.normal(0, 0.1, (784, 10)).astype(np.float32)
BIAS = RANDOM.normal(0, 0.1, 10).astype(np.float32)
# What each token adds to the two logits: padding nothing, so that its amount changes nothing.
TABLE = np.array([[0, 0], [0.1, 0], [0, 2], [0, 3], [0, 1], [2, 0], [1, 0]], np.float32)
SLOPE = np.array([[2], [1], [-3]], np.float32)


def models_of(*bundles: Bundle) -> Models:
    """These bundles as a server has them before it loads them."""
    models = Models(Settings(queue=8), Telemetry())
    for bundle in bundles:
        models.add(bundle)
    return models


def _classified(logits: np.ndarray) -> Arrays:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return {"logits": logits, "probabilities": powers / powers.sum(1, keepdims=True)}


def _digits(inputs: Arrays, dtype: Any) -> Arrays:
    rows = inputs["image"].astype(dtype).reshape(len(inputs["image"]), -1)
    return _classified(rows @ WEIGHT.astype(dtype) + BIAS.astype(dtype))


def _pair(inputs: Arrays, dtype: Any) -> Arrays:
    right = inputs["right"]
    return {"total": inputs["left"].astype(dtype) + right.astype(dtype), "count": right + right}


def _words(inputs: Arrays, dtype: Any) -> Arrays:
    return _classified(TABLE.astype(dtype)[inputs["tokens"]].sum(1))


def _level(inputs: Arrays, dtype: Any) -> Arrays:
    return {"value": inputs["features"].astype(dtype) @ SLOPE.astype(dtype)}


def _digits_graph() -> list[Any]:
    return [
        helper.make_node("Flatten", ["image"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]


def _pair_graph() -> list[Any]:
    return [
        helper.make_node("Cast", ["right"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["left", "real"], ["total"]),
        helper.make_node("Add", ["right", "right"], ["count"]),
    ]


def _words_graph() -> list[Any]:
    return [
        helper.make_node("Gather", ["table", "tokens"], ["each"]),
        helper.make_node("ReduceSum", ["each", "over"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]


def _level_graph() -> list[Any]:
    return [helper.make_node("MatMul", ["features", "slope"], ["value"])]


def _write_graph(path: Path, signature: Signature, nodes: list[Any]) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, shape)

    arrays = {
        "weight": WEIGHT, "bias": BIAS, "table": TABLE, "over": np.array([1]), "slope": SLOPE,
    }  # fmt: skip
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [declare(spec) for spec in signature.inputs],
        [declare(spec) for spec in signature.outputs],
        [weight for weight in weights if weight.name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def write_manifest(folder: Path, **changes: Any) -> None:
    """A manifest that vouches for what lies in `folder` now."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    facts: dict[str, Any] = {
        "name": "digits", "version": "1", "kind": "classification", "title": "", "paper": "",
        "signature": DIGITS, "lineage": {}, "data": {}, "metrics": {}, "libraries": {},
        "engines": (TARGET,), "files": digest_files(folder, sorted(set(names) - {MANIFEST})),
    }  # fmt: skip
    save(Manifest(**facts | changes), folder, MANIFEST)


def record_cases(
    signature: Signature, samples: Arrays, answer: Callable[[Arrays, Any], Arrays]
) -> list[Case]:
    """Cases with a formula's answers in fp32 and fp64, to inputs that are no numbers as well."""
    with np.errstate(all="ignore"):
        return [
            Case(
                c.name, c.origin, c.sizes, c.inputs, answer(c.inputs, "f4"), answer(c.inputs, "f8")
            )
            for c in make_inputs(signature, samples)
        ]  # fmt: skip


def write_model(
    folder: Path, name: str, signature: Signature, cases: list[Case], codec: Codec, **facts: Any
) -> OnnxModel:
    """What an export leaves beside the graph that lies in `folder`."""
    write_cases(cases, folder)
    write_json(folder / CODEC, codec.model_dump(mode="json"))
    return OnnxModel(
        folder=folder, recipe=name, parent="", signature=signature, opset=18, exporter="test",
        libraries={}, files=digest_files(folder, [MODEL, CASES_FILE, CODEC]),
        declared={spec.name: spec.declared() for spec in (*signature.inputs, *signature.outputs)},
        **facts,
    )  # fmt: skip


def make_bundle(
    folder: Path,
    name: str,
    signature: Signature,
    nodes: list[Any],
    codec: Codec,
    answer: Callable[[Arrays, Any], Arrays],
) -> Path:
    stage, out = folder / f"{name}-stage", folder / name
    engine_folder = out / ENGINES / TARGET
    for path in (stage, out / CASES, engine_folder):
        path.mkdir(parents=True)
    _write_graph(stage / MODEL, signature, nodes)
    samples = {
        "image": RANDOM.random((80, 1, 28, 28), np.float32),
        "left": RANDOM.uniform(-1, 1, (80, 6)).astype(np.float32),
        "right": RANDOM.integers(0, 9, (80, 6)),
        "tokens": RANDOM.integers(0, TEXT.largest + 1, (80, 6)),
        "features": RANDOM.uniform(-1, 1, (80, 3)).astype(np.float32),
    }
    model = write_model(stage, name, signature, record_cases(signature, samples, answer), codec)
    engine = optimize(model, TARGET, engine_folder)
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, engine_folder)
    assert certificate, certificate.failures
    save(model, out, MODEL_VALUE)
    shutil.copy(stage / MODEL, out / MODEL)
    shutil.copy(stage / CASES_FILE, out / CASES / CASES_FILE)
    shutil.copy(stage / CODEC, out / CODEC)
    write_manifest(out, name=name, signature=signature)
    return out


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that classifies 28 x 28 grey images into ten digits."""
    codec = Codec(
        image=ImageInput(name="image", height=28, width=28), classes=CLASSES, scores="probabilities"
    )
    folder = tmp_path_factory.mktemp("digits")
    return make_bundle(folder, "digits", DIGITS, _digits_graph(), codec, _digits)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two inputs and two outputs, with a second varying axis and no classes."""
    folder = tmp_path_factory.mktemp("pair")
    return make_bundle(folder, "pair", PAIR, _pair_graph(), Codec(), _pair)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads plain text, and says whether it is an offer."""
    codec = Codec(text=TEXT, classes=("chat", "offer"), scores="probabilities")
    folder = tmp_path_factory.mktemp("words")
    return make_bundle(folder, "words", WORDS, _words_graph(), codec, _words)


@pytest.fixture(scope="session")
def level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that answers one number a row."""
    folder = tmp_path_factory.mktemp("level")
    codec = Codec(values="value", unit="mg/dl")
    return make_bundle(folder, "level", LEVEL, _level_graph(), codec, _level)


# What a serving process must never load.
FORBIDDEN = ("torch", "onnx", "prefect", "sklearn", "matplotlib")


@pytest.fixture(scope="package")
def forbidden_imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that names each forbidden package which a server of these tests imported."""
    folder = tmp_path_factory.mktemp("forbidden")
    seen = folder / "imported.txt"
    for name in FORBIDDEN:
        line = (
            f"open({str(seen)!r}, 'a').write('{name} '); raise ImportError('{name} is forbidden')"
        )
        (folder / f"{name}.py").write_text(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield seen


@pytest.fixture(scope="package")
def server(
    digits: Path, pair: Path, words: Path, level: Path, forbidden_imports: Path
) -> Iterator[Server]:
    with serve([digits, pair, words, level], port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def session(digits: Path) -> Any:
    """The engine of `digits`, open here, to compare the server's answers with."""
    return open_bundle(digits).open_engine(TARGET)


@pytest.fixture
def images() -> np.ndarray:
    return RANDOM.random((3, 1, 28, 28), np.float32)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def assert_alive(http: httpx.Client) -> None:
    """A good request is answered, whatever was asked before it."""
    image = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
    answer = http.post("/v2/models/digits/infer", json={"inputs": [image]})
    assert answer.status_code == 200


@pytest.fixture(scope="module")
def packaged(level: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle with a plan of the machine "old"."""
    from tests.serving.plans import add_plan, registered  # which builds on what is here

    folder = tmp_path_factory.mktemp("planned")
    with registered(folder, "old"):
        yield open_bundle(add_plan(level, folder))


@pytest.fixture
def moved(packaged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle on another machine, whose cache is empty."""
    from tests.serving.plans import MACHINE, OPENED

    monkeypatch.setenv(MACHINE, "new")
    monkeypatch.setenv(OPENED, str(tmp_path / "opened.txt"))
    return packaged
