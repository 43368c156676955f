"""What every sum of power terms in the folder must do; a new file is picked up on arrival."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.fitting import fit
from budgetlab.fitting.design import Sample, build_design, evaluate
from budgetlab.fitting.objectives import Objective
from budgetlab.laws import Law, Term, get_law, law_names

LAWS = [law for law in map(get_law, law_names()) if law.terms]
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)


def truth_of(law: Law) -> dict[str, float]:
    """Parameters of a plausible curve: terms of like size, exponents apart from each other."""
    exponents = {name: 0.3 + 0.07 * k for k, name in enumerate(law.exponents)}
    params = dict(exponents)
    for k, term in enumerate(law.terms):
        size = 1.8 if not term.exponents else 0.6 + 0.2 * k
        params[term.coefficient] = size * float(np.prod([1e9 ** exponents[power] for power in term.exponents.values()]))
    return {name: params[name] for name in law.params}


def table_of(law: Law, params: dict[str, float], points: int = 60, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    inputs = {name: 1e9 * np.exp(rng.uniform(-3.5, 3.5, points)) for name in law.inputs}
    outcome = law.predict(params, inputs) * np.exp(noise * rng.standard_normal(points))
    return pd.DataFrame({**inputs, law.outcome: outcome})


def test_the_two_laws_of_the_house_are_found():
    assert {"power", "chinchilla"} <= set(law_names())
    assert get_law("power").params == ("E", "A", "a")
    assert get_law("chinchilla").params == ("E", "A", "B", "alpha", "beta")


def test_an_unknown_law_lists_the_near_ones():
    with pytest.raises(CallerError, match="did you mean chinchilla"):
        get_law("chinchila")


OWN = """from budgetlab.laws import Law, Term

LAW = Law("own_{}", "loss", (Term("E"), Term("A", {{"width": "a"}})), formula="E + A/width^a", source="a test")
"""


def test_a_law_of_ones_own_is_given_by_path_and_then_known_by_name(tmp_path):
    (tmp_path / "own_one.py").write_text(OWN.format("one"))
    law = get_law(str(tmp_path / "own_one.py"))
    assert law.inputs == ("width",) and get_law("own_one") is law
    assert "own_one" not in law_names()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("own_two.py", None, "no such file"),
        ("power.py", OWN.format("power"), "is a law of budgetlab"),
        ("own_three.py", "LAW = 3", "no LAW of the name own_three"),
        ("own_four.py", OWN.format("other"), "no LAW of the name own_four"),
    ],
)
def test_a_file_that_is_no_law_is_one_line(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CallerError, match=said):
        get_law(str(tmp_path / name))


@each_law
@pytest.mark.parametrize("objective", ["huber_log", "lad", "squared", "squared_log"])
def test_recovers_its_own_parameters(law, objective):
    truth = truth_of(law)
    found = fit(table_of(law, truth), law=law.name, objective=objective, resamples=0)
    assert found.status == "converged", found.status_text
    for name, value in truth.items():
        assert found.params[name] == pytest.approx(value, rel=1e-8)


@each_law
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_decreases_in_every_input(law, data):
    truth = truth_of(law)
    place = {name: data.draw(st.floats(1e7, 1e11), label=name) for name in law.inputs}
    for name in law.inputs:
        more = place | {name: place[name] * data.draw(st.floats(1.01, 100.0))}
        assert law.predict(truth, more) < law.predict(truth, place)
    if law.floor:
        assert law.predict(truth, place) > truth[law.floor]


@each_law
def test_the_order_of_rows_is_irrelevant(law):
    table = table_of(law, truth_of(law), noise=0.01)
    one, other = (fit(t, law=law.name, resamples=0) for t in (table, table.sample(frac=1, random_state=1)))
    assert other.objective == pytest.approx(one.objective, rel=1e-10)
    for name, value in one.params.items():
        assert other.params[name] == pytest.approx(value, rel=1e-6)


@each_law
def test_a_bound_changes_the_status(law):
    """Rising data push an exponent or a floor to its bound, and the status says so."""
    truth = truth_of(law)
    table = table_of(law, truth, noise=0.01)
    first = law.inputs[0]
    table[law.outcome] = 2.0 * (table[first] / 1e9) ** 0.05
    found = fit(table, law=law.name, resamples=0)
    assert found.status in ("at_bound", "several_basins"), found.status_text
    assert found.certificate["at_bound"]
    assert found.usable_for == "interpolation"


@each_law
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-6, 1e6))
def test_units_of_the_inputs_do_not_matter(law, scale):
    table = table_of(law, truth_of(law), noise=0.005)
    scaled = table.assign(**{law.inputs[0]: table[law.inputs[0]] * scale})
    one, other = (fit(t, law=law.name, resamples=0) for t in (table, scaled))
    for name in law.exponents:
        assert other.params[name] == pytest.approx(one.params[name], rel=1e-5)


@each_law
def test_starts_are_positive_and_in_the_order_of_the_parameters(law):
    table = table_of(law, truth_of(law))
    starts = law.starts({name: table[name].to_numpy() for name in law.inputs}, table[law.outcome].to_numpy(), 6)
    assert starts.shape == (6, len(law.params))
    assert (starts > 0).all()


@each_law
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
    """Central differences: the step is near the cube root of the rounding error, where their own error is least."""
    table = table_of(law, truth_of(law), points=17, noise=0.1)
    inputs, outcome = {name: table[name].to_numpy() for name in law.inputs}, table[law.outcome].to_numpy()
    design = build_design(law, inputs, outcome)
    sample = Sample.of(outcome, np.linspace(0.5, 2.0, 17))
    theta = design.to_theta({None: truth_of(law)})
    _, gradient, hessian = evaluate(design, theta[None], sample, objective)
    step = 1e-5
    for j in range(design.size):
        shift = step * (np.arange(design.size) == j)
        up, down = (evaluate(design, (theta + sign * shift)[None], sample, objective) for sign in (1, -1))
        assert gradient[0, j] == pytest.approx((up[0][0] - down[0][0]) / (2 * step), rel=1e-6, abs=1e-9)
        assert hessian[0, j] == pytest.approx((up[1][0] - down[1][0]) / (2 * step), rel=1e-5, abs=1e-7)


def test_predict_names_what_is_missing():
    with pytest.raises(CallerError, match="no input x"):
        get_law("power").predict({"E": 1.0, "A": 1.0, "a": 0.5}, {"flops": 1.0})


def test_a_new_sum_of_power_terms_needs_no_more_than_its_terms():
    """Three inputs, a tied exponent and a product term: starts, predictions and derivatives come from the form."""
    law = Law(
        name="width_depth",
        outcome="loss",
        terms=(Term("E"), Term("A", {"width": "a", "depth": "a"}), Term("B", {"tokens": "b"})),
        formula="E + A/(width*depth)^a + B/tokens^b",
        source="a test",
    )
    assert law.params == ("E", "A", "B", "a", "b")
    rng = np.random.default_rng(0)
    inputs = {name: np.exp(rng.uniform(0, 4, 50)) for name in law.inputs}
    truth = {"E": 1.0, "A": 2.0, "B": 3.0, "a": 0.4, "b": 0.6}
    outcome = law.predict(truth, inputs)
    from budgetlab.fitting.newton import minimise

    design = build_design(law, inputs, outcome)
    starts = law.starts(inputs, outcome)
    theta = design.to_theta({None: dict(zip(law.params, starts.T, strict=True))})
    ends = minimise(design, theta, Sample.of(outcome, np.ones(50)), Objective())
    found = design.to_params(ends.theta[ends.value.argmin()])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(truth, rel=1e-8)
