"""Variational autoencoders: the bound by closed forms and references, the parts, what is drawn."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from models import vae
from models.datasets import Dataset
from models.judge import judge
from models.recipe import Recipe, Tensors
from models.vae import BETA_VAE, VAE, VAE_20
from models.variational import (
    bound,
    cross_entropy,
    divergence,
    exhibits,
    look,
    measure,
    with_noise,
)

SMALL = {"hidden": 16, "latents": 4}
RECIPES = [VAE_20, BETA_VAE]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(arrays: dict[str, np.ndarray], rows: int = 64) -> Tensors:
    return {name: torch.from_numpy(array[:rows]) for name, array in arrays.items()}


def small(recipe: Recipe) -> tuple[VAE, Dataset, Recipe]:
    recipe = recipe.override(SMALL).on("embedded")
    torch.manual_seed(0)
    module = recipe.build()
    assert isinstance(module, VAE)
    return module, recipe.load("embedded"), recipe


def codes(seed: int) -> tuple[Tensor, Tensor]:
    """Means and logarithms of variances, [3, 4]."""
    drawn = torch.randn(2, 3, 4, generator=random(seed), dtype=torch.float64)
    return drawn[0] * 2, drawn[1]


# The terms of the bound


@given(seed=st.integers(0, 2**31))
def test_the_closed_form_is_that_of_torch_distributions(seed: int) -> None:
    mean, log_variance = codes(seed)
    posterior, prior = Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)
    expected = kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert (expected >= 0).all()


def test_the_closed_form_is_the_mean_over_draws() -> None:
    mean, log_variance = codes(5)
    posterior, prior = Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)
    torch.manual_seed(0)
    drawn = posterior.sample((200_000,))
    each = (posterior.log_prob(drawn) - prior.log_prob(drawn)).sum(2)
    error = each.std(0) / math.sqrt(len(each))
    assert (error < 0.02).all()
    assert ((each.mean(0) - divergence(mean, log_variance)).abs() < 4 * error).all()


def test_only_the_prior_is_free() -> None:
    nothing = torch.zeros(1, 4)
    assert divergence(nothing, nothing) == 0
    for changed in ((nothing + 0.1, nothing), (nothing, nothing + 0.1), (nothing, nothing - 0.1)):
        assert divergence(*changed) > 0


def test_grey_levels_cost_what_their_binarised_pictures_cost_on_average() -> None:
    logits = torch.randn(1, 1, 3, 3, generator=random(0), dtype=torch.float64)
    grey = torch.rand(1, 1, 3, 3, generator=random(1), dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 9)
    chances = Bernoulli(grey.flatten()).log_prob(every).sum(1).exp()
    nats = cross_entropy(logits.expand(512, 1, 3, 3), every.view(-1, 1, 3, 3))
    assert float(chances.sum()) == pytest.approx(1)
    assert float(chances @ nats) == pytest.approx(float(cross_entropy(logits, grey)))
    likelihood = -Bernoulli(logits=logits.flatten()).log_prob(every).sum(1)
    torch.testing.assert_close(nats, likelihood)


def test_the_bound_is_below_the_likelihood_and_reaches_it_with_the_true_posterior() -> None:
    """One latent and one pixel of chance 1/2 whatever the code: q = p is right, all else costs."""
    nothing = torch.zeros(1, 1)
    costs = []
    for mean in (0.0, 0.5, 2.0):
        outputs = {
            "reconstruction": cross_entropy(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)),
            "kl": divergence(nothing + mean, nothing),
        }
        costs.append(float(bound(outputs, {})))
    assert costs[0] == pytest.approx(math.log(2))
    assert costs == sorted(costs)


@given(beta=st.floats(0, 32))
def test_beta_weighs_the_divergence_and_no_metric_knows_it(beta: float) -> None:
    outputs = {
        "reconstruction": torch.tensor([3.0, 5.0]),
        "kl": torch.tensor([1.0, 2.0]),
        "mean": torch.zeros(2, 4),
        "error": torch.tensor([0.25, 0.5]),
    }
    assert float(bound(outputs, {}, beta)) == pytest.approx(4 + 1.5 * beta)
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    metrics = measure(arrays, {"label": np.zeros(2)})
    assert metrics == pytest.approx(
        {"elbo": -5.5, "reconstruction": 4, "kl": 1.5, "mse": 0.375, "active_units": 0}
    )


def test_active_units_are_those_whose_mean_varies() -> None:
    rows = torch.randn(500, 3, generator=random(0)).numpy() * [1, 0.2, 0.05]
    outputs = {"mean": rows, **dict.fromkeys(("reconstruction", "kl", "error"), rows[:, 0])}
    assert measure(outputs, {})["active_units"] == 2


# The module and its parts


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_the_whole_is_the_decoder_after_the_encoder(recipe: Recipe) -> None:
    module, dataset, recipe = small(recipe)
    inputs = tensors(dataset.test.inputs, 5)
    module.eval()
    outputs = module(**inputs)
    assert list(outputs) == [spec.name for spec in recipe.make_signature().outputs]
    known = inputs
    for name, part in recipe.parts.items():
        signature = recipe.make_part(name)
        answers = part.take(module)(**{spec.name: known[spec.name] for spec in signature.inputs})
        assert list(answers) == [spec.name for spec in signature.outputs]
        for output, spec in zip(answers.values(), signature.outputs, strict=True):
            assert list(output.shape) == list(spec.at({"batch": 5}))
        known = known | answers
    assert all(torch.equal(known[name], outputs[name]) for name in known.keys() & outputs.keys())
    error = (outputs["reconstruction"] - inputs["image"]).square().mean((1, 2, 3))
    torch.testing.assert_close(outputs["error"], error)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_the_code_is_mean_plus_deviation_times_noise(seed: int) -> None:
    module, dataset, _ = small(VAE_20)
    image = torch.from_numpy(dataset.test.inputs["image"][:3])
    noise = torch.randn(3, 4, generator=random(seed))
    outputs = module(image, noise)
    expected = outputs["mean"] + outputs["log_variance"].exp().sqrt() * noise
    torch.testing.assert_close(outputs["latent"], expected)
    assert torch.equal(module(image, noise * 0)["latent"], outputs["mean"])


def test_the_gradient_goes_through_the_drawn_code() -> None:
    """d/dm E[(m + s e)^2] = 2 m and d/d(log s^2) = s^2, by reparameterised draws."""
    mean, log_variance = (torch.full((200_000, 1), v, requires_grad=True) for v in (0.7, -0.6))
    torch.manual_seed(0)
    latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    slopes = torch.autograd.grad(latent.square().sum(), (mean, log_variance))
    assert float(slopes[0].mean()) == pytest.approx(2 * 0.7, abs=0.01)
    assert float(slopes[1].mean()) == pytest.approx(math.exp(-0.6), abs=0.01)
    module, dataset, recipe = small(VAE_20)
    inputs = tensors(dataset.train.inputs)
    recipe.compute_loss(recipe.answer(module, inputs, {}), {}).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_noise_is_fresh_in_training_and_the_datas_in_evaluation() -> None:
    module, dataset, _ = small(BETA_VAE)
    inputs, targets = tensors(dataset.train.inputs), tensors(dataset.train.targets)
    first, second = (look(module.train(), inputs, targets)["error"] for _ in range(2))
    assert not torch.equal(first, second)
    once, again = (look(module.eval(), inputs, targets) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert torch.equal(once["error"], module(**inputs)["error"])


def test_the_noise_of_the_data_is_normal_and_its_own_in_each_split() -> None:
    _, dataset, _ = small(BETA_VAE)
    rows = [split.inputs["noise"] for split in (dataset.train, dataset.validation, dataset.test)]
    assert all(row.dtype == np.float32 and row.shape[1] == 4 for row in rows)
    assert np.abs(rows[0].mean(0)).max() < 0.05
    np.testing.assert_allclose(rows[0].std(0), 1, atol=0.03)
    assert len({row.tobytes() for split in rows for row in split}) == sum(map(len, rows))
    assert with_noise(dataset, 4).digest == dataset.digest


# What is measured and shown


def test_the_mean_picture_is_the_best_of_models_without_a_code() -> None:
    _, dataset, recipe = small(VAE_20)
    found = recipe.baseline(dataset)["mean picture, elbo"]
    test, train = (split.inputs["image"][:, 0] for split in (dataset.test, dataset.train))
    share = torch.from_numpy(train.mean(0)).double().clamp(1e-3, 1 - 1e-3)
    expected = -float(cross_entropy(share.logit().expand(len(test), 1, 28, 28),
                                    torch.from_numpy(test)[:, None].double()).mean())  # fmt: skip
    assert found == pytest.approx(expected, rel=0.01)


def test_a_judge_sees_digits_and_owns_nothing_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "judge", partial(judge, updates=5))
    module, dataset, recipe = small(VAE_20)
    before = list(module.state_dict())
    recipe.prepare(module, tensors(dataset.train.inputs, 200), tensors(dataset.train.targets, 200))
    assert module.judge is not None
    assert list(module.state_dict()) == before
    inputs, targets = tensors(dataset.test.inputs), tensors(dataset.test.targets)
    with torch.inference_mode():
        seen = recipe.answer(module.eval(), inputs, targets)
    drawn = module.decoder(inputs["noise"])["reconstruction"]
    torch.testing.assert_close(seen["drawn"], module.judge.look(drawn)[0])
    metrics = measure({n: t.numpy() for n, t in seen.items()}, dataset.test.targets)
    assert metrics["lenet5_frechet_distance"] > 0
    seen["drawn"] = seen["real"]
    same = measure({n: t.numpy() for n, t in seen.items()}, dataset.test.targets)
    assert same["lenet5_frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert "drawn" not in recipe.answer(module.train(), inputs, targets)


def test_shapes_have_factors_and_no_judge() -> None:
    module, dataset, recipe = small(BETA_VAE)
    recipe.prepare(module, tensors(dataset.train.inputs), tensors(dataset.train.targets))
    assert module.judge is None
    inputs, targets = tensors(dataset.test.inputs, 500), tensors(dataset.test.targets, 500)
    with torch.inference_mode():
        seen = recipe.answer(module.eval(), inputs, targets)
    arrays = {name: tensor.numpy() for name, tensor in seen.items()}
    known = {"factors": targets["factors"].numpy()}
    assert 0 <= measure(arrays, known)["mig"] < 0.2
    assert measure(arrays | {"mean": known["factors"]}, known)["mig"] > 0.9


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_exhibits_are_samples_reconstructions_and_traversals(recipe: Recipe) -> None:
    module, dataset, recipe = small(recipe)
    inputs = tensors(dataset.test.inputs)
    with torch.inference_mode():
        shown = exhibits(module.eval(), inputs, {})
        side = inputs["image"].shape[-1]
        assert list(shown) == ["samples", "reconstructions", "traversals"]
        assert shown["samples"].shape == (4, 10, 1, side, side)
        assert shown["reconstructions"].shape == (2, 10, 1, side, side)
        assert shown["traversals"].shape == (4, 9, 1, side, side)
        first = module.decoder(inputs["noise"][:10])["reconstruction"]
        torch.testing.assert_close(shown["samples"][0], first)
        assert torch.equal(shown["reconstructions"][0], inputs["image"][:10])
        # Only the latent of the row changes: all rows meet where it has the code's own value.
        means = module(inputs["image"], inputs["noise"])["mean"]
        most = int(means.var(0).argmax())
        code = means[0].clone()
        code[most] = -3
        drawn = module.decoder(code[None])["reconstruction"][0]
        torch.testing.assert_close(shown["traversals"][0, 0], drawn)


def test_a_judge_is_not_asked_about_digits_of_another_size() -> None:
    recipe = VAE_20.override({**SMALL, "image": 16}).on("embedded")
    module, dataset = recipe.build(), recipe.load("embedded")
    recipe.prepare(module, tensors(dataset.train.inputs), tensors(dataset.train.targets))
    assert isinstance(module, VAE)
    assert module.judge is None


def test_the_published_sizes() -> None:
    def parameters(recipe: Recipe) -> int:
        return sum(p.numel() for p in recipe.build().parameters())

    assert parameters(VAE_20) == (785 * 500 + 501 * 40) + (21 * 500 + 501 * 784)
    assert parameters(BETA_VAE) == (4097 * 1200 + 1201 * 1200 + 1201 * 20) + (
        11 * 1200 + 1201 * 1200 + 1201 * 4096
    )
