"""The model card: its numbers are the artifacts', and it reads the same every time.

Small artifacts for these tests, and for those of the report, are built here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from models.recipe import Recipe, Training
from models.signature import Axis, Signature, TensorSpec
from pipeline.artifacts import digest_files, write_json
from pipeline.card import write_card
from pipeline.evaluation import wilson
from pipeline.values import (
    Certificate,
    Diagnosis,
    Drift,
    Edge,
    Finding,
    Limit,
    OnnxModel,
    Promise,
    Swallowed,
    TrainedModel,
)
from pipeline.wording import number, percent, times

BATCH = Axis("batch", 1, 2, 4)
IMAGE = TensorSpec("image", "float32", (BATCH, 1, 4, 4), 0.0, 1.0)
LOGITS = TensorSpec("logits", "float32", (BATCH, 3))
PICTURES = Signature((IMAGE,), (LOGITS,))
ACTUAL, PREDICTED = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]


def make_recipe(**changes: Any) -> Recipe:
    facts: dict[str, Any] = {
        "name": "tiny", "kind": "classification", "title": "Tiny", "paper": "Nobody 1900, Title",
        "network": lambda: None, "served": lambda network: network, "signature": lambda: PICTURES,
        "data": {"toy": lambda: None}, "loss": lambda o, t: None, "evaluate": lambda o, t: {},
        "metric": "accuracy", "floor": {"toy": 0.5}, "training": {"toy": Training()},
        "deviations": ("no bias, unlike the paper",),
    }  # fmt: skip
    return Recipe(**facts | changes)


def make_trained(
    folder: Path,
    *,
    classes: list[str] | None = None,
    epochs: int = 3,
    weights: np.ndarray | None = None,
    evaluation: dict[str, Any] | None = None,
    gallery: dict[str, np.ndarray] | None = None,
) -> TrainedModel:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    history = [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "gradient_norms": {"network.a.weight": 0.3 / epoch, "network.b.bias": 0.0},
            "validation": {"loss": 1.1 / epoch, "accuracy": 1 - 0.5 / epoch},
        }
        for epoch in range(1, epochs + 1)
    ]
    if evaluation is None:
        evaluation = {
            "metrics": {}, "rows": 6, "classes": classes or ["cat", "dog", "owl"],
            "actual": ACTUAL, "predicted": PREDICTED,
            "confidence": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "gallery": [0, 1, 5],
        }  # fmt: skip
    write_json(folder / "history.json", history)
    write_json(folder / "evaluation.json", evaluation)
    if gallery is None:
        gallery = {"image": random.random((3, 1, 4, 4), np.float32)}
    save_file(gallery, folder / "gallery.safetensors")
    if weights is None:
        weights = random.normal(size=(5, 16)).astype(np.float32)
    save_file({"network.a.weight": weights}, folder / "weights.safetensors")
    names = [path.name for path in folder.iterdir() if path.suffix != ".html"]
    return TrainedModel(
        folder=folder,
        recipe="tiny",
        settings={"epochs": epochs, "learning_rate": 0.001},
        data={"name": "toy", "source": "drawn here", "licence": "CC0", "digest": "d" * 64},
        published={"learning_rate": 0.01},
        held_out=True,
        parameters=1234,
        layers=("network.a.weight", "network.b.bias"),
        metrics={"accuracy": 4 / 6, "log_loss": 0.5},
        intervals={"accuracy": wilson(4, 6)},
        baselines={"a coin's accuracy": 1 / 3},
        remarks=("the rows were drawn by hand",),
        floor=0.5,
        best_epoch=epochs,
        first_layer="network.a.weight",
        libraries={"torch": "2.0"},
        files=digest_files(folder, names),
    )


def make_model(folder: Path, trained: TrainedModel, signature: Signature = PICTURES) -> OnnxModel:
    return OnnxModel(
        folder=folder, recipe="tiny", parent=trained.digest, signature=signature, opset=18,
        exporter="dynamo", libraries={"onnx": "1"}, files={"model.onnx": "0" * 64},
    )  # fmt: skip


def finding(
    check: str, case: str, output: str, error: float | None, limit: float = 1e-6, note: str = ""
) -> Finding:
    passed = error is not None and error <= limit
    return Finding(
        check=check, case=case, sizes={"batch": 2}, output=output, error=error, limit=limit,
        passed=passed, note=note,
    )  # fmt: skip


def promise(what: str, signature: str, **others: str | None) -> Promise:
    places: dict[str, str | None] = dict.fromkeys(("exporter", "graph", "engine", "profile"))
    return Promise(what=what, signature=signature, **places | {"service": signature} | others)


def make_certificate(folder: Path, outputs: tuple[str, ...] = ("logits",)) -> Certificate:
    found = []
    for name in outputs:
        found += [finding("samples", f"batch={n}", name, n * 1e-7) for n in (1, 2, 4)]
        found += [finding("edges", "zeros", name, 0.0), finding("twice", "batch=4", name, 0.0, 0.0)]
    return Certificate(
        folder=folder, recipe="tiny", target="ort-cpu-fp32", passed=True, engine="e" * 64,
        model="m" * 64, subject={"engine.onnx": "f" * 64},
        limits={name: Limit(scale=2.0, noise_floor=5e-8, limit=1e-6) for name in outputs},
        findings=tuple(found),
        samples={"held_out_cases": 3, "held_out_rows": 7, "edge_cases": ["zeros"]},
        requested={
            "device": "cpu", "precision": "fp32", "kept_in_fp32": [],
            "options": {"providers": ["CPU"]},
            "bounds": {"multiple": 16.0, "smallest": 1e-6, "ceiling": 1e-5},
        },
        effective={
            "devices": {"cpu": 1}, "precisions": {"fp32": 1}, "tf32": False,
            "nodes": [{"name": "n0", "operator": "Gemm", "device": "cpu", "precision": "fp32"}],
        },
        contract=(
            promise("tensor image", "float32[batch, 1, 4, 4]"), promise("axis batch", "1 to 4"),
        ),
        swallowed=(Swallowed(case="nan", output=outputs[0], module=0.0, engine=0.0),),
        drift=(), budget=(), failures=(), not_run=("task drift",),
        libraries={"onnxruntime": "1"},
    )  # fmt: skip


def failed(certificate: Certificate) -> Certificate:
    broken = (
        finding("samples", "batch=2", "logits", 3e-4),
        finding("samples", "batch=4", "logits", None, note="3 of 12 values are NaN or infinite"),
    )
    others = tuple(f for f in certificate.findings if f.case not in ("batch=2", "batch=4"))
    return certificate.model_copy(
        update={
            "passed": False,
            "findings": others + broken,
            "failures": ("samples: output 'logits' at batch=2: got error 3.0e-04",),
        }
    )


def told(folder: Path) -> Certificate:
    """A failed certificate that tells of everything that one can tell of."""
    edges = [
        ("fp64 module", "fp32 module", 5e-8, 5e-8),
        ("fp32 module", "graph", 0.0, 5e-8),
        ("graph", "engine", 3e-4, 3e-4),
        ("engine", "HTTP answer", None, None),
    ]
    return failed(make_certificate(folder)).model_copy(
        update={
            "contract": (
                promise("tensor image", "float32[batch, 4]", engine="float32[2, 4]"),
                promise("axis batch", "1 to 4", exporter="1 to 4"),
            ),
            "swallowed": (Swallowed(case="nan", output="logits", module=0.0, engine=1.0),),
            "drift": (
                Drift(
                    measure="class", output="logits", answers=540, changed=0.1,
                    interval=(0.08, 0.13), allowed=0.0, passed=False, ties=2, tie=2e-6,
                    measures={"accuracy": (0.97, 0.92, -0.07, -0.03)}, leads=(1e-7, 3e-7, 0.01),
                ),
            ),
            "budget": tuple(
                Edge(start=a, end=b, output="logits", error=e, total=t, limit=1e-6)
                for a, b, e, t in edges
            ),
            "diagnosis": Diagnosis(
                case="batch=2", node="conv1", operator="Conv", tensor="conv1_out", error=2e-4,
                inputs=("image",), note="tensor 'w' is not the graph's",
            ),
            "requested": {"precision": "fp32", "kept_in_fp32": ["conv1", "fc"]},
        }
    )  # fmt: skip


def test_numbers_are_not_rounded_into_something_else() -> None:
    assert number(61706) == "61,706"
    assert number(0.002) == "0.002"
    assert number(1.2e-5) == "1.2e-05"
    assert times(1e-9) == "below 0.001"
    assert times(0.0) == "0"
    assert times(None) == "not a number"
    assert times(math.inf) == "inf"
    assert (percent(0.0), percent(1e-9), percent(1 - 1e-9), percent(1.0)) == (
        "0.00 %", "below 0.01 %", "above 99.99 %", "100.00 %",
    )  # fmt: skip


def test_card_says_what_the_artifacts_hold(tmp_path) -> None:
    trained = make_trained(tmp_path)
    path = tmp_path / "card.md"
    write_card(make_recipe(), trained, [make_certificate(tmp_path)], path)
    text = path.read_text()
    low, high = wilson(4, 6)
    assert f"| accuracy | 0.6667 | {100 * low:.2f} % to {100 * high:.2f} % | 6 |" in text
    assert "| log_loss | 0.5 | not computed | 6 |" in text
    assert r"| input | image | float32\[batch 1..4, 1, 4, 4\] | 0 to 1 |" in text
    assert "with 1,234 parameters" in text
    assert "Licence: CC0" in text
    assert "### ort-cpu-fp32: passed" in text
    assert "Not run: task drift" in text
    assert "fucina serve tiny" in text
    assert "- the rows were drawn by hand" in text
    assert "| a coin's accuracy | 0.3333 |" in text
    assert "| learning_rate | 0.01 | 0.001 |" in text
    assert "took no part in training" in text
    assert "- no bias, unlike the paper" in text
    assert str(tmp_path) not in text
    first = path.read_bytes()
    write_card(make_recipe(), make_trained(tmp_path / "again"), [make_certificate(tmp_path)], path)
    assert path.read_bytes() == first


def test_order_of_settings_does_not_change_the_card(tmp_path) -> None:
    trained = make_trained(tmp_path)
    turned = trained.model_copy(
        update={
            "settings": dict(reversed(trained.settings.items())),
            "metrics": dict(reversed(trained.metrics.items())),
        }
    )
    for name, value in (("a.md", trained), ("b.md", turned)):
        write_card(make_recipe(), value, [], tmp_path / name)
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()


def test_card_says_what_a_certificate_tells(tmp_path) -> None:
    write_card(make_recipe(), make_trained(tmp_path), [told(tmp_path)], tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert "- Shape contract: FAILED, not all places agree on tensor image" in text
    assert "- Task drift: FAILED, class of logits: 10.00 % of 540 answers changed" in text
    assert "- Error budget: logits: from fp64 module to fp32 module 5.0e-08, graph 0" in text
    assert "- Where: node 'conv1' (Conv) is the first to go another way" in text
    assert "kept in fp32: conv1, fc" in text


def test_failed_certificate_reads_failed(tmp_path) -> None:
    path = tmp_path / "card.md"
    write_card(make_recipe(), make_trained(tmp_path), [failed(make_certificate(tmp_path))], path)
    text = path.read_text()
    assert "### ort-cpu-fp32: FAILED" in text
    assert "ort-cpu-fp32: passed" not in text
    assert "Failure: samples: output 'logits' at batch=2" in text


def test_without_certificates_it_says_so(tmp_path) -> None:
    write_card(make_recipe(), make_trained(tmp_path), [], tmp_path / "card.md")
    assert "No engine of this model has a certificate." in (tmp_path / "card.md").read_text()


def test_hostile_text_does_not_become_markup(tmp_path) -> None:
    recipe = make_recipe(title="<script>alert(1)</script>", deviations=("a | b\n# heading",))
    write_card(recipe, make_trained(tmp_path), [], tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert r"\<script\>" in text
    assert r"- a \| b # heading" in text
    assert np.all([not line.startswith("# heading") for line in text.splitlines()])
