"""Train: a recipe and a data set become weights, with what happened on the way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.augment import augment, draw_noise
from models.datasets import Dataset
from models.errors import FloorMissed, TrainingFailed
from models.optimization import learning_rate, make_optimizer
from models.recipe import Recipe, Training
from models.signature import Arrays
from pipeline.artifacts import digest_files, replacing, save, write_json
from pipeline.evaluation import intervals, write_evaluation
from pipeline.progress import Progress, silent
from pipeline.values import (
    CODEC,
    EVALUATION,
    GALLERY,
    HISTORY,
    TRAINED_VALUE,
    WEIGHTS,
    TrainedModel,
)
from pipeline.versions import libraries

_EVALUATION_ROWS = 512

Epochs = list[dict[str, Any]]
Tensors = dict[str, Tensor]


def train(
    recipe: Recipe,
    data: str,
    dataset: Dataset,
    out: Path,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> TrainedModel:
    """Train on the train split, keep the best weights on validation, measure once on test.

    `dataset` is what `recipe.load(data)` gave.

    Writes the files that `TrainedModel` names into `out`. The same seed, data and machine give the
    same weights: the randomness of an epoch depends on the seed and the epoch alone, so a run that
    resumes from `checkpoint` ends in the same weights as well.

    Raises `BadSetting` when the settings do not fit the data, `TrainingFailed` when the loss is not
    finite, `FloorMissed` when the test metric is below the recipe's floor, with what the recipe
    remarks about this data.
    """
    recipe, settings = recipe.on(data), recipe.training[data]
    recipe.check_fits(dataset)
    with _deterministic(settings.seed, device):
        module = recipe.build()
        module.to(device)
        for parameter in module.parameters():
            if parameter.ndim == 4:  # convolutions are a fifth faster so, and saved as usual
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        train_rows, validation_rows = (
            (_tensors(split.inputs, device), _tensors(split.targets, device))
            for split in (dataset.train, dataset.validation)
        )
        recipe.prepare(module, *train_rows)
        best, history = _fit(
            recipe, settings, module, train_rows, validation_rows, checkpoint, progress
        )
        module.load_state_dict(best)
    outputs = _arrays(predict(module, _tensors(dataset.test.inputs, device)))
    metrics = recipe.evaluate(outputs, dataset.test.targets)
    best_epoch = _best_epoch(recipe, history)
    floor = recipe.floor[data]
    remarks = recipe.remarks(dataset, metrics)
    if floor is not None and not metrics[recipe.metric] >= floor:
        raise FloorMissed(
            f"{recipe.name} trained on {dataset.name} misses its floor of test {recipe.metric}"
            + "".join(f"; {remark}" for remark in remarks),
            got=f"{metrics[recipe.metric]:.4f}",
            expected=f"{floor} or more",
            fix="train longer (--set epochs=N), or accept less (--set floor=X)",
        )
    save_file({name: tensor.contiguous() for name, tensor in best.items()}, out / WEIGHTS)
    write_json(out / HISTORY, history)
    codec = recipe.codec(dataset)
    write_json(out / CODEC, codec.model_dump(mode="json"))
    write_evaluation(dataset, codec, outputs, metrics, out)
    value = TrainedModel(
        folder=out,
        recipe=recipe.name,
        settings=recipe.all_settings(data),
        published=recipe.published(),
        data={
            "name": dataset.name,
            "source": dataset.source,
            "licence": dataset.licence,
            "digest": dataset.digest,
        },
        held_out=not dataset.exhaustive,
        parameters=sum(p.numel() for p in module.parameters()),
        layers=tuple(name for name, _ in module.named_parameters()),
        metrics=metrics,
        intervals=intervals(recipe, outputs, dataset.test.targets, metrics),
        baselines=recipe.baseline(dataset),
        remarks=remarks,
        floor=floor,
        best_epoch=best_epoch,
        first_layer=next((n for n, p in module.named_parameters() if p.ndim >= 2), None),
        libraries=libraries("torch", "numpy"),
        files=digest_files(out, [WEIGHTS, HISTORY, CODEC, EVALUATION, GALLERY]),
    )
    save(value, out, TRAINED_VALUE)
    return value


def load_module(recipe: Recipe, trained: TrainedModel) -> nn.Module:
    """The trained served module, in evaluation mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        module = recipe.build()
    module.load_state_dict(load_file(trained.folder / WEIGHTS))
    return module.eval()


@torch.inference_mode()
def predict(module: nn.Module, inputs: Tensors) -> Tensors:
    """The module's named outputs over all rows, in evaluation mode."""
    module.eval()
    count = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, count, _EVALUATION_ROWS):
        rows = {name: tensor[start : start + _EVALUATION_ROWS] for name, tensor in inputs.items()}
        parts.append(module(**rows))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _fit(
    recipe: Recipe,
    settings: Training,
    module: nn.Module,
    train_rows: tuple[Tensors, Tensors],
    validation_rows: tuple[Tensors, Tensors],
    checkpoint: Path | None,
    progress: Progress,
) -> tuple[Tensors, Epochs]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, parameters)
    best, history = _resume(checkpoint, module, optimizer)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        if _stopped_early(recipe, settings, history):
            break
        facts = {"epoch": epoch} | _train_epoch(
            recipe, settings, module, optimizer, *train_rows, epoch,
            [entry["validation"]["loss"] for entry in history],
        )  # fmt: skip
        facts["validation"] = _evaluate(recipe, module, *validation_rows)
        history.append(facts)
        if _best_epoch(recipe, history) == epoch:
            best = {n: t.detach().cpu().clone() for n, t in module.state_dict().items()}
        if checkpoint:
            _write_checkpoint(checkpoint, module, optimizer, best, history)
        metric = facts["validation"][recipe.metric]
        text = f"loss {facts['loss']:.4f}, validation {recipe.metric} {metric:.4f}"
        progress(epoch, settings.epochs, text)
    return best, history


def _train_epoch(
    recipe: Recipe,
    settings: Training,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensors,
    targets: Tensors,
    epoch: int,
    validation_losses: list[float],
) -> dict[str, Any]:
    """One pass over the rows in a new order.

    The mean loss, the last learning rate, and of each parameter the mean gradient norm before
    clipping.
    """
    module.train()
    # The order below, augmentation, dropout.
    torch.manual_seed(settings.seed * 1_000_003 + epoch)
    device = next(iter(inputs.values())).device
    count = len(next(iter(inputs.values())))
    order = torch.randperm(count).to(device)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = torch.zeros((), device=device)
    norms = torch.zeros(len(parameters), device=device)
    batches = order.split(settings.batch_size)
    rate = settings.learning_rate
    for step, rows in enumerate(batches):
        done = (epoch - 1 + step / len(batches)) / settings.epochs
        rate = learning_rate(settings, done, validation_losses)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = _augmented(_rows(inputs, rows), settings)
        wanted = _rows(targets, rows)
        optimizer.zero_grad()
        if recipe.gradients:
            loss = recipe.gradients(module, batch, wanted)
        else:
            loss = recipe.compute_loss(module(**batch), wanted)
            loss.backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        norms += torch.stack([gradient.norm() for gradient in gradients])
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        total += loss.detach() * len(rows)
    mean = float(total) / count
    if not math.isfinite(mean):
        raise TrainingFailed(
            f"the training loss of {recipe.name} is not finite in epoch {epoch}",
            got=mean,
            fix="lower it with --set learning_rate=X",
        )
    return {
        "loss": mean,
        "learning_rate": rate,
        "gradient_norms": dict(zip(names, (norms / len(batches)).tolist(), strict=True)),
    }


@torch.inference_mode()
def _evaluate(
    recipe: Recipe, module: nn.Module, inputs: Tensors, targets: Tensors
) -> dict[str, float]:
    outputs = predict(module, inputs)
    loss = float(recipe.compute_loss(outputs, targets))
    return {"loss": loss} | recipe.evaluate(_arrays(outputs), _arrays(targets))


def _best_epoch(recipe: Recipe, history: Epochs) -> int:
    """The epoch of the best validation metric; among equals the lowest validation loss."""
    best = max(
        history,
        key=lambda e: (e["validation"][recipe.metric], -e["validation"]["loss"], -e["epoch"]),
    )
    return best["epoch"]


def _stopped_early(recipe: Recipe, settings: Training, history: Epochs) -> bool:
    if not settings.patience or not history:
        return False
    return len(history) - _best_epoch(recipe, history) >= settings.patience


def _rows(tensors: Tensors, rows: Tensor) -> Tensors:
    # index_select is faster than indexing by a tensor.
    return {name: tensor.index_select(0, rows) for name, tensor in tensors.items()}


def _augmented(inputs: Tensors, settings: Training) -> Tensors:
    """A training batch with its pictures moved and its floats made noisy, as the settings say."""
    changed = {}
    for name, tensor in inputs.items():
        picture = tensor.is_floating_point() and tensor.ndim == 4
        moved = augment(tensor, settings) if picture else tensor
        changed[name] = draw_noise(moved, settings) if tensor.is_floating_point() else moved
    return changed


def _tensors(arrays: Arrays, device: str) -> Tensors:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _arrays(tensors: Tensors) -> Arrays:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


@contextmanager
def _deterministic(seed: int, device: str) -> Iterator[None]:
    """Seeded generators and deterministic kernels, both put back afterwards."""
    # cuBLAS is deterministic only with a workspace of its own, and refuses to run without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    devices = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _write_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors, history: Epochs
) -> None:
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


def _resume(
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
