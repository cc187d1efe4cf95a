"""Where a training stands after its last whole epoch, so that a killed run goes on from there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.artifacts import replacing

Epochs = list[dict[str, Any]]
Tensors = dict[str, Tensor]

_GROUPS = ("best", "memory", "shown")


@dataclass
class Standing:
    """What a training has come to beside its module and optimizer, after its last whole epoch.

    `best` are the weights of the best epoch, `memory` is what the recipe gathered, `shown` has the
    pictures that are kept of every epoch, by number.
    """

    best: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    shown: Tensors = field(default_factory=dict)
    history: Epochs = field(default_factory=list)


def write_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, standing: Standing
) -> None:
    """Write where a training stands after a whole epoch."""
    tensors = {f"module/{n}": t for n, t in module.state_dict().items()}
    for group in _GROUPS:
        tensors |= {f"{group}/{n}": t for n, t in getattr(standing, group).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{n}": t for n, t in state.items() if t is not None}
    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"history": json.dumps(standing.history)},
        )


def resume(path: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer) -> Standing:
    """Load what a killed run left after its last whole epoch, or start from the beginning."""
    if path is None or not path.is_file():
        return Standing()
    groups: dict[str, Tensors] = {name: {} for name in ("module", "optimizer", *_GROUPS)}
    try:
        with safe_open(path, framework="pt") as file:
            history = json.loads((file.metadata() or {})["history"])
        for key, tensor in load_file(path).items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
    except (SafetensorError, KeyError, ValueError, OSError):
        return Standing()
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
    return Standing(history=history, **{name: groups[name] for name in _GROUPS})
