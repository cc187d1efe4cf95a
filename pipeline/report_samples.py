"""What a report shows of single rows: test rows as pictures or texts, and what a model writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from models.codec import END, Codec
from models.signature import Signature, TensorSpec
from pipeline import plots
from pipeline.cases import GREEDY, read_cases
from pipeline.evaluation import ACTUAL, PREDICTED, read_exhibits
from pipeline.values import CODEC, GALLERY, OnnxModel, TrainedModel


@dataclass(frozen=True)
class Written:
    """A text that the model went on with, or answered, by its likeliest token at each step."""

    given: str
    answer: str
    apart: bool  # the answer does not go on where what was given ends


@dataclass(frozen=True)
class Exhibit:
    """Pictures in rows and columns, as one picture."""

    title: str
    address: str
    width: int
    rows: int
    columns: int
    note: str = ""


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


def exhibits(trained: TrainedModel) -> list[Exhibit]:
    """What the recipe shows of the trained model, and how the first row of it came about."""
    found = read_exhibits(trained.folder)
    if found is None:
        return []
    titled, epochs, numbers = found
    shown = [_exhibit(title, pictures) for title, pictures in titled.items()]
    if len(numbers) > 1:
        note = f"after epochs {', '.join(map(str, numbers))}, from top to bottom"
        shown.insert(1, _exhibit(f"the first row of {next(iter(titled))}", epochs, note))
    return shown


def _exhibit(title: str, pictures: np.ndarray, note: str = "") -> Exhibit:
    address, width = plots.sheet(pictures)
    return Exhibit(title, address, width, len(pictures), pictures.shape[1], note)


def samples(
    trained: TrainedModel, evaluation: Mapping[str, Any], signature: Signature
) -> list[Sample]:
    """The gallery's rows, mistakes first; none when no input is a picture or text."""
    inputs = load_file(trained.folder / GALLERY)
    specs = [spec for spec in signature.inputs if spec.name in inputs and is_picture(spec)]
    shown = []
    texts = evaluation.get("texts")
    for place, row in enumerate(evaluation["gallery"] if specs or texts else ()):
        drawn = []
        for spec in specs:
            pixels = inputs[spec.name]
            low = float(pixels.min()) if spec.low is None else spec.low
            high = float(pixels.max()) if spec.high is None else spec.high
            drawn.append(plots.picture(pixels[place], low, high))
        if legend := evaluation.get("legend"):
            maps = (inputs[name][place] for name in (ACTUAL, PREDICTED))
            drawn += [plots.class_map(classes, list(legend.values())) for classes in maps]
        text = texts[place] if texts else ""
        sample = Sample(row, drawn, text)
        if classes := evaluation.get("classes"):
            actual, predicted = evaluation["actual"][row], evaluation["predicted"][row]
            sureness = evaluation["confidence"][row] if "confidence" in evaluation else None
            wrong = actual != predicted
            sample = Sample(row, drawn, text, classes[actual], classes[predicted], sureness, wrong)
        shown.append(sample)
    return sorted(shown, key=lambda sample: not sample.wrong)


def is_picture(spec: TensorSpec) -> bool:
    """Whether a tensor is [n, 1 or 3, h, w]."""
    return len(spec.shape) == 4 and spec.shape[1] in (1, 3)


def written(trained: TrainedModel, model: OnnxModel) -> list[Written]:
    """What the fp64 module wrote in the recorded greedy cases; none of a model that writes nothing.

    An answer to a question ends at its mark.
    """
    if model.signature.recurrence is None:
        return []
    wanted = Codec.model_validate_json((trained.folder / CODEC).read_bytes()).generation
    if wanted is None:
        return []
    reader = wanted.source or wanted.tokens
    found = []
    for case in read_cases(model.folder):
        if case.origin == GREEDY:
            given = case.inputs[reader.name].tolist()
            begun = case.inputs[wanted.tokens.name].tolist()
            ids = case.reference[wanted.tokens.name].tolist()
            if wanted.source is not None:
                ids = [some + more for some, more in zip(begun, ids, strict=True)]
                ids = [row[: row.index(END)] if END in row else row for row in ids]
            found += [
                Written(reader.decode(one), wanted.tokens.decode(other), wanted.source is not None)
                for one, other in zip(given, ids, strict=True)
            ]
    return found
