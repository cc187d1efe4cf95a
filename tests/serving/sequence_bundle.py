"""Small stepwise engines made without torch, each beside the same in numpy, and their bundles.

`rnn` carries a hidden state that is replaced; `mean` a table whose rows are averaged, so that an
answer depends on all that was read, its order and the position; `echo` repeats its source.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

from models.codec import Characters, Codec, Generation
from models.recurrence import Recurrence, State, start, state_names
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.bundle import CASES, ENGINES
from pipeline.carrying import carried_inputs, run_carried
from pipeline.cases import CARRIED, CASES_FILE, Case
from pipeline.optimize import optimize
from pipeline.values import CODEC, MODEL, Engine
from pipeline.verify import verify
from tests.serving.conftest import TARGET, record_cases, write_manifest, write_model

ALPHABET = tuple("\n abcdefghijklmnopqrstuvwxyzX:7MKCDEFG|")  # enough for a tune
TUNE = "X:7\nM:C\nK:C\nCDEF|Gg|\n"
TOKENS = Characters(name="tokens", alphabet=ALPHABET)
IDS = TOKENS.ids
SIZE = 12
CAPACITY = 24
BATCH = Axis("batch", 1, 4, 8)
LENGTH = Axis("length", 1, 4, 8)
SOURCE = Axis("source_length", 1, 6, 24)
RANDOM = np.random.default_rng(11)


def _weights(*shape: int, scale: float = 1.0) -> np.ndarray:
    return RANDOM.normal(0, scale, shape).astype(np.float32)


WEIGHTS: Arrays = {
    "embedding": _weights(IDS, SIZE),
    "places": _weights(CAPACITY, SIZE),
    "input": _weights(1, SIZE, SIZE, scale=0.5),
    "recurrent": _weights(1, SIZE, SIZE, scale=0.4),
    "head": _weights(SIZE, IDS, scale=1.5),
    # What a character of the source asks for: itself, and what is not there asks for nothing.
    "identity": np.diag([0.0, *[3.0] * (IDS - 1)]).astype(np.float32),
    "bias": np.where(np.arange(IDS) == 2, 1.5, 0).astype(np.float32),
}


def _rnn(inputs: Arrays, dtype: Any) -> Arrays:
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    hidden = inputs["hidden"][:, 0].astype(dtype)
    states = []
    for token in inputs["tokens"].T:
        read = weights["embedding"][token] @ weights["input"][0].T
        hidden = np.tanh(read + hidden @ weights["recurrent"][0].T)
        states.append(hidden)
    logits = np.stack(states, 1) @ weights["head"]
    return {"logits": logits, "next_hidden": hidden[:, None]}


def _mean(inputs: Arrays, dtype: Any) -> Arrays:
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    position, length = inputs["position"], inputs["tokens"].shape[1]
    places = np.minimum(position[:, None] + np.arange(length), CAPACITY - 1)
    rows = weights["embedding"][inputs["tokens"]] * weights["places"][places]
    written = (np.arange(CAPACITY) < position[:, None])[:, None, :, None]
    before = np.where(written, inputs["cache"], 0).astype(dtype).sum((1, 2))
    counts = position[:, None] + np.arange(length) + 1
    means = (before[:, None] + rows.cumsum(1)) / counts[..., None].astype(dtype)
    return {"logits": (means + rows) @ weights["head"], "new_rows": rows[:, None]}


def _echo(inputs: Arrays, dtype: Any) -> Arrays:
    length = inputs["tokens"].shape[1]
    asked = WEIGHTS["identity"].astype(dtype)[inputs["source"]]
    places = inputs["count"].astype(dtype) + np.arange(length)
    here = (np.arange(asked.shape[1]) == places[..., None]).astype(dtype)
    logits = here @ asked + WEIGHTS["bias"].astype(dtype)
    return {"logits": logits, "next_count": inputs["count"].astype(dtype) + length}


def _rnn_graph() -> list[Any]:
    node = helper.make_node
    return [
        node("Gather", ["embedding", "tokens"], ["embedded"]),
        node("Transpose", ["embedded"], ["steps"], perm=[1, 0, 2]),
        node("Transpose", ["hidden"], ["first"], perm=[1, 0, 2]),
        node(
            "RNN",
            ["steps", "input", "recurrent", "", "", "first"],
            ["states", "last"],
            hidden_size=SIZE,
        ),
        node("Squeeze", ["states", "one"], ["squeezed"]),
        node("Transpose", ["squeezed"], ["turned"], perm=[1, 0, 2]),
        node("MatMul", ["turned", "head"], ["logits"]),
        node("Transpose", ["last"], ["next_hidden"], perm=[1, 0, 2]),
    ]


def _mean_graph() -> list[Any]:
    node = helper.make_node
    return [
        node("Shape", ["tokens"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["scalar"]),
        node("Range", ["nought", "scalar", "unit"], ["steps"]),
        node("Unsqueeze", ["position", "one"], ["column"]),
        node("Add", ["column", "steps"], ["free"]),
        node("Min", ["free", "final"], ["where"]),
        node("Gather", ["embedding", "tokens"], ["embedded"]),
        node("Gather", ["places", "where"], ["placed"]),
        node("Mul", ["embedded", "placed"], ["rows"]),
        node("Unsqueeze", ["rows", "one"], ["new_rows"]),
        node("Less", ["all", "column"], ["written"]),
        node("Unsqueeze", ["written", "outer"], ["mask"]),
        node("Where", ["mask", "cache", "zero"], ["valid"]),
        node("ReduceSum", ["valid", "tables"], ["before"], keepdims=0),
        node("Unsqueeze", ["before", "one"], ["past"]),
        node("CumSum", ["rows", "one_axis"], ["sums"]),
        node("Add", ["past", "sums"], ["total"]),
        node("Add", ["free", "unit"], ["counts"]),
        node("Unsqueeze", ["counts", "two"], ["shares"]),
        node("Cast", ["shares"], ["real"], to=TensorProto.FLOAT),
        node("Div", ["total", "real"], ["means"]),
        node("Add", ["means", "rows"], ["read"]),
        node("MatMul", ["read", "head"], ["logits"]),
    ]


def _echo_graph() -> list[Any]:
    node = helper.make_node
    return [
        node("Gather", ["identity", "source"], ["asked"]),
        node("Shape", ["tokens"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["scalar"]),
        node("Range", ["nought", "scalar", "unit"], ["steps"]),
        node("Cast", ["steps"], ["real"], to=TensorProto.FLOAT),
        node("Add", ["count", "real"], ["places_now"]),
        node("Unsqueeze", ["places_now", "two"], ["column"]),
        node("Shape", ["source"], ["width"], start=1, end=2),
        node("Squeeze", ["width"], ["widths"]),
        node("Range", ["nought", "widths", "unit"], ["ids"]),
        node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        node("Equal", ["column", "numbers"], ["equal"]),
        node("Cast", ["equal"], ["here"], to=TensorProto.FLOAT),
        node("MatMul", ["here", "asked"], ["found"]),
        node("Add", ["found", "bias"], ["logits"]),
        node("Cast", ["scalar"], ["many"], to=TensorProto.FLOAT),
        node("Add", ["count", "many"], ["next_count"]),
    ]


CONSTANTS: Arrays = {
    "one": np.array([1]),
    "one_axis": np.array(1),
    "two": np.array([2]),
    "outer": np.array([1, 3]),
    "tables": np.array([1, 2]),
    "nought": np.array(0),
    "unit": np.array(1),
    "final": np.array(CAPACITY - 1),
    "all": np.arange(CAPACITY),
    "zero": np.array(0, np.float32),
}


@dataclass(frozen=True)
class Net:
    """A stepwise engine: its graph, the same in numpy, and how it writes."""

    name: str
    signature: Signature
    generation: Generation
    nodes: Callable[[], list[Any]]
    answer: Callable[[Arrays, Any], Arrays]

    def run(self, inputs: Arrays) -> Arrays:
        """The engine in numpy; refuses what its signature does not allow."""
        self.signature.check(inputs)
        return {
            name: array.astype(self.signature.output(name).dtype)
            for name, array in self.answer(inputs, np.float64).items()
        }


def _net(
    name: str, states: dict[str, tuple[TensorSpec, TensorSpec]], nodes: Any, answer: Any
) -> Net:
    table = name == "mean"
    inputs = [TensorSpec("tokens", "int64", (BATCH, LENGTH), 0, IDS - 1)]
    source = Characters(name="source", alphabet=ALPHABET) if name == "echo" else None
    if source:
        inputs.append(TensorSpec("source", "int64", (BATCH, SOURCE), 0, IDS - 1))
    inputs += [before for before, _ in states.values()]
    if table:
        inputs.append(TensorSpec("position", "int64", (BATCH,), 0, CAPACITY - 1))
    signature = Signature(
        inputs=tuple(inputs),
        outputs=(
            TensorSpec("logits", "float32", (BATCH, LENGTH, IDS)),
            *(after for _, after in states.values()),
        ),
        recurrence=Recurrence(
            "length",
            tuple(
                State(before.name, after.name, "position" if table else None)
                for before, after in states.values()
            ),
        ),
    )
    codec = Generation(tokens=TOKENS, logits="logits", source=source)
    return Net(name, signature, codec, nodes, answer)


def _state(name: str, output: str, *shape: int) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(name, "float32", (BATCH, *shape), -1, 1),
        TensorSpec(output, "float32", (BATCH, *shape)),
    )


RNN = _net("rnn", {"hidden": _state("hidden", "next_hidden", 1, SIZE)}, _rnn_graph, _rnn)
MEAN = _net(
    "mean",
    {
        "cache": (
            TensorSpec("cache", "float32", (BATCH, 1, CAPACITY, SIZE), -1, 1),
            TensorSpec("new_rows", "float32", (BATCH, 1, LENGTH, SIZE)),
        )
    },
    _mean_graph,
    _mean,
)
ECHO = _net("echo", {"count": _state("count", "next_count", 1)}, _echo_graph, _echo)
NETS = (RNN, MEAN, ECHO)


def endless(net: Net) -> Net:
    """The net without an end mark: it writes until it is stopped."""

    def answer(inputs: Arrays, dtype: Any) -> Arrays:
        outputs = net.answer(inputs, dtype)
        outputs["logits"][..., 2] = -100
        return outputs

    return replace(net, answer=answer)


def make_bundle(net: Net, folder: Path, **generation: Any) -> Path:
    """A certified bundle of the net; `generation` changes what its codec says."""
    stage, out = folder / f"{net.name}-stage", folder / net.name
    engine_folder = out / ENGINES / TARGET
    for path in (stage, out / CASES, engine_folder):
        path.mkdir(parents=True)
    _write_graph(stage / MODEL, net)
    samples = {
        "tokens": RANDOM.integers(3, IDS, (40, 8)),
        "source": RANDOM.integers(3, IDS, (40, 24)),
        "hidden": RANDOM.uniform(-1, 1, (40, 1, SIZE)).astype(np.float32),
        "cache": RANDOM.uniform(-1, 1, (40, 1, CAPACITY, SIZE)).astype(np.float32),
        "position": RANDOM.integers(0, CAPACITY - LENGTH.max + 1, 40),
        "count": np.zeros((40, 1), np.float32),
    }
    cases = [*record_cases(net.signature, samples, net.answer), _carried(net, samples)]
    codec = Codec(generation=net.generation.model_copy(update=generation))
    model = write_model(stage, net.name, net.signature, cases, codec)
    engine = optimize(model, TARGET, engine_folder)
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, engine_folder)
    assert certificate, certificate.failures
    shutil.copy(stage / MODEL, out / MODEL)
    shutil.copy(stage / CASES_FILE, out / CASES / CASES_FILE)
    shutil.copy(stage / CODEC, out / CODEC)
    write_manifest(out, name=net.name, signature=net.signature, kind="sequence")
    return out


def _carried(net: Net, samples: Arrays) -> Case:
    inputs = carried_inputs(net.signature, samples)
    rows, length = inputs["tokens"].shape
    answers = []
    for wide in (False, True):

        def run(arrays: Mapping[str, Any], dtype: str = "f8" if wide else "f4") -> Arrays:
            return net.answer(dict(arrays), dtype)

        said = run_carried(run, net.signature, inputs, range(length), wide=wide)
        answers.append({"logits": said["logits"]})
    return Case("carried", CARRIED, {"batch": rows, "length": length}, inputs, *answers)


def _write_graph(path: Path, net: Net) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, shape)

    nodes = net.nodes()
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [declare(spec) for spec in net.signature.inputs],
        [declare(spec) for spec in net.signature.outputs],
        [
            numpy_helper.from_array(array, name)
            for name, array in (WEIGHTS | CONSTANTS).items()
            if name in used
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def write_alone(
    net: Net,
    prompt: str,
    count: int,
    pick: Callable[[np.ndarray], int] = lambda row: int(row.argmax()),
) -> str:
    """What the net writes, token by token, all read again at each step: the plain program.

    `pick` chooses from the logits of what may be written. Ends after `count` tokens or at END.
    """
    generation = net.generation
    source = generation.source.encode(prompt)[None] if generation.source else None
    context = [1] if generation.source else generation.tokens.encode(prompt).tolist()
    said: list[int] = []
    for _ in range(count):
        states = start(net.signature, 1)
        if len(context) > CAPACITY and "position" in state_names(net.signature):
            context = context[-(CAPACITY // 2) :]
        inputs: Arrays = {"tokens": np.array([context], np.int64), **states}
        if source is not None:
            inputs["source"] = source
        logits = net.answer(inputs, np.float64)["logits"].astype(np.float32)[0, -1]
        logits[:2] = -np.inf
        said.append(pick(logits))
        if said[-1] == 2:
            break
        context.append(said[-1])
    return generation.tokens.decode(said)
