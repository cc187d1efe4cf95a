"""Quantised: the module with weights and activations rounded as an int8 engine rounds them."""

from __future__ import annotations

from torch import nn

from pipeline.samples import Samples


def quantised(module: nn.Module, calibration: Samples) -> nn.Module:
    """A copy of the module that rounds like a static int8 engine, in fp32 arithmetic."""
    return module  # being written
