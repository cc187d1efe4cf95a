"""GAN and cgan: both losses and whose gradient each is, what is served, what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from models.adversarial import GAN, between, discriminator_loss, generator_loss, look, measure
from models.cgan import CGAN, AtClass, OfClass, few, measure_classes
from models.digits import CLASSES, pictured_digits
from models.gan import DCGAN
from models.judge import judge
from models.layers import inspect
from models.recipe import Recipe, Tensors

SMALL = {"latents": 8, "units": 16, "width": 0.0625}
RECIPES = {recipe.name: recipe.override(SMALL) for recipe in (DCGAN, CGAN)}

logits = st.lists(st.floats(-30, 30), min_size=1, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def built(recipe: Recipe, seed: int = 0) -> GAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = recipe.build()
    assert isinstance(module, GAN)
    return module


def batch(recipe: Recipe, rows: int = 6) -> tuple[Tensors, Tensors]:
    test = recipe.load("embedded").test
    inputs, targets = (
        {name: torch.from_numpy(array[:rows]) for name, array in arrays.items()}
        for arrays in (test.inputs, test.targets)
    )
    return inputs, targets


@given(real=logits, drawn=logits)
def test_both_losses_are_cross_entropies(real: Tensor, drawn: Tensor) -> None:
    def entropy(some: Tensor, wanted: float) -> Tensor:
        return functional.binary_cross_entropy_with_logits(some, torch.full_like(some, wanted))

    expected = entropy(real, 1.0) + entropy(drawn, 0.0)
    assert torch.allclose(discriminator_loss(real, drawn), expected)
    assert torch.allclose(generator_loss(drawn), entropy(drawn, 1.0))


def test_a_generator_that_fools_nobody_still_has_a_gradient() -> None:
    """d -log sigmoid(s) / ds = -sigmoid(-s), near -1; of log(1 - sigmoid(s)) nothing is left."""
    sure = torch.tensor([-30.0], requires_grad=True)
    generator_loss(sure).backward()
    assert sure.grad is not None
    assert float(sure.grad) == pytest.approx(-1)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_net_gets_the_gradient_of_its_own_loss(recipe: Recipe) -> None:
    """As from two passes that share their noise, one for each net."""
    inputs, targets = batch(recipe)
    found, expected = built(recipe).train(), built(recipe).train()
    assert recipe.gradients
    torch.manual_seed(3)
    loss = recipe.gradients(found, inputs, targets)

    def outputs() -> Tensors:
        torch.manual_seed(3)
        return look(expected, inputs, targets)

    sides = {"generator": expected.generator, "discriminator": expected.discriminator}
    said = outputs()
    losses = {"discriminator": discriminator_loss(said["real"], said["drawn"])}
    losses["generator"] = generator_loss(outputs()["drawn"])
    assert torch.allclose(loss, losses["discriminator"] + losses["generator"])
    for side, net in sides.items():
        gradients = torch.autograd.grad(losses[side], list(net.parameters()))
        named = ((n, p.grad) for n, p in found.named_parameters() if p.grad is not None)
        mine = [gradient for name, gradient in named if name.startswith(side)]
        assert len(mine) == len(gradients)
        assert all(gradient.any() for gradient in mine)
        assert all(map(torch.allclose, mine, gradients))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_noise_is_fresh_in_training_and_the_datas_in_evaluation(recipe: Recipe) -> None:
    inputs, targets = batch(recipe)
    module = built(recipe)
    assert torch.equal(*(look(module.eval(), inputs, targets)["drawn"] for _ in range(2)))
    assert not torch.equal(*(look(module.train(), inputs, targets)["drawn"] for _ in range(2)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_sample_does_not_depend_on_its_neighbours(recipe: Recipe) -> None:
    inputs, _ = batch(recipe)
    module = built(recipe).eval()
    with torch.inference_mode():
        whole = module(**inputs)["image"]
        alone = module(**{name: rows[2:3] for name, rows in inputs.items()})["image"]
    assert torch.allclose(whole[2:3], alone, atol=1e-6)
    assert whole.shape == (6, 1, 28, 28)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_nothing_of_the_discriminator_is_served(recipe: Recipe, tmp_path: Path) -> None:
    module = built(recipe).eval()
    inputs, _ = batch(recipe, 2)
    rows = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        module, kwargs=inputs, dynamo=True, verbose=False, output_names=["logits", "image"],
        dynamic_shapes={name: {0: rows} for name in inputs},
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    held = sum(int(np.prod(weight.dims)) for weight in graph.initializer)
    own = sum(p.numel() for p in module.generator.parameters())
    statistics = sum(b.numel() for b in module.generator.buffers())
    others = sum(p.numel() for p in module.discriminator.parameters())
    assert not any("discriminator" in weight.name for weight in graph.initializer)
    assert 0 < held <= own + statistics
    assert [value.name for value in graph.output] == ["logits", "image"]
    told = inspect(recipe)
    assert (told.parameters, told.training_only_parameters) == (own, others)


def test_the_published_size_is_that_of_the_authors_conditional_model() -> None:
    """Weights of gen and discrim as in the authors' code for MNIST, but for the classes' own."""
    module = built(DCGAN)
    shapes = {tuple(p.shape) for p in module.parameters() if p.ndim > 1}
    assert shapes == {
        (1024, 100), (128 * 7 * 7, 1024), (128, 64, 5, 5), (64, 1, 5, 5),
        (128, 64, 5, 5), (1024, 128 * 7 * 7), (1, 1024),
    }  # fmt: skip
    assert built(CGAN).generator.get_parameter("net.dense.0.weight").shape == (1024, 110)


def test_a_class_continues_the_code_and_chooses_the_logit() -> None:
    labels = torch.tensor([3, 0])
    code = torch.rand(2, 5)
    wanted = functional.one_hot(labels, len(CLASSES)).float()
    assert torch.equal(OfClass(torch.nn.Identity())(code, labels), torch.cat([code, wanted], 1))
    every = torch.rand(2, len(CLASSES))
    chosen = AtClass(torch.nn.Identity())(every, labels)
    assert chosen.tolist() == [float(every[0, 3]), float(every[1, 0])]


@settings(max_examples=25)
@given(seed=st.integers(0, 99), steps=st.integers(2, 9))
def test_the_way_between_codes_ends_in_them_and_keeps_their_length(seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 3, 16, generator=generator)
    end = end / end.norm(dim=1, keepdim=True) * start.norm(dim=1, keepdim=True)
    ways = between(start, end, steps)
    assert torch.allclose(ways[:, 0], start, atol=1e-5)
    assert torch.allclose(ways[:, -1], end, atol=1e-5)
    lengths = ways.norm(dim=2)
    assert torch.allclose(lengths, start.norm(dim=1)[:, None].expand(-1, steps), rtol=1e-4)
    same = between(start, start, steps)
    assert torch.allclose(same, start[:, None].expand(-1, steps, -1), atol=1e-4)


def answers(drawn: np.ndarray, classes: np.ndarray, sure: float) -> dict[str, np.ndarray]:
    """Outputs whose drawn pictures are of these classes, and real ones of the true class."""
    rows = len(classes)
    features = np.random.default_rng(0).normal(size=(rows, 5))
    others = (1 - sure) / (len(CLASSES) - 1)
    said = np.full((rows, len(CLASSES)), others)
    said[np.arange(rows), classes] = sure
    return {
        "real": np.full(rows, 2.0),
        "drawn": drawn,
        "real_features": features,
        "drawn_features": features[::-1],
        "real_classes": np.eye(len(CLASSES))[np.arange(rows) % len(CLASSES)],
        "drawn_classes": said,
    }


def test_measures_say_what_they_are_named() -> None:
    label = np.arange(200) % 10
    targets = {"label": label}
    drawn = np.where(np.arange(200) < 50, 1.0, -1.0)
    good = measure_classes(answers(drawn, label, 0.95), targets)
    assert good["lenet5_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert good["discriminator_accuracy"] == pytest.approx((1 + 0.75) / 2)
    assert (good["confident"], good["classes_covered"]) == (1, 10)
    assert (good["class_accuracy"], good["judge_accuracy"]) == (1, 1)
    tensors = torch.full((200,), 2.0), torch.from_numpy(drawn).float()
    assert good["discriminator_loss"] == pytest.approx(float(discriminator_loss(*tensors)))
    assert good["generator_loss"] == pytest.approx(float(generator_loss(tensors[1])))
    collapsed = measure_classes(answers(drawn, np.full(200, 3), 0.8), targets)
    assert (collapsed["confident"], collapsed["classes_covered"]) == (0, 1)
    assert collapsed["class_accuracy"] == pytest.approx(0.1)
    assert "class_accuracy" not in measure(answers(drawn, label, 0.95), targets)


def test_what_is_measured_is_of_real_and_drawn_pictures_by_the_judge() -> None:
    recipe = RECIPES["gan"]
    inputs, targets = batch(recipe, 40)
    module = built(recipe).eval()
    module.judge = judge(targets["image"], targets["label"], updates=60)
    with torch.inference_mode():
        seen = look(module, inputs, targets)
        image = module(**inputs)["image"]
        assert torch.equal(seen["real_features"], module.judge.look(targets["image"])[0])
        assert torch.equal(seen["drawn_classes"], module.judge.look(image)[1])
    found = measure(
        {name: rows.numpy() for name, rows in seen.items()}, {"label": targets["label"].numpy()}
    )
    assert found["lenet5_frechet_distance"] > 1, "an untrained generator draws no digits"
    assert not any("judge" in name for name in module.state_dict())


def test_few_rows_are_so_many_of_each_class_and_no_others() -> None:
    whole = pictured_digits()
    some, others = few(whole, 5, 0), few(whole, 5, 1)
    assert some.train.targets["label"].tolist() == [*range(10)] * 5
    known = {row.tobytes() for row in whole.train.targets["image"]}
    kept = [{row.tobytes() for row in part.train.targets["image"]} for part in (some, others)]
    assert kept[0] < known
    assert kept[0] != kept[1]
    assert some.test is whole.test
    assert few(whole, 0, 0) is whole


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_exhibits_are_pictures_in_rows(recipe: Recipe) -> None:
    inputs, targets = batch(recipe, 100)
    module = built(recipe).eval()
    with torch.inference_mode():
        shown = recipe.exhibits(module, inputs, targets)
    assert next(iter(shown)) == "samples"
    assert all(rows.shape[1:] == (10, 1, 28, 28) for rows in shown.values())
    if recipe.name == "cgan":  # the row of one latent, a class to a column
        first = inputs["latent"][:1].expand(10, -1)
        assert torch.allclose(
            shown["samples"][0], module(first, torch.arange(10))["image"], atol=1e-6
        )
