"""Answers that are right or wrong: the metric counts what greedy decoding really writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.codec import END, PADDING, START
from models.dates import dates, dates_and_numbers
from models.language import language_rows
from models.recipe import Recipe
from models.recurrence import advance, capacity, start
from models.signature import Arrays, Signature
from models.transformer_translate import TRANSFORMER_TRANSLATE, answering, exact_match

RECIPE = TRANSFORMER_TRANSLATE.on("embedded").override({"layers": 1, "size": 48, "inner": 96})


@torch.inference_mode()
def call(module: torch.nn.Module, inputs: Arrays) -> Arrays:
    answers = module.eval()(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in answers.items()}


def learn(recipe: Recipe, inputs: Arrays, targets: Arrays, steps: int) -> torch.nn.Module:
    """Enough steps on a few rows that some answers are right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = recipe.build().train()
    given, wanted = (
        {name: torch.from_numpy(array) for name, array in part.items()}
        for part in (inputs, targets)
    )
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.compute_loss(module(**given), wanted).backward()
        optimizer.step()
    return module


def write(module: torch.nn.Module, signature: Signature, source: np.ndarray) -> np.ndarray:
    """Greedy decoding from the mark of the start, token by token, until the tables are full."""
    states = start(signature, len(source))
    tokens = np.full((len(source), 1), START)
    written = []
    for _ in range(capacity(signature) or 0):
        answer = call(module, {"source": source, "tokens": tokens, **states})
        states = advance(signature, states, answer, 1)
        tokens = answer["logits"].argmax(-1)
        written.append(tokens)
    return np.concatenate(written, axis=1)


def test_exact_match_counts_what_greedy_decoding_writes() -> None:
    data = dates(question=40, answer=11)
    rows = slice(0, 48)
    inputs = {name: array[rows] for name, array in data.train.inputs.items()}
    targets = {name: array[rows] for name, array in data.train.targets.items()}
    module = learn(RECIPE, inputs, targets, steps=90)
    # Rows that were learned and rows that never were.
    inputs = {n: np.concatenate([a, data.test.inputs[n][rows]]) for n, a in inputs.items()}
    targets = {n: np.concatenate([a, data.test.targets[n][rows]]) for n, a in targets.items()}
    counts = language_rows(call(module, inputs), targets)
    right = counts["hits"] == counts["count"]
    written = write(module, RECIPE.make_signature(), inputs["source"])
    codec = answering(data).generation
    assert codec is not None
    for row, wanted, was_right in zip(written, targets["next"], right, strict=True):
        ends = np.flatnonzero(row == END)
        text = codec.tokens.decode(row[: ends[0]]) if len(ends) else None
        assert was_right == (text == codec.tokens.decode(wanted))
    assert 5 < right.sum() < 91, "right and wrong answers are both there"
    metrics = exact_match(counts, targets)
    assert metrics["exact_match"] == right.mean()
    assert metrics["exact_match"] < metrics["token_accuracy"] < 1


def test_an_answer_with_one_wrong_token_is_wrong() -> None:
    target = np.array([[5, 6, END, PADDING], [7, END, PADDING, PADDING]])
    logits = np.eye(10, dtype=np.float32)[np.where(target == PADDING, 9, target)] * 5
    outputs, targets = {"logits": logits}, {"next": target}
    assert exact_match(language_rows(outputs, targets), targets) == {
        "exact_match": 1.0,
        "token_accuracy": 1.0,
    }
    logits[0, 2] = np.eye(10)[8]
    assert exact_match(language_rows(outputs, targets), targets) == {
        "exact_match": 0.5,
        "token_accuracy": 0.8,
    }


@pytest.mark.parametrize("data", ["embedded", "full"])
def test_the_longest_pair_fits(data: str) -> None:
    """No pair of the set is left out for its length at the sizes that are set."""
    recipe = TRANSFORMER_TRANSLATE.on(data)
    dataset = recipe.load(data)
    whole = (dates if data == "embedded" else dates_and_numbers)(question=100, answer=100)
    for split, other in ((dataset.train, whole.train), (dataset.test, whole.test)):
        assert len(split) == len(other)
    recipe.check_fits(dataset, data)
