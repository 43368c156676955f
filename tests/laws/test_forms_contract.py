"""What every law of another form must do; a new file is picked up on arrival, and brings what it is tested on."""

from __future__ import annotations

import doctest
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.fitting import fit
from budgetlab.fitting.design import Sample, build_design, evaluate
from budgetlab.fitting.objectives import Objective
from budgetlab.laws import Law, data_constrained, distillation, get_law, jets, law_names

FORMS = [law for law in map(get_law, law_names()) if not law.terms]
each_form = pytest.mark.parametrize("law", FORMS, ids=lambda law: law.name)


def table_of(law: Law, points: int = 120, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng([seed, zlib.crc32(law.name.encode())])
    inputs = {name: np.exp(rng.uniform(*np.log(law.ranges[name]), points)) for name in law.inputs}
    outcome = law.predict(law.typical, inputs) * np.exp(noise * rng.standard_normal(points))
    return pd.DataFrame({**inputs, law.outcome: outcome})


def inputs_of(law: Law, table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in law.inputs}


def test_examples():
    assert [doctest.testmod(module).failed for module in (jets, distillation, data_constrained)] == [0, 0, 0]


def test_the_documentation_lists_every_law_with_formula_inputs_and_source():
    text = (Path(__file__).parents[2] / "docs" / "laws.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| `")]
    listed = {row[1].strip("`"): row for row in rows if row[1].strip("`") in law_names()}
    assert set(listed) == set(law_names())
    for name, row in listed.items():
        law = get_law(name)
        assert row[2] == law.formula
        assert all(column in row[3] for column in law.inputs)
        assert row[4] == law.source


@each_form
def test_it_brings_what_it_is_tested_on(law):
    assert set(law.typical) == set(law.params)
    assert set(law.ranges) == set(law.inputs)
    for name, (low, high) in law.bounds.items():
        assert low <= law.typical[name] <= high
    assert law.source
    assert law.formula


@each_form
@pytest.mark.parametrize("objective", ["huber_log", "lad", "squared", "squared_log"])
def test_recovers_its_own_parameters(law, objective):
    found = fit(table_of(law), law=law.name, objective=objective, resamples=0)
    assert found.status == "converged", found.status_text
    for name, value in law.typical.items():
        assert found.params[name] == pytest.approx(value, rel=1e-5, abs=1e-8)


@each_form
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_is_monotone_where_it_says_so(law, data):
    place = {name: data.draw(st.floats(*law.ranges[name]), label=name) for name in law.inputs}
    for name in (*law.falling, *law.rising):
        more = place | {name: place[name] * data.draw(st.floats(1.001, 10.0))}
        change = float(law.predict(law.typical, more) / law.predict(law.typical, place) - 1)
        assert change <= 1e-12 if name in law.falling else change >= -1e-12


@each_form
def test_the_order_of_rows_is_irrelevant(law):
    table = table_of(law, noise=0.003)
    one, other = (fit(t, law=law.name, resamples=0) for t in (table, table.sample(frac=1, random_state=1)))
    assert other.objective == pytest.approx(one.objective, rel=1e-8)
    at = {name: float(np.sqrt(low * high)) for name, (low, high) in law.ranges.items()}
    assert float(law.predict(other.params, at)) == pytest.approx(float(law.predict(one.params, at)), rel=1e-6)


@each_form
def test_a_bound_changes_the_status(law):
    """A table that hardly depends on one input, and on no other, pushes parameters to their bounds: it is said."""
    table = table_of(law, noise=0.001)
    first = law.inputs[0]
    wrong_way = -0.02 if first in law.rising else 0.02
    table[law.outcome] = table[law.outcome].mean() * (table[first] / table[first].mean()) ** wrong_way
    found = fit(table, law=law.name, resamples=0)
    assert found.usable_for != "everything", found.status_text


@each_form
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_noise_free_fit_predicts_where_it_was_not_fitted(law, seed):
    table = table_of(law, seed=seed)
    found = fit(table, law=law.name, objective="squared_log", resamples=0)
    held = table_of(law, points=20, seed=2000)
    missed = law.predict(found.params, inputs_of(law, held)) / held[law.outcome] - 1
    assert np.abs(missed).max() < 1e-4


@each_form
@pytest.mark.parametrize(
    "objective",
    [
        Objective("squared"),
        Objective("squared_log"),
        Objective("huber_log", 0.05),
        Objective("huber_log", 0.05, asymmetry=0.3),
        Objective("_smooth_lad", 0.01),
    ],
    ids=lambda o: f"{o.name}-{o.asymmetry:g}",
)
def test_derivatives_are_exact(law, objective):
    """Central differences: the step is far below 0.01, within which the sharpest of these objectives bends."""
    table = table_of(law, points=17, noise=0.1)
    outcome = table[law.outcome].to_numpy()
    design = build_design(law, inputs_of(law, table), outcome)
    sample = Sample.of(outcome, np.linspace(0.5, 2.0, 17))
    theta = design.to_theta({None: law.typical})
    _, gradient, hessian = evaluate(design, theta[None], sample, objective)
    slopes = design.gradients(theta)
    step = 1e-6
    for j in range(design.size):
        shift = step * (np.arange(design.size) == j)
        up, down = (evaluate(design, (theta + sign * shift)[None], sample, objective) for sign in (1, -1))
        assert gradient[0, j] == pytest.approx((up[0][0] - down[0][0]) / (2 * step), rel=1e-5, abs=1e-8)
        scale = float(np.abs(hessian).max())
        assert hessian[0, j] == pytest.approx((up[1][0] - down[1][0]) / (2 * step), rel=1e-4, abs=1e-7 * scale)
        ends = [design.log_prediction((theta + sign * shift)[None])[0] for sign in (1, -1)]
        assert slopes[:, j] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


@each_form
def test_free_parameters_and_the_laws_own_are_one_another(law):
    table = table_of(law, points=30)
    design = build_design(law, inputs_of(law, table), table[law.outcome].to_numpy())
    back = design.to_params(design.to_theta({None: law.typical}))
    assert {name: float(value) for name, value in back.items()} == pytest.approx(dict(law.typical), rel=1e-9)


@each_form
def test_two_groups_may_share_a_parameter(law):
    """Twice the same rows under two labels: the shared parameter is one, the others are each group's own."""
    table = table_of(law, points=20, noise=0.01)
    outcome = np.tile(table[law.outcome].to_numpy(), 2)
    inputs = {name: np.tile(values, 2) for name, values in inputs_of(law, table).items()}
    first = law.params[0]
    joint = build_design(law, inputs, outcome, groups=["a"] * 20 + ["b"] * 20, shared=(first,))
    assert joint.size == 2 * len(law.params) - 1
    theta = joint.to_theta({"a": law.typical, "b": law.typical})
    assert joint.log_prediction(theta[None])[0] == pytest.approx(np.log(law.predict(law.typical, inputs)), rel=1e-9)
    assert {n: float(v) for n, v in joint.to_params(theta, "b").items()} == pytest.approx(dict(law.typical), rel=1e-9)


@each_form
def test_starts_are_inside_the_bounds_and_in_the_order_of_the_parameters(law):
    table = table_of(law)
    starts = law.starts(inputs_of(law, table), table[law.outcome].to_numpy(), 6)
    assert 1 <= len(starts) <= 6
    for column, (low, high) in zip(starts.T, law.bounds.values(), strict=True):
        assert ((column >= low) & (column <= high)).all()


@each_form
def test_a_scope_is_said_with_every_fit(law):
    found = fit(table_of(law, noise=0.001), law=law.name, resamples=0)
    assert (law.scope in found.flags) == bool(law.scope)
