"""The judge knows digits, is the same every time, owns no weights; the distance is Frechet's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor, nn

from models.datasets import Split
from models.digits import embedded_digits
from models.judge import Judge, frechet_distance, judge


def tensors(split: Split, count: int | None = None) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(split.inputs["image"][:count]),
        torch.from_numpy(split.targets["label"][:count]),
    )


@pytest.fixture(scope="module")
def known() -> Judge:
    return judge(*tensors(embedded_digits().train))


def test_the_judge_knows_digits_that_it_has_not_seen(known: Judge) -> None:
    images, labels = tensors(embedded_digits().test)
    assert known.accuracy(images, labels) > 0.97
    assert known.accuracy(images, (labels + 1) % 10) < 0.1


def test_what_it_sees_are_the_units_that_its_classes_are_read_off(known: Judge) -> None:
    images, _ = tensors(embedded_digits().test, 40)
    features, probabilities = known.look(images)
    assert features.shape == (40, 84)
    read = known.module.network.get_submodule("output")
    assert torch.allclose(read(features).softmax(1), probabilities, atol=1e-6)
    assert torch.equal(known.module(image=images)["probabilities"], probabilities)
    first = known.look(images[:1])
    assert torch.allclose(first[0], features[:1], atol=1e-5)


def test_the_same_rows_give_the_same_judge_whatever_was_drawn_before() -> None:
    rows = tensors(embedded_digits().train, 100)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = judge(*rows, updates=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert judge(rows[0].clone(), rows[1].clone(), updates=5) is one, "it is trained once"
    torch.manual_seed(2)
    with torch.inference_mode():
        more = judge(*tensors(embedded_digits().train, 101), updates=5)
    other = judge(*rows, updates=5, seed=1)  # and the first is forgotten
    again = judge(*rows, updates=5)
    assert again is not one
    seen = [some.look(rows[0])[1] for some in (one, again, other, more)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])


def test_a_module_that_holds_a_judge_does_not_own_it(known: Judge) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge = known

    holder = Holder()
    assert not list(holder.parameters())
    assert not holder.state_dict()
    holder.train()
    assert not known.module.training


def drawn(seed: int, rows: int, features: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, features)) @ generator.normal(size=(features, features))


seeds = st.integers(0, 1000)


@given(seed=seeds, rows=st.integers(2, 40), features=st.integers(1, 12))
def test_equal_sets_are_at_distance_zero(seed: int, rows: int, features: int) -> None:
    some = drawn(seed, rows, features)
    assert frechet_distance(some, some[::-1]) == pytest.approx(0, abs=1e-5 * some.var())


@given(seed=seeds, rows=st.integers(2, 40), features=st.integers(1, 12))
def test_the_distance_is_symmetric_and_that_of_scipy(seed: int, rows: int, features: int) -> None:
    real, other = drawn(seed, rows, features), drawn(seed + 1, rows + 30, features) + 0.5
    found = frechet_distance(real, other)
    assert found == pytest.approx(frechet_distance(other, real), rel=1e-6)
    one, two = (np.cov(x, rowvar=False).reshape(features, features) for x in (real, other))
    # A full rank by a hair: scipy's root of a singular matrix is not to be trusted.
    hair = 1e-9 * np.trace(two) * np.eye(features)
    root = np.real(sqrtm((one + hair) @ (two + hair)))
    expected = ((real.mean(0) - other.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(seed=seeds, shift=st.floats(-5, 5), scale=st.floats(0.1, 5))
def test_moved_and_scaled_rows_are_at_the_distance_of_their_gaussians(
    seed: int, shift: float, scale: float
) -> None:
    """Covariances S and scale^2 S commute: tr(S + scale^2 S - 2 scale S) = (1 - scale)^2 tr S."""
    some = drawn(seed, 30, 4)
    moved = (some - some.mean(0)) * scale + some.mean(0) + shift
    expected = 4 * shift**2 + (1 - scale) ** 2 * some.var(0, ddof=1).sum()
    assert frechet_distance(some, moved) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_noise_is_farther_from_digits_than_other_digits_are(known: Judge) -> None:
    dataset = embedded_digits()
    real, _ = known.look(tensors(dataset.test)[0])
    seen, _ = known.look(tensors(dataset.train, 360)[0])
    noise, _ = known.look(torch.rand(360, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    near, far = (frechet_distance(real.numpy(), other.numpy()) for other in (seen, noise))
    assert 0 < near < far / 10
