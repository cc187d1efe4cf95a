"""Recurrent nets: the textbook's cells against torch's, state, masks, and engines at every size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.codec import PADDING
from models.corpus import IDS
from models.gru import GRU, GRU_CLASSIFIER
from models.lstm import LSTM, LSTM_CLASSIFIER, LSTM_MUSIC
from models.recipe import Recipe
from models.recurrence import advance, start
from models.recurrent import Weights, gru_step, lstm_step, rnn_step
from models.rnn import RNN, RNN_CLASSIFIER
from models.signature import BATCH, Arrays
from pipeline.export import _trace

TORCHS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
LANGUAGE = {recipe.name: recipe for recipe in (RNN, LSTM, GRU)}
CLASSIFIERS = {recipe.name: recipe for recipe in (RNN_CLASSIFIER, LSTM_CLASSIFIER, GRU_CLASSIFIER)}
SMALL = {"embedding": 5, "hidden": 6, "layers": 2, "window": 24}


def textbook(cells: nn.RNNBase, xs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Every state of one layer and the last, written out step by step; xs [batch, length, in]."""
    weights = Weights(*(cells.get_parameter(f"{name}_l0") for name in TORCHS))
    every, c = [], h
    for x in xs.unbind(1):
        if isinstance(cells, nn.LSTM):
            h, c = lstm_step(weights, x, h, c)
        elif isinstance(cells, nn.GRU):
            h = gru_step(weights, x, h)
        else:
            activation = {"tanh": torch.tanh, "relu": torch.relu}[str(cells.nonlinearity)]
            h = rnn_step(weights, x, h, activation)
        every.append(h)
    return torch.stack(every, 1), c if isinstance(cells, nn.LSTM) else h


@pytest.mark.parametrize(
    "make",
    [nn.RNN, lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k), nn.LSTM, nn.GRU],
    ids=["rnn", "rnn-relu", "lstm", "gru"],
)
@settings(max_examples=30)
@given(
    st.integers(1, 4), st.integers(1, 17), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99)
)
def test_the_textbooks_cells_are_torchs(
    make: Callable[..., nn.RNNBase], batch: int, length: int, inputs: int, size: int, seed: int
) -> None:
    """Equal in answers and in every gradient, of weights, inputs and the first state."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cells = make(inputs, size, batch_first=True, dtype=torch.float64)
    xs = torch.randn(batch, length, inputs, generator=random, dtype=torch.float64)
    h = torch.randn(batch, size, generator=random, dtype=torch.float64)
    found = []
    for by_torch in (True, False):
        leaves = [xs.clone().requires_grad_(), h.clone().requires_grad_()]
        cells.zero_grad()
        if by_torch:
            before = (leaves[1][None], leaves[1][None])
            every, after = cells(leaves[0], before if isinstance(cells, nn.LSTM) else before[0])
            last = (after[1] if isinstance(after, tuple) else after)[0]
        else:
            every, last = textbook(cells, leaves[0], leaves[1])
        (every.pow(2).sum() + last.sin().sum()).backward()
        gradients = [t.grad for t in (*leaves, *cells.parameters())]
        found.append([every.detach(), last.detach(), *gradients])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def build(recipe: Recipe, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.build().eval()


def small(recipe: Recipe) -> Recipe:
    known = recipe.published().keys()
    changes = {name: value for name, value in SMALL.items() if name in known}
    if "vocabulary" in known:
        changes |= {"vocabulary": 40, "longest": 24}
    return recipe.override(changes)


@pytest.mark.parametrize("name", LANGUAGE)
@settings(max_examples=15)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_a_text_may_be_cut_anywhere(name: str, cuts: list[int], seed: int) -> None:
    """One call equals any cut into calls that carry the state, as `models.recurrence` says."""
    recipe = small(LANGUAGE[name])
    module, signature = build(recipe).double(), recipe.make_signature()
    tokens = np.random.default_rng(seed).integers(0, IDS, (3, sum(cuts)))
    whole = answer(module, {"tokens": tokens})
    states: Arrays = {n: a.astype(np.float64) for n, a in start(signature, 3).items()}
    parts, place = [], 0
    for steps in cuts:
        parts.append(answer(module, {"tokens": tokens[:, place : place + steps], **states}))
        states = advance(signature, states, parts[-1], steps)
        place += steps
    logits = np.concatenate([part["logits"] for part in parts], 1)
    np.testing.assert_allclose(logits, whole["logits"], rtol=1e-9, atol=1e-12)
    for state in whole.keys() - {"logits"}:
        np.testing.assert_allclose(parts[-1][state], whole[state], rtol=1e-9, atol=1e-12)


def answer(module: nn.Module, inputs: Arrays) -> Arrays:
    with torch.inference_mode():
        outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


@pytest.mark.parametrize("name", CLASSIFIERS)
@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(st.integers(1, 39), max_size=9), min_size=1, max_size=5),
    more=st.integers(1, 12),
)
def test_padding_and_neighbours_do_not_change_an_answer(
    name: str, rows: list[list[int]], more: int
) -> None:
    module = build(small(CLASSIFIERS[name]))
    longest = max(map(len, rows)) + more
    together = answer(
        module, {"tokens": np.array([row + [PADDING] * (longest - len(row)) for row in rows])}
    )
    for row, logits in zip(rows, together["logits"], strict=True):
        alone = answer(module, {"tokens": np.array([row or [PADDING]])})
        np.testing.assert_allclose(logits, alone["logits"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_reads_the_whole_text_and_in_order(name: str) -> None:
    module = build(small(CLASSIFIERS[name]))
    texts = np.array([[3, 4, 5, 6, 0], [7, 4, 5, 6, 0], [3, 4, 5, 7, 0], [6, 5, 4, 3, 0]])
    logits = answer(module, {"tokens": texts})["logits"]
    assert len(np.unique(logits.round(6), axis=0)) == len(texts)


@pytest.mark.parametrize("name", [*LANGUAGE, *CLASSIFIERS])
def test_engines_are_right_at_every_size_and_exported_twice(name: str, tmp_path: Path) -> None:
    """After some training, at batches 1, 2, 7 and most, lengths 1, 2, odd and most."""
    recipe = small((LANGUAGE | CLASSIFIERS)[name])
    module = build(recipe).train()
    signature = recipe.make_signature()
    random = np.random.default_rng(0)
    high = int(signature.input("tokens").high or 0)
    if name in LANGUAGE:
        targets = {"next": torch.from_numpy(random.integers(3, high, (4, 9)))}
    else:
        targets = {"label": torch.tensor([0, 1, 1, 0])}
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        tokens = torch.from_numpy(random.integers(1, high, (4, 9)))
        recipe.compute_loss(module(tokens), targets).backward()
        optimizer.step()
    module.eval()
    most = {axis: signature.axes[axis].max for axis in (BATCH, "length")}
    for round_ in range(2):
        graph, _ = _trace(recipe, module, signature)
        session = ort.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for batch in (1, 2, 7, most[BATCH]):
            for length in (1, 2, 9, most["length"]):
                inputs: Arrays = {"tokens": random.integers(0, high + 1, (batch, length))}
                for spec in signature.inputs[1:]:
                    state = random.uniform(-1, 1, spec.at({BATCH: batch}))
                    inputs[spec.name] = state.astype(np.float32)
                expected = answer(module, inputs)
                answers = map(np.asarray, session.run([*expected], inputs))
                for output, got in zip(expected, answers, strict=True):
                    np.testing.assert_allclose(
                        got, expected[output], rtol=1e-4, atol=1e-5, err_msg=f"{round_} {output}"
                    )


def test_the_published_sizes_have_their_counts_of_parameters() -> None:
    """Gates x (size x inputs + size x size + two biases) in each layer, as torch counts."""
    for recipe, gates in ((RNN, 1), (LSTM, 4), (GRU, 3)):
        cells = gates * 512 * (128 + 512 + 2 + 512 + 512 + 2)
        expected = IDS * 128 + cells + 512 * IDS + IDS
        assert sum(p.numel() for p in recipe.build().parameters()) == expected
    for recipe, gates in ((RNN_CLASSIFIER, 1), (LSTM_CLASSIFIER, 4), (GRU_CLASSIFIER, 3)):
        expected = 4096 * 64 + gates * 50 * (64 + 50 + 2) + 50 * 2 + 2
        assert sum(p.numel() for p in recipe.build().parameters()) == expected
    assert LSTM_MUSIC.network is LSTM.network


def test_identity_initialisation_keeps_a_state_for_ever() -> None:
    """Le, Jaitly, Hinton 2015: without input, ReLU units at the identity copy what they hold."""
    recipe = small(RNN).override({"identity": True, "activation": "relu"})
    cells = build(recipe).get_submodule("cells")
    assert isinstance(cells, nn.RNN)
    for name, parameter in cells.named_parameters():
        if "hh" in name and "weight" in name:
            torch.testing.assert_close(parameter, torch.eye(6))
        elif "bias" in name:
            assert not parameter.any()
    held = torch.rand(2, 1, 6)
    _, after = cells(torch.zeros(1, 50, 5), held)
    torch.testing.assert_close(after[0], held[0])
    ordinary = build(small(RNN)).get_submodule("cells")
    assert not torch.equal(ordinary.get_parameter("weight_hh_l0"), torch.eye(6))


def test_dropout_falls_on_layers_and_never_while_serving() -> None:
    recipe = small(LSTM).override({"dropout": 0.5})
    module = build(recipe)
    tokens = {"tokens": np.arange(3, 13).reshape(1, 10)}
    np.testing.assert_array_equal(
        answer(module, tokens)["logits"], answer(module, tokens)["logits"]
    )
    trained = copy.deepcopy(module).train()
    assert not np.array_equal(answer(trained, tokens)["logits"], answer(trained, tokens)["logits"])
    cells = module.get_submodule("cells")
    assert isinstance(cells, nn.LSTM)
    assert cells.dropout == 0.5
