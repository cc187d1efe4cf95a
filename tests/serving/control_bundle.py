"""Small bundles of agents made without torch: one sees numbers, the other small pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

from models.codec import Actions, Codec
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.bundle import CASES, ENGINES
from pipeline.cases import CASES_FILE
from pipeline.optimize import optimize
from pipeline.values import CODEC, MODEL, Engine
from pipeline.verify import verify
from tests.serving.conftest import TARGET, record_cases, write_manifest, write_model

HIDDEN = 16
MOST = 32  # rows


@dataclass(frozen=True)
class Agent:
    """A net of one hidden layer, q = W relu(V x) + b, over what it sees."""

    name: str
    shape: tuple[int, ...]
    actions: tuple[str, ...]
    bias: tuple[float, ...]  # what each action is worth where nothing is seen

    @property
    def signature(self) -> Signature:
        batch = Axis("batch", 1, 4, MOST)
        return Signature(
            (TensorSpec("observation", "float32", (batch, *self.shape), -2.0, 2.0),),
            (TensorSpec("q_values", "float32", (batch, len(self.actions))),),
        )

    @property
    def codec(self) -> Codec:
        acts = Actions(observation="observation", values="q_values", names=self.actions)
        return Codec(actions=acts)

    def weights(self) -> Arrays:
        random = np.random.default_rng(len(self.actions))
        inputs = int(np.prod(self.shape))
        shapes = {"first": (inputs, HIDDEN), "last": (HIDDEN, len(self.actions))}
        arrays = {n: random.normal(0, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}
        return arrays | {"bias": np.array(self.bias, np.float32)}

    def answer(self, observation: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
        """What the graph says of observations [rows, ...], in numpy: values [rows, actions]."""
        first, last, bias = (array.astype(dtype) for array in self.weights().values())
        return np.maximum(observation.reshape(len(observation), -1) @ first, 0) @ last + bias

    def observations(self, rows: int, seed: int = 0) -> np.ndarray:
        seen = np.random.default_rng(seed).uniform(-2, 2, (rows, *self.shape))
        return seen.astype(np.float32)


POLE = Agent("pole", (4,), ("left", "right"), (0.0, 0.0))
GRID = Agent("grid", (3, 5, 5), ("up", "down", "west", "east"), (0.0, 1.5, 0.25, 1.5))


def _write_graph(agent: Agent, path: Path) -> None:
    def declare(spec: TensorSpec) -> Any:
        shape = [size.name if isinstance(size, Axis) else size for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Flatten", ["observation"], ["rows"]),
        helper.make_node("MatMul", ["rows", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "last"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["q_values"]),
    ]
    signature = agent.signature
    graph = helper.make_graph(
        nodes, "graph",
        [declare(spec) for spec in signature.inputs],
        [declare(spec) for spec in signature.outputs],
        [numpy_helper.from_array(array, name) for name, array in agent.weights().items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, path)


def make_bundle(agent: Agent, folder: Path) -> Path:
    """A certified bundle."""
    stage, out = folder / f"{agent.name}-stage", folder / agent.name
    engine_folder = out / ENGINES / TARGET
    for path in (stage, out / CASES, engine_folder):
        path.mkdir(parents=True)
    _write_graph(agent, stage / MODEL)
    cases = record_cases(
        agent.signature,
        {"observation": agent.observations(80)},
        lambda given, dtype: {"q_values": agent.answer(given["observation"], dtype)},
    )
    model = write_model(stage, agent.name, agent.signature, cases, agent.codec)
    engine = optimize(model, TARGET, engine_folder)
    assert isinstance(engine, Engine)
    certificate = verify(engine, model, engine_folder)
    assert certificate, certificate.failures
    for name, place in ((MODEL, out), (CASES_FILE, out / CASES), (CODEC, out)):
        shutil.copy(stage / name, place / name)
    write_manifest(out, name=agent.name, kind="control", signature=agent.signature)
    return out
