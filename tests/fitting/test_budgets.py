"""IsoFLOP parabolas of tables that are not as they should be."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from budgetlab import isoflop_figure
from budgetlab.cli import app
from budgetlab.errors import CallerError
from budgetlab.fitting import fit, frontier, isoflop, predict
from budgetlab.reporting.figures.sizes import isoflop_table


def budgets(sizes=5, noise=0.0, x="num_params"):
    """Three budgets whose optimum grows as C^0.5."""
    rng, rows = np.random.default_rng(0), []
    for flops in (1e17, 1e18, 1e19):
        best = np.sqrt(flops / 60)
        for ratio in np.geomspace(0.4, 2.5, sizes):
            rows.append({"flops": flops, x: best * ratio, "loss": 3 + 0.1 * np.log(ratio) ** 2 + noise * rng.normal()})
    return pd.DataFrame(rows)


def test_three_sizes_at_a_budget_have_their_parabola():
    found = isoflop(budgets(3), resamples=20)
    assert found.optima["used"].all() and found.num_params.exponent == pytest.approx(0.5, abs=1e-6)
    assert found.num_params.exponent_interval is None  # three points leave nothing to resample


def test_draws_without_an_inner_minimum_stay_out_of_the_interval():
    table = budgets(6, noise=0.02)
    found = isoflop(table, resamples=200)
    low, high = found.num_params.exponent_interval
    assert found.num_params.draws_left_out > 0
    # A budget's sizes span a factor of 6.25, so that minima inside them bound the slope over two decades.
    widest = np.log10(6.25) / 2
    assert 0.5 - widest < low < 0.5 < high < 0.5 + widest
    assert "no minimum inside" in str(found)


@pytest.mark.parametrize("columns", [None, {"tokens": "tokens"}, {"num_params": "tokens"}])
def test_budgets_over_tokens_say_tokens(columns):
    found = isoflop(budgets(x="tokens"), columns=columns, resamples=0)
    assert "D* = " in str(found) and "N*" not in str(found)
    plain = found.as_json()
    assert plain["size"] == "tokens" and "tokens" in plain["optima"][0] and "num_params" not in plain["optima"][0]


def test_the_figure_of_budgets_over_tokens_says_tokens():
    table = budgets(x="tokens")
    figure = isoflop_figure(isoflop(table, resamples=0, columns={"tokens": "tokens"}), table, {"tokens": "tokens"})
    assert figure.axes[0].get_xlabel().startswith("tokens") and "optimal tokens" in figure.axes[1].get_ylabel()
    drawn = isoflop_table(isoflop(table, resamples=0, columns={"tokens": "tokens"}), table, {"tokens": "tokens"})
    assert "tokens" in drawn and "num_params" not in drawn


@pytest.mark.parametrize(
    "option",
    [["--pin", "E=1"], ["--exclude-invalid"], ["--higher-is-better"],
     ["--lower-is-better"], ["--clusters", "flops"], ["--define", "loss=mine"]],
)  # fmt: skip
def test_options_without_effect_on_budgets_are_refused(tmp_path, option):
    budgets().to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["fit", "--table", str(tmp_path / "runs.csv"), "--law", "isoflop", "--resamples", "0", *option]
    with pytest.raises(CallerError, match=f"{option[0]} has no effect"):
        CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)


def test_a_column_of_flops_needs_no_map(tmp_path):
    budgets().to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["fit", "--table", str(tmp_path / "runs.csv"), "--law", "isoflop", "--resamples", "0", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["optima"]) == 3


def test_optimal_tokens_grow_as_a_power_of_compute():
    compute = np.geomspace(1e17, 1e21, 9)
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=9))
    table = pd.DataFrame({"C": compute, "D": 3.5 * compute**0.47 * noise})
    found = fit(table, law="growth", columns={"x": "C", "y": "D"}, resamples=100)
    low, high = found.intervals["a"]
    assert found.status == "converged" and low < 0.47 < high and high - low < 0.02
    ahead = predict(found, {"x": [1e23]})
    assert ahead["extrapolated"].all() and ahead["prediction"].iloc[0] == pytest.approx(3.5 * 1e23**0.47, rel=0.1)


def test_the_published_optima_of_porian_as_a_growing_law(data_root):
    optima = pd.read_csv(data_root / "scaling" / "porian" / "optimal_pairs.csv")
    published = pd.read_csv(data_root / "scaling" / "porian" / "published_fits.csv").set_index("config")[
        "basic.n_exponent"
    ]
    for config, rows in list(optima.groupby("config"))[:3]:
        found = fit(rows, law="growth", columns={"x": "flops", "y": "n"}, objective="squared_log", resamples=0,
                    exclude_invalid=True)  # fmt: skip
        assert found.params["a"] == pytest.approx(published[config], abs=2e-3)


def test_tied_exponents_are_gadres_form():
    size, ratio = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(5, 300, 5))
    n, m = size.ravel(), ratio.ravel()
    compute, eta = 6 * n * n * m, 0.121
    table = pd.DataFrame({"num_params": n, "tokens": n * m})
    table["loss"] = 1.8 + (150 * m**eta + 200 * m**-eta) * compute**-eta
    found = fit(table, law="tied", resamples=0)
    assert found.params["alpha"] == pytest.approx(2 * eta, rel=1e-6)
    assert found.params["A"] * 6**eta == pytest.approx(150, rel=1e-4)  # a M^eta C^-eta is the term of parameters
    best = frontier(found, [1e18, 1e22])
    assert best["tokens_per_param"].iloc[0] == pytest.approx(best["tokens_per_param"].iloc[1], rel=1e-3)
