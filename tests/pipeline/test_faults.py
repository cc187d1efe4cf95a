"""Faults put into a graph: each has a place, alters answers, and leaves the original."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.codec import Codec
from models.recurrence import Recurrence, State
from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec
from pipeline.cases import Case, make_inputs
from pipeline.faults import FAULTS, Fault, Mutant, Subject, mutate
from pipeline.faults.places import biases, rewrite, weights

ROWS = Axis(BATCH, 1, 4, 6)
STEPS = Axis("length", 1, 7, 12)


class Pictures(nn.Module):
    """What convolutional networks are made of, with noise and a reconstruction."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.side = nn.Conv2d(4, 4, 1)
        self.dense = nn.Linear(4 * 3 * 3, 8)
        self.square = nn.Linear(8, 8)
        nn.init.constant_(self.square.weight[0, :1], 2.0)  # trained weights have outliers
        self.classes = nn.Linear(8, 3)
        self.grow = nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1)

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.first((image - self.mean) / 0.3))
        x = functional.max_pool2d(x + torch.tanh(self.grouped(x)), 2)
        x = functional.avg_pool2d(torch.cat([x, self.side(x)], 1)[:, 2:6], 2, padding=1)
        code = torch.sigmoid(self.dense(x.flatten(1))) + noise
        logits = self.classes(
            torch.relu(self.square(code)) / torch.sqrt(code.var(1, keepdim=True) + 1e-5)
        )
        big = functional.interpolate(
            code[:, :, None, None].expand(-1, -1, 2, 2) * x[:, :1, :2, :2], scale_factor=2.0
        )
        drawn = self.grow(big)
        return logits, logits.softmax(-1), drawn


class Attention(nn.Module):
    """A causal encoder of tokens, 0 of them padding."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 8)
        self.places = nn.Embedding(12, 8)
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.dense = nn.Linear(8, 8)
        self.output = nn.Linear(8, 9)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(tokens.shape[1])
        x = self.tokens(tokens) + self.places(place)
        scores = self.queries(x) @ self.keys(x).transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(~(place[:, None] >= place), -torch.inf)
        scores = scores.masked_fill((tokens == 0)[:, None] & (place > 0), -torch.inf)
        x = self.norm(x + scores.softmax(-1) @ self.values(x))
        logits = self.output(x + functional.gelu(self.dense(x)))
        return logits, logits.softmax(-1)


class Cells(nn.Module):
    """Recurrent cells that carry their state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 6)
        self.gated = nn.GRU(6, 5, batch_first=True)
        self.long = nn.LSTM(5, 4, batch_first=True)
        self.output = nn.Linear(4, 9)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x, after = self.gated(self.tokens(tokens), hidden.transpose(0, 1).contiguous())
        zeros = torch.zeros(1, tokens.shape[0], 4)
        x, _ = self.long(x, (zeros, zeros))
        return self.output(x), after.transpose(0, 1)


@dataclass(frozen=True)
class Example:
    """A graph, another of other weights, and recorded inputs with what the graph answers."""

    graph: onnx.ModelProto
    subject: Subject
    cases: list[Case]
    answers: list[Arrays]


def export(module: nn.Module, signature: Signature, dynamo: bool, path: Path) -> onnx.ModelProto:
    sizes = signature.example()
    example = tuple(
        torch.from_numpy(np.zeros(spec.at(sizes), spec.dtype)) for spec in signature.inputs
    )
    axes = signature.dynamic_axes()
    inputs = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {
                name: torch.export.Dim(name, min=axis.min, max=axis.max)
                for name, axis in signature.axes.items()
            }
            shapes = tuple({i: dims[a.name] for i, a in axes[name].items()} for name in inputs)
            program = torch.onnx.export(
                module.eval(), example, dynamo=True, dynamic_shapes=shapes, input_names=inputs,
                output_names=outputs, opset_version=18, verbose=False,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        named = {name: {i: a.name for i, a in axes[name].items()} for name in inputs + outputs}
        torch.onnx.export(
            module.eval(), example, path, dynamo=False, dynamic_axes=named, input_names=inputs,
            output_names=outputs, opset_version=18,
        )  # fmt: skip
    return onnx.load_model(path)


def with_other_weights(graph: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    for weight in weights(other):
        rewrite(weight.tensor, rng.standard_normal(weight.tensor.dims) / 3)
    return other


def tensor(name: str, *shape: int | Axis, **more: float) -> TensorSpec:
    return TensorSpec(name, "float32", (ROWS, *shape), **more)


TOKENS = TensorSpec("tokens", "int64", (ROWS, STEPS), low=0, high=8)
KINDS = {
    "pictures": (
        Pictures,
        Signature(
            (tensor("image", 1, 8, 8, low=0, high=1), tensor("noise", 8)),
            (tensor("logits", 3), tensor("probabilities", 3), tensor("drawn", 1, 8, 8)),
        ),
        Codec(classes=("a", "b", "c"), scores="probabilities", noise=("noise",)),
    ),
    "attention": (
        Attention,
        Signature((TOKENS,), (tensor("logits", STEPS, 9), tensor("probabilities", STEPS, 9))),
        Codec(),
    ),
    "cells": (
        Cells,
        Signature(
            (TOKENS, tensor("hidden", 1, 5)),
            (tensor("logits", STEPS, 9), tensor("next_hidden", 1, 5)),
            Recurrence("length", (State("hidden", "next_hidden"),)),
        ),
        Codec(),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Example]:
    made = {}
    for name, (module, signature, codec) in KINDS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            graph = export(
                module(), signature, name == "pictures", tmp_path_factory.mktemp(name) / "m.onnx"
            )
        rng = np.random.default_rng(0)
        rows = {
            spec.name: rng.standard_normal(spec.at({"batch": 8, "length": 12})).astype(np.float32)
            if spec.floating
            else rng.integers(0, 9, spec.at({"batch": 8, "length": 12}))
            for spec in signature.inputs
        }
        cases = [case for case in make_inputs(signature, rows) if case.origin != "nonfinite"]
        answers = [run(graph, case) for case in cases]
        subject = Subject(signature, codec, with_other_weights(graph, rng))
        made[name] = Example(graph, subject, cases, answers)
    return made


def opened(graph: onnx.ModelProto) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(
        graph.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(graph: onnx.ModelProto, case: Case) -> Arrays:
    session = opened(graph)
    names = [value.name for value in session.get_outputs()]
    answers = session.run(names, case.inputs)
    return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}


def altered(mutant: Mutant, example: Example) -> bool:
    """Whether any recorded call is answered otherwise, by any bit, or not at all."""
    session = opened(mutant.graph)
    names = list(example.answers[0])
    for case, expected in zip(example.cases, example.answers, strict=True):
        try:
            answers = session.run(names, case.inputs)
        except Exception:  # what a runtime refuses is another answer
            return True
        for name, answer in zip(names, answers, strict=True):
            if not np.array_equal(np.asarray(answer), expected[name], equal_nan=True):
                return True
    return False


def test_there_are_many_kinds_and_no_two_have_one_name() -> None:
    assert len(FAULTS) >= 32
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_alters_answers_and_leaves_the_original(
    fault: Fault, examples: Mapping[str, Example]
) -> None:
    places = 0
    for example in examples.values():
        before = example.graph.SerializeToString(deterministic=True)
        for seed in range(3):
            mutant = mutate(example.graph, fault, example.subject, seed)
            again = mutate(example.graph, fault, example.subject, seed)
            assert example.graph.SerializeToString(deterministic=True) == before
            if mutant is None:
                assert again is None
                break
            places += 1
            assert again is not None
            assert mutant.where == again.where
            assert mutant.graph.SerializeToString(deterministic=True) == (
                again.graph.SerializeToString(deterministic=True)
            )
            assert mutant.fault == fault.name
            onnx.checker.check_model(mutant.graph)
            assert altered(mutant, example) == (mutant.equivalent is None), mutant.where
    assert places, "no example has a place for it"


def test_a_graph_without_a_fault_answers_the_same(examples: Mapping[str, Example]) -> None:
    for example in examples.values():
        assert not altered(Mutant("none", "", example.graph), example)


def test_a_bias_of_keys_is_not_dropped_because_a_softmax_takes_it_off(
    examples: Mapping[str, Example],
) -> None:
    example = examples["attention"]
    fault = next(fault for fault in FAULTS if fault.name == "dropped bias")
    mutants = [mutate(example.graph, fault, example.subject, seed) for seed in range(40)]
    dropped = {mutant.where for mutant in mutants if mutant}
    assert {"queries.bias", "values.bias"} <= dropped
    assert "keys.bias" not in dropped
    graph = onnx.ModelProto()
    graph.CopyFrom(example.graph)
    keys = next(tensor for tensor in graph.graph.initializer if tensor.name == "keys.bias")
    rewrite(keys, np.zeros(keys.dims))
    for case, expected in zip(example.cases, example.answers, strict=True):
        for name, answer in run(graph, case).items():
            np.testing.assert_allclose(answer, expected[name], atol=1e-5)


def test_a_rectifier_of_what_is_positive_is_no_place() -> None:
    spec = "float[batch, 2] x"
    twice = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g ({spec}) => (float[batch, 2] y)'
        "{ a = Relu (x) b = Add (a, a) y = Relu (b) }"
    )
    signature = Signature((tensor("x", 2),), (tensor("y", 2),))
    fault = next(fault for fault in FAULTS if fault.name == "dropped activation")
    for seed in range(8):
        mutant = mutate(twice, fault, Subject(signature, Codec(), None), seed)
        assert mutant is not None
        assert mutant.where == "Relu a"


def test_a_bias_that_is_zero_is_dropped_and_called_equivalent(
    examples: Mapping[str, Example],
) -> None:
    example = examples["cells"]
    graph = onnx.ModelProto()
    graph.CopyFrom(example.graph)
    for bias in biases(graph):
        rewrite(bias.tensor, np.zeros(bias.tensor.dims))
    fault = next(fault for fault in FAULTS if fault.name == "dropped bias")
    mutant = mutate(graph, fault, example.subject, 0)
    assert mutant is not None
    assert mutant.equivalent == "the tensor holds already what the fault makes of it"
    answers = [run(graph, case) for case in example.cases]
    assert not altered(mutant, replace(example, answers=answers))
