"""Compute-optimal sizes and tokens: closed forms, the search that stands in for them, and draws."""

from __future__ import annotations

import numpy as np
import pytest
from fitting_tables import CHINCHILLA, surface
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.fitting import fit, frontier, optimum
from budgetlab.laws import Instance, get_law

TRUTH = Instance("a test", get_law("chinchilla"), CHINCHILLA, scope="", source="")


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.2, 0.5), st.floats(0.2, 0.5), st.floats(10, 1e4), st.floats(10, 1e4), st.floats(1e18, 1e25),
    st.floats(2, 12),
)  # fmt: skip
def test_the_search_finds_the_closed_form(alpha, beta, a, b, flops, k):
    """To rounding: a minimum is known to the square root of the loss's own rounding."""
    law = Instance("", TRUTH.law, {"E": 1.7, "A": a, "B": b, "alpha": alpha, "beta": beta}, "", "")
    closed = frontier(law, flops, flops_per_param_token=k).iloc[0]
    searched = frontier(law, flops, flops_per_token=lambda n: k * n).iloc[0]
    if min(closed["num_params"], closed["tokens"]) > 1e4:
        for name in ("num_params", "tokens", "loss", "num_params_exponent", "tokens_exponent"):
            assert searched[name] == pytest.approx(closed[name], rel=1e-3 if "exponent" in name else 1e-4)


def test_the_optimum_beats_its_neighbours_and_spends_the_budget():
    best = frontier(TRUTH, [1e19, 1e21, 1e23])
    assert (6 * best["num_params"] * best["tokens"]).to_numpy() == pytest.approx(best["flops"].to_numpy())
    for factor in (0.95, 1.05):
        n, d = best["num_params"] * factor, best["tokens"] / factor
        assert (TRUTH.predict({"num_params": n, "tokens": d}) > best["loss"]).all()


def test_a_dearer_token_makes_models_smaller():
    """Attention and head cost small models relatively more, so that the exponent of parameters rises."""
    plain = frontier(TRUTH, [1e18, 1e21])
    dear = frontier(TRUTH, [1e18, 1e21], flops_per_token=lambda n: 6 * n * (1 + (1e9 / n) ** 0.5))
    assert (dear["loss"] > plain["loss"]).all()
    assert dear["num_params_exponent"].iloc[0] > plain["num_params_exponent"].iloc[0]


def test_intervals_hold_the_truth_and_say_where_they_extrapolate():
    found = fit(surface(200, np.random.default_rng(0)), law="chinchilla", resamples=300)
    best, truth = frontier(found, [1e20, 1e26]), frontier(TRUTH, [1e20, 1e26])
    for name in ("num_params", "tokens", "loss", "num_params_exponent"):
        assert (best[f"{name}_low"] <= truth[name]).all()
        assert (truth[name] <= best[f"{name}_high"]).all()
    assert best["extrapolated"].tolist() == [False, True]
    searched = frontier(found, 1e20, flops_per_token=lambda n: 6 * n)
    assert searched["num_params_low"].iloc[0] == pytest.approx(best["num_params_low"].iloc[0], rel=1e-4)


def test_optimum_is_the_head_of_the_frontier():
    found = fit(surface(60, np.random.default_rng(0)), law="chinchilla", resamples=50)
    head, whole = optimum(found, [1e20, 1e21]), frontier(found, [1e20, 1e21])
    assert list(head) == ["flops", "num_params", "num_params_low", "num_params_high", "tokens", "tokens_low",
                          "tokens_high", "loss", "loss_low", "loss_high"]  # fmt: skip
    assert head.equals(whole[list(head)])


def test_an_optimum_at_the_end_of_the_search_is_unknown():
    """Tokens that buy nothing: the best model is as large as its budget allows."""
    law = Instance("", TRUTH.law, CHINCHILLA | {"B": 1e-30}, "", "")
    best = frontier(law, 1e20, flops_per_token=lambda n: 6 * n)
    assert np.isnan(best["num_params"].iloc[0])


@pytest.mark.parametrize(
    ("law", "wrong", "words"),
    [
        ("chinchilla", {"flops": -1.0}, "not finite and above zero"),
        ("power", {"flops": 1e20}, "does not trade parameters against tokens"),
        ("distillation", {"flops": 1e20, "at": {"teacher_loss": 2.0}}, "no value of supervised_loss"),
    ],
)
def test_wrong_requests_are_named(law, wrong, words):
    params = CHINCHILLA if law == "chinchilla" else dict.fromkeys(get_law(law).params, 1.0)
    with pytest.raises(CallerError, match=words):
        frontier(Instance("", get_law(law), params, "", ""), **wrong)
