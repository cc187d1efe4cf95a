"""The report: one HTML file of how a model was trained, how good it is, and its certificates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors import safe_open

from models.metrics import confusion
from models.recipe import Recipe
from models.signature import Signature
from pipeline import plots
from pipeline.card import measured, read_evaluation
from pipeline.filters import Filters, filters
from pipeline.page import words, write_page
from pipeline.parts import part
from pipeline.report_certificate import describe_certificate
from pipeline.report_samples import exhibits, is_picture, samples, written
from pipeline.report_speed import batches, candidates_plot, latency_plot
from pipeline.values import (
    HISTORY,
    WEIGHTS,
    Candidate,
    Certificate,
    OnnxModel,
    Refusal,
    TrainedModel,
)

_MOST_CLASSES = 26  # a larger confusion matrix is read as its commonest mistakes


@dataclass(frozen=True)
class ClassScore:
    """One class on the test split; None where nothing was predicted or nothing was there."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    rows: int


def write_report(
    recipe: Recipe,
    trained: TrainedModel,
    model: OnnxModel,
    certificates: Sequence[Certificate],
    path: Path,
    latency: Mapping[str, Any] | None = None,
    candidates: Mapping[str, Sequence[Candidate]] = MappingProxyType({}),
    refusals: Sequence[Refusal] = (),
) -> None:
    """Write one HTML file that needs nothing else; the same values give the same bytes.

    `candidates` are what was measured when an engine was chosen, by target.

    `latency` has the machine, its threads, a note, and rows of target, batch, eager_ms, engine_ms,
    ratio = eager_ms / engine_ms, and possibly the case.
    """
    parts = [(part(c, n), part(model, n).signature) for c in certificates for n in sorted(c.parts)]
    history = json.loads((trained.folder / HISTORY).read_bytes())
    evaluation = read_evaluation(trained)
    classes = evaluation.get("classes")
    counts = (
        confusion(np.array(evaluation["predicted"]), np.array(evaluation["actual"]), len(classes))
        if classes
        else None
    )
    metrics = measured(trained, evaluation)
    shown = exhibits(trained)
    write_page(
        "report.html.j2",
        path,
        recipe=recipe,
        trained=trained,
        model=model,
        signature=model.signature,
        metrics=metrics,
        evaluation_rows=evaluation["rows"],
        headline=next((m for m in metrics if m.name == recipe.metric), None),
        curves=_curves(history, recipe.metric, trained.best_epoch),
        norms=_gradient_norms(history, trained.layers),
        classes=classes,
        counts=counts,
        scores=_scores(classes, counts) if classes and counts is not None else [],
        mistakes=_mistakes(classes, counts) if classes and counts is not None else [],
        drawn_whole=bool(classes) and len(classes) <= _MOST_CLASSES,
        exhibits=shown,
        samples=[] if shown else samples(trained, evaluation, model.signature),
        legend=evaluation.get("legend"),
        written=written(trained, model),
        filters=_filters(trained, model.signature),
        certificates=[
            *(describe_certificate(c, model.signature) for c in certificates),
            *(describe_certificate(c, signature) for c, signature in parts),
        ],
        passed=bool(certificates) and all(certificates),
        lineage=_lineage(trained, model, [*certificates, *(c for c, _ in parts)]),
        latency=latency,
        candidates=[
            (target, several, batches(several), candidates_plot(target, several))
            for target, several in candidates.items()
            if several
        ],
        refusals=refusals,
        latency_plot=latency_plot(latency["rows"]) if latency else None,
    )


def _curves(history: list[dict[str, Any]], metric: str, best: int) -> list[Markup]:
    """The losses together, then one plot for each validation metric, the recipe's own first."""
    epochs = [entry["epoch"] for entry in history]
    mark = (best, f"best epoch {best}")
    loss = [entry["loss"] for entry in history]
    validation = {
        name: [e["validation"][name] for e in history] for name in history[0]["validation"]
    }
    validation_loss = validation.pop("loss")
    values = loss + validation_loss
    log = min(values) > 0 and max(values) > 20 * min(values)
    drawn = [
        plots.lines(
            "loss",
            {"train": (epochs, loss), "validation": (epochs, validation_loss)},
            f"Training and validation loss over {len(epochs)} epochs; best epoch {best}",
            xlabel="epoch",
            ylabel="loss (logarithmic)" if log else "loss",
            log_y=log,
            mark=mark,
        )
    ]
    for name in sorted(validation, key=lambda n: (n != metric, n)):
        if np.allclose(validation[name], validation_loss, rtol=1e-4):
            continue  # the loss under its other name
        drawn.append(
            plots.lines(
                f"metric {name}",
                {"validation": (epochs, validation[name])},
                f"Validation {name} over {len(epochs)} epochs; best epoch {best}",
                xlabel="epoch",
                ylabel=words(name),
                mark=mark,
            )
        )
    return drawn


def _gradient_norms(history: list[dict[str, Any]], names: Sequence[str]) -> Markup | None:
    """Each layer's gradient norm, over its weight and bias together, on a logarithmic axis."""
    layers: dict[str, np.ndarray] = {}
    for name in (name for name in names if name in history[0]["gradient_norms"]):
        layer = name.rpartition(".")[0] or name
        norms = np.array([entry["gradient_norms"][name] for entry in history])
        layers[layer] = np.hypot(layers.get(layer, 0.0), norms)
    if not any((norms > 0).any() for norms in layers.values()):
        return None
    common = len(_common_prefix(layers))
    epochs = [entry["epoch"] for entry in history]
    return plots.lines(
        "gradient norms",
        {layer[common:]: (epochs, norms.tolist()) for layer, norms in layers.items()},
        f"Mean gradient norm of {len(layers)} layers over {len(epochs)} epochs",
        xlabel="epoch",
        ylabel="gradient norm (logarithmic)",
        log_y=True,
        ordered=True,
    )


def _common_prefix(names: Iterable[str]) -> str:
    """The modules that all names start with, as `network.`."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0] + ".")
    return "".join(shared)


def _scores(classes: Sequence[str], counts: np.ndarray) -> list[ClassScore]:
    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    hits, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return [
        ClassScore(name, share(h, p), share(h, a), share(2 * h, a + p), a)
        for name, h, a, p in zip(
            classes, hits.tolist(), actual.tolist(), predicted.tolist(), strict=True
        )
    ]


def _mistakes(classes: Sequence[str], counts: np.ndarray) -> list[tuple[str, str, int]]:
    """The commonest mistakes as actual class, predicted class and how often."""
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    pairs = (divmod(int(i), len(classes)) for i in order)
    return [(classes[a], classes[p], int(wrong[a, p])) for a, p in pairs if wrong[a, p]]


def _filters(trained: TrainedModel, signature: Signature) -> Filters:
    """The first layer as pictures: kernels, or units over the pixels that they see."""
    name = trained.first_layer
    if name is None:
        return Filters("No parameter of this model is a matrix or a kernel, so none is drawn.")
    with safe_open(trained.folder / WEIGHTS, framework="numpy") as file:
        weights = np.asarray(file.get_tensor(name), np.float32)
    if weights.ndim == 2:
        for spec in signature.inputs:
            field = [size for size in spec.shape[2:] if isinstance(size, int)]
            grey = is_picture(spec) and spec.shape[1] == 1 and len(field) == 2
            if grey and field[0] * field[1] == weights.shape[1]:
                pixels = weights.reshape(-1, 1, *field)
                return filters(f"{name} over the pixels of {spec.name}", pixels)
    return filters(name, weights)


def _lineage(
    trained: TrainedModel, model: OnnxModel, certificates: Sequence[Certificate]
) -> list[tuple[str, str, str]]:
    """What was made, its digest, and what it was made from as far as the digests agree."""

    def made_from(what: str, recorded: str, actual: str) -> str:
        return what if recorded == actual else f"another {what}: {recorded}"

    links = [
        ("data", trained.data["digest"], ""),
        ("trained model", trained.digest, "data"),
        *(
            (name, digest, "part of trained model")
            for name, digest in sorted(trained.files.items())
        ),
        ("ONNX model", model.digest, made_from("trained model", model.parent, trained.digest)),
        *((n, digest, "part of ONNX model") for n, digest in sorted(model.files.items())),
    ]
    for value in certificates:
        engine = f"engine {value.target}"
        links.append((engine, value.engine, made_from("ONNX model", value.model, model.digest)))
        links += [(n, digest, f"part of {engine}") for n, digest in sorted(value.subject.items())]
        links.append((f"certificate {value.target}", value.digest, engine))
    return links
