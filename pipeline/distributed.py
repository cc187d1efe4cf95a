"""Data parallelism: the processes that train one model together, each on its share of every batch.

All processes hold all rows, draw the same batches in the same order from the same seed, and each
answers a slice of every batch. The answers are gathered, so that every process computes the loss of
the whole batch, whatever that loss is, and sends back the gradients of its own slice; their sum is
the gradient of one process, up to the order in which numbers are added. Batch norm takes its
statistics over the whole batch. Augmentation is drawn for the whole batch by all alike; what a
model draws within, as in dropout, every process draws for its slice from a seed of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.errors import BadSetting
from models.recipe import Recipe, Tensors, Training
from pipeline.batches import count_rows, streams

Value = TypeVar("Value")
Loss = Callable[[Tensors, Tensors], tuple[Tensor, Tensors]]


@dataclass(frozen=True)
class Group:
    """The processes of a training, and which of them this is; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and decides."""
        return self.rank == 0

    def sizes(self, rows: int) -> list[int]:
        """How many rows of a batch each process answers; they differ by one at most."""
        return [rows // self.world + (rank < rows % self.world) for rank in range(self.world)]

    def own(self, tensors: Tensors, rows: int) -> Tensors:
        """This process's part of a batch of so many rows."""
        if self.world == 1:
            return tensors
        sizes = self.sizes(rows)
        start = sum(sizes[: self.rank])
        return {name: t[start : start + sizes[self.rank]] for name, t in tensors.items()}


def current_group() -> Group:
    """The group that torch was initialised with in this process, or a process alone."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def check_divisible(recipe: Recipe, settings: Training, rows: int, group: Group) -> None:
    """Raise `BadSetting` for a training that several processes cannot share."""
    if group.world == 1:
        return
    rule = "its gradients follow a rule of its own" if recipe.gradients else None
    rule = "it gathers its own rows" if recipe.collect else rule
    if rule:
        raise BadSetting(
            f"recipe {recipe.name!r} cannot be trained by several processes, for {rule}",
            got=f"{group.world} processes",
            expected=1,
        )
    sizes = {min(rows, settings.batch_size), rows % settings.batch_size}
    if settings.carry:
        sizes = {len(numbers) for numbers in streams(rows, settings.batch_size)}
    least = min(sizes - {0})
    if least < group.world:
        raise BadSetting(
            f"a batch of {recipe.name!r} has fewer rows than there are processes",
            got=f"{least} of {rows} rows",
            expected=f"{group.world} or more",
            fix="change it with --set batch_size=N",
        )


def told_by_first(group: Group, make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, in all of them; it goes there as JSON."""
    if group.world == 1:
        return make()
    return json.loads(_sent_by_first(json.dumps(make()).encode() if group.first else b""))


def _sent_by_first(data: bytes) -> bytes:
    """The first process's bytes; torch's own way for objects would load a pickle from others."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, src=0)
    sent = torch.zeros(int(size), dtype=torch.uint8)
    sent[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else sent[:0]
    sent = sent.to(device)
    dist.broadcast(sent, src=0)
    return sent.cpu().numpy().tobytes()


@contextmanager
def first_file(group: Group, path: Path | None) -> Iterator[Path | None]:
    """The file that the first process has at `path`: nodes need not share a file system."""
    if group.world == 1:
        yield path
        return
    there = group.first and path is not None and path.is_file()
    data = _sent_by_first(path.read_bytes() if there and path else b"")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        if data:  # which no whole checkpoint is without
            copy.write_bytes(data)
        yield copy


def shared_loss(recipe: Recipe, module: nn.Module, group: Group) -> Loss:
    """The loss of a batch in training and the answers to it, which have no gradients.

    Every process answers its own rows and gets those of all; of these only its own have gradients.
    The loss times the number of processes gives the gradients of the whole batch, for DDP averages
    them. Weights become the first process's. Raises `BadSetting` for answers that are not rows.
    """
    asked = _Asked(recipe, module, group)
    if group.world == 1:
        return asked.forward
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.forward = partial(_normalise, part)  # of this module only, and not saved
    parallel = DistributedDataParallel(asked, broadcast_buffers=False, find_unused_parameters=True)

    chance = torch.Generator()

    def loss(inputs: Tensors, targets: Tensors) -> tuple[Tensor, Tensors]:
        if chance.initial_seed() != torch.initial_seed():  # another epoch
            chance.manual_seed(torch.initial_seed())
        drawn = int(torch.randint(1 << 62, (), generator=chance))  # the same in all processes
        with torch.random.fork_rng(devices=[]):  # what one process draws next, all draw next
            torch.manual_seed(drawn + group.rank)
            return parallel(inputs, targets)

    return loss


class _Asked(nn.Module):
    """The forward pass that DDP follows: to the loss, so that what has no part in it is seen."""

    def __init__(self, recipe: Recipe, module: nn.Module, group: Group) -> None:
        super().__init__()
        self.recipe = recipe
        self.module = module
        self.group = group

    def forward(self, inputs: Tensors, targets: Tensors) -> tuple[Tensor, Tensors]:
        rows = count_rows(inputs)
        own, wanted = self.group.own(inputs, rows), self.group.own(targets, rows)
        outputs = self.recipe.answer(self.module, own, wanted)
        outputs = {name: _gather(self.group, name, t, rows) for name, t in outputs.items()}
        loss = self.recipe.compute_loss(outputs, targets)
        return loss, {name: tensor.detach() for name, tensor in outputs.items()}


def _gather(group: Group, name: str, own: Tensor, rows: int) -> Tensor:
    """The rows of all processes in order, of which this one's keep their gradients."""
    if group.world == 1:
        return own
    sizes = group.sizes(rows)
    if own.ndim == 0 or len(own) != sizes[group.rank]:
        raise BadSetting(
            f"output {name!r} cannot be put together from several processes",
            got=list(own.shape),
            expected=f"{sizes[group.rank]} rows",
        )
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[group.rank] = own
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])  # pyright: ignore[reportReturnType]


def _normalise(norm: _BatchNorm, input: Tensor) -> Tensor:
    """Batch norm (Ioffe, Szegedy 2015) over the rows of all processes, as torch's over its own."""
    if not norm.training:
        return type(norm).forward(norm, input)

    def total(each: Tensor) -> Tensor:
        return _Sum.apply(each)  # pyright: ignore[reportReturnType]

    others = [0, *range(2, input.ndim)]
    shape = [1, -1, *[1] * (input.ndim - 2)]
    count = total(input.new_tensor([input.numel() / input.shape[1]]))
    mean = total(input.sum(others)) / count
    centred = input - mean.view(shape)
    variance = total(centred.square().sum(others)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            seen = norm.num_batches_tracked
            if seen is not None:
                seen += 1
            share = 1 / float(seen) if norm.momentum is None and seen is not None else norm.momentum
            norm.running_mean.lerp_(mean, share or 0.0)
            norm.running_var.lerp_(variance * count / (count - 1), share or 0.0)
    normal = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal
