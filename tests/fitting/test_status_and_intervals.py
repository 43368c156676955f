"""A status never contradicts its interval; tables that no law can have are one clear line."""

import numpy as np
import pandas as pd
import pytest

from budgetlab.errors import CallerError
from budgetlab.fitting import fit
from budgetlab.intake import read_table


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
