"""The report: one HTML file of how a model was trained, how good it is, and its certificates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from safetensors import safe_open
from safetensors.numpy import load_file

from models.metrics import confusion
from models.recipe import Recipe
from models.signature import Signature, TensorSpec
from pipeline import plots
from pipeline.artifacts import write_bytes
from pipeline.card import interval, measured, number, percent, read_evaluation, span, times
from pipeline.compare import ratio, worst_ratio
from pipeline.values import (
    GALLERY,
    HISTORY,
    WEIGHTS,
    Certificate,
    Finding,
    OnnxModel,
    TrainedModel,
)

_MOST_CLASSES = 26  # a larger confusion matrix is read as its commonest mistakes

# What each law of pipeline.invariance says, for readers.
_LAWS = {
    "duplicate": "equal rows get equal answers wherever they stand",
    "permute": "the order of the rows does not matter",
    "neighbour": "a row's answer does not depend on the other rows",
    "split": "an answer does not depend on how rows are cut into batches",
    "twice": "a second call answers the same, to the bit",
    "reload": "a second session answers the same, to the bit",
}


@dataclass(frozen=True)
class ClassScore:
    """One class on the test split; None where nothing was predicted or nothing was there."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    rows: int


@dataclass(frozen=True)
class Sample:
    """One test row of the gallery, as pictures or text where its inputs are that."""

    row: int
    pictures: list[str]
    text: str = ""
    actual: str = ""
    predicted: str = ""
    confidence: float | None = None
    wrong: bool = False


def write_report(
    recipe: Recipe,
    trained: TrainedModel,
    model: OnnxModel,
    certificates: Sequence[Certificate],
    path: Path,
    latency: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML file that needs nothing else; the same values give the same bytes.

    `latency` has the machine, its threads, a note, and rows of target, batch, eager_ms, engine_ms,
    ratio = eager_ms / engine_ms, and possibly the case.
    """
    history = json.loads((trained.folder / HISTORY).read_bytes())
    evaluation = read_evaluation(trained)
    classes = evaluation.get("classes")
    counts = (
        confusion(np.array(evaluation["predicted"]), np.array(evaluation["actual"]), len(classes))
        if classes
        else None
    )
    metrics = measured(trained, evaluation)
    text = _PAGE.get_template("report.html.j2").render(
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
        samples=_samples(trained, evaluation, model.signature),
        filters=_filters(trained, model.signature),
        certificates=[_certificate(c, model.signature) for c in certificates],
        passed=bool(certificates) and all(certificates),
        lineage=_lineage(trained, model, certificates),
        latency=latency,
        latency_plot=_latency_plot(latency["rows"]) if latency else None,
    )
    write_bytes(path, text.encode())


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
                ylabel=_words(name),
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


def _samples(
    trained: TrainedModel, evaluation: Mapping[str, Any], signature: Signature
) -> list[Sample]:
    """The gallery's rows, mistakes first; none when no input is a picture or text."""
    inputs = load_file(trained.folder / GALLERY)
    specs = [spec for spec in signature.inputs if spec.name in inputs and _is_picture(spec)]
    samples = []
    texts = evaluation.get("texts")
    for place, row in enumerate(evaluation["gallery"] if specs or texts else ()):
        drawn = []
        for spec in specs:
            pixels = inputs[spec.name]
            low = float(pixels.min()) if spec.low is None else spec.low
            high = float(pixels.max()) if spec.high is None else spec.high
            drawn.append(plots.picture(pixels[place], low, high))
        text = texts[place] if texts else ""
        sample = Sample(row, drawn, text)
        if classes := evaluation.get("classes"):
            actual, predicted = evaluation["actual"][row], evaluation["predicted"][row]
            sureness = evaluation["confidence"][row] if "confidence" in evaluation else None
            wrong = actual != predicted
            sample = Sample(row, drawn, text, classes[actual], classes[predicted], sureness, wrong)
        samples.append(sample)
    return sorted(samples, key=lambda sample: not sample.wrong)


def _is_picture(spec: TensorSpec) -> bool:
    """Whether a tensor is [n, 1 or 3, h, w]."""
    return len(spec.shape) == 4 and spec.shape[1] in (1, 3)


def _filters(trained: TrainedModel, signature: Signature) -> plots.Filters:
    """The first layer as pictures: kernels, or units over the pixels that they see."""
    name = trained.first_layer
    if name is None:
        return plots.Filters(
            "No parameter of this model is a matrix or a kernel, so none is drawn."
        )
    with safe_open(trained.folder / WEIGHTS, framework="numpy") as file:
        weights = np.asarray(file.get_tensor(name), np.float32)
    if weights.ndim == 2:
        for spec in signature.inputs:
            field = [size for size in spec.shape[2:] if isinstance(size, int)]
            grey = _is_picture(spec) and spec.shape[1] == 1 and len(field) == 2
            if grey and field[0] * field[1] == weights.shape[1]:
                pixels = weights.reshape(-1, 1, *field)
                return plots.filters(f"{name} over the pixels of {spec.name}", pixels)
    return plots.filters(name, weights)


def _certificate(certificate: Certificate, signature: Signature) -> dict[str, Any]:
    """What the template shows of one certificate: its findings as tables, and their plot."""
    said = dict.fromkeys(f.output for f in certificate.findings)
    outputs = [spec.name for spec in signature.outputs]
    outputs += [name for name in {**certificate.limits, **said} if name not in outputs]
    tables = {
        "samples": _table(certificate.findings, outputs, {"samples"}),
        "edges": _table(certificate.findings, outputs, {"edges"}),
    }
    laws = {f.check for f in certificate.findings} - tables.keys()
    cases = tables["samples"] + tables["edges"]
    plot = None
    if cases:
        columns = zip(*(row for _, row in cases), strict=True)
        plot = plots.dots(
            f"errors {certificate.target}",
            [first.case for first, _ in cases],
            {
                name: [ratio(f) if f else math.nan for f in column]
                for name, column in zip(outputs, columns, strict=True)
            },
            f"Error over limit of {len(outputs)} outputs in {len(cases)} cases of "
            f"{certificate.target}; worst {times(worst_ratio(certificate.findings))}",
            xlabel="error / limit (logarithmic)",
        )
    return {
        "value": certificate,
        "passed": bool(certificate),
        "outputs": outputs,
        "limits": {n: certificate.limits[n] for n in outputs if n in certificate.limits},
        "worst": worst_ratio(certificate.findings),
        "failed": sum(not f.passed or ratio(f) is None for f in certificate.findings),
        "laws": _table(certificate.findings, outputs, laws),
        "plot": plot,
        **tables,
    }


def _table(
    findings: Sequence[Finding], outputs: Sequence[str], checks: set[str]
) -> list[tuple[Finding, list[Finding | None]]]:
    """A row for each check and case, as its first finding and then one for each output."""
    rows: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        if finding.check in checks:
            rows.setdefault((finding.check, finding.case), {})[finding.output] = finding
    return [(next(iter(r.values())), [r.get(name) for name in outputs]) for r in rows.values()]


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


def _latency_plot(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Milliseconds per call over the batch: PyTorch eager once, then each target.

    None when a batch was measured at several sizes of other axes, which one line cannot show.
    """
    if not rows or len({(row["target"], row["batch"]) for row in rows}) < len(rows):
        return None
    eager = {row["batch"]: row["eager_ms"] for row in rows}
    series = {"PyTorch eager": (sorted(eager), [eager[batch] for batch in sorted(eager)])}
    for target in dict.fromkeys(row["target"] for row in rows):
        own = sorted((row["batch"], row["engine_ms"]) for row in rows if row["target"] == target)
        series[target] = ([batch for batch, _ in own], [ms for _, ms in own])
    return plots.lines(
        "latency",
        series,
        f"Milliseconds per call of PyTorch eager and {len(series) - 1} engines over batch sizes",
        xlabel="batch (rows in one call)",
        ylabel="milliseconds per call (logarithmic)",
        log_x=True,
        log_y=True,
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


_PAGE = Environment(
    loader=PackageLoader("pipeline"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGE.filters.update(
    number=number,
    percent=percent,
    times=times,
    span=span,
    ratio=ratio,
    words=_words,
    interval=interval,
)
_PAGE.globals.update(laws=_LAWS)
