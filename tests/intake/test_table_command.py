"""`fit --table`: whose rows are whose, and which way the outcome goes."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from budgetlab.cli import app
from budgetlab.errors import CallerError
from budgetlab.fitting import compare
from budgetlab.intake import as_scores
from budgetlab.reporting.averages import outcomes
from budgetlab.values.scoring import higher_is_better


def ask(table, *arguments):
    return CliRunner().invoke(app, ["fit", "--table", str(table), *arguments])


def runs(path, arms=("a", "b"), seeds=3, **columns):
    """Runs of arms whose curves lie 5 % apart, eight rows each."""
    rng, rows = np.random.default_rng(0), []
    for k, arm in enumerate(arms):
        for seed in range(seeds):
            lift = np.exp(0.002 * rng.normal())
            for x in np.geomspace(1e3, 1e6, 8):
                loss = (2 + 3 * (x / 1e3) ** -0.4) * (1 + 0.05 * k) * lift
                rows.append(
                    {"run": f"{arm}-s{seed}", "arm": arm, "tokens": x, "loss": loss * np.exp(0.001 * rng.normal())}
                )
    pd.DataFrame(rows).rename(columns=columns).to_csv(path, index=False)
    return path


def chart(path):
    """The chart that Weights & Biases exports of six runs of two arms."""
    steps = np.geomspace(100, 10_000, 8)
    columns = {"Step": steps}
    for k, arm in enumerate(("no_kd", "minilm")):
        for seed in range(3):
            columns[f"{arm}-s{seed} - eval/loss"] = 2 + 3 * (steps / 100) ** -0.4 - 0.1 * k + 0.001 * seed
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


MAPPED = ("--map", "x=tokens", "--map", "y=loss")
CHART = ("--from", "tracker", "--map", "x=step", "--map", "y=eval/loss", "--resamples", "0")


def test_six_runs_of_a_chart_are_not_one_curve(tmp_path):
    done = ask(chart(tmp_path / "export.csv"), *CHART)
    assert isinstance(done.exception, CallerError) and "rows of 6 runs" in str(done.exception)
    assert "--by" in str(done.exception) and "--last" in str(done.exception)
    found = json.loads(ask(tmp_path / "export.csv", *CHART, "--by", "run", "--json").stdout)
    assert len(found["fits"]) == 6 and {fit["num_clusters"] for fit in found["fits"]} == {1}


def test_arms_want_a_curve_each_and_are_compared(tmp_path):
    path = runs(tmp_path / "runs.csv")
    assert "2 arms in one curve" in str(ask(path, *MAPPED).exception)
    found = json.loads(ask(path, *MAPPED, "--by", "arm", "--resamples", "60", "--json").stdout)
    assert [fit["group"] for fit in found["fits"]] == ["a", "b"]
    assert {fit["num_clusters"] for fit in found["fits"]} == {3}  # by themselves: nobody said --clusters
    assert found["compared"][0]["better"] == "a" and found["compared"][0]["difference"] < 0


def test_pairs_of_several_curves_are_adjusted_for_their_number(tmp_path):
    path = runs(tmp_path / "runs.csv", arms=("a", "b", "c", "d"), seeds=3)
    found = json.loads(ask(path, *MAPPED, "--by", "arm", "--resamples", "200", "--json").stdout)
    assert len(found["compared"]) == 6
    for row in found["compared"]:
        (low, high), (wide_low, wide_high) = row["interval"], row["adjusted_interval"]
        assert wide_low <= low < high <= wide_high and wide_high - wide_low > high - low
        assert (row["better"] is None) == (wide_low <= 0 <= wide_high)
        assert "adjusted for 6 comparisons" in row["sentence"]


def test_a_cost_of_an_unknown_name_is_in_its_own_unit(tmp_path):
    path = runs(tmp_path / "runs.csv", loss="my_cost")
    mapped = ("--map", "x=tokens", "--map", "y=my_cost", "--lower-is-better", "--by", "arm", "--resamples", "60")
    done = ask(path, *mapped, "--at", "x=1e6")
    assert done.exit_code == 0 and "a is better" in done.stdout
    assert "points" not in done.stdout.replace("(24 points)", "")  # these are rows
    table = pd.read_csv(path).groupby("run")
    stated = {"outcome": "my_cost", "task": "my_cost", "budget_amount": 1e6, "higher_is_better": False}
    scores = pd.concat(as_scores(rows, arm=str(run)[0], run_seed=int(str(run)[-1]), **stated) for run, rows in table)
    verdict = compare(scores, a="a", b="b")
    assert verdict.unit == "units" and "points" not in verdict.sentence
    ends = table["my_cost"].last().groupby(lambda run: run[0]).mean()
    assert verdict.difference == pytest.approx(ends["b"] - ends["a"])
    assert set(outcomes(scores).runs["unit"]) == {"units"}


def test_last_keeps_the_end_of_each_run(tmp_path):
    rows = [{"run": f"r{k}", "tokens": x, "loss": 2 + 3 * x**-0.3} for k in range(6) for x in (10.0, 10.0 ** (k + 2))]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found = json.loads(ask(tmp_path / "t.csv", *MAPPED, "--last", "--resamples", "0", "--json").stdout)
    assert found["num_points"] == 6 and found["params"]["a"] == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["loss", "eval_loss", "eval/loss", "perplexity", "bpb", "bits_per_byte", "lm_loss", "nll"]
)
def test_losses_are_known(name):
    assert higher_is_better(name) is False
    scores = as_scores(pd.DataFrame({"loss": [2.0]}), arm="a", run_seed=0, budget_amount=1.0, task=name)
    assert not scores["higher_is_better"].any()


def test_scores_are_known_and_others_are_asked_for(tmp_path):
    assert higher_is_better("accuracy") is True and higher_is_better("rte") is True
    assert higher_is_better("vibes") is None
    table = pd.DataFrame({"vibes": [2.0]})
    with pytest.raises(CallerError, match="higher_is_better"):
        as_scores(table, arm="a", run_seed=0, budget_amount=1.0, outcome="vibes", task="vibes")
    path = runs(tmp_path / "runs.csv", arms=("a",), seeds=1, loss="vibes")
    arguments = ("--map", "x=tokens", "--map", "y=vibes", "--resamples", "0")
    assert "--lower-is-better" in str(ask(path, *arguments).exception)
    assert ask(path, *arguments, "--lower-is-better").exit_code == 0
    assert "not points" in str(ask(path, *arguments, "--higher-is-better").exception)


def test_a_prediction_says_whether_it_is_extrapolated(tmp_path):
    path = runs(tmp_path / "runs.csv", arms=("a",), seeds=1)
    found = json.loads(ask(path, *MAPPED, "--at", "x=1e5", "--json").stdout)
    assert found["extrapolated"] is False and found["at"][0]["extrapolated"] is False
    done = ask(path, *MAPPED, "--at", "x=1e9")
    assert "(extrapolated)" in done.stdout
    assert "no input of that name" in str(ask(path, *MAPPED, "--at", "z=1").exception)


def test_an_optimum_on_the_command_line(tmp_path):
    rows = [{"num_params": n, "tokens": d, "loss": 1.7 + 400 / n**0.34 + 400 / d**0.28}
            for n in np.geomspace(1e7, 1e9, 5) for d in np.geomspace(1e9, 1e11, 5)]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    arguments = ("--law", "chinchilla", "--resamples", "0", "--optimum", "1e19", "--json")
    found = json.loads(ask(tmp_path / "t.csv", *arguments).stdout)
    row = found["optimum"][0]
    assert row["num_params"] * row["tokens"] * 6 == pytest.approx(1e19) and isinstance(row["extrapolated"], bool)
