"""Published tables and fits of the laws that are no sums of powers (each SOURCE.md beside the data says why)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from budgetlab.fitting import certify, fit, isoflop, power_line, predict, two_step
from budgetlab.laws import data_constrained


@pytest.fixture(scope="module")
def scaling(data_root):
    def path(*parts: str) -> Path:
        found = data_root.joinpath("scaling", *parts)
        if not found.exists():
            pytest.skip(f"no {found}")
        return found

    return path


# Porian et al.: exponents of the optimal number of parameters -----------------------------------------------------


def test_porian_exponents(scaling):
    """Plain least squares in logarithms, and weighted by one over the standard deviation of N*: all 11 rows."""
    pairs = pd.read_csv(scaling("porian", "optimal_pairs.csv")).dropna(subset=["n"])
    published = pd.read_csv(scaling("porian", "published_fits.csv")).set_index("config")
    assert len(published) == 11
    for config, row in published.iterrows():
        part = pairs[pairs["config"] == config]
        known = part[part["n_star_std"] > 0]
        plain = power_line(part["flops"].to_numpy(), part["n"].to_numpy())
        weights = 1 / known["n_star_std"].to_numpy()
        weighted = power_line(known["flops"].to_numpy(), known["n"].to_numpy(), weights)
        assert plain.exponent == pytest.approx(row["basic.n_exponent"], abs=5e-5), config
        assert weighted.exponent == pytest.approx(row["weighted.n_exponent"], abs=5e-5), config
        assert plain.coefficient == pytest.approx(row["basic.n_coef"], rel=1e-3), config


def test_porian_by_parabolas(scaling):
    """From the runs themselves: five sizes about each budget's lowest loss; the publication interpolates instead."""
    runs = pd.read_csv(scaling("porian", "isoflop_points.csv"))
    published = pd.read_csv(scaling("porian", "published_fits.csv")).set_index("config")
    for config in ("owt2_base_short_kaplan_standard_val", "owt2_tuned_short_const_standard_val"):
        found = isoflop(runs[runs["config"] == config], columns={"num_params": "params"}, nearest=5, resamples=0)
        row = published.loc[config]
        low, high = row["bootstrap_weighted.n_exponent.q025"], row["bootstrap_weighted.n_exponent.q975"]
        assert found.num_params is not None
        assert low < found.num_params.exponent < high


# Muennighoff et al.: repeated data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "loss"), [((6.34e9, 242e9, 25e9), 2.2256440889984477), ((8.67e9, 178e9, 25e9), 2.2269634075087867)]
)
def test_muennighoff_check_values(place, loss):
    inputs = dict(zip(("num_params", "tokens", "unique_tokens"), place, strict=True))
    assert float(data_constrained.PUBLISHED.predict(inputs)) == pytest.approx(loss, rel=1e-12)


def test_what_repetitions_are_worth():
    epochs = np.array([2, 4, 6, 7, 11, 16, 41.0])
    worth = data_constrained.effective_tokens(epochs, 1.0)
    assert worth.round(2).tolist() == [1.97, 3.73, 5.27, 5.97, 8.35, 10.58, 15.24]


def test_datablations_has_two_basins_and_the_published_one_is_not_the_deeper(scaling):
    table = pd.read_csv(scaling("datablations", "data_constrained_182.csv"))
    columns = {"num_params": "params", "loss": "val_loss"}
    pinned = {name: value for name, value in data_constrained.PUBLISHED.params.items() if name not in ("R_D", "R_N")}
    found = fit(table, law="data_constrained", columns=columns, pinned=pinned, resamples=0)
    assert found.status == "several_basins"
    assert found.usable_for == "interpolation"
    assert found.objective == pytest.approx(1.58046625e-2, rel=1e-7)
    assert found.params["R_D"] == pytest.approx(95.365, rel=1e-4)
    assert found.params["R_N"] == pytest.approx(1.7059, rel=1e-4)
    published = [b for b in found.certificate["basins"] if abs(b["params"]["R_D"] - 15.3718) < 1e-3]
    assert len(published) == 1
    assert published[0]["params"]["R_N"] == pytest.approx(5.3151, abs=1e-4)
    assert published[0]["objective"] == pytest.approx(1.5825932e-2, rel=1e-6)
    assert "R_D 15.37, R_N 5.315" in found.status_text
    low, high = found.certificate["profile"]["R_D"]
    assert 5 < low < 15
    assert high is None
    judged = certify(table, data_constrained.PUBLISHED.params, law="data_constrained", columns=columns)
    assert judged.status == "not_converged"
    assert judged.certificate["offered_objective"] == pytest.approx(1.5825937e-2, rel=1e-6)


# Caballero et al.: a broken power law -------------------------------------------------------------------------------

BNSL = {"a": 0.413885033, "b": 2.277271727, "c0": 0.055077358, "c1": 5.662908747, "d1": 612.5836547, "f1": 0.059193051}
ADDITION = {"x": "train_size", "y": "test_cross_entropy"}


def test_bnsl_parameters_and_errors(scaling):
    table = pd.read_csv(scaling("bnsl", "four_digit_addition.csv"))
    train, beyond = table[table["split"] == "train"], table[table["split"] == "extrapolate"]
    found = fit(train, law="bnsl", columns=ADDITION, objective="squared_log1p", resamples=0)
    assert found.status == "converged"
    assert found.params == pytest.approx(BNSL, rel=2e-6)
    for part, error in ((train, 5.98486960e-4), (beyond, 1.091573580e-2)):
        predicted = predict(found, {"x": part["train_size"].to_numpy()})["prediction"].to_numpy()
        missed = np.log(predicted) - np.log(part["test_cross_entropy"].to_numpy())
        assert np.sqrt(np.mean(missed**2)) == pytest.approx(error, rel=1e-4)


def test_the_published_bnsl_passes_the_certificate(scaling):
    table = pd.read_csv(scaling("bnsl", "four_digit_addition.csv"))
    judged = certify(
        table[table["split"] == "train"], BNSL, law="bnsl", columns=ADDITION, objective="squared_log1p"
    )  # fmt: skip
    assert judged.status == "converged"
    assert 0 <= judged.certificate["gap"] < 1e-9


def test_held_out_runs_choose_the_law_with_a_break(scaling):
    table = pd.read_csv(scaling("bnsl", "four_digit_addition.csv")).sort_values("train_size", ignore_index=True)
    seen, held = table[:-3], table[-3:]
    error = {}
    for law in ("power", "bnsl"):
        found = fit(seen, law=law, columns=ADDITION, resamples=0)
        predicted = predict(found, {"x": held["train_size"].to_numpy()})["prediction"].to_numpy()
        error[law] = np.abs(predicted / held["test_cross_entropy"].to_numpy() - 1).mean()
    assert error["bnsl"] < 0.02
    assert error["power"] > 1.0


# Bhagia et al.: accuracy in two steps -----------------------------------------------------------------------------

_MMLU = {"stem": 0.215, "humanities": 0.335, "social_sciences": 0.219, "other": 0.231}


def _mean(table: pd.DataFrame, kind: str, ending: str, task: str) -> np.ndarray:
    name = task.removesuffix("_5shot")
    parts = {name: 1.0}
    if name.startswith("mmlu_avg_"):
        parts = {f"mmlu_{subject}_{name.rsplit('_', 1)[1]}": weight for subject, weight in _MMLU.items()}
    columns = [weight * table[f"eval/{kind}/{part}_rc_5shot_{ending}"] for part, weight in parts.items()]
    return np.sum(columns, axis=0) / sum(parts.values())


def _ladder(folder: Path, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each run's last five checkpoints for the first step, running means over all but the first tenth for the second.

    The second step has one more point, which nobody measured: a loss of zero means an accuracy of one.
    """
    finals, steps = [], [pd.DataFrame({"loss": [1e-9], "metric": [1.0]})]
    for model in json.loads((folder / "final.json").read_text()).values():
        for path in model["paths"] if model["mode"] == "train" else []:
            table = pd.read_csv(folder / "ladder-runs" / Path(path).name)
            bpb, accuracy = _mean(table, "downstream_bpb", "bpb", task), _mean(table, "downstream", "len_norm", task)
            finals.append((model["n"], table["throughput/total_tokens"].iloc[-1], bpb[-5:].mean()))
            later = pd.DataFrame({"loss": bpb, "metric": accuracy}).iloc[int(np.ceil(0.1 * len(table))) :]
            steps.append(later.rolling(5, min_periods=1).mean())
    return pd.DataFrame(finals, columns=["num_params", "tokens", "loss"]), pd.concat(steps, ignore_index=True)


def test_olmo_ladder_chained_predictions(scaling):
    """Eight tasks at 13B and 5T, beyond everything fitted: both steps as published, and none of them identified."""
    folder = scaling("olmo-ladder")
    chained = pd.read_csv(folder / "published_chained_main.csv").set_index("Task")["Pred"]
    first = pd.read_csv(folder / "published_step1_main.csv").set_index("Task")["Pred"]
    assert len(chained) == 8
    for task, accuracy in chained.items():
        finals, steps = _ladder(folder, str(task))
        loss = fit(finals, law="chinchilla", resamples=0)
        metric = fit(steps, law="sigmoid", objective="squared", resamples=0)
        row = two_step(loss, metric).predict({"num_params": 13202396160, "tokens": 5000088518656}).iloc[0]
        assert row["loss"] == pytest.approx(first[task], abs=2e-6), task
        assert row["prediction"] == pytest.approx(accuracy, abs=2e-6), task
        assert row["extrapolated"]
        assert loss.usable_for == metric.usable_for == "interpolation", task


# Step law -----------------------------------------------------------------------------------------------------------


def test_steplaw_averages(scaling):
    """The published laws are the means of the bootstrap in the file."""
    draws = pd.read_csv(scaling("steplaw", "1004_fitted_lr_bs_scaling_model_parameters.csv")).mean()
    assert np.exp(draws["lr_intercept"]) == pytest.approx(1.79, abs=0.01)
    assert (draws["lr_coefN"], draws["lr_coefD"]) == pytest.approx((-0.713, 0.307), abs=6e-4)
    assert np.exp(draws["bs_intercept"]) == pytest.approx(0.58, abs=0.005)
    assert draws["bs_coefD"] == pytest.approx(0.571, abs=6e-4)
