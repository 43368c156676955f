"""Fitting any table: bad input, what the data can carry, intervals, weights, and how a result prints."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pandas as pd
import pytest
from fitting_tables import CHINCHILLA, surface

from budgetlab.errors import CallerError
from budgetlab.fitting import certify, fit, optimum, predict
from budgetlab.frames import fits_frame
from budgetlab.values import CurveFit


def power_table(x, params=(2.0, 3.0, 0.3), noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = np.asarray(x, dtype=float)
    floor, size, exponent = params
    y = (floor + size * (x / 1e13) ** -exponent) * np.exp(noise * rng.standard_normal(len(x)))
    return pd.DataFrame({"x": x, "y": y})


def test_examples():
    from budgetlab import laws
    from budgetlab.fitting import curves

    assert [doctest.testmod(module).failed for module in (laws, curves)] == [0, 0]


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "missing"), (np.inf, "infinite"), (0.0, "zero"), (-1.0, "negative")]
)
@pytest.mark.parametrize("column", ["num_params", "loss"])
def test_bad_rows_are_refused_with_counts_or_excluded_with_counts(column, value, word):
    table = surface(40, np.random.default_rng(0))
    table.loc[[3, 7], column] = value
    with pytest.raises(CallerError, match=f"{column} {word} in 2 of 40 rows \\(first: 3, 7\\)"):
        fit(table, law="chinchilla")
    found = fit(table, law="chinchilla", resamples=0, exclude_invalid=True)
    assert found.excluded == {f"{column} {word}": 2}
    assert found.num_points == 38
    assert f"left out: 2 rows, {column} {word}" in str(found)


def test_fewer_points_than_parameters():
    with pytest.raises(CallerError, match=r"5 free parameters .* need at least as many points"):
        fit(surface(4, np.random.default_rng(0)), law="chinchilla")


def test_a_missing_column_says_how_to_map_it():
    with pytest.raises(CallerError, match=r"no column of that name; did you mean token.*map it with tokens=COLUMN"):
        fit(surface(10, np.random.default_rng(0)).rename(columns={"tokens": "token"}), law="chinchilla")
    with pytest.raises(CallerError, match="no name in the law of that name"):
        fit(surface(10, np.random.default_rng(0)), law="chinchilla", columns={"D": "tokens"})


def test_text_in_a_column_of_numbers():
    table = surface(10, np.random.default_rng(0)).astype({"tokens": object})
    table.loc[2, "tokens"] = "3B"
    with pytest.raises(CallerError, match="1 values are no numbers: '3B'"):
        fit(table, law="chinchilla")


def test_constant_columns():
    table = power_table(np.geomspace(1e13, 1e15, 6))
    with pytest.raises(CallerError, match="column y is constant"):
        fit(table.assign(y=2.0))
    with pytest.raises(CallerError, match="column x is constant"):
        fit(table.assign(x=2.0))


def test_the_same_tokens_everywhere_fall_back_to_a_smaller_law():
    table = surface(40, np.random.default_rng(0), noise=0.002)
    one = table.assign(tokens=1e10, loss=1.8 + 480 * table["num_params"] ** -0.35 + 0.46)
    found = fit(one, law="chinchilla", resamples=0)
    assert found.status == "reduced"
    assert set(found.params) == {"E", "A", "alpha"}
    assert "tokens never varies" in found.status_text
    assert found.params["E"] == pytest.approx(2.26, rel=1e-6)
    assert predict(found, {"num_params": 1e9}).iloc[0]["prediction"] == pytest.approx(2.26 + 480 * 1e9**-0.35)


def test_duplicated_runs_and_suspicious_units_are_flagged():
    table = power_table(np.geomspace(1e13, 1e15, 8), noise=0.01)
    doubled = fit(pd.concat([table, table.iloc[:2]]), resamples=0)
    assert any("2 of 10 rows repeat another row" in flag for flag in doubled.flags)
    mixed = table.assign(x=table["x"].where(table.index < 6, table["x"] / 1e9))
    assert any("mixed units?" in flag for flag in fit(mixed, resamples=0).flags)


def test_mixed_units_are_refused():
    table = power_table(np.geomspace(1e13, 1e15, 4)).assign(x_unit=["flops", "flops", "seconds", "flops"])
    with pytest.raises(CallerError, match="mixed units in column x_unit: flops, seconds"):
        fit(table)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objective": "huber"}, "did you mean huber_log"),
        ({"law": "powr"}, "did you mean power"),
        ({"interval": "row"}, "did you mean rows"),
        ({"delta": -1.0}, "delta = -1.0: not a positive number"),
        ({"asymmetry": 0.0}, "asymmetry = 0.0"),
        ({"interval_level": 95}, "not between 0 and 1"),
        ({"resamples": -1}, "negative"),
        ({"starts": 0}, "no start"),
        ({"weights": "w"}, "no column of that name"),
        ({"clusters": "run"}, "no column of that name"),
        ({"pinned": {"F": 1.0}}, "no parameter of that name"),
        ({"pinned": {"a": -1.0}}, "outside its bounds"),
    ],
)
def test_wrong_requests_are_named(wrong, words):
    with pytest.raises(CallerError, match=words):
        fit(power_table(np.geomspace(1e13, 1e15, 6)), **wrong)


# What the data can carry ------------------------------------------------------------------------------------------


def test_three_budgets_do_not_identify_a_floor():
    found = fit(power_table(np.geomspace(1e13, 1e15, 3)), resamples=0)
    assert found.status == "reduced"
    assert found.usable_for == "interpolation"
    assert "3 distinct inputs cannot identify 3 parameters" in found.status_text
    assert set(found.params) == {"A", "a"}


def test_a_smaller_law_that_misses_the_runs_is_refused():
    table = power_table(np.repeat(np.geomspace(1e13, 1e15, 3), 4), noise=0.001)
    found = fit(table, resamples=0)
    assert found.status == "refused"
    assert found.params == {}
    assert found.objective is None
    assert "misses the means of the runs" in found.status_text


def test_two_budgets_carry_no_curve():
    found = fit(power_table([1e13, 1e13, 1e15, 1e15], noise=0.01), resamples=0)
    assert found.status in ("refused", "reduced")
    assert found.usable_for != "everything"


def test_a_pinned_floor_is_kept_and_makes_three_budgets_enough():
    found = fit(power_table(np.geomspace(1e13, 1e15, 3)), pinned={"E": 2.0}, resamples=0)
    assert found.status == "converged"
    assert found.params["E"] == pytest.approx(2.0)
    assert found.params["a"] == pytest.approx(0.3, rel=1e-8)
    assert "pinned" in str(found)


def test_a_floor_pinned_to_zero_is_a_straight_line_in_logarithms():
    x = np.geomspace(1e13, 1e15, 6)
    found = fit(pd.DataFrame({"x": x, "y": 7.0 * (x / 1e13) ** -0.25}), pinned={"E": 0.0}, resamples=0)
    assert found.status == "converged"
    assert found.params["a"] == pytest.approx(0.25, rel=1e-9)


def test_a_pinned_coefficient_and_exponent():
    found = fit(
        surface(60, np.random.default_rng(0), noise=0.0), law="chinchilla",
        pinned={"A": 480.0, "beta": 0.366}, resamples=0,
    )  # fmt: skip
    assert found.params == pytest.approx(CHINCHILLA, rel=1e-8)


def test_noise_that_hides_the_floor_is_said():
    found = fit(power_table(np.geomspace(1e13, 3e13, 12), noise=0.05), resamples=0)
    assert found.status in ("weakly_identified", "at_bound", "several_basins")
    assert found.usable_for == "interpolation"


def test_rows_of_one_run_count_for_less():
    """Checkpoints that err together do not sharpen the profile as independent runs would."""
    rng = np.random.default_rng(0)
    table = surface(12, rng, noise=0.02)
    many = table.loc[table.index.repeat(10)].reset_index(names="run")
    many["tokens"] *= np.tile(np.geomspace(1, 1.5, 10), 12)
    alone = fit(many, law="chinchilla", objective="squared_log", resamples=0).certificate["profile"]["alpha"]
    clustered = fit(many, law="chinchilla", objective="squared_log", clusters="run", resamples=0)
    low, high = clustered.certificate["profile"]["alpha"]
    assert low is None or high is None or high - low > 1.5 * (alone[1] - alone[0])


# Weights, asymmetry, intervals ------------------------------------------------------------------------------------


def test_a_weight_of_two_is_a_row_twice():
    table = surface(30, np.random.default_rng(0))
    weighted = fit(table.assign(w=np.where(table.index < 10, 2.0, 1.0)), law="chinchilla", weights="w", resamples=0)
    doubled = fit(pd.concat([table, table.iloc[:10]]), law="chinchilla", resamples=0)
    assert weighted.objective == pytest.approx(doubled.objective, rel=1e-9)
    assert weighted.params == pytest.approx(doubled.params, rel=1e-6)


def test_asymmetry_follows_the_best_runs():
    """Runs spoilt by poor tuning only ever lie above the curve."""
    rng = np.random.default_rng(0)
    table = surface(200, rng, noise=0.0)
    table["loss"] *= 1 + 0.1 * rng.exponential(size=200)
    fair, lower = (
        fit(table, law="chinchilla", objective="squared_log", asymmetry=a, resamples=0).params["E"] for a in (1.0, 0.05)
    )
    assert abs(lower - CHINCHILLA["E"]) < abs(fair - CHINCHILLA["E"])


@pytest.mark.parametrize("method", ["rows", "clusters", "wild", "pooled_t"])
def test_intervals_are_seeded_and_named(method):
    rng = np.random.default_rng(0)
    table = pd.concat([surface(30, np.random.default_rng(1), noise=0.0)] * 3)
    table["loss"] *= np.exp(0.01 * rng.standard_normal(90))
    table["run"] = np.repeat(np.arange(3), 30) if method == "pooled_t" else np.tile(np.arange(30), 3)
    one, same, other = (
        fit(table, law="chinchilla", clusters="run", interval=method, resamples=60, seed=seed) for seed in (5, 5, 6)
    )
    assert one.interval_method == method
    assert one.intervals == same.intervals
    assert one.intervals != other.intervals
    for name, (low, high) in one.intervals.items():
        assert low <= (one.params | one.derived)[name] <= high


def test_auto_takes_pooled_t_for_few_cells_of_replicates():
    table = power_table(np.repeat(np.geomspace(1e13, 1e15, 5), 3), noise=0.005)
    table["run"] = np.tile([0, 1, 2], 5)
    assert fit(table, clusters="run", resamples=50).interval_method == "pooled_t"
    for points, method in ((40, "wild"), (120, "rows")):
        found = fit(surface(points, np.random.default_rng(0)), law="chinchilla", resamples=50)
        assert found.interval_method == method


def test_memory_is_bounded_with_many_rows():
    """The chunk shrinks as the table grows: what is held at once is about the same."""
    from budgetlab.resampling import bootstrap_weights

    chunks = [next(bootstrap_weights(n, 10_000, np.random.default_rng(0))) for n in (100, 10_000, 100_000)]
    assert max(chunk.nbytes for chunk in chunks) <= 1_000_000


# The record -------------------------------------------------------------------------------------------------------


def test_the_record_goes_through_json_and_still_predicts():
    found = fit(surface(60, np.random.default_rng(0)), law="chinchilla", resamples=50, diagnostics=True, arm="kd")
    text = found.model_dump_json()
    plain = json.loads(text)
    for key in ("params", "objective", "objective_name", "delta", "intervals", "status", "certificate"):
        assert plain[key] is not None
    again = CurveFit.model_validate_json(text)
    assert again.params == found.params
    at = {"num_params": 1e9, "tokens": 1e10}
    assert predict(again, at)["prediction"].tolist() == predict(found, at)["prediction"].tolist()
    assert predict(again, at)["low"].isna().all()
    assert plain["definitions"]["objective"].startswith("sum of Huber")
    assert {row["objective_name"] for row in plain["sensitivity"]} == {"huber_log", "lad", "squared", "squared_log"}
    assert [row["scheme"] for row in plain["validation"]][:2] == ["largest", "expanding"]


def test_it_prints_itself():
    found = fit(surface(60, np.random.default_rng(0)), law="chinchilla", resamples=50)
    for shown in (repr(found), str(found), found._repr_html_()):
        assert "may be used" in shown
        assert "alpha" in shown
        assert "95 % interval" in shown
        assert "huber_log" in shown


def test_fits_as_one_table():
    fits = [fit(surface(60, np.random.default_rng(0)), law="chinchilla", resamples=20, arm="a"),
            fit(power_table(np.repeat(np.geomspace(1e13, 1e15, 3), 4), noise=0.001), resamples=0, arm="b")]  # fmt: skip
    table = fits_frame(fits)
    assert list(table.loc[table["arm"] == "a", "parameter"]) == [*fits[0].params, *fits[0].derived]
    assert list(table.loc[table["arm"] == "b", "status"]) == ["refused"]


def test_a_band_for_the_figure_reaches_beyond_the_fitted_range():
    found = fit(power_table(np.repeat(np.geomspace(1e13, 1e15, 6), 3), noise=0.002), resamples=200)
    band = {name: np.array(values) for name, values in found.band.items()}
    assert band["x"][0] < found.x_range[0]
    assert band["x"][-1] == pytest.approx(10 * found.x_range[1])
    assert (band["low"] <= band["prediction"]).all()
    assert (band["prediction"] <= band["high"]).all()
    assert (np.diff(band["prediction"]) < 0).all()


def test_validation_of_a_true_law_is_sharp():
    found = fit(surface(200, np.random.default_rng(0), noise=0.002), law="chinchilla", resamples=0, diagnostics=True)
    assert all(row["mean_absolute_error"] < 0.01 for row in found.validation)
    assert found.validation[0]["num_test"] == 20


def test_what_may_not_be_used_is_not_used():
    judged = certify(power_table(np.geomspace(1e13, 1e15, 8), noise=0.01), {"E": 1.0, "A": 50.0, "a": 0.1})
    with pytest.raises(CallerError, match="its status is not_converged"):
        predict(judged, {"x": 1e14})
    with pytest.raises(CallerError, match="does not trade parameters against tokens"):
        optimum(fit(power_table(np.geomspace(1e13, 1e15, 8), noise=0.01), resamples=0), 1e20)


def test_the_truth_of_noise_free_data_passes_and_its_neighbour_fails():
    table = surface(40, np.random.default_rng(0), noise=0.0)
    for objective in ("huber_log", "lad", "squared"):
        assert certify(table, CHINCHILLA, law="chinchilla", objective=objective).status == "converged"
        off = CHINCHILLA | {"alpha": 0.3501}
        assert certify(table, off, law="chinchilla", objective=objective).status == "not_converged"


def test_certify_names_wrong_parameters():
    table = power_table(np.geomspace(1e13, 1e15, 8))
    with pytest.raises(CallerError, match="law power has E, A, a"):
        certify(table, {"E": 1.0})
    with pytest.raises(CallerError, match=r"a = -1\.0"):
        certify(table, {"E": 1.0, "A": 1.0, "a": -1.0})


def test_a_second_basin_is_reported():
    """Two plateaus with a cliff: the cliff may sit in either input's term."""
    rng = np.random.default_rng(0)
    table = surface(12, rng, noise=0.0)
    table["tokens"] = table["num_params"] * 20 * np.exp(0.02 * rng.standard_normal(12))
    table["loss"] = 2 + 3e4 * table["num_params"] ** -0.5 * np.exp(0.05 * rng.standard_normal(12))
    found = fit(table, law="chinchilla", resamples=0)
    assert found.usable_for == "interpolation"
    assert found.status in ("several_basins", "weakly_identified", "at_bound")


def test_pooled_t_needs_replicates():
    with pytest.raises(CallerError, match="no two runs have the same inputs"):
        fit(surface(40, np.random.default_rng(0)), law="chinchilla", interval="pooled_t")


@pytest.mark.parametrize("seed", range(40))
def test_any_positive_table_gets_a_status(seed):
    """Tables of noise, of steps, of rising values: a status or a caller's mistake, never a warning or a crash."""
    rng = np.random.default_rng(seed)
    law = ("power", "chinchilla")[seed % 2]
    count, span = int(rng.integers(2, 30)), float(rng.choice([0.01, 0.5, 3, 10, 30]))
    table = pd.DataFrame({name: np.exp(rng.uniform(0, span, count)) for name in ("num_params", "tokens")})
    if rng.random() < 0.3:
        table["tokens"] = rng.choice(table["tokens"].to_numpy(), count)
    noise = np.exp(rng.standard_normal(count) * float(rng.choice([1e-6, 0.01, 1, 5])))
    table["loss"] = noise * (1 + (table["tokens"] / table["tokens"].min()) ** -float(rng.choice([0, 0.3, 2, -0.5])))
    columns = {"x": "tokens", "y": "loss"} if law == "power" else None
    objective = str(rng.choice(["huber_log", "lad", "squared", "squared_log"]))
    try:
        found = fit(table, law=law, columns=columns, objective=objective, resamples=20)
    except CallerError as error:
        assert "parameters" in error.wrong or "constant" in error.wrong
        return
    assert found.status_text
    assert CurveFit.model_validate_json(found.model_dump_json()).status == found.status
