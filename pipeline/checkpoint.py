"""Where a training stands after its last whole epoch, so that a killed run goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.artifacts import replacing

Epochs = list[dict[str, Any]]
Tensors = dict[str, Tensor]


def write_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors, history: Epochs
) -> None:
    """Write where a training stands after a whole epoch: weights, the best of them, optimizer."""
    tensors = {f"module/{n}": t for n, t in module.state_dict().items()}
    tensors |= {f"best/{n}": t for n, t in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{n}": t for n, t in state.items() if t is not None}
    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"history": json.dumps(history)},
        )


def resume(
    path: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Tensors, Epochs]:
    """Load what a killed run left after its last whole epoch, or start from the beginning."""
    if path is None or not path.is_file():
        return {}, []
    groups: dict[str, Tensors] = {"module": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            history = json.loads((file.metadata() or {})["history"])
        for key, tensor in load_file(path).items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
    except (SafetensorError, KeyError, ValueError, OSError):
        return {}, []
    module.load_state_dict(groups["module"])
    state: dict[int, Tensors] = {}
    for key, tensor in groups["optimizer"].items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # fused kernels read both in one order of memory
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return groups["best"], history
