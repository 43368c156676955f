"""What the laws are used for: two steps, isoFLOP parabolas, the choice among laws, and tables that lack variation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fitting_tables import CHINCHILLA, surface
from hypothesis import given, settings
from hypothesis import strategies as st

import budgetlab
from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.fitting import fit, fit_arms, isoflop, power_line, predict, two_step
from budgetlab.laws import get_law
from budgetlab.reporting.figures.sizes import fit_table
from budgetlab.values import FitSpec

SIGMOID = {"chance": 0.25, "ceiling": 0.9, "k": 3.0, "midpoint": 2.6}


def scored(points: int, seed: int = 0, noise: float = 0.004) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = surface(points, rng, noise=noise)
    table["metric"] = get_law("sigmoid").predict(SIGMOID, {"loss": table["loss"].to_numpy()})
    table["metric"] *= np.exp(noise * rng.standard_normal(points))
    return table


# Two steps ----------------------------------------------------------------------------------------------------------


def test_two_steps_find_the_metric_and_carry_the_interval_of_the_loss():
    table = scored(120)
    loss = fit(table, law="chinchilla", resamples=200, interval="rows")
    metric = fit(table, law="sigmoid", resamples=200, interval="rows", pinned={"chance": 0.25})
    at = {"num_params": 2e10, "tokens": 1e12}
    row = two_step(loss, metric).predict(at).iloc[0]
    true_loss = get_law("chinchilla").predict(CHINCHILLA, at)
    truth = float(get_law("sigmoid").predict(SIGMOID, {"loss": true_loss}))
    assert row["prediction"] == pytest.approx(truth, rel=0.01)
    assert row["low"] < truth < row["high"]
    assert row["extrapolated"]
    second = predict(metric, {"loss": row["loss"]}).iloc[0]
    assert row["high"] - row["low"] > 0.8 * (second["high"] - second["low"])


def test_two_steps_refuse_what_is_no_loss_or_has_other_inputs():
    table = scored(60)
    loss = fit(table, law="chinchilla", resamples=0)
    metric = fit(table, law="sigmoid", resamples=0)
    with pytest.raises(CallerError, match="predicts a metric, not a loss"):
        two_step(metric, metric)
    with pytest.raises(CallerError, match="it has 2 inputs"):
        two_step(loss, loss)


def test_a_metric_in_points_is_named():
    table = scored(60)
    with pytest.raises(CallerError, match=r"cannot pass 1.*give fractions, not points"):
        fit(table.assign(metric=100 * table["metric"]), law="sigmoid")


# isoFLOP ------------------------------------------------------------------------------------------------------------


def budgets(beta: float = 0.35) -> pd.DataFrame:
    """Make seven sizes about the optimum of each of four budgets, of a law whose exponents are equal by default."""
    params = CHINCHILLA | {"alpha": 0.35, "beta": beta}
    rows = []
    for flops in np.geomspace(1e18, 1e21, 4):
        a, b = params["alpha"], params["beta"]
        best = (a * params["A"] / (b * params["B"])) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
        sizes = best * np.exp(np.linspace(-1, 1, 7))
        tokens = flops / (6 * sizes)
        loss = get_law("chinchilla").predict(params, {"num_params": sizes, "tokens": tokens})
        rows.append(pd.DataFrame({"flops": flops, "num_params": sizes, "loss": loss, "best": best}))
    return pd.concat(rows, ignore_index=True)


def test_parabolas_find_the_optima_of_equal_exponents():
    """On a centred grid a loss with equal exponents is even about its minimum in log N: no bias."""
    table = budgets()
    found = isoflop(table, resamples=0)
    assert found.optima["interior"].all()
    assert found.optima["num_params"].to_numpy() == pytest.approx(table["best"].unique(), rel=1e-6)
    assert found.num_params is not None
    assert found.num_params.exponent == pytest.approx(0.5, abs=1e-6)


def test_a_minimum_outside_the_sizes_is_not_used():
    table = budgets()
    first = table["flops"] == table["flops"].min()
    cut = table[~first | (table["num_params"] < 0.8 * table["best"])]
    found = isoflop(cut, resamples=0)
    assert not found.optima["used"].iloc[0]
    assert found.optima["used"].iloc[1:].all()


def test_isoflop_names_what_it_lacks():
    with pytest.raises(CallerError, match="no budget in flops has 3 model sizes"):
        isoflop(budgets().groupby("flops").head(2))
    with pytest.raises(CallerError, match="no column of that name"):
        isoflop(budgets().drop(columns="flops"))
    with pytest.raises(CallerError, match="1 of weights not finite"):
        power_line(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([1.0, np.nan]))


@settings(deadline=None, max_examples=30)
@given(st.floats(-2, 2), st.floats(1e-6, 1e6))
def test_a_power_line_is_found(exponent, coefficient):
    x = np.geomspace(1, 1e4, 5)
    line = power_line(x, coefficient * x**exponent)
    assert line.exponent == pytest.approx(exponent, abs=1e-9)
    assert line.coefficient == pytest.approx(coefficient, rel=1e-8)


# What a table lacks -------------------------------------------------------------------------------------------------


def repeated(points: int = 60) -> pd.DataFrame:
    law = get_law("data_constrained")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: np.exp(rng.uniform(*np.log(law.ranges[name]), points)) for name in law.inputs})
    return table.assign(loss=law.predict(law.typical, {name: table[name].to_numpy() for name in law.inputs}))


def test_no_token_seen_twice():
    table = repeated()
    found = fit(table.assign(unique_tokens=table["tokens"] * 2), law="data_constrained", resamples=0)
    assert found.status == "refused"
    assert "no model saw any token twice (tokens never exceed unique_tokens)" in found.status_text


def test_the_same_tokens_for_every_model():
    table = surface(40, np.random.default_rng(0)).assign(tokens=1e10)
    found = fit(table, law="chinchilla_gamma", resamples=0)
    assert found.status == "refused"
    assert "every row has the same tokens (1e+10)" in found.status_text
    smaller = fit(table, law="chinchilla", resamples=0)
    assert "tokens never varies (every row has 1e+10)" in smaller.status_text


def test_the_same_tokens_per_parameter():
    table = surface(40, np.random.default_rng(0))
    table["tokens"] = 20 * table["num_params"]
    found = fit(table, law="chinchilla_gamma", resamples=0)
    assert found.status == "refused"
    assert "every model saw the same number of tokens per parameter (20)" in found.status_text
    flags = fit(table, law="chinchilla", resamples=0).flags
    assert any("every model saw the same number of tokens per parameter (20)" in flag for flag in flags)


def test_a_pinned_power_needs_no_variation():
    """One size is enough to learn how tokens act, where what size does is known from elsewhere."""
    law, rng = get_law("chinchilla_gamma"), np.random.default_rng(0)
    tokens = np.exp(rng.uniform(np.log(1e9), np.log(5e11), 60))
    loss = law.predict(law.typical, {"num_params": 1e9, "tokens": tokens})
    pinned = {name: law.typical[name] for name in ("E", "A", "alpha", "gamma")}
    table = pd.DataFrame({"num_params": 1e9, "tokens": tokens, "loss": loss})
    found = fit(table, law=law.name, pinned=pinned, resamples=0)
    assert found.status == "converged", found.status_text
    assert found.params["beta"] == pytest.approx(law.typical["beta"], rel=1e-6)


def test_too_few_distinct_inputs_take_the_floor_as_zero_or_refuse():
    x = np.geomspace(1e2, 1e6, 6)
    table = pd.DataFrame({"x": x, "y": get_law("bnsl").predict(get_law("bnsl").typical, {"x": x})})
    assert fit(table, law="bnsl", resamples=0).status in ("reduced", "refused")
    with pytest.raises(CallerError, match="6 free parameters"):
        fit(table.iloc[:5], law="bnsl")


def test_laws_of_other_inputs_are_not_fitted_over_compute():
    for law in ("sigmoid", "isoflop", "distillation"):
        with pytest.raises(CallerError, match=f"law {law} for arms"):
            fit_arms(pd.DataFrame(), FitSpec(law=law))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["bnsl", "sigmoid", "exponential", "isoflop", "chinchilla_gamma"]))
def test_any_positive_table_gets_a_status(seed, name):
    """Tables of noise: a status or a caller's mistake, never a warning or a crash."""
    rng, law = np.random.default_rng(seed), get_law(name)
    table = pd.DataFrame({column: np.exp(rng.uniform(0, rng.choice([0.1, 1, 10]), 14)) for column in law.inputs})
    table[law.outcome] = 1 / (1 + np.exp(rng.standard_normal(14)))
    try:
        found = fit(table, law=name, resamples=10)
    except CallerError as error:
        assert error.remedy
        return
    assert found.status_text


# The command line ---------------------------------------------------------------------------------------------------


def test_any_law_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = repeated(40)
    table.rename(columns={"loss": "val_loss"}).to_csv(tmp_path / "runs.csv", index=False)
    typical = get_law("data_constrained").typical
    pins = [f"--pin={name}={typical[name]!r}" for name in ("E", "A", "B", "alpha", "beta")]
    arguments = ["fit", "--table", str(tmp_path / "runs.csv"), "--law", "data_constrained", "--map", "loss=val_loss"]
    arguments += [*pins, "--resamples", "20", "--out", str(tmp_path / "out")]
    assert run_command([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"]["R_D"] == pytest.approx(typical["R_D"], rel=1e-5)
    drawn = pd.read_csv(tmp_path / "out" / "fit.csv")
    points = drawn[drawn["layer"] == "point"]
    assert points["x"].to_numpy() == pytest.approx(points["y"].to_numpy(), rel=1e-6)
    assert set(points["x_name"]) == {"predicted val_loss"}
    assert run_command([*arguments[:4], "data_constraint"]) == 2
    assert "did you mean data_constrained" in capsys.readouterr().err


def test_the_figure_of_a_law_of_several_inputs_is_prediction_against_outcome():
    table = surface(40, np.random.default_rng(0))
    found = fit(table, law="chinchilla_gamma", resamples=0)
    drawn = fit_table(found, table)
    curve = drawn[drawn["layer"] == "curve"]
    assert curve["x"].tolist() == curve["y"].tolist()
    assert (drawn["layer"] == "point").sum() == 40


def test_parabolas_at_each_budget_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    law, rows = get_law("chinchilla"), []
    surface = {"E": 1.8, "A": 400.0, "B": 400.0, "alpha": 0.33, "beta": 0.33}  # equal: then the minimum is unbiased
    for flops in (1e17, 1e18, 1e19):
        sizes = (flops / 6) ** 0.5 * np.geomspace(0.2, 5, 9)
        losses = law.predict(surface, {"num_params": sizes, "tokens": flops / (6 * sizes)})
        rows += [{"C": flops, "N": size, "L": loss} for size, loss in zip(sizes, losses, strict=True)]
    # One budget whose minimum no run is near, and one with too few sizes.
    rows += [
        {"C": 1e20, "N": size, "L": 3.0 - 0.2 * k + 0.002 * k**2}
        for k, size in enumerate(np.geomspace(1e7, 1e8, 5), start=1)
    ]
    rows += [{"C": 1e21, "N": 1e9, "L": 1.9}]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    mapped = [f"--map={name}={column}" for name, column in (("flops", "C"), ("num_params", "N"), ("loss", "L"))]
    arguments = ["fit", "--table", str(tmp_path / "runs.csv"), "--law", "isoflop", *mapped, "--resamples", "20"]
    assert run_command([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["flops"] for row in found["optima"]] == [1e17, 1e18, 1e19, 1e20]
    for row in found["optima"][:3]:
        assert row["used"] and row["num_params"] == pytest.approx((row["flops"] / 6) ** 0.5, rel=1e-3)
    assert not found["optima"][3]["used"] and found["line"]["exponent"] == pytest.approx(0.5, abs=1e-3)
    drawn = pd.read_csv(tmp_path / "out" / "isoflop.csv")
    assert set(drawn["layer"]) == {"run", "parabola", "optimum", "line"}
    assert (drawn["layer"] == "run").sum() == 32 and 1e21 not in set(drawn["flops"])
    assert (tmp_path / "out" / "isoflop.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out" / "optima.csv")) == 4
    assert run_command(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[3].endswith("not used)") and said[-1].startswith("N* = ")
    table = pd.DataFrame(rows)
    columns = {"flops": "C", "num_params": "N", "loss": "L"}
    figure = budgetlab.isoflop_figure(budgetlab.isoflop(table, columns=columns, resamples=0), table, columns)
    assert [axes.get_xlabel() for axes in figure.axes] == ["parameters", "compute (FLOP)"]
    above, below = (axes.xaxis.get_majorticklabels() for axes in figure.axes)
    assert all(text.get_text()[-1] in "MG" for text in above) and all(text.get_text()[-1] in "PE" for text in below)
