"""Resampling and small-sample intervals."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab import resampling
from budgetlab.errors import CallerError
from budgetlab.resampling import (
    bootstrap_weights,
    holm,
    median_interval,
    percentile_interval,
    pool_variance,
    t_quantile,
    wild_multipliers,
)


def test_examples():
    assert doctest.testmod(resampling).failed == 0


def test_weights_are_multiplicities_whatever_the_chunks(monkeypatch):
    drawn = np.vstack(list(bootstrap_weights(30, 500, np.random.default_rng(0))))
    monkeypatch.setattr(resampling, "_CHUNK_CELLS", 200)
    again = np.vstack(list(bootstrap_weights(30, 500, np.random.default_rng(0))))
    assert drawn.shape == (500, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert (drawn == again).all()


def test_clusters_are_drawn_whole():
    labels = list("aabbbbc")
    for chunk in bootstrap_weights(7, 50, np.random.default_rng(0), labels):
        assert (chunk[:, 0] == chunk[:, 1]).all()
        assert (chunk[:, 2:6] == chunk[:, [2]]).all()
        assert (chunk[:, 0] + chunk[:, 2] + chunk[:, 6] == 3).all()


@pytest.mark.parametrize("clusters", [5, 40])
def test_wild_multipliers_have_mean_zero_and_variance_one(clusters):
    labels = np.repeat(np.arange(clusters), 2)
    drawn = np.vstack(list(wild_multipliers(2 * clusters, 20_000, np.random.default_rng(0), labels.tolist())))
    assert (drawn[:, ::2] == drawn[:, 1::2]).all()
    assert np.abs(drawn.mean(axis=0)).max() < 0.04
    assert drawn.var(axis=0) == pytest.approx(1.0, abs=0.03)


def test_quantiles_against_the_table_of_t():
    assert t_quantile(0.975, 1) == pytest.approx(12.706, rel=1e-4)
    assert t_quantile(0.975, 18) == pytest.approx(2.1009, abs=1e-4)


def test_median_interval_against_the_table_of_order_statistics():
    assert median_interval(range(5)) is None
    assert median_interval(range(6)) == (0.0, 5.0)
    assert median_interval(range(10)) == (1.0, 8.0)
    assert median_interval(range(100)) == (39.0, 60.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(6, 1500))
def test_median_interval_holds_the_median(seed, size):
    values = np.random.default_rng(seed).exponential(size=size)
    low, high = median_interval(values)
    assert low <= np.median(values) <= high


def test_percentiles():
    assert percentile_interval(np.arange(1001.0), 0.9) == pytest.approx((50.0, 950.0))


def test_pooled_variance_of_independent_cells():
    values = np.random.default_rng(0).standard_normal((200, 3))
    residuals = (values - values.mean(axis=1, keepdims=True)).ravel()
    cells, replicates = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    for labels in (None, replicates):
        pooled = pool_variance(residuals, cells, np.full(200, 2.0), labels)
        assert pooled.sd == pytest.approx(1.0, rel=0.1)
        assert pooled.cells == 200
        assert pooled.degrees_of_freedom == pytest.approx(400, rel=0.1)


def test_correlated_cells_count_for_less():
    """Rungs of one trunk repeat its luck: four identical cells know no more than one."""
    cells, replicates = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    pooled = pool_variance(np.tile([1.0, 0.0, -1.0], 4), cells, np.full(4, 2.0), replicates)
    assert pooled.correlation == pytest.approx(1.0)
    assert pooled.degrees_of_freedom == pytest.approx(2.0)


def test_nothing_to_pool():
    assert pool_variance(np.zeros(2), np.arange(2), np.zeros(2)) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_monotone_and_between_plain_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12 or q == pytest.approx(max(adjusted))
        assert q <= 1.0
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(CallerError, match=r"outside 0\.\.1"):
        holm([0.5, 1.5])
