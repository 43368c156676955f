"""The next run: predicted widths are those of the verdict, and the recommendation wins when runs are really added."""

import decision_values as values
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.decisions import least_resolved, next_budgets, next_points, next_runs
from budgetlab.decisions.precision import log_gradients, variance_factor
from budgetlab.errors import CallerError
from budgetlab.fitting.contrast import contrast, paired_noise, signed_values
from budgetlab.fitting.design import build_design
from budgetlab.fitting.newton import minimise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.sample import Sample
from budgetlab.fitting.scores import run_values
from budgetlab.laws import get_law
from budgetlab.resampling import t_quantile

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.366}
GRID = [(n, d) for n in (5e7, 1e8, 2e8, 8e8) for d in (1e9, 3e9, 1e10, 3e10)]


def surface(noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(GRID, columns=["num_params", "tokens"])
    loss = get_law("chinchilla").predict(TRUTH, {name: table[name].to_numpy(float) for name in table})
    return table.assign(loss=loss * np.exp(noise * rng.standard_normal(len(table))))


CANDIDATES = pd.DataFrame(
    [(5e7, 1e9), (5e7, 1e11), (2e8, 6e9), (8e8, 1e9), (3e9, 6e9), (8e8, 1e11)], columns=["num_params", "tokens"]
)


def test_gradients_are_the_engines() -> None:
    law, table = get_law("chinchilla"), surface()
    inputs = {name: table[name].to_numpy(float) for name in law.inputs}
    design = build_design(law, inputs, table["loss"].to_numpy(float))
    theta = design.to_theta({None: TRUTH})
    target = {"num_params": np.array([3e9]), "tokens": np.array([6e10])}
    exact, own = design.gradients(theta), log_gradients(law, TRUTH, inputs)
    # Two parametrisations of one law: the variance of any prediction is the same.
    along = np.linalg.lstsq(own, exact, rcond=None)[0]
    at = log_gradients(law, TRUTH, target)[0]
    assert variance_factor(own, at) == pytest.approx(variance_factor(exact, at @ along), rel=1e-5)


@given(st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.1, 9.0)), min_size=3, max_size=8), st.floats(0.1, 9.0))
@settings(max_examples=60, deadline=None)
def test_a_further_point_never_widens(points: list[tuple[float, float]], at: float) -> None:
    rows, target = np.array([(1.0, x) for x, _ in points]), np.array([1.0, at])
    now = variance_factor(rows, target)
    for _, y in points:
        assert variance_factor(np.vstack([rows, (1.0, y)]), target) <= now * (1 + 1e-9)


def test_what_no_point_determines_is_infinite() -> None:
    assert variance_factor(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 3.0])) == np.inf
    assert variance_factor(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 2.0])) == pytest.approx(0.5)


def test_the_recommended_point_narrows_most_per_flop_when_it_is_added() -> None:
    """500 tables: each candidate is run, the law fitted again, and the width of the very t interval is averaged."""
    law, target = get_law("chinchilla"), {"num_params": 3e9, "tokens": 6e10}
    at = {name: np.array([value]) for name, value in target.items()}

    def width(table: pd.DataFrame) -> float:
        inputs = {name: table[name].to_numpy(float) for name in law.inputs}
        exact = law.predict(TRUTH, inputs)
        # The rows that all tables have, have the same noise in all.
        noise = 0.004 * np.random.default_rng(5).standard_normal((len(table), 500)).T
        design = build_design(law, inputs, exact)
        start = np.tile(design.to_theta({None: TRUTH}), (500, 1))
        ends = minimise(design, start, Sample.of(exact * np.exp(noise), np.ones(len(table))), Objective("squared_log"))
        freedom = len(table) - len(law.params)
        factor = variance_factor(log_gradients(law, TRUTH, inputs), log_gradients(law, TRUTH, at)[0])
        return t_quantile(0.975, freedom) * float(np.sqrt(ends.value / freedom).mean()) * factor**0.5

    base = surface(noise=0.0)
    now, flops = width(base), 6 * CANDIDATES["num_params"] * CANDIDATES["tokens"]
    gains = [(now - width(pd.concat([base, CANDIDATES.iloc[[i]]]))) / flops[i] for i in range(len(CANDIDATES))]
    best = next_points(surface(noise=0.004), CANDIDATES, target=target).iloc[0]
    winner = CANDIDATES.iloc[int(np.argmax(gains))]
    assert (winner["num_params"], winner["tokens"]) == (best["num_params"], best["tokens"])
    assert max(gains) > 0


def test_a_point_that_helps_more_wins_over_a_cheaper_one() -> None:
    """At equal cost the point that pins the answer down wins, not the first or the last."""
    equal = CANDIDATES.assign(cost_flops=1e18)
    found = next_points(surface(), equal, target={"num_params": 3e9, "tokens": 6e10})
    assert tuple(found.iloc[0][["num_params", "tokens"]]) == (3e9, 6e9)
    assert found["half_width_after"].is_monotonic_increasing


def test_next_points_says_what_it_predicts() -> None:
    found = next_points(surface(), CANDIDATES, target={"num_params": 3e9, "tokens": 6e10})
    assert found["narrowing_per_exaflop"].is_monotonic_decreasing and found["predicted"].all()
    assert (found["half_width_after"] < found["half_width_now"]).all()
    assert found.attrs["sentence"].startswith("Next run (predicted): a run at num_params")
    exponent = next_points(surface(), CANDIDATES, target="optimal_num_params_exponent")
    assert "optimal_num_params_exponent" in exponent.attrs["sentence"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "gamma"}, "no parameter of that name"),
        ({"target": {"tokens": 1e9}}, "no num_params"),
        ({"candidates": CANDIDATES[["tokens"]]}, "no column num_params"),
        ({"candidates": CANDIDATES.assign(cost_flops=0.0)}, "not above zero"),
        ({"table": surface().head(5)}, "no point is left over|cannot identify"),
    ],
)
def test_mistakes_are_one_line(change: dict, words: str) -> None:
    asked = {"table": surface(), "candidates": CANDIDATES, "target": {"num_params": 3e9, "tokens": 6e10}} | change
    with pytest.raises(CallerError, match=words) as error:
        next_points(**asked)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def own():
    return values.evidence(values.plan())


def verdict_of(own):
    return next(v for v in values.verdicts(own) if v.primary and v.contrast == ("minilm", "no_kd"))


def test_the_width_now_is_the_verdicts(own) -> None:
    verdict = verdict_of(own)
    found = next_runs(own, verdict)
    assert verdict.interval is not None
    assert np.allclose(found["half_width_now"], (verdict.interval[1] - verdict.interval[0]) / 2)
    top = found[(found["budget_amount"] == verdict.at.amount) & (found["arms"] == "minilm, no_kd")]
    spent = {s.arm: s.required_flops for s in own.plan.schedules if s.rung == 2}
    one = top[top["seeds"] == 1].iloc[0]
    assert one["cost_flops"] == spent["minilm"] + spent["no_kd"]
    elsewhere = found[found["budget_amount"] != verdict.at.amount]
    assert (elsewhere["narrowing"] == 0).all()


def test_the_recommended_seed_narrows_most_per_flop_when_it_is_run(own) -> None:
    """40 studies of 3 and more seeds: the mean width of the very interval that a verdict would have."""
    found = next_runs(own, verdict_of(own), most_seeds=2)
    at_top = found[found["budget_amount"] == 9e13]
    made = values.plan(budgets=(9e13,), seeds=5)
    table = signed_values(run_values(values.scores(made, noise=0.0), "readout_loss"), "readout_loss")
    rng = np.random.default_rng(3)

    def width(rows: pd.DataFrame) -> float:
        ends = contrast(rows, "minilm", "no_kd", 9e13, paired_noise(rows, 9e13))
        assert ends is not None
        low, high = ends.interval(0.95) or (np.nan, np.nan)
        return high - low

    now: list[float] = []
    widths: dict[tuple[str, int], list[float]] = {}
    for _ in range(40):
        drawn = table.assign(value=table["value"] + 0.01 * rng.standard_normal(len(table)))
        first = drawn["run_seed"] < 3
        now.append(width(drawn[first]))
        for arms, seeds in zip(at_top["arms"], at_top["seeds"], strict=True):
            added = drawn["arm"].isin(arms.split(", ")) & (drawn["run_seed"] < 3 + seeds)
            widths.setdefault((arms, seeds), []).append(width(drawn[first | added]))
    cost = {(row.arms, row.seeds): row.cost_flops for row in at_top.itertuples()}
    gains = {key: (np.mean(now) - np.mean(found)) / cost[key] for key, found in widths.items()}
    best = found.iloc[0]
    assert max(gains, key=lambda key: gains[key]) == (best["arms"], best["seeds"])


def test_noise_that_is_unknown_foretells_nothing() -> None:
    one = values.evidence(values.plan(seeds=1))
    verdict = values.verdicts(one)[0]
    assert least_resolved([verdict]) is None
    with pytest.raises(CallerError, match="a second seed"):
        next_runs(one, verdict)


def test_a_further_budget_for_what_lies_beyond(own) -> None:
    verdict = verdict_of(own)
    found = next_budgets(own, values.spec(), verdict)
    assert len(found) == 3 + 2 + 1  # the budgets, those between, and the one asked about
    assert (found["half_width_after"] < found["half_width_now"]).all()
    assert "at 180 TFLOP" in found.attrs["sentence"] and "by their curves" in found.attrs["sentence"]
    with pytest.raises(CallerError, match="curves are over tokens"):
        next_budgets(own, values.spec(x="tokens"), verdict)


def test_the_contrast_nearest_to_undecided_is_asked_about(own) -> None:
    verdicts = values.verdicts(own)
    chosen = least_resolved(verdicts)
    assert chosen is not None and chosen.primary
    assert chosen.p_value == max(v.p_value for v in verdicts if v.primary)
