"""The decoder with its tables: any cut decodes alike, and nothing else in a table matters."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from models.corpus import IDS
from models.datasets import Dataset
from models.layers import inspect
from models.recipe import Recipe
from models.recurrence import advance, capacity, start
from models.signature import BATCH, Arrays, Signature
from models.transformer import TRANSFORMER
from models.transformer_classifier import TRANSFORMER_CLASSIFIER
from models.transformer_translate import TRANSFORMER_TRANSLATE
from pipeline.artifacts import write_json
from pipeline.compare import relative_error
from pipeline.export import export
from pipeline.train import load_module
from pipeline.values import CODEC, MODEL, WEIGHTS, TrainedModel

SMALL = {"layers": 2, "size": 24, "heads": 3, "inner": 40}
RECIPES = {
    recipe.name: recipe.on("embedded").override(changes)
    for recipe, changes in (
        (TRANSFORMER, {**SMALL, "window": 24}),
        (TRANSFORMER_CLASSIFIER, {**SMALL, "vocabulary": 64, "longest": 20}),
        (TRANSFORMER_TRANSLATE, SMALL),
    )
}
DECODERS = ["transformer", "transformer-translate"]


def build(recipe: Recipe, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return recipe.build().eval()


@cache
def exact(name: str, norm_first: bool = False) -> nn.Module:
    """The recipe's module with initial weights in fp64."""
    return build(RECIPES[name].override({"norm_first": norm_first})).double()


@torch.inference_mode()
def call(module: nn.Module, inputs: Arrays) -> Arrays:
    answers = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in answers.items()}


def begin(signature: Signature, rows: int) -> Arrays:
    states = start(signature, rows)
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in states.items()}


def draw(signature: Signature, rows: int, random: np.random.Generator) -> Arrays:
    """Tokens until the tables are full, and a question where there is one."""
    lengths = {"tokens": capacity(signature) or 0, "source": 17}
    return {
        spec.name: random.integers(3, int(spec.high or 0) + 1, (rows, lengths[spec.name]))
        for spec in signature.inputs
        if spec.name in lengths
    }


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("norm_first", [False, True])
@settings(max_examples=25)
@given(cuts=st.sets(st.integers(1, 23)), seed=st.integers(0, 99))
def test_decoding_in_any_calls_equals_decoding_at_once(
    name: str, norm_first: bool, cuts: set[int], seed: int
) -> None:
    signature, module = RECIPES[name].make_signature(), exact(name, norm_first)
    random = np.random.default_rng(seed)
    inputs = draw(signature, 2, random)
    tokens = inputs["tokens"]
    length = tokens.shape[1]
    whole = call(module, inputs)
    states = begin(signature, 2)
    for table in states:
        if table != "position":  # what is not written is never read
            states[table][:] = random.normal(size=states[table].shape) * 1e4
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    for first, last in itertools.pairwise(edges):
        part = call(module, {**inputs, "tokens": tokens[:, first:last], **states})
        assert part.keys() == whole.keys()
        for output, array in part.items():
            steps = whole[output].take(range(first, last), axis=1 if output == "logits" else 2)
            np.testing.assert_allclose(array, steps, rtol=1e-8, atol=1e-10)
        states = advance(signature, states, part, last - first)
    assert (states["position"] == length).all()


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=25)
@given(places=st.lists(st.integers(0, 10), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_each_row_has_a_place_of_its_own(name: str, places: list[int], seed: int) -> None:
    """A row says among others, each at another place, what it says alone."""
    signature, module = RECIPES[name].make_signature(), exact(name)
    random = np.random.default_rng(seed)
    inputs = draw(signature, len(places), random)
    inputs["tokens"] = inputs["tokens"][:, :1]
    states = begin(signature, len(places))
    for table in states:
        if table != "position":
            states[table][:] = random.normal(size=states[table].shape)
    states["position"] = np.array(places)
    together = call(module, inputs | states)
    for row in range(len(places)):
        alone = call(module, {n: a[row : row + 1] for n, a in (inputs | states).items()})
        for output, array in alone.items():
            np.testing.assert_allclose(together[output][row], array[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DECODERS)
def test_nothing_is_read_ahead_and_all_before_is(name: str) -> None:
    signature, module = RECIPES[name].make_signature(), exact(name)
    inputs = draw(signature, 1, np.random.default_rng(0))
    before = call(module, inputs)["logits"]
    changed = inputs["tokens"].copy()
    changed[0, 5] = 3 + (changed[0, 5] - 2) % 7
    after = call(module, inputs | {"tokens": changed})["logits"]
    assert (before[:, :5] == after[:, :5]).all()
    assert (np.abs(before - after)[0, 5:].max(1) > 1e-6).all()


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_decoding_with_tables_writes_what_full_decoding_writes(name: str) -> None:
    signature, module = RECIPES[name].make_signature(), exact(name)
    inputs = draw(signature, 3, np.random.default_rng(1))
    full = inputs["tokens"][:, :2]
    states, step = begin(signature, 3), full
    for _ in range((capacity(signature) or 0) - 2):
        answer = call(module, {**inputs, "tokens": step, **states})
        states = advance(signature, states, answer, step.shape[1])
        step = answer["logits"][:, -1:].argmax(-1)
        best = call(module, inputs | {"tokens": full})["logits"][:, -1:].argmax(-1)
        assert (step == best).all()
        full = np.concatenate([full, best], axis=1)


@settings(max_examples=25)
@given(extra=st.integers(0, 13), length=st.integers(0, 7), seed=st.integers(0, 99))
def test_padding_never_changes_a_class(extra: int, length: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(1, 64, (2, length))
    short = np.pad(tokens, ((0, 0), (0, max(1 - length, 0))))
    module = exact("transformer-classifier")
    alone = call(module, {"tokens": short})
    padded = call(module, {"tokens": np.pad(short, ((0, 0), (0, extra)))})
    for output, array in alone.items():
        np.testing.assert_allclose(padded[output], array, rtol=1e-9, atol=1e-11)


@settings(max_examples=25)
@given(extra=st.integers(1, 20), length=st.integers(0, 9), seed=st.integers(0, 99))
def test_padding_never_changes_a_question(extra: int, length: int, seed: int) -> None:
    inputs = draw(RECIPES["transformer-translate"].make_signature(), 2, np.random.default_rng(seed))
    source = np.pad(inputs["source"][:, :length], ((0, 0), (0, max(1 - length, 0))))
    module = exact("transformer-translate")
    alone = call(module, inputs | {"source": source})
    longer = np.pad(source, ((0, 0), (0, extra)))
    padded = call(module, inputs | {"source": longer})
    for output, array in alone.items():
        np.testing.assert_allclose(padded[output], array, rtol=1e-8, atol=1e-10)


def write(recipe: Recipe, folder: Path) -> Callable[[Arrays], Arrays]:
    """Export the recipe with its initial weights, and open the graph."""
    for part in ("trained", "onnx"):
        (folder / part).mkdir(parents=True)
    module = build(recipe)
    save_file(module.state_dict(), folder / "trained" / WEIGHTS)
    trained = TrainedModel(
        folder=folder / "trained", recipe=recipe.name, settings={}, data={}, parameters=0,
        layers=(), metrics={}, floor=0, best_epoch=1, first_layer=None, libraries={}, files={},
    )  # fmt: skip
    dataset: Dataset = recipe.load("embedded")
    codec = recipe.make_codec(dataset).model_dump(mode="json")
    write_json(folder / "trained" / CODEC, codec)
    export(recipe, dataset, trained, folder / "onnx")
    assert load_module(recipe, trained).state_dict().keys() == module.state_dict().keys()
    session = ort.InferenceSession(str(folder / "onnx" / MODEL), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: {
        name: np.asarray(array)
        for name, array in zip(names, session.run(names, dict(inputs)), strict=True)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_graph_is_right_at_every_size_and_when_it_is_exported_twice(
    name: str, tmp_path: Path
) -> None:
    recipe = RECIPES[name].override({"layers": 1})
    signature, module = recipe.make_signature(), build(recipe)
    random = np.random.default_rng(0)
    for attempt in ("first", "second") if name == "transformer" else ("first",):
        run = write(replace(recipe, name=f"{name}-{attempt}"), tmp_path / attempt)
        for rows in (1, 2, 7, signature.axes[BATCH].max):
            for length in (1, 2, signature.axes["length"].max // 2 | 1, None):
                sizes = {a.name: length or a.max for a in signature.axes.values()}
                inputs: Arrays = {}
                for spec in signature.inputs:
                    shape = spec.at(sizes | {BATCH: rows})
                    inputs[spec.name] = (
                        random.normal(size=shape).astype(np.float32)
                        if spec.floating
                        else random.integers(int(spec.low or 0), int(spec.high or 0) + 1, shape)
                    )
                expected = call(module, inputs)
                for output, array in run(inputs).items():
                    scale = float(np.abs(expected[output]).max())
                    error = relative_error(array, expected[output], scale)
                    assert error is not None
                    assert error < 1e-5


def test_the_published_size_is_the_papers() -> None:
    """Layers of the paper's encoder, which has no attention to a memory: 3,152,384 each."""
    inspection = inspect(TRANSFORMER)
    assert inspection.parameters == 6 * 3_152_384 + IDS * 512
    assert inspect(TRANSFORMER_TRANSLATE).parameters > 44_138_496
