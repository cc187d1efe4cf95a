"""Small real tables that scikit-learn carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from models.codec import Codec
from models.datasets import Dataset, split_rows

_SIZES = {"train": 0, "validation": 0.15, "test": 0.25}


def breast_cancer() -> Dataset:
    """569 tumours by 30 measures of their cell nuclei: malignant or benign."""
    from sklearn.datasets import load_breast_cancer

    return _classes(
        load_breast_cancer,
        "breast cancer",
        "UCI Breast Cancer Wisconsin (Diagnostic)",
        "CC BY 4.0 (Wolberg, Mangasarian, Street, Street 1995)",
    )


def wine() -> Dataset:
    """178 wines of three growers by 13 chemical measures."""
    from sklearn.datasets import load_wine

    return _classes(load_wine, "wine", "UCI Wine", "CC BY 4.0 (Aeberhard, Forina 1992)")


def diabetes() -> Dataset:
    """442 patients by 10 measures, and a number for how the disease had gone on a year later."""
    from sklearn.datasets import load_diabetes

    features, progression = (
        np.asarray(part) for part in load_diabetes(return_X_y=True, scaled=False)
    )
    return Dataset(
        name="diabetes",
        source="scikit-learn's load_diabetes, unscaled",
        licence="public (Efron, Hastie, Johnstone, Tibshirani 2004, Least angle regression)",
        **_split(features, {"value": progression.astype(np.float32)[:, None]}),
    )


def linear_r2(dataset: Dataset) -> dict[str, float]:
    """R2 on the test rows of least squares on the training and validation rows."""
    from sklearn.linear_model import LinearRegression

    known = (dataset.train, dataset.validation)
    x, y = (
        np.concatenate([part(split) for split in known])
        for part in (lambda s: s.inputs["features"], lambda s: s.targets["value"])
    )
    model = LinearRegression().fit(x, y)
    test = dataset.test
    return {"linear model r2": float(model.score(test.inputs["features"], test.targets["value"]))}


def logistic_accuracy(dataset: Dataset) -> dict[str, float]:
    """Accuracy on the test rows of a logistic regression on the standardised training rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(dataset.train.inputs["features"], dataset.train.targets["label"])
    test = dataset.test
    score = model.score(test.inputs["features"], test.targets["label"])
    return {"logistic regression accuracy": float(score)}


def value_codec(unit: str) -> Callable[[Dataset], Codec]:
    """Arrays in, one number a row out."""

    def codec(dataset: Dataset) -> Codec:
        return Codec(values="value", unit=unit)

    return codec


def _classes(load: Callable[[], Any], name: str, source: str, licence: str) -> Dataset:
    data = load()
    features, label, names = (getattr(data, key) for key in ("data", "target", "target_names"))
    return Dataset(
        name=name,
        source=f"scikit-learn's {load.__name__}: {source}",
        licence=licence,
        classes=tuple(str(n) for n in names),
        **_split(features, {"label": np.asarray(label, np.int64)}),
    )


def _split(features: np.ndarray, targets: dict[str, np.ndarray]) -> dict[str, Any]:
    sizes = {name: int(share * len(features)) for name, share in _SIZES.items()}
    return split_rows({"features": np.asarray(features, np.float32)}, targets, sizes)
