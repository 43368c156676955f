"""Distillation's law with its published coefficients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.fitting import fit, frontier
from budgetlab.laws import chinchilla_gamma, distillation
from budgetlab.laws.distillation import student_loss

SUPERVISED = chinchilla_gamma.PUBLISHED
TEACHERS = np.array([546e6, 1.82e9, 4.82e9, 7.75e9])


@pytest.mark.parametrize(
    ("num_params", "tokens", "alone", "losses"),
    [
        (546e6, 10.92e9, 2.515, (2.543, 2.424, 2.388, 2.376)),
        (1.82e9, 36.4e9, 2.251, (2.515, 2.278, 2.199, 2.183)),
    ],
)
def test_published_check_values(num_params, tokens, alone, losses):
    """Students at 20 tokens a parameter under four teachers at 20 tokens a parameter."""
    assert float(SUPERVISED.predict({"num_params": num_params, "tokens": tokens})) == pytest.approx(alone, abs=5e-4)
    teacher_loss = SUPERVISED.predict({"num_params": TEACHERS, "tokens": 20 * TEACHERS})
    assert student_loss(num_params, tokens, teacher_loss) == pytest.approx(losses, abs=6e-4)


def test_a_published_parameter_is_inside_its_interval():
    for instance in (SUPERVISED, distillation.PUBLISHED):
        assert set(instance.params) == set(instance.intervals) == set(instance.law.params)
        for name, (low, high) in instance.intervals.items():
            assert low <= instance.params[name] <= high


def test_every_fit_says_what_it_is_not_validated_for():
    assert distillation.LAW.scope == "fitted on causal models; not validated for MLM or feature losses"
    assert distillation.LAW.scope in distillation.PUBLISHED.scope


@settings(deadline=None, max_examples=30)
@given(
    st.floats(1e8, 1e10), st.floats(1e9, 1e12), st.floats(1.8, 2.6), st.sampled_from(["num_params", "tokens"]),
    st.floats(1.01, 10.0),
)  # fmt: skip
def test_no_student_passes_its_teacher_under_this_law(num_params, tokens, teacher_loss, which, factor):
    place = {"num_params": num_params, "tokens": tokens}
    loss = student_loss(**place, teacher_loss=teacher_loss)
    assert loss >= teacher_loss
    assert student_loss(**(place | {which: place[which] * factor}), teacher_loss=teacher_loss) <= loss * (1 + 1e-12)


def distilled(points: int, rng: np.random.Generator, **fixed: float) -> pd.DataFrame:
    table = pd.DataFrame({"num_params": np.exp(rng.uniform(np.log(1e8), np.log(1e10), points)),
                          "tokens": np.exp(rng.uniform(np.log(1e9), np.log(5e11), points)),
                          "teacher_loss": rng.uniform(1.9, 2.5, points)}).assign(**fixed)  # fmt: skip
    table["supervised_loss"] = SUPERVISED.predict({name: table[name] for name in ("num_params", "tokens")})
    table["student_loss"] = student_loss(table["num_params"], table["tokens"], table["teacher_loss"])
    return table


def test_one_teacher_cannot_tell_what_a_teacher_does():
    table = distilled(60, np.random.default_rng(0), teacher_loss=2.1)
    found = fit(table, law="distillation", resamples=0)
    assert found.status == "refused"
    assert "every row has the same teacher_loss (2.1)" in found.status_text
    assert "c0" in found.status_text


def test_one_model_size_names_it():
    found = fit(distilled(60, np.random.default_rng(0), num_params=1e9), law="distillation", resamples=0)
    assert found.status == "refused"
    assert "every row has the same num_params (1e+09)" in found.status_text


def test_the_published_frontier_has_the_published_exponents():
    """Table 6's compute-optimal exponents .513 and .486 follow from its alpha and beta."""
    best = frontier(SUPERVISED, [1e20, 1e22, 1e24])
    assert best["num_params_exponent"].to_numpy() == pytest.approx(0.513, abs=1.5e-3)
    assert best["tokens_exponent"].to_numpy() == pytest.approx(0.486, abs=1.5e-3)


def test_the_distilled_frontier_under_one_teacher():
    """The optimum that is searched for beats its neighbours at the same compute."""

    def supervised(num_params, tokens):
        return SUPERVISED.predict({"num_params": num_params, "tokens": tokens})

    at = {"teacher_loss": 2.1, "supervised_loss": supervised}
    best = frontier(distillation.PUBLISHED, [1e20, 1e22], at=at)
    for row in best.itertuples():
        assert 6 * row.num_params * row.tokens == pytest.approx(row.flops)
        for factor in (0.9, 1.1):
            assert float(student_loss(row.num_params * factor, row.tokens / factor, 2.1)) > row.loss
    assert (best["num_params_exponent"] + best["tokens_exponent"]).to_numpy() == pytest.approx(1.0, abs=1e-6)
