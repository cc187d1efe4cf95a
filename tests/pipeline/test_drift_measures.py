"""What a task is measured by, against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn import metrics

from models.codec import Actions, Codec
from pipeline.evaluation import wilson
from pipeline.values import Drift
from tests.pipeline.answering import Kind, kinds


def noisy(name: str, deviation: float = 0.3) -> tuple[Kind, np.ndarray, Drift]:
    kind = kinds()[name]
    noise = np.random.default_rng(4).normal(0, deviation, kind.reference.shape)
    return kind, kind.reference + noise, kind.drift(kind.reference + noise, "int8")


def test_accuracy_is_scikit_learns() -> None:
    for name in ("scores", "sign"):
        kind, answers, found = noisy(name)
        both = (kind.reference, answers)
        said = [a.argmax(1) if name == "scores" else (a[:, 0] > 0).astype(int) for a in both]
        wanted = [metrics.accuracy_score(kind.targets["label"], each) for each in said]
        assert found.measures["accuracy"][:2] == pytest.approx(wanted)
        assert found.changed == pytest.approx(1 - metrics.accuracy_score(*said))
        right = [each == kind.targets["label"] for each in said]
        lost, won = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
        assert found.note.startswith(f"{lost} rows right no more, {won} only now")


def test_intersection_over_union_is_scikit_learns() -> None:
    kind, answers, found = noisy("pixels")
    best, chosen = (a.argmax(1).ravel() for a in (kind.reference, answers))
    mask = kind.targets["mask"].ravel()
    wanted = [metrics.jaccard_score(mask, each, average="macro") for each in (best, chosen)]
    assert found.measures["mean IoU"][:2] == pytest.approx(wanted)
    agreed = metrics.jaccard_score(best, chosen, average="macro")
    assert found.measures["IoU with the module's masks"][:2] == pytest.approx((1, agreed))
    assert found.changed == pytest.approx((best != chosen).mean())


def test_errors_are_scikit_learns() -> None:
    kind, answers, found = noisy("values")
    target = kind.targets["value"]
    wanted = [metrics.root_mean_squared_error(target, a) for a in (kind.reference, answers)]
    assert found.measures["RMSE"][:2] == pytest.approx(wanted)
    moved = np.abs(answers - kind.reference)
    assert found.measures["mean distance"][:2] == pytest.approx((0, moved.mean()))
    assert found.changed == (moved > target.std() / 10).mean()
    assert kind.drift(kind.reference + target.std() / 11, "int8").passed
    assert not kind.drift(kind.reference + target.std() / 11).passed
    kind, answers, found = noisy("pictures", 0.002)
    image = kind.inputs["image"]
    wanted = [
        metrics.mean_squared_error(image.ravel(), a.ravel()) for a in (kind.reference, answers)
    ]
    assert found.measures["reconstruction MSE"][:2] == pytest.approx(wanted)
    distance = np.abs(answers - kind.reference)
    assert found.measures["mean distance"][1] == pytest.approx(distance.mean())
    assert 0 < found.changed == (distance > 1 / 510).mean() < 1


def test_perplexity_is_the_exponential_of_the_mean_log_loss() -> None:
    kind, answers, found = noisy("tokens")
    following = kind.targets["next"]
    known = following > 0
    for value, logits in zip(found.measures["perplexity"], (kind.reference, answers), strict=False):
        logs = log_softmax(logits, -1)
        given = np.take_along_axis(logs, following[..., None], -1)[..., 0]
        assert value == pytest.approx(np.exp(-given[known].mean()))
    worst = kind.drift(1e6 * answers, "int8").measures["perplexity"]
    assert np.isfinite(worst).all()


def test_regret_is_what_the_module_gives_up() -> None:
    right = [[1.0, 0.0, 0.0]] * 999
    codec = Codec(actions=Actions(observation="o", values="q", names=("a", "b", "c")))
    kind = Kind(codec, "q", np.array([*right, [5.0, 0.0, 0.0]]))
    found = kind.drift(np.array([*right, [0.0, 5.0, 0.0]]))
    assert not found.passed
    assert found.changed == pytest.approx(1 / 1000)
    assert found.interval == pytest.approx(wilson(1, 1000))
    assert found.measures["regret"][:2] == pytest.approx((0, 5 / 1000))
    assert "worst regret is 5.00e+00" in found.note
    assert found.leads == (1.0,)
