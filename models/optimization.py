"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from models.recipe import Training

_SQUARES = 0.999  # decay of adam's mean squared gradient, as in the paper and in torch
_DROP = 0.1  # of `step` and `plateau`
_PLATEAU = 3  # epochs without a lower validation loss before `plateau` drops
# One cycle (Smith 2018), with the proportions that torch's OneCycleLR has.
_RISE, _START, _END = 0.3, 1 / 25, 1 / 25e4


def make_optimizer(settings: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of that name: sgd is plain, and what has no setting is torch's default.

    Weight decay is decoupled from the gradient in adamw only (Loshchilov, Hutter 2019). Torch's
    fused kernels are used where it has them: one call for all parameters.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    betas = (settings.momentum, _SQUARES)
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, rate, weight_decay=decay, fused=True)
        case "momentum":
            return torch.optim.SGD(
                parameters, rate, momentum=settings.momentum, weight_decay=decay, fused=True
            )
        case "adam":
            return torch.optim.Adam(parameters, rate, betas, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay, fused=True)
        case "adadelta":
            return torch.optim.Adadelta(parameters, rate, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(parameters, rate, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, rate, weight_decay=decay)


def learning_rate(settings: Training, done: float, validation_losses: Sequence[float]) -> float:
    """The rate when the share `done` of all updates is behind, from 0 to 1.

    step: a tenth from half of the updates on, a hundredth from three quarters on (He 2016).
    cosine: half a period, down to 0. one-cycle: from 1/25 up to the rate over the first three
    tenths and down to 1/250,000, both as cosines. plateau: a tenth each time that the validation
    loss, one for each whole epoch, has found no new lowest value for more than three epochs.
    """
    rate = settings.learning_rate
    match settings.schedule:
        case "constant":
            return rate
        case "step":
            return rate * _DROP ** ((done >= 0.5) + (done >= 0.75))
        case "cosine":
            return _cosine(rate, 0.0, done)
        case "one-cycle":
            if done < _RISE:
                return _cosine(rate * _START, rate, done / _RISE)
            return _cosine(rate, rate * _END, (done - _RISE) / (1 - _RISE))
        case "plateau":
            return rate * _DROP ** _drops(validation_losses)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _drops(losses: Sequence[float]) -> int:
    best, waited, drops = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited > _PLATEAU:
            waited, drops = 0, drops + 1
    return drops
