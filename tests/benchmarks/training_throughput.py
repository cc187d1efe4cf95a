"""Training beside a DataLoader and Keras: python -m tests.benchmarks.training_throughput

The same net, rows, batch size and optimizer three times: `pipeline.train`, a plain PyTorch loop
over a `DataLoader`, and `fit` of Keras 3 on the torch backend. Each epoch ends in a measurement of
the validation rows. Alternating rounds in one process; prints medians and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # read while Keras is imported

import keras
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flows.latency import machine
from models.datasets import Dataset, Split
from models.recipe import Recipe
from models.zoo import find
from pipeline.train import train

BATCH = 128
EPOCHS = 3  # the first of each round warms up and is not counted
Layers = list[keras.layers.Layer]


def ours(recipe: Recipe, dataset: Dataset) -> list[float]:
    """Seconds of each epoch of `pipeline.train`."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            recipe, "embedded", dataset, Path(folder),
            progress=lambda done, total, text: ends.append(time.perf_counter()),
        )  # fmt: skip
    return list(np.diff(ends))


def data_loader(recipe: Recipe, dataset: Dataset) -> list[float]:
    """Seconds of each epoch of the loop that PyTorch's tutorials write."""
    module = recipe.build()
    rows, held_out = (
        TensorDataset(
            torch.from_numpy(split.inputs["image"]), torch.from_numpy(split.targets["label"])
        )
        for split in (dataset.train, dataset.validation)
    )
    optimizer = torch.optim.Adam(module.parameters())
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        module.train()
        for image, label in DataLoader(rows, batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            functional.cross_entropy(module(image)["logits"], label).backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            hits = 0
            for image, label in DataLoader(held_out, batch_size=512):
                hits += int((module(image)["logits"].argmax(1) == label).sum())
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def keras_fit(layers: Callable[[], Layers], dataset: Dataset) -> list[float]:
    """Seconds of each epoch of Keras' own loop."""

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            ends.append(time.perf_counter())

    ends: list[float] = []
    model = keras.Sequential([keras.Input(dataset.train.inputs["image"].shape[1:]), *layers()])
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    quiet: Any = 0
    model.fit(
        dataset.train.inputs["image"], dataset.train.targets["label"], BATCH, EPOCHS, verbose=quiet,
        validation_data=(dataset.validation.inputs["image"], dataset.validation.targets["label"]),
        callbacks=[Clock()],
    )  # fmt: skip
    return list(np.diff(ends))


def dense() -> Layers:
    """784-512-10."""
    return [
        keras.layers.Flatten(),
        keras.layers.Dense(512, "relu"),
        keras.layers.Dense(10),
    ]


def convolutional() -> Layers:
    """LeNet-5, padded to 32x32."""

    def convolution(filters: int) -> keras.layers.Layer:
        return keras.layers.Conv2D(filters, 5, activation="tanh", data_format="channels_first")

    def pool() -> keras.layers.Layer:
        return keras.layers.AveragePooling2D(2, data_format="channels_first")

    return [
        keras.layers.ZeroPadding2D(2, data_format="channels_first"),
        *(convolution(6), pool(), convolution(16), pool(), keras.layers.Flatten()),
        *(keras.layers.Dense(units, "tanh") for units in (120, 84)),
        keras.layers.Dense(10),
    ]


NETS: dict[str, Callable[[], Layers]] = {"mlp": dense, "lenet5": convolutional}


def repeated(dataset: Dataset, rows: int) -> Dataset:
    """The data set with its training rows repeated until there are so many."""
    index = np.arange(rows) % len(dataset.train)
    return replace(
        dataset,
        train=Split(
            {name: array[index] for name, array in dataset.train.inputs.items()},
            {name: array[index] for name, array in dataset.train.targets.items()},
        ),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{machine()}; torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"keras {keras.__version__}; embedded digits repeated to {options.rows} rows, "
        f"batch {BATCH}, Adam; medians of {options.rounds} alternating rounds"
    )
    for name, layers in NETS.items():
        recipe = find(name).override(
            {"epochs": EPOCHS, "batch_size": BATCH, "optimizer": "adam", "schedule": "constant",
             "floor": "none"}
        )  # fmt: skip
        dataset = repeated(recipe.load("embedded"), options.rows)
        count = keras.Sequential([keras.Input((1, 28, 28)), *layers()]).count_params()
        assert count == sum(p.numel() for p in recipe.build().parameters()), "not the same net"
        runs: dict[str, Callable[[], list[float]]] = {
            "fucina": lambda r=recipe, d=dataset: ours(r, d),
            "DataLoader": lambda r=recipe, d=dataset: data_loader(r, d),
            "Keras": lambda n=layers, d=dataset: keras_fit(n, d),
        }
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        for _ in range(options.rounds):
            for label, run in runs.items():
                seconds[label] += run()
        best = statistics.median(seconds["fucina"])
        for label, times in seconds.items():
            middle = statistics.median(times)
            print(
                f"{name:<7} {label:<10} {options.rows / middle:9,.0f} rows/s "
                f"({options.rows / max(times):,.0f} to {options.rows / min(times):,.0f}), "
                f"{best / middle:.2f} of fucina's"
            )


if __name__ == "__main__":
    main()
