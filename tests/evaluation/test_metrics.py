"""Metrics agree with scikit-learn and scipy; paired comparisons see what differs, and only that."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from budgetlab.errors import CallerError
from budgetlab.evaluation.metrics import measure, paired_bootstrap, standard_errors

CLASSES = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=2, max_size=60)
)


@given(CLASSES)
def test_metrics_of_classes_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    found = measure(labels, predictions)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    f1 = metrics.f1_score(labels, predictions, labels=[1], average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro", zero_division=0))
    expected = 0.0 if 1 in (len(set(labels)), len(set(predictions))) else metrics.matthews_corrcoef(labels, predictions)
    assert found["matthews"] == pytest.approx(expected, abs=1e-12)


def test_metrics_of_scores_are_scipys() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 6, size=80).astype(float)
    predictions = labels + draw.normal(size=80)
    found = measure(labels, predictions)
    assert found["pearson"] == pytest.approx(stats.pearsonr(labels, predictions)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(labels, predictions)[0])
    assert found["pearson_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)
    for nothing in (np.full(80, 2.0), np.full(80, np.nan)):
        assert set(measure(labels, nothing).values()) == {0.0}


def test_the_evaluation_sets_own_error_is_that_of_a_share() -> None:
    labels = np.array([1] * 150 + [0] * 250)
    errors = standard_errors(labels, np.array([1] * 100 + [0] * 300), resamples=4000)
    assert errors["accuracy"] == pytest.approx((0.875 * 0.125 / 400) ** 0.5, rel=0.05)
    scores = np.random.default_rng(0).normal(size=(2, 300))
    errors = standard_errors(scores[0], 0.5 * scores[0] + scores[1])
    pearson = np.corrcoef(scores[0], 0.5 * scores[0] + scores[1])[0, 1]
    assert errors["pearson"] == pytest.approx((1 - pearson**2) / 300**0.5, rel=0.25)


def frame(labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"example": np.arange(len(labels)), "label": labels, "prediction": predictions})


def test_two_models_on_the_same_examples() -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(2, size=400)
    good, bad = (np.where(draw.random(400) < wrong, 1 - labels, labels) for wrong in (0.1, 0.3))
    a, b = frame(labels, good), frame(labels, bad).sample(frac=1, random_state=0)  # order is irrelevant
    for metric in ("accuracy", "f1", "matthews"):
        found = paired_bootstrap(a, b, metric)
        assert found.difference == pytest.approx(measure(labels, good)[metric] - measure(labels, bad)[metric])
        assert found.interval is not None and 0 < found.interval[0] < found.difference < found.interval[1]
        assert found.p_value < 0.01
    same = paired_bootstrap(a, a, "accuracy")
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_scores_are_bootstrapped() -> None:
    draw = np.random.default_rng(2)
    labels = draw.normal(size=120)
    a, b = frame(labels, labels + 0.2 * draw.normal(size=120)), frame(labels, labels + 2 * draw.normal(size=120))
    found = paired_bootstrap(a, b, "spearman", resamples=300)
    assert found.interval is not None and found.interval[0] > 0.1
    with pytest.raises(CallerError, match="no metric of that name; did you mean pearson"):
        paired_bootstrap(a, b, "pearsons")
    with pytest.raises(CallerError, match="not of the same examples"):
        paired_bootstrap(a, b.iloc[:50], "pearson")
