"""Training over a text that is longer than a row: in which order rows are read, what is carried."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.corpus import text_dataset
from models.errors import BadSetting
from models.gru import GRU
from models.signature import Arrays
from models.zoo import ZOO
from pipeline.batches import measure, streams
from pipeline.train import train

TINY = {"embedding": 4, "hidden": 8, "layers": 1, "window": 6, "floor": "none"}


@given(count=st.integers(1, 60), most=st.integers(1, 20))
def test_each_stream_is_read_in_order_and_every_row_once(count: int, most: int) -> None:
    batches = [batch.tolist() for batch in streams(count, most)]
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert all(len(batch) <= most for batch in batches)
    for before, after in itertools.pairwise(batches):
        assert after == [row + 1 for row in before[: len(after)]]


def test_a_measure_that_carries_is_that_of_one_long_row() -> None:
    """One stream over all windows of a text is the text in one call."""
    text = "the quick brown fox jumps over the lazy dog\n" * 3
    recipe = GRU.override(TINY)
    short = text_dataset("t", "", "", text, 6).train
    torch.manual_seed(0)
    module = recipe.build().eval()
    settings = recipe.training["full"].model_copy(update={"carry": True, "batch_size": 1})
    _, rows = measure(recipe, settings, module, *_tensors(short.inputs, short.targets))
    long = {name: array.reshape(1, -1) for name, array in (short.inputs | short.targets).items()}
    with torch.inference_mode():
        outputs = {n: t.numpy() for n, t in module(torch.from_numpy(long["tokens"])).items()}
    whole = recipe.per_row(outputs, long)
    assert rows["nats"].sum() == pytest.approx(whole["nats"].sum(), rel=1e-5)
    fresh = settings.model_copy(update={"carry": False})
    _, apart = measure(recipe, fresh, module, *_tensors(short.inputs, short.targets))
    assert apart["nats"].sum() != pytest.approx(whole["nats"].sum(), rel=1e-4)


def test_what_is_measured_of_a_row_stays_with_the_row() -> None:
    recipe = GRU.override(TINY)
    split = text_dataset("t", "", "", "abcdefghijklmnop" * 8, 6).train
    split.targets["next"][4:7] = 0  # rows whose tokens do not count
    settings = recipe.training["full"].model_copy(update={"carry": True, "batch_size": 5})
    _, rows = measure(recipe, settings, recipe.build(), *_tensors(split.inputs, split.targets))
    assert np.flatnonzero(rows["count"] == 0).tolist() == [4, 5, 6]


class Recorder(nn.Module):
    """A recurrent net that keeps what it was given and what it answered, in training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.given: list[torch.Tensor | None] = []
        self.answered: list[torch.Tensor] = []

    def forward(
        self, tokens: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        outputs = self.network(tokens, hidden)
        if self.training:
            self.given.append(hidden)
            self.answered.append(outputs["next_hidden"])
        return outputs


@pytest.mark.parametrize("carry", [True, False])
def test_training_carries_the_state_and_cuts_the_gradient(carry: bool, tmp_path: Path) -> None:
    dataset = text_dataset("t", "", "", "the quick brown fox jumps\n" * 20, 6)
    made: list[Recorder] = []

    def served(network: nn.Module) -> Recorder:
        made.append(Recorder(network))
        return made[-1]

    recipe = replace(GRU, data=dict.fromkeys(GRU.data, lambda: dataset), presets={}, served=served)
    settings = TINY | {"epochs": 2, "batch_size": 7, "carry": carry}
    del settings["window"]
    train(recipe.override(settings), "full", dataset, tmp_path)
    given, answered = made[0].given, made[0].answered
    assert len(given) == 2 * -(-len(dataset.train) // 7)
    if not carry:
        assert given == [None] * len(given)
        return
    first = [0, len(given) // 2]  # of each epoch
    for place, state in enumerate(given):
        if place in first:
            assert state is None
            continue
        assert state is not None
        assert not state.requires_grad
        torch.testing.assert_close(state, answered[place - 1].detach()[: len(state)])


def _tensors(*parts: Arrays) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.from_numpy(array) for name, array in part.items()} for part in parts]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mlp", {"carry": True}, "has no state that could be carried"),
        ("transformer", {"carry": True}, "has no state that could be carried"),
        ("lstm", {"elastic": 3}, "has no input that it could change"),
        ("lstm", {"noise": 0.1}, "has no input that it could change"),
    ],
)
def test_settings_that_change_nothing_are_refused(
    name: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(BadSetting, match=words):
        ZOO[name].override(changes)


@pytest.mark.parametrize(
    ("name", "crop", "words"),
    [("lenet5", 16, "expected 0: no maps"), ("unet", 200, "got 200, expected at most 96")],
)
def test_a_crop_that_does_not_fit_the_data_is_refused(name: str, crop: int, words: str) -> None:
    recipe = ZOO[name].override({"crop": crop}).on("embedded")
    with pytest.raises(BadSetting, match=words):
        recipe.check_fits(recipe.load("embedded"), "embedded")
