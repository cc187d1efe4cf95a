"""Train: a recipe and a data set become weights, with what happened on the way."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.augment import augment, augment_maps, draw_noise
from models.datasets import Dataset
from models.errors import FloorMissed, TrainingFailed
from models.optimization import learning_rate, make_optimizer
from models.recipe import Recipe, Training, map_of
from pipeline.artifacts import digest_files, save, write_json
from pipeline.batches import (
    Rows,
    carried_states,
    count_rows,
    device_of,
    first,
    measure,
    predict,
    select,
    streams,
    to_arrays,
    to_tensors,
)
from pipeline.checkpoint import Epochs, Standing, Tensors, resume, write_checkpoint
from pipeline.distributed import (
    Loss,
    check_divisible,
    current_group,
    first_file,
    shared_loss,
    told_by_first,
)
from pipeline.evaluation import choose_rows, intervals, write_evaluation, write_exhibits
from pipeline.progress import Progress, silent
from pipeline.values import (
    CODEC,
    EVALUATION,
    EXHIBITS,
    GALLERY,
    HISTORY,
    TRAINED_VALUE,
    WEIGHTS,
    TrainedModel,
)
from pipeline.versions import libraries

_SECONDS_UNTOLD = 10.0


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

    In a process group of torch, all processes train the one model together (`pipeline.distributed`)
    and each writes into its own `out`; the first writes the checkpoint, which the others need not
    see.

    Raises `BadSetting` when the settings do not fit the data, `TrainingFailed` when the loss is not
    finite, `FloorMissed` when the test metric is below the recipe's floor, with what the recipe
    remarks about this data.
    """
    recipe, settings = recipe.on(data), recipe.training[data]
    recipe.check_fits(dataset, data)
    check_divisible(
        recipe, settings, len(next(iter(dataset.train.inputs.values()))), current_group()
    )
    with _deterministic(settings.seed, device):
        module = recipe.build()
        module.to(device)
        for parameter in module.parameters():
            if parameter.ndim == 4:  # convolutions are a fifth faster so, and saved as usual
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        train_rows, validation_rows = (
            (to_tensors(split.inputs, device), to_tensors(split.targets, device))
            for split in (dataset.train, dataset.validation)
        )
        test_rows = (
            to_tensors(dataset.test.inputs, device),
            to_tensors(dataset.test.targets, device),
        )
        recipe.prepare(module, *train_rows)
        standing = _fit(
            recipe, settings, module, train_rows, validation_rows, test_rows, checkpoint, progress
        )
        best, history = standing.best, standing.history
        module.load_state_dict(best)
        _, measured = measure(recipe, settings, module, *test_rows)
        exhibits = _exhibit(recipe, module, test_rows)
        codec = recipe.make_codec(dataset)
        if recipe.calibrate:
            _, validated = measure(recipe, settings, module, *validation_rows)
            codec = recipe.calibrate(codec, validated, dataset.validation.targets)
    metrics = recipe.evaluate(measured, dataset.test.targets)
    best_epoch = _best_epoch(recipe, history)
    floor = recipe.floor[data]
    remarks = recipe.remarks(dataset, metrics)
    if floor is not None and not recipe.rank(metrics) >= recipe.rank({recipe.metric: floor}):
        raise FloorMissed(
            f"{recipe.name} trained on {dataset.name} misses its floor of test {recipe.metric}"
            + "".join(f"; {remark}" for remark in remarks),
            got=f"{metrics[recipe.metric]:.4f}",
            expected=f"{floor} or {'more' if recipe.direction == 'max' else 'less'}",
            fix="train longer (--set epochs=N), or accept less (--set floor=X)",
        )
    save_file({name: tensor.contiguous() for name, tensor in best.items()}, out / WEIGHTS)
    write_json(out / HISTORY, history)
    write_json(out / CODEC, codec.model_dump(mode="json"))
    rows = choose_rows(dataset, codec, measured)
    pictured = to_tensors({n: a[rows] for n, a in dataset.test.inputs.items()}, device)
    write_evaluation(
        dataset, codec, measured, metrics, rows, to_arrays(predict(module, pictured)), out
    )
    if exhibits:
        write_exhibits(to_arrays(exhibits), to_arrays(standing.shown), out)
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
        intervals=intervals(recipe, measured, dataset.test.targets, metrics),
        baselines=recipe.baseline(dataset),
        remarks=remarks,
        processes=current_group().world,
        floor=floor,
        best_epoch=best_epoch,
        first_layer=next((n for n, p in module.named_parameters() if p.ndim >= 2), None),
        libraries=libraries("torch", "numpy"),
        files=digest_files(
            out, [WEIGHTS, HISTORY, CODEC, EVALUATION, GALLERY, *([EXHIBITS] if exhibits else [])]
        ),
    )
    save(value, out, TRAINED_VALUE)
    return value


def load_module(recipe: Recipe, trained: TrainedModel) -> nn.Module:
    """The trained served module, in evaluation mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        module = recipe.build()
    module.load_state_dict(load_file(trained.folder / WEIGHTS))
    return module.eval()


def _fit(
    recipe: Recipe,
    settings: Training,
    module: nn.Module,
    train_rows: Rows,
    validation_rows: Rows,
    test_rows: Rows,
    checkpoint: Path | None,
    progress: Progress,
) -> Standing:
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, parameters)
    group = current_group()
    with first_file(group, checkpoint) as seen:
        standing = resume(seen, module, optimizer)
    compute = shared_loss(recipe, module, group)
    history = standing.history
    for epoch in range(len(history) + 1, settings.epochs + 1):
        if _stopped_early(recipe, settings, history):
            break
        # What is gathered, the order of rows, augmentation, dropout.
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        rows = train_rows
        if recipe.collect:
            standing.memory, *gathered = recipe.gather(module, standing.memory, epoch)
            device = device_of(train_rows[0])
            inputs, targets = ({n: t.to(device) for n, t in part.items()} for part in gathered)
            rows = (inputs, targets)
        facts = {"epoch": epoch} | _train_epoch(
            recipe, settings, module, compute, optimizer, rows, epoch,
            [entry["validation"]["loss"] for entry in history], progress,
        )  # fmt: skip
        facts["validation"] = told_by_first(
            group, lambda: _validate(recipe, settings, module, validation_rows)
        )
        history.append(facts)
        if _best_epoch(recipe, history) == epoch:
            standing.best = {n: t.detach().cpu().clone() for n, t in module.state_dict().items()}
        for exhibit in list(_exhibit(recipe, module, test_rows).values())[:1]:
            standing.shown[str(epoch)] = exhibit[0]
        if checkpoint and group.first:
            write_checkpoint(checkpoint, module, optimizer, standing)
        metric = facts["validation"][recipe.metric]
        text = f"loss {facts['loss']:.4f}, validation {recipe.metric} {metric:.4f}"
        progress(epoch, settings.epochs, text)
    return standing


def _validate(
    recipe: Recipe, settings: Training, module: nn.Module, rows: Rows
) -> dict[str, float]:
    loss, measured = measure(recipe, settings, module, *rows)
    return {"loss": loss} | recipe.evaluate(measured, to_arrays(rows[1]))


@torch.inference_mode()
def _exhibit(recipe: Recipe, module: nn.Module, rows: Rows) -> Tensors:
    """The recipe's exhibits as whole numbers from 0 to 255, which is all that a picture keeps."""
    module.eval()
    exhibits = recipe.exhibits(module, *rows)
    return {n: (t.clamp(0, 1) * 255).round().byte().cpu() for n, t in exhibits.items()}


def _train_epoch(
    recipe: Recipe,
    settings: Training,
    module: nn.Module,
    compute: Loss,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    epoch: int,
    validation_losses: list[float],
    progress: Progress,
) -> dict[str, Any]:
    """One pass over the rows in a new order, or in theirs where state is carried over them.

    The mean loss, the last learning rate, and of each parameter the mean gradient norm before
    clipping.
    """
    module.train()
    inputs, targets = rows
    device = device_of(inputs)
    count = count_rows(inputs)
    batches = []
    for _ in range(settings.repeat):
        if settings.carry:
            batches += streams(count, settings.batch_size)
        else:
            batches += torch.randperm(count).split(settings.batch_size)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = torch.zeros((), device=device)
    norms = torch.zeros(len(parameters), device=device)
    carried, states = carried_states(recipe, settings), Tensors()
    rate = settings.learning_rate
    world = current_group().world
    told = time.monotonic()
    for step, numbers in enumerate(batches):
        done = (epoch - 1 + step / len(batches)) / settings.epochs
        rate = learning_rate(settings, done, validation_losses)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = numbers.to(device)
        batch, wanted = _augmented(select(inputs, chosen), select(targets, chosen), settings)
        optimizer.zero_grad()
        if recipe.gradients:
            loss = recipe.gradients(module, batch, wanted)
        else:
            loss, outputs = compute(batch | first(states, len(numbers)), wanted)
            states = {state.input: outputs[state.output] for state in carried}
            (loss * world).backward()  # for the processes' gradients are averaged
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        norms += torch.stack([gradient.norm() for gradient in gradients])
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        total += loss.detach() * len(numbers)
        if time.monotonic() - told > _SECONDS_UNTOLD:
            told = time.monotonic()
            progress(epoch - 1, settings.epochs, f"batch {step + 1} of {len(batches)}")
    mean = float(total) / (count * settings.repeat)
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


def _best_epoch(recipe: Recipe, history: Epochs) -> int:
    """The epoch of the best validation metric; among equals the lowest validation loss."""
    best = max(
        history,
        key=lambda e: (recipe.rank(e["validation"]), -e["validation"]["loss"], -e["epoch"]),
    )
    return best["epoch"]


def _stopped_early(recipe: Recipe, settings: Training, history: Epochs) -> bool:
    if not settings.patience or not history:
        return False
    return len(history) - _best_epoch(recipe, history) >= settings.patience


def _augmented(inputs: Tensors, targets: Tensors, settings: Training) -> tuple[Tensors, Tensors]:
    """A training batch with its pictures moved, maps of them alike, and its floats made noisy.

    A target of a picture's own name is the picture that is wanted, and moves with it.
    """
    changed, wanted = {}, dict(targets)
    for name, tensor in inputs.items():
        moved = tensor
        if tensor.is_floating_point() and tensor.ndim == 4:
            maps = map_of(targets, tensor.shape)
            if maps is not None:
                moved, wanted[maps] = augment_maps(tensor, targets[maps], settings)
            elif name in targets:
                both = torch.cat([tensor, targets[name]], dim=1)
                moved, wanted[name] = augment(both, settings).chunk(2, dim=1)
            else:
                moved = augment(tensor, settings)
        changed[name] = draw_noise(moved, settings) if tensor.is_floating_point() else moved
    return changed, wanted


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
