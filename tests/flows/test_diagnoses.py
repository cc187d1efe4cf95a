"""A published network that the zoo lacks is certified; broken in three ways, each is located."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx.numpy_helper import from_array, to_array
from torch import nn

from flows.cli import cli


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601), small; it answers its tokens too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.head = nn.Conv2d(1, 9, 4, 4), nn.LayerNorm(9), nn.Linear(9, 5)
        layers = ((nn.LayerNorm(n), nn.Linear(n, 24), nn.Linear(24, n)) for n in (4, 9, 4, 9))
        self.mlps = nn.ModuleList(nn.Sequential(a, b, nn.GELU(), c) for a, b, c in layers)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.patches(image).flatten(2).mT
        for mlp in self.mlps:  # across patches and within channels by turns
            tokens = tokens.mT + mlp(tokens.mT)
        return tokens, self.head(self.norm(tokens).mean(1))


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_each_fault_is_located(tmp_path: Path) -> None:
    file, rows = str(tmp_path / "mixer.onnx"), (torch.randn(3, 1, 8, 8),)
    torch.onnx.export(Mixer().eval(), rows, file, dynamic_shapes=({0: "rows"},))
    for operator in (None, "MatMul", "Gelu", "Reshape"):
        graph, name = onnx.load(file), None
        nodes = [node for node in graph.graph.node if node.op_type == operator]
        for node in nodes[len(nodes) // 2 :][:1]:
            name, node.op_type = node.name, "Sigmoid" if operator == "Gelu" else node.op_type
            del node.attribute[:]
            for tensor in (t for t in graph.graph.initializer if t.name in node.input[1:]):
                array = to_array(tensor).copy()
                array.flat[0] = 3  # a weight, or of a shape the batch
                tensor.CopyFrom(from_array(array, tensor.name))
        onnx.save(graph, broken := str(tmp_path / f"{name}.onnx"))
        asked = ["certify", broken, "--against", f"{__name__}:Mixer", "--json"]
        said = json.loads(CliRunner().invoke(cli, asked).stdout)
        assert (said["passed"], (said["diagnosis"] or {}).get("node")) == (name is None, name)
