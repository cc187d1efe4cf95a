"""The experiments on pictures: their laws, verdicts with both outcomes, small real runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flows.experiments import (
    Experiment,
    Outcome,
    Setup,
    adversarial,
    bottleneck,
    find,
    invariance,
    kernels,
)
from flows.experiments.adversarial import EPSILONS
from models.errors import CertificateFailed
from models.googlenet import GOOGLENET
from models.layers import Block
from models.losses import classification_loss

seeds = st.integers(0, 2**32 - 1)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(experiment: Experiment, out: Path, **changes: object) -> Outcome:
    """A small real run, whose figures are whole and whose numbers are finite."""
    outcome = experiment.run(Setup(out, changes=changes))
    assert outcome.verdict.endswith(".")
    for figure in outcome.figures:
        assert figure.caption
        ElementTree.fromstring(str(figure.markup))  # noqa: S314 (our own markup)
    values = [v for row in outcome.rows for v in row.values() if isinstance(v, int | float)]
    assert values
    assert all(map(math.isfinite, values))
    return outcome


# Kernels


def test_the_worked_convolution_comes_out() -> None:
    rows = ["100001", "010010", "001100", "100010", "010010", "001010"]
    image = torch.tensor([[float(pixel) for pixel in row] for row in rows])
    answer = kernels.correlate(image, [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    expected = [[3, -1, -3, -1], [-3, 1, 0, -3], [-3, -3, 0, 1], [3, -2, -2, -1]]
    assert answer.tolist() == expected


@pytest.mark.parametrize("name", kernels.KERNELS)
@given(seed=seeds)
def test_kernels_answer_as_scipy_does(name: str, seed: int) -> None:
    image = torch.rand(9, 12, generator=random(seed), dtype=torch.float64)
    expected = scipy.ndimage.correlate(image.numpy(), np.array(kernels.KERNELS[name]))[1:-1, 1:-1]
    np.testing.assert_allclose(kernels.correlate(image, kernels.KERNELS[name]), expected)


@given(seed=seeds)
def test_sharpen_takes_the_laplacian_away_and_blur_is_the_mean(seed: int) -> None:
    image = torch.rand(8, 8, generator=random(seed), dtype=torch.float64)
    inner = slice(1, -1)
    laplacian = scipy.ndimage.laplace(image.numpy())[inner, inner]
    np.testing.assert_allclose(kernels.correlate(image, kernels.LAPLACIAN), laplacian, atol=1e-12)
    sharp = kernels.correlate(image, kernels.KERNELS["sharpen"])
    np.testing.assert_allclose(sharp, image.numpy()[inner, inner] - laplacian, atol=1e-12)
    mean = scipy.ndimage.uniform_filter(image.numpy(), 3)[inner, inner]
    np.testing.assert_allclose(kernels.correlate(image, kernels.KERNELS["mean blur"]), mean)


def test_the_kernels_are_what_their_names_say() -> None:
    arrays = {name: np.array(kernel) for name, kernel in kernels.KERNELS.items()}
    sums = {name: array.sum() for name, array in arrays.items()}
    assert sums == pytest.approx({"sharpen": 1, "edge": 0, "emboss": 1, "mean blur": 1})
    for name in ("sharpen", "edge", "mean blur"):
        assert np.array_equal(arrays[name], np.rot90(arrays[name])), "no direction is preferred"
    # Emboss is the picture and the difference along the diagonal, light from the upper left.
    slope = arrays["emboss"] - np.outer([0, 1, 0], [0, 1, 0])
    assert np.array_equal(slope, -slope[::-1, ::-1])
    assert np.array_equal(slope, slope.T)
    assert slope[0, 0] < slope[0, 1] < 0


@given(seed=seeds, side=st.integers(3, 7), angle=st.floats(0, math.tau), size=st.floats(0.01, 99))
def test_a_ramp_in_any_direction_is_all_ramp(
    seed: int, side: int, angle: float, size: float
) -> None:
    along = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    ramp = size * (math.cos(angle) * along + math.sin(angle) * along[:, None])
    even = torch.rand(side, side, generator=random(seed), dtype=torch.float64)
    even = even + even.flip(0, 1)  # the same after half a turn: no ramp in any direction
    shares = kernels.ramp_shares(torch.stack([ramp, even, torch.zeros_like(ramp), ramp + even]))
    assert shares[:3].tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    energies = ramp.square().sum(), even.square().sum()
    assert float(shares[3]) == pytest.approx(float(energies[0] / sum(energies)))


@pytest.mark.parametrize("side", [3, 5])
def test_filters_drawn_by_chance_are_ramps_as_computed(side: int) -> None:
    filters = torch.randn(20_000, side, side, generator=random(0))
    learned = kernels.compare_filters("chance", filters, filters)
    assert learned.share_before == learned.share_after
    assert learned.share_after == pytest.approx(learned.share_by_chance, rel=0.03)
    assert learned.filters == 20_000


def test_kernels_verdict_has_both_outcomes() -> None:
    image = kernels.photograph()
    assert image.shape == (427, 640)
    effects = [kernels.measure(name, image) for name in kernels.KERNELS]
    original = kernels.sharpness(image)
    better = kernels.Learned("net", 32, 3, 9, 0.25, 0.4, 0.22)
    verdict, holds = kernels.judge(effects, original, [better])
    assert holds
    assert "9 are oriented edge detectors after training and 3 before" in verdict
    worse = replace(better, share_before=0.4, share_after=0.25)
    assert not kernels.judge(effects, original, [better, worse])[1]
    swapped = [
        replace(e, kernel={"sharpen": "mean blur", "mean blur": "sharpen"}.get(e.kernel, e.kernel))
        for e in effects
    ]
    assert not kernels.judge(swapped, original, [better])[1]


def test_kernels_for_real(tmp_path: Path) -> None:
    outcome = run(find("kernels"), tmp_path, epochs=1)
    assert [row["kernel"] for row in outcome.rows if "kernel" in row] == list(kernels.KERNELS)
    filters = [row["filters"] for row in outcome.rows if "filters" in row]
    assert filters == [32, 6]
    assert "before it" in outcome.verdict


# Adversarial


class Linear(nn.Module):
    """logits = weight x pixels + bias: the model of which everything is known in closed form."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, generator=random(seed)))
        self.bias = nn.Parameter(torch.randn(3, generator=random(seed + 1)))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": image.flatten(1) @ self.weight.T + self.bias}


def some_digits(seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 1, 4, 4, generator=random(seed))
    return images.round(decimals=1), torch.randint(3, (count,), generator=random(seed))


@given(seed=st.integers(0, 2**31), epsilon=st.floats(0, 1, width=32))
def test_the_step_stays_near_and_in_range_and_never_lowers_a_convex_loss(
    seed: int, epsilon: float
) -> None:
    module, (images, labels) = Linear(seed), some_digits(seed)
    signs = adversarial.gradient_signs(module, images, labels)
    changed = adversarial.step(images, signs, epsilon)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert float((changed - images).abs().max()) <= epsilon + 1e-6

    def losses(pixels: Tensor) -> Tensor:
        logits = module.double()(pixels.double())["logits"]
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    # Of each digit by itself: the loss is convex in the pixels, and each moved along its slope.
    assert (losses(changed) >= losses(images) - 1e-9).all()


@given(seed=st.integers(0, 2**31))
def test_the_signs_are_those_of_the_formula(seed: int) -> None:
    module, (images, labels) = Linear(seed), some_digits(seed, count=70)  # more than one batch
    signs = adversarial.gradient_signs(module, images, labels)
    exact = module.double()
    wanted = nn.functional.one_hot(labels, 3).double()
    share = exact(images.double())["logits"].softmax(1)
    slope = (share - wanted) @ exact.weight
    assert torch.equal(signs.flatten(1).double(), slope.sign())


def test_a_module_is_attacked_without_being_changed() -> None:
    module, (images, labels) = Linear(0), some_digits(0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    adversarial.gradient_signs(module.train(), images, labels)
    after = module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert after["weight"].dtype == torch.float32
    assert module.training
    assert module.weight.grad is None


def test_a_very_sure_answer_is_attacked_as_well() -> None:
    """Of logits 200 apart, fp32 knows no gradient."""
    module, (images, _) = Linear(3), some_digits(3)
    with torch.no_grad():
        module.weight.mul_(100)
    labels = module(images)["logits"].argmax(1)
    assert classification_loss(module(images), {"label": labels}) == 0
    signs = adversarial.gradient_signs(module, images, labels)
    assert (signs != 0).all()


def test_the_noise_is_as_large_as_the_attack_and_always_the_same() -> None:
    images, _ = some_digits(1)
    state = torch.random.get_rng_state()
    noise = adversarial.random_signs(images)
    assert torch.equal(noise, adversarial.random_signs(images))
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(noise.unique().tolist()) == {-1, 1}


def attacked(accuracy: Sequence[float], noisy: Sequence[float], reported: float = 0.98):
    return adversarial.Curve("net", reported, tuple(accuracy), tuple(noisy))


def test_adversarial_verdict_has_both_outcomes() -> None:
    falls = [0.98, 0.9, 0.7, 0.4, 0.2, 0.1, 0.0, 0.0]
    stays = [0.98, 0.98, 0.97, 0.97, 0.96, 0.96, 0.95, 0.95]
    verdict, holds = adversarial.judge([attacked(falls, stays)])
    assert holds
    assert f"98.0% to 40.0% at epsilon {EPSILONS[3]:g}" in verdict
    assert "by -1.0 points" in verdict
    robust, holds = adversarial.judge([attacked(stays, stays)])
    assert not holds
    assert "never below half" in robust
    assert not adversarial.judge([attacked(falls, falls)])[1], "noise does as much"
    verdict, holds = adversarial.judge([attacked(falls, stays, reported=0.97)])
    assert not holds, "the engine answers otherwise than the module did"
    assert "reported at 97.0%" in verdict
    assert not adversarial.judge([attacked(falls, stays), attacked(stays, stays)])[1]


def test_adversarial_for_real(tmp_path: Path) -> None:
    outcome = run(find("adversarial"), tmp_path, epochs=1)
    clean = {r["net"]: r["accuracy, fast gradient sign"] for r in outcome.rows if not r["epsilon"]}
    assert list(clean) == [recipe.name for recipe in adversarial.RECIPES]
    # What the engine answers undisturbed is what training reported, and so not mentioned.
    assert "reported" not in outcome.verdict
    for row in outcome.rows:
        if row["epsilon"] == EPSILONS[-1]:
            assert row["accuracy, fast gradient sign"] < min(0.5, row["accuracy, random noise"])
    assert outcome.settings["epochs"] == 1
    assert len(list(tmp_path.glob("*/verify/*/certificate.json"))) == len(adversarial.RECIPES)


# Invariance


@pytest.mark.parametrize("disturbance", invariance.DISTURBANCES, ids=lambda d: d.name)
def test_no_strength_changes_nothing_and_the_middle_does(
    disturbance: invariance.Disturbance,
) -> None:
    images = torch.rand(3, 1, 28, 28, generator=random(0))
    for same in disturbance.apply(images, disturbance.strengths[0]):
        torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    ways = disturbance.apply(images, disturbance.middle)
    assert all(float((way - images).abs().mean()) > 0.05 for way in ways)
    for one, other in zip(ways, disturbance.apply(images, disturbance.middle), strict=True):
        assert torch.equal(one, other)


@given(pixels=st.integers(0, 6))
def test_a_shift_moves_whole_pixels_four_ways(pixels: int) -> None:
    images = torch.zeros(1, 1, 28, 28)
    images[:, :, 8:20, 8:20] = torch.rand(12, 12, generator=random(pixels))  # nothing is lost
    ways = [(pixels, 3), (-pixels, 3), (pixels, 2), (-pixels, 2)]
    for got, (by, axis) in zip(invariance.shifted(images, pixels), ways, strict=True):
        torch.testing.assert_close(got, images.roll(by, axis), atol=1e-4, rtol=0)


def test_accuracy_is_the_mean_over_directions() -> None:
    """A net that knows only whether the picture's light is at the right."""

    class Right(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            half = image.shape[-1] // 2
            return {"logits": torch.stack([image[..., :half], image[..., half:]]).sum((2, 3, 4)).T}

    images = torch.zeros(4, 1, 28, 28)
    images[..., 14:16] = 1  # just right of the middle
    shift = invariance.DISTURBANCES[0]
    labels = torch.ones(4, dtype=torch.int64)
    accuracy = invariance.measure(Right(), images, labels, shift)
    assert accuracy[0] == 1
    assert accuracy[shift.strengths.index(3)] == 0.75  # one direction of four moves it to the left


def curves(lost: dict[tuple[str, bool], float]) -> list[invariance.Curve]:
    """Curves that lose so much at every strength but 0."""
    return [
        invariance.Curve(name, augmented, d, (1.0, *[1 - cost] * (len(d.strengths) - 1)))
        for (name, augmented), cost in lost.items()
        for d in invariance.DISTURBANCES
    ]


def test_invariance_verdict_has_both_outcomes() -> None:
    mlp, cnn, pooled = (v.label for v in (invariance.MLP, invariance.CNN, invariance.POOLED))
    lost = {
        (mlp, False): 0.4, (cnn, False): 0.2, (pooled, False): 0.1,
        (mlp, True): 0.05, (cnn, True): 0.03, (pooled, True): 0.02,
    }  # fmt: skip
    verdict, holds = invariance.judge(curves(lost), rows=360)
    assert holds
    assert f"{mlp} 40.0, augmented 5.0" in verdict
    assert verdict.endswith("in 12 of 12 cases.")
    for name, cost in (((cnn, False), 0.5), ((pooled, False), 0.3), ((pooled, True), 0.3)):
        verdict, holds = invariance.judge(curves(lost | {name: cost}), rows=360)
        assert not holds, name
    assert "in 8 of 12 cases, not of pooled CNN under shift" in verdict


def test_invariance_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariance, "MOST_ROWS", 50)
    outcome = run(find("invariance"), tmp_path, epochs=1)
    assert len(outcome.rows) == 6
    assert len(outcome.figures) == len(invariance.DISTURBANCES)
    assert all(0 <= v <= 1 for row in outcome.rows for v in row.values() if v != row["net"])
    assert "on 50 test digits" in outcome.verdict


# Bottleneck


def test_the_branch_costs_what_the_paper_makes_of_it() -> None:
    without, reduced = (
        bottleneck.count(GOOGLENET.override({"bottleneck": kept})) for kept in (False, True)
    )
    assert without.multiplications == 28 * 28 * 32 * 5 * 5 * 192 == 120_422_400
    assert reduced.multiplications == 28 * 28 * (16 * 192 + 32 * 5 * 5 * 16) == 12_443_648
    assert without.parameters == (5 * 5 * 192 + 1) * 32
    assert reduced.parameters == (192 + 1) * 16 + (5 * 5 * 16 + 1) * 32
    assert without.output_shape == reduced.output_shape == [32, 28, 28]


def test_bottleneck_verdict_has_both_outcomes() -> None:
    large, small = Block("", "", [1, 1, 1], 20, 1000), Block("", "", [1, 1, 1], 4, 100)
    timings = [bottleneck.Timing("PyTorch", batch, 6.0, 2.0) for batch in (1, 8)]
    verdict, holds = bottleneck.judge(large, small, timings, "this machine")
    assert holds
    assert "10.0 times fewer" in verdict
    assert "3.0 times faster in PyTorch" in verdict
    assert "this machine" in verdict
    assert not bottleneck.judge(small, large, timings, "this machine")[1]
    slower = [*timings, bottleneck.Timing("ONNX Runtime", 1, 2.0, 2.5)]
    assert not bottleneck.judge(large, small, slower, "this machine")[1]


def test_an_engine_that_computes_something_else_is_not_timed(tmp_path: Path) -> None:
    class Changing(nn.Module):
        calls = 0

        def forward(self, maps: Tensor) -> Tensor:
            self.calls += 1
            return maps * self.calls

    with pytest.raises(CertificateFailed, match="does not answer as the module does"):
        bottleneck.engine_of(Changing(), torch.rand(4, 3, 5, 5), tmp_path / "engine")


def test_bottleneck_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck, "BATCHES", (1, 2))
    threads = torch.get_num_threads()
    outcome = run(find("bottleneck"), tmp_path)
    assert torch.get_num_threads() == threads
    assert "120,422,400" in outcome.verdict
    assert "12,443,648" in outcome.verdict
    assert "9.7 times fewer" in outcome.verdict
    times = [row for row in outcome.rows if row["cost"].startswith("ms")]
    assert len(times) == 4
    assert all(row["without"] > 0 and row["with"] > 0 for row in times)
