"""A status never contradicts its interval; tables that no law can have are one clear line."""

import numpy as np
import pandas as pd
import pytest
from fitting_tables import surface
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.fitting import fit
from budgetlab.fitting.design import build_design, evaluate, evaluate_blocks, start_all
from budgetlab.fitting.intervals import two_a_cell
from budgetlab.fitting.newton import _solve, minimise
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.intake import read_table
from budgetlab.laws import get_law


def curve(points=6, noise=0.02, seed=0, decades=1.0):
    x = np.geomspace(1.0, 10**decades, points)
    return pd.DataFrame(
        {"x": x, "y": (1.5 + 2 * x**-0.3) * np.exp(noise * np.random.default_rng(seed).normal(size=points))}
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_status_never_contradicts_its_interval(seed):
    """The same six points: two decades with little noise say where the floor is, one decade with more does not."""
    table = curve(noise=0.004, seed=seed, decades=2.0)
    found = fit(table, resamples=200)
    assert found.status == "converged"
    low, high = found.intervals["E"]
    assert high - low <= 0.5 * (table["y"].mean() - found.params["E"])
    low, high = found.intervals["a"]
    assert low > 0 and high <= 3 * low
    vague = fit(curve(noise=0.02, seed=seed), resamples=200)
    assert vague.status in ("weakly_identified", "at_bound", "several_basins")
    assert vague.usable_for == "interpolation"


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 6, 7])
def test_six_points_with_a_free_floor_are_weakly_identified(seed):
    table = curve(noise=0.02, seed=seed)
    few = fit(table, resamples=200)
    assert few.status == "weakly_identified" and "do not pin down E" in few.status_text
    low, high = few.intervals["E"]
    assert high - low > 0.5 * (table["y"].mean() - few.params["E"])


def test_many_points_over_four_decades_are_identified():
    many = fit(curve(points=60, noise=0.001, decades=4.0), resamples=200)
    assert many.status == "converged"
    low, high = many.intervals["E"]
    assert low < 1.5 < high and high - low < 0.1


def test_no_exponent_of_a_split_where_no_budget_can_be_split():
    n = np.geomspace(1e7, 1e9, 12)
    loss = 1.7 + 400 / n**0.34 + 2000 / (20 * n) ** 0.28
    found = fit(pd.DataFrame({"num_params": n, "tokens": 20 * n, "loss": loss}), law="chinchilla", resamples=0)
    assert (
        "no budget can be split" in str(found) and "exponent" not in str(found).split("no budget")[0].split("note")[0]
    )
    assert not found.derived


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_losses_of_an_impossible_size_are_one_line(scale):
    with pytest.raises(CallerError, match=r"beyond 1e\+-150"):
        fit(curve().assign(y=lambda t: t["y"] * scale))


def test_one_row_is_called_one_row():
    with pytest.raises(CallerError, match="1 row"):
        fit(curve().head(1))


def test_what_to_leave_out_is_named_by_its_option():
    with pytest.raises(CallerError, match="--exclude-invalid"):
        fit(pd.concat([curve(), pd.DataFrame({"x": [1.0], "y": [-1.0]})]))


@pytest.mark.parametrize(
    ("text", "words"),
    [("x;y\n1;2\n2;3\n", "separated by ;"), ("x,y\n1,2\n2,3,4\n", "line 3"), ("x,y\n1,2,3\n2,3,4\n", "more cells")],
)
def test_other_separators_and_ragged_rows_are_one_line(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CallerError, match=words):
        read_table(tmp_path / "t.csv")


def test_many_rows_are_resampled_from_the_limit_of_the_bootstrap(monkeypatch):
    table = surface(4000, np.random.default_rng(3))
    drawn = fit(table, law="chinchilla", resamples=2000)
    monkeypatch.setattr("budgetlab.fitting.intervals._LIMIT_POINTS", 1000)
    limit = fit(table, law="chinchilla", resamples=2000)
    assert limit.params == drawn.params
    for name, error in drawn.standard_errors.items():
        assert limit.standard_errors[name] == pytest.approx(error, rel=0.15)


def test_a_part_of_many_points_only_shortens_the_way(monkeypatch):
    table = surface(4000, np.random.default_rng(4))
    whole = fit(table, law="chinchilla", resamples=0)
    monkeypatch.setattr("budgetlab.fitting.solve._MANY_POINTS", 500)
    begun = fit(table, law="chinchilla", resamples=0)
    assert begun.objective == pytest.approx(whole.objective, rel=1e-9)
    assert begun.params == pytest.approx(whole.params, rel=1e-6)


def test_shared_parameters_are_solved_for_as_in_the_whole_system():
    """Groups of unequal size, one exponent: Newton's step from the blocks is that from the dense Hessian."""
    law, rng = get_law("power"), np.random.default_rng(0)
    groups = ["a"] * 9 + ["b"] * 5 + ["c"] * 7
    x = rng.uniform(1.0, 50.0, len(groups))
    outcome = (2.0 + 3.0 * x**-0.4) * np.exp(0.01 * rng.standard_normal(len(x)))
    design = build_design(law, {"x": x}, outcome, groups=groups, shared=("a",))
    sample, objective = Sample.of(outcome, np.ones(len(x))), Objective("squared_log")
    end = minimise(design, start_all(design, {"x": x}, outcome, groups), sample, objective)
    theta = end.theta[[int(end.value.argmin())]] + 0.01
    _, gradient, hessian = evaluate(design, theta, sample, objective)
    blocks = evaluate_blocks(design, theta, design.lay_out(sample), objective)[2]
    step = _solve(design, gradient, blocks, np.zeros(theta.shape, dtype=bool))
    assert step[0] == pytest.approx(np.linalg.solve(hessian[0], gradient[0]), rel=1e-8)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4))
def test_two_points_a_cell_have_the_squares_of_all_its_rows(seed: int, cells: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(cells), rng.integers(1, most + 1, size=cells)))
    logs, weights = rng.normal(size=(3, len(codes))), rng.uniform(0.1, 3, size=len(codes))
    at, sample = two_a_cell(codes, logs, weights)
    curve = rng.normal(size=cells)  # whatever the law says at each cell
    whole = (weights * (logs - curve[codes]) ** 2).sum(axis=1)
    parts = (sample.weights * (sample.log_outcome - curve[codes[at]]) ** 2).sum(axis=1)
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert sorted(codes[at]) == sorted([*range(cells)] * 2)
