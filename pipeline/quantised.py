"""Quantised: the module with weights and activations rounded as engines in eight bits do it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pipeline.recording import answer
from pipeline.samples import Samples

# The layers whose products engines compute in eight bits. Products of two activations stay in fp32.
_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear,
)  # fmt: skip
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)

_E4M3_MOST = torch.finfo(torch.float8_e4m3fn).max
_ROWS = 64  # that ranges are observed of, in calls of 16


def quantised(module: nn.Module, calibration: Samples, rounding: str = "int8") -> nn.Module:
    """A copy of the module that rounds like a static int8 or fp8 engine, in fp32 arithmetic.

    Weights of convolutions and dense layers are rounded per output channel to -127..127, what
    these layers are given per tensor to 0..255 between the least and the greatest value that the
    first calibration rows lead to, and 0; in `int8-symmetric` to -128..127, of which 127 is the
    greatest magnitude. In fp8 both are rounded per tensor to E4M3, whose largest number, 448, is
    the greatest magnitude. Source: Jacob et al. 2018, Quantization and training of neural networks
    for efficient integer-arithmetic-only inference, without the training.
    """
    rounded = copy.deepcopy(module)
    layers = [layer for layer in rounded.modules() if isinstance(layer, _LAYERS)]
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = (min(low, given[0].min().item()), max(high, given[0].max().item()))

    observers = [layer.register_forward_pre_hook(observe) for layer in layers]
    for start in range(0, min(len(calibration), _ROWS), 16):
        answer(rounded, {n: a[start : start + 16] for n, a in calibration.inputs.items()})
    for observer in observers:
        observer.remove()
    for layer in layers:
        if rounding == "fp8":
            layer.weight = nn.Parameter(_to_e4m3(layer.weight.detach(), _reach(layer.weight)))
        else:
            _round_weight(layer)
        if layer in ranges:
            _round_input(layer, *ranges[layer], rounding)
    return rounded


def _round_weight(layer: Any) -> None:
    weight = layer.weight.detach()
    axis = 1 if isinstance(layer, _TRANSPOSED) else 0
    steps = weight.abs().amax([a for a in range(weight.ndim) if a != axis]).clamp_min(1e-30) / 127
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    layer.weight = nn.Parameter(
        torch.fake_quantize_per_channel_affine(weight, steps, zeros, axis, -127, 127)
    )


def _round_input(layer: nn.Module, low: float, high: float, rounding: str) -> None:
    if rounding == "int8-symmetric":
        step, zero, least = max(-low, high, 1e-30) / 127, 0, -128
    else:
        step, least = max(high - low, 1e-30) / 255, 0
        zero = round(-low / step)

    def fake(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if rounding == "fp8":
            return (_to_e4m3(given[0], max(-low, high)), *given[1:])
        first = torch.fake_quantize_per_tensor_affine(given[0], step, zero, least, least + 255)
        return (first, *given[1:])

    layer.register_forward_pre_hook(fake)


def _reach(tensor: torch.Tensor) -> float:
    return tensor.detach().abs().max().item()


def _to_e4m3(tensor: torch.Tensor, reach: float) -> torch.Tensor:
    """Eight-bit floats of 4 bits exponent and 3 of fraction; what is beyond `reach` is cut off.

    Source: Micikevicius et al. 2022, FP8 formats for deep learning.
    """
    step = max(reach, 1e-30) / _E4M3_MOST
    levels = (tensor / step).clamp(-_E4M3_MOST, _E4M3_MOST)
    return levels.to(torch.float8_e4m3fn).to(tensor.dtype) * step
