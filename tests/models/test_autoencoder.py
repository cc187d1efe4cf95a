"""Autoencoders: published sizes, parts that make the whole, the linear optimum, noise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor, nn

from models.autoencoder import (
    AUTOENCODER,
    AUTOENCODER_CONV,
    ConvolutionalAutoencoder,
    DenseAutoencoder,
)
from models.denoising_autoencoder import DENOISING_AUTOENCODER, DenoisingAutoencoder
from models.digits import embedded_digits, noisy, pictured_digits, pictured_mnist
from models.layers import inspect
from models.recipe import Recipe
from models.reconstruction import (
    CODES,
    linear_baseline,
    picture_errors,
    principal_components,
    reconstruction,
    reconstruction_loss,
)

RECIPES = (AUTOENCODER, AUTOENCODER_CONV, DENOISING_AUTOENCODER)
by_name = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def built(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    return recipe.on("embedded").build().eval()


def test_the_dense_net_has_the_papers_layers() -> None:
    network = DenseAutoencoder()
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == sizes
    counts = [(a + 1) * b for a, b in pairwise(sizes)]
    assert sum(p.numel() for p in network.parameters()) == sum(counts) == 2_837_314
    assert isinstance(network.encoder[-1], nn.Linear), "the code is linear"


def test_the_convolutional_net_goes_back_through_the_sizes_it_came_by() -> None:
    network = ConvolutionalAutoencoder()
    shapes: list[tuple[int, ...]] = []
    for part in [*network.encoder.children(), *network.decoder.children()]:
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d | nn.Upsample):
            part.register_forward_hook(
                lambda _m, _i, output: shapes.append(tuple(output.shape[1:]))
            )
    assert network(pictures(1)).shape == (1, 1, 28, 28)
    down = [(100, 24, 24), (100, 12, 12), (150, 8, 8), (150, 4, 4), (200, 2, 2)]
    up = [(150, 4, 4), (150, 8, 8), (100, 12, 12), (100, 24, 24), (1, 28, 28)]
    assert shapes == down + up
    weights = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert weights == 2 * (25 * 100 + 25 * 100 * 150 + 9 * 150 * 200)


def test_the_denoising_net_has_one_hidden_layer() -> None:
    counted = sum(p.numel() for p in DenoisingAutoencoder().parameters())
    assert counted == 785 * 1000 + 1001 * 784


@by_name
def test_the_whole_is_the_decoder_of_the_encoder(recipe: Recipe) -> None:
    recipe = recipe.on("embedded")
    module, images = built(recipe), pictures(5)
    known = {"image": images}
    for name, part in recipe.parts.items():
        spec = recipe.make_part(name)
        answers = part.take(module)(**{i.name: known[i.name] for i in spec.inputs})
        assert list(answers) == [output.name for output in spec.outputs]
        known |= answers
    whole = module(**{"image": images})
    assert list(whole) == [output.name for output in recipe.make_signature().outputs]
    assert whole.keys() - known.keys() == {"error"}
    for name in whole.keys() - {"error"}:
        assert torch.equal(whole[name], known[name])
    for spec in recipe.make_signature().outputs:
        assert tuple(whole[spec.name].shape) == spec.at({"batch": 5})
    assert torch.equal(whole["reconstruction"], whole["logits"].sigmoid())


@by_name
def test_the_error_is_the_mean_square_over_pixels(recipe: Recipe) -> None:
    images, targets = pictures(5), {"image": pictures(5, seed=1).numpy()}
    with torch.no_grad():
        answers = {name: t.numpy() for name, t in built(recipe)(image=images).items()}
    rows = picture_errors(answers, targets)
    difference = answers["reconstruction"].astype(np.float64) - images.numpy()
    np.testing.assert_allclose(rows["error"], (difference**2).mean((1, 2, 3)), rtol=1e-5)
    difference = answers["reconstruction"].astype(np.float64) - targets["image"]
    assert reconstruction(rows, targets)["mse"] == pytest.approx((difference**2).mean(), rel=1e-5)


def test_losses_are_torchs() -> None:
    logits, wanted = torch.randn(4, 1, 28, 28), pictures(4)
    outputs = {"logits": logits, "reconstruction": logits.sigmoid()}
    targets = {"image": wanted}
    assert float(reconstruction_loss(outputs, targets)) == pytest.approx(
        float(nn.BCELoss()(outputs["reconstruction"], wanted)), rel=1e-5
    )
    assert float(reconstruction_loss(outputs, targets, "mse")) == pytest.approx(
        float(nn.MSELoss()(outputs["reconstruction"], wanted)), rel=1e-6
    )


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_principal_components_are_scikit_learns(components: int, seed: int) -> None:
    rows = np.random.default_rng(seed).random((40, 1, 5, 5))
    train, test = rows[:30], rows[30:]
    model = PCA(components).fit(train.reshape(30, -1))
    expected = model.inverse_transform(model.transform(test.reshape(10, -1)))
    given_back = principal_components(train)(test, components)
    np.testing.assert_allclose(given_back.reshape(10, -1), expected, atol=1e-8)


def test_a_linear_autoencoder_comes_to_the_principal_components_and_not_beyond() -> None:
    """Baldi, Hornik 1989: the squared error of a linear net has no other minimum."""
    code = 4
    images = torch.from_numpy(pictured_digits().train.inputs["image"][:400])
    centred = images - images.mean(0)  # else most steps go to finding the mean
    torch.manual_seed(0)
    network = DenseAutoencoder(code=code, layers=0)
    optimizer = torch.optim.Adam(network.parameters())
    for epoch in range(50):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / 50)
        for rows in torch.randperm(len(centred)).split(20):
            some = {"image": centred[rows]}
            loss = reconstruction_loss({"reconstruction": network(some["image"])}, some, "mse")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    wanted = {"image": centred.numpy()}
    outputs = {"reconstruction": network(centred).detach().numpy(), "error": np.zeros(400)}
    reached = reconstruction(picture_errors(outputs, wanted), wanted)["mse"]
    given_back = principal_components(images.numpy())(images.numpy(), code)
    best = float(np.square(images.numpy() - given_back).mean())
    assert best * (1 - 1e-6) <= reached <= 1.02 * best


@pytest.mark.usefixtures("full_data")
def test_the_linear_baseline_of_mnist_is_the_papers() -> None:
    """Its supplement: 13.87 of squared error per picture for 30 principal components."""
    measured = linear_baseline(pictured_mnist())
    assert measured["30 principal components mse"] * 784 == pytest.approx(13.87, rel=0.02)


@pytest.mark.parametrize("data", ["embedded", "full"])
def test_the_baseline_has_the_size_of_a_presets_code(data: str) -> None:
    assert AUTOENCODER.presets[data]["code"] == CODES[data]
    assert AUTOENCODER_CONV.presets[data]["code"] == CODES[data]


@by_name
def test_a_preset_is_inspected_whole(recipe: Recipe) -> None:
    inspection = inspect(recipe.on("embedded"))
    assert inspection.parameters == sum(p.numel() for p in built(recipe).parameters())
    assert inspection.training_only_parameters == 0


@by_name
def test_exhibits_are_a_picture_of_each_digit(recipe: Recipe) -> None:
    recipe = recipe.on("embedded")
    test = recipe.load("embedded").test
    inputs, targets = (
        {name: torch.from_numpy(array) for name, array in part.items()}
        for part in (test.inputs, test.targets)
    )
    with torch.inference_mode():
        shown = recipe.exhibits(built(recipe), inputs, targets)
    first = next(iter(shown.values()))
    assert first.shape[1:] == (10, 1, 28, 28)
    for column in range(10):
        rows = (targets["label"] == column).nonzero()[:, 0]
        assert torch.equal(first[-1, column], targets["image"][rows[0]])
    for exhibit in shown.values():
        assert exhibit.ndim == 5
        assert exhibit.min() >= 0
        assert exhibit.max() <= 1


class Echo(nn.Module):
    """Gives its picture back: what a denoiser is asked is seen in its answer."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": image}


def asked(image: Tensor, *, training: bool, seed: int, corruption: float = 0.1) -> Tensor:
    torch.manual_seed(seed)
    recipe = DENOISING_AUTOENCODER.override({"corruption": corruption})
    answers = recipe.answer(Echo().train(training), {"image": image}, {"image": image})
    return answers["reconstruction"]


def test_noise_is_drawn_anew_in_training_alone() -> None:
    grey = torch.full((50, 1, 28, 28), 0.5)
    first, second = (asked(grey, training=True, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, asked(grey, training=True, seed=0))
    assert float((first - grey).std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float((first - grey).mean())) < 0.002
    loud = asked(grey, training=True, seed=0, corruption=2.0)
    assert (float(loud.min()), float(loud.max())) == (0.0, 1.0)
    assert torch.equal(asked(grey, training=False, seed=0), grey)


def test_rows_to_measure_have_the_noise_that_training_draws() -> None:
    """Of the same distribution: the same share is cut off, and what is not has one deviation."""
    plain, rows = embedded_digits(), noisy(embedded_digits(), 0.5)
    assert rows.digest == noisy(embedded_digits(), 0.5).digest
    np.testing.assert_array_equal(rows.train.inputs["image"], plain.train.inputs["image"])
    for split, clean in ((rows.validation, plain.validation), (rows.test, plain.test)):
        images = clean.inputs["image"]
        np.testing.assert_array_equal(split.targets["image"], images)
        drawn = asked(torch.from_numpy(images), training=True, seed=0, corruption=0.5).numpy()
        got = split.inputs["image"]
        assert not np.array_equal(got, drawn)
        assert (got.min(), got.max()) == (0.0, 1.0)
        assert got.mean() == pytest.approx(drawn.mean(), rel=0.01)
        assert got.std() == pytest.approx(drawn.std(), rel=0.01)


def test_filters_are_measured_on_the_same_rows() -> None:
    loud = DENOISING_AUTOENCODER.baseline(noisy(embedded_digits(), 0.5))
    names = list(loud)
    assert loud[names[0]] > loud[names[1]] > 0
    assert loud[names[0]] > loud[names[2]] > 0
    silent = DENOISING_AUTOENCODER.baseline(noisy(embedded_digits(), 0.0))
    assert silent["the noisy picture mse"] == 0
    assert min(value for name, value in silent.items() if "filter" in name) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("full_data")
def test_the_published_width_trains(tmp_path: Path) -> None:
    """One epoch of the published net, through the stage that trains all."""
    from pipeline.train import train

    published = AUTOENCODER.override(AUTOENCODER.published())
    recipe = published.override({"epochs": 1, "floor": "none"})
    dataset = recipe.load("full")
    trained = train(recipe, "full", dataset, tmp_path)
    assert trained.parameters == 2_837_314
    assert trained.metrics["mse"] < trained.baselines["the mean picture mse"]
