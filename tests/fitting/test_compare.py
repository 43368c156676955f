"""Comparing arms: verdicts, curves of arms, multiplier, crossover and decomposition."""

from __future__ import annotations

import doctest
import json
import sys

import numpy as np
import pandas as pd
import pytest
from fitting_tables import DESIGNS, coverage_of, curve, noisy_tables, paired_t, study
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.fitting import compare, compare_arms, fit_arms
from budgetlab.fitting.contrast import Panel, contrast
from budgetlab.fitting.scores import averaged_tasks, outcome_names, run_values
from budgetlab.values import FitSpec, Verdict

FAST = FitSpec(resamples=150)


def scores_of(values: dict[tuple[str, float, int], float], task: str = "sst2") -> pd.DataFrame:
    """Make a table from (arm, budget, seed) -> score."""
    return pd.DataFrame(
        [
            {"subject": "run", "arm": arm, "budget_amount": budget, "budget_unit": "required_flops", "run_seed": seed,
             "finetune_seed": 0, "required_flops": budget, "tokens": budget / 1e6, "task": task, "value": value,
             "higher_is_better": True}
            for (arm, budget, seed), value in values.items()
        ]
    )  # fmt: skip


def two_arms(difference: float, noise: float, seeds: int = 5, budgets=(1e13, 1e14), seed: int = 0) -> pd.DataFrame:
    """A is better than B by `difference` points, with `noise` points between runs."""
    rng = np.random.default_rng(seed)
    values = {}
    for budget in budgets:
        for s in range(seeds):
            luck = 0.02 * rng.standard_normal()
            for arm in "AB":
                values[arm, budget, s] = 0.7 + luck + 0.01 * (difference * (arm == "A") + noise * rng.standard_normal())
    return scores_of(values)


# The four verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "noise", "word", "says"),
    [
        (2.0, 0.1, "a_better", "A is better than B on sst2"),
        (-2.0, 0.1, "b_better", "B is better than A on sst2"),
        (0.0, 0.1, "equivalent", "equivalent on sst2 within 0.5 points"),
        (0.3, 1.5, "not_resolved", "is not resolved"),
    ],
)
def test_four_verdicts(difference, noise, word, says):
    found = compare(two_arms(difference, noise), a="A", b="B", margin=0.5, resamples=50)
    assert found.verdict == word
    assert says in found.sentence
    assert "95 % interval" in found.sentence
    assert found.num_pairs == 5
    low, high = found.interval
    assert low < found.difference < high
    # The size is of the arm that is named better, and its interval too.
    told = (-high, -low) if word == "b_better" else (low, high)
    assert f"95 % interval {told[0]:+.2f} to {told[1]:+.2f}" in found.sentence
    assert found.at.amount == 1e14


def test_the_pairs_seed_cancels():
    """Luck of 2 points that both arms share does not blur a difference of 1 point."""
    found = compare(two_arms(1.0, 0.1), a="A", b="B", curves=False)
    assert found.verdict == "a_better"
    assert found.run_sd == pytest.approx(0.1, rel=0.6)


def test_the_paired_t_test_by_hand():
    """The textbook's paired t, whatever a third arm does."""
    values = {("noisy", 1e14, s): v for s, v in enumerate([0.2, 0.9, 0.5])}
    values |= {("A", 1e14, s): v for s, v in enumerate([0.71, 0.74, 0.73])}
    values |= {("B", 1e14, s): v for s, v in enumerate([0.70, 0.71, 0.72])}
    found = compare(scores_of(values), a="A", b="B", curves=False)
    differences = np.array([1.0, 3.0, 1.0])
    error = differences.std(ddof=1) / np.sqrt(3)
    assert found.difference == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.degrees_of_freedom == pytest.approx(2.0)
    half = 4.30265 * error
    assert found.interval == pytest.approx((differences.mean() - half, differences.mean() + half), rel=1e-4)
    assert found.minimum_detectable_difference == pytest.approx((4.30265 + 1.06066) * error, rel=1e-5)


def test_swapping_the_arms_turns_the_sign():
    table = two_arms(0.8, 0.5)
    one, other = compare(table, a="A", b="B", curves=False), compare(table, a="B", b="A", curves=False)
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert {one.verdict, other.verdict} in ({"a_better", "b_better"}, {"not_resolved"})


def test_a_lower_loss_is_better():
    found = compare(study(3, 3), a="kd", b="no_kd", task="readout_loss", curves=False)
    assert found.unit == "nats"
    assert found.difference == pytest.approx(float(curve("no_kd", 3e14) - curve("kd", 3e14)), abs=0.02)
    assert found.verdict == "a_better"
    assert "the read-out loss" in found.sentence
    assert found.num_seeds_to_resolve == {}


def test_a_single_run_speaks_of_these_checkpoints():
    found = compare(two_arms(2.0, 0.1, seeds=1), a="A", b="B")
    assert found.verdict == "not_resolved"
    assert found.interval is None
    assert found.minimum_detectable_difference is None
    assert "these checkpoints" in found.sentence
    assert found.compute_multiplier["interval"] is None
    assert json.loads(found.model_dump_json())["interval"] is None


def test_one_teacher_is_said():
    verdicts = compare_arms(study(3, 2), FAST)
    assert all("for this teacher" in v.sentence for v in verdicts if v.primary)


def test_no_seed_in_common_is_not_paired():
    table = two_arms(1.0, 0.1)
    table.loc[table["arm"] == "B", "run_seed"] += 100
    found = compare(table, a="A", b="B", curves=False)
    assert found.num_pairs == 0
    assert any("not paired" in note for note in found.notes)
    assert found.standard_error > compare(two_arms(1.0, 0.1), a="A", b="B", curves=False).standard_error


def test_seeds_that_would_resolve_the_published_differences():
    """With a known spread: n such that (t + t) sd sqrt(2/n) falls to the difference."""
    found = compare(two_arms(0.0, 0.5, seeds=5), a="A", b="B", curves=False)
    needed = found.num_seeds_to_resolve
    approximately = {d: 2 * (2.8 * found.run_sd / d) ** 2 for d in (0.4, 0.1)}
    assert needed["0.4"] == pytest.approx(approximately[0.4], abs=4, rel=0.3)
    assert needed["0.1"] == pytest.approx(approximately[0.1], rel=0.05)
    enough = compare(two_arms(0.4, 0.5, seeds=4 * needed["0.4"]), a="A", b="B", curves=False)
    assert enough.verdict == "a_better"


def test_finetuning_seeds_are_averaged_first_and_tasks_are_fixed():
    table = study(3, 3, tasks=("sst2", "qnli"), finetune_seeds=4, noise=0.004)
    runs = run_values(table, "score")
    assert len(runs) == 4 * 3 * 3
    assert set(runs["finetune_seeds"]) == {4}
    one = table[(table["arm"] == "kd") & (table["rung"] == 2) & (table["run_seed"] == 1)]
    expected = one[one["task"] != "readout_loss"].groupby("task")["value"].mean().mean()
    assert runs[(runs["arm"] == "kd") & (runs["run_seed"] == 1)]["value"].iloc[-1] == pytest.approx(expected)


def test_a_run_without_a_task_has_no_aggregate():
    table = study(3, 3, tasks=("sst2", "qnli"))
    gone = (table["arm"] == "kd") & (table["rung"] == 2) & (table["run_seed"] == 1) & (table["task"] == "qnli")
    found = compare(table[~gone], a="kd", b="no_kd", task="score", curves=False)
    assert found.num_pairs == 2
    assert any("1 runs lack a task" in note for note in found.notes)


def test_identical_scores_are_equivalent_without_dividing_by_zero():
    values = {(arm, 1e14, s): 0.7 for arm in "AB" for s in range(3)}
    assert compare(scores_of(values), a="A", b="B", curves=False).verdict == "equivalent"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"a": "A", "b": "C"}, "no arm of that name; known: A, B"),
        ({"a": "A", "b": "A"}, "that is one arm"),
        ({"a": "A", "b": "B", "task": "sst"}, "did you mean sst2"),
        ({"a": "A", "b": "B", "budget": 5e13}, "not a budget that both arms have"),
        ({"a": "A", "b": "B", "margin": 0.0}, "not above zero"),
    ],
)
def test_wrong_requests_are_named(call, words):
    with pytest.raises(CallerError, match=words):
        compare(two_arms(1.0, 0.1), **call)


def test_duplicated_scores_and_mixed_units_are_refused():
    table = two_arms(1.0, 0.1)
    with pytest.raises(CallerError, match=r"1 duplicated, such as A at 1e.13 with seed 0 on sst2"):
        compare(pd.concat([table, table.iloc[[0]]]), a="A", b="B")
    table.loc[0, "budget_unit"] = "device_seconds"
    with pytest.raises(CallerError, match="several units: device_seconds, required_flops"):
        compare(table, a="A", b="B")


# A whole study -------------------------------------------------------------------------------------------------


def test_one_primary_contrast_per_arm_and_holm_for_the_others():
    verdicts = compare_arms(study(3, 3, tasks=("sst2", "qnli")), FAST)
    primary = [v for v in verdicts if v.primary]
    assert [v.contrast for v in primary] == [("kd", "no_kd"), ("minilm", "no_kd"), ("tinybert", "no_kd")]
    assert all(v.y == "readout_loss" and v.at.amount == pytest.approx(3e14) for v in primary)
    assert all(v.adjusted_p_value >= v.p_value for v in primary)
    others = [v for v in verdicts if not v.primary]
    assert {v.y for v in others} == {"readout_loss", "score", "sst2", "qnli"}
    assert all(v.adjusted_p_value >= v.p_value for v in others)
    assert ("kd", "minilm") in {v.contrast for v in others}
    assert all(isinstance(v, Verdict) for v in verdicts)


def test_examples():
    assert doctest.testmod(sys.modules["budgetlab.fitting.compare"]).failed == 0


def test_each_student_has_its_own_reference():
    table = study(3, 2)
    small = table[table["arm"].isin(["kd", "no_kd"])]
    both = pd.concat([small.assign(arm=small["arm"] + "@small"), small.assign(arm=small["arm"] + "@large")])
    primary = [v.contrast for v in compare_arms(both, FAST) if v.primary]
    assert primary == [("kd@large", "no_kd@large"), ("kd@small", "no_kd@small")]


def test_without_a_reference_the_first_arm_stands_in_and_says_so():
    table = study(3, 2, arms=("kd", "minilm"))
    verdict = compare_arms(table, FAST)[0]
    assert verdict.contrast == ("minilm", "kd")
    assert any("the first one stands in" in note for note in verdict.notes)


# Curves of arms --------------------------------------------------------------------------------------------------


def test_one_curve_per_arm_with_its_own_noise():
    fits = fit_arms(study(5, 3, noise=0.002), FitSpec(resamples=200))
    assert [f.arm for f in fits] == ["kd", "minilm", "no_kd", "tinybert"]
    for found in fits:
        assert found.interval_method == "pooled_t"
        assert found.columns == {"x": "required_flops", "y": "readout_loss"}
        assert found.num_points == 15
        assert found.params["a"] == pytest.approx(
            {"kd": 0.35, "no_kd": 0.35, "minilm": 0.3, "tinybert": 0.4}[found.arm], abs=0.1
        )


def test_three_budgets_show_points_only():
    for found in fit_arms(study(3, 3, noise=0.001), FAST):
        assert found.status == "refused"
        assert "the floor E is taken as 0" in found.status_text
        assert found.band == {}


def test_a_shared_floor_is_shared():
    spec = FitSpec(resamples=100, shared=("E",))
    fits = fit_arms(study(4, 3, arms=("minilm", "no_kd"), noise=0.002), spec)
    assert fits[0].params["E"] == fits[1].params["E"] == pytest.approx(2.0, abs=0.15)
    assert fits[0].intervals["E"] == fits[1].intervals["E"]
    assert fits[0].params["a"] != fits[1].params["a"]
    assert all(f.shared == ("E",) for f in fits)


def test_a_score_is_fitted_as_its_distance_from_one():
    found = fit_arms(study(5, 3, tasks=("sst2",)), FitSpec(y="sst2", resamples=50))[0]
    assert found.outcome_transform == "1 - y"
    if found.band:
        assert np.diff(found.band["prediction"]).min() > 0
        assert found.band["low"][0] <= found.band["prediction"][0] <= found.band["high"][0]


def test_perfect_scores_have_no_curve_and_stop_nothing():
    table = study(5, 3, tasks=("sst2",))
    table.loc[(table["arm"] == "kd") & (table["task"] == "sst2"), "value"] = 1.0
    some = table["arm"].eq("no_kd") & table["task"].eq("sst2") & table["rung"].eq(4) & table["run_seed"].eq(0)
    table.loc[some, "value"] = 1.0
    spec = FitSpec(y="sst2", resamples=50)
    by_arm = {f.arm: f for f in fit_arms(table, spec)}
    assert by_arm["kd"].status == "refused" and "every run scores 100 %" in by_arm["kd"].status_text
    assert by_arm["no_kd"].status != "refused" and by_arm["no_kd"].excluded == {"a perfect score": 1}
    verdict = next(v for v in compare_arms(table, spec) if v.primary)
    assert verdict.difference > 0 and verdict.compute_multiplier["reason"].startswith("no curve for kd")


def test_an_arm_with_one_budget_is_refused_and_the_others_go_on():
    table = study(5, 3)
    table = table[(table["arm"] != "kd") | (table["rung"] == 0)]
    by_arm = {f.arm: f for f in fit_arms(table, FAST)}
    assert by_arm["kd"].status == "refused"
    assert by_arm["no_kd"].status != "refused"


def test_an_arm_without_the_outcome_is_refused_by_name():
    table = study(4, 2)
    own = table[(table["arm"] == "no_kd") & (table["task"] == "readout_loss")].assign(task="mlm_loss")
    by_arm = {f.arm: f for f in fit_arms(pd.concat([table, own]), FitSpec(y="mlm_loss", resamples=0))}
    assert "no run has a value of mlm_loss" in by_arm["kd"].status_text
    assert by_arm["no_kd"].num_points == 8


# Multiplier, crossover, decomposition ----------------------------------------------------------------------------


def multiplier_of_truth(a: str, b: str, budget: float) -> float:
    from scipy.optimize import brentq

    level = curve(b, budget)
    return budget / brentq(lambda flops: curve(a, flops) - level, 1e12, budget)


@pytest.mark.parametrize("budgets", [3, 5])
def test_compute_multiplier(budgets):
    found = compare(study(budgets, 5, noise=0.0005), a="kd", b="no_kd", task="readout_loss", resamples=300)
    truth = multiplier_of_truth("kd", "no_kd", 3e14)
    low, high = found.compute_multiplier["interval"]
    assert low < found.compute_multiplier["value"] < high
    assert found.compute_multiplier["interval_note"].startswith("approximate")
    assert found.compute_multiplier["value"] == pytest.approx(truth, rel=0.05)
    turned = compare(study(budgets, 5, noise=0.0005), a="no_kd", b="kd", task="readout_loss", resamples=300)
    assert turned.compute_multiplier["value"] == pytest.approx(1 / found.compute_multiplier["value"])


def test_multiplier_outside_both_ranges_is_not_available():
    table = study(4, 3, arms=("kd", "no_kd"), span=1.5)
    table.loc[table["arm"] == "kd", "value"] *= 0.5
    found = compare(table, a="kd", b="no_kd", task="readout_loss", resamples=50).compute_multiplier
    assert found["value"] is None
    assert "outside both ranges" in found["reason"]
    assert found["interval"] is None


def test_crossover_with_its_interval_or_never():
    """minilm starts better (1.2 against 1.4 at the first budget), tinybert falls faster."""
    table = study(5, 5, noise=0.0005, span=1e4)
    floors = {"minilm": (2.0, 1.2, 0.3), "tinybert": (2.1, 1.4, 0.4)}
    for arm in floors:
        rows = (table["arm"] == arm) & (table["task"] == "readout_loss")
        flops = table.loc[rows, "budget_amount"]
        size, exponent = (1.2, 0.2) if arm == "minilm" else (1.5, 0.3)
        ratio = table.loc[rows, "value"] / np.array([curve(arm, f) for f in flops])
        table.loc[rows, "value"] = (2.0 + size * (flops / 1e13) ** -exponent) * ratio
    found = compare(table, a="minilm", b="tinybert", task="readout_loss", resamples=300).crossover
    truth = 1e13 * (1.5 / 1.2) ** 10
    low, high = found["interval"]
    assert low < truth < high
    assert found["value"] == pytest.approx(truth, rel=0.2)
    never = compare(study(5, 3), a="kd", b="no_kd", task="readout_loss", resamples=50).crossover
    assert never["value"] is None
    assert never["reason"] == "never in range"


def test_decomposition_adds_up_by_curve():
    found = compare(study(5, 5, noise=0.0005), a="kd", b="no_kd", task="readout_loss", resamples=300).decomposition
    parts = [found[name]["value"] for name in ("difference", "gain_per_token", "effect_of_tokens")]
    assert parts[0] == pytest.approx(parts[1] + parts[2])
    assert "fitted law of no_kd over tokens" in found["method"]
    # The distilled arm affords 1/1.6 of the tokens: the other arm at so many is at 1/1.6 of the compute.
    effect = float(curve("no_kd", 3e14) - curve("no_kd", 3e14 / 1.6))
    assert found["effect_of_tokens"]["value"] == pytest.approx(effect, rel=0.02)
    assert found["effect_of_tokens"]["value"] < 0 < found["gain_per_token"]["value"]


def test_decomposition_uses_runs_at_equal_tokens_where_there_are_any():
    table = study(3, 3, noise=0.001)
    table.loc[table["arm"] == "no_kd", "tokens"] = (table["budget_amount"] / 1.6e6)[table["arm"] == "no_kd"]
    found = compare(table, a="kd", b="no_kd", task="readout_loss", resamples=50).decomposition
    assert found["method"] == "runs at equal tokens"
    assert found["effect_of_tokens"]["value"] == pytest.approx(0.0)


# Coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", list(DESIGNS))
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_differences_cover_by_themselves(design, seeds):
    """4,000 tables of each design: at 95 % the share of hits has a standard deviation of 0.34 %.

    Pooling one variance over the arms covered 53 to 100 % here.
    """
    tables = noisy_tables(design, seeds, 4000, np.random.default_rng([seeds, list(DESIGNS).index(design)]))
    for arm, share in coverage_of(tables).items():
        assert 0.93 <= share <= 0.97, (design, arm, share)


def test_the_contrast_is_the_one_that_was_simulated():
    table = noisy_tables("arms correlated by seed", 4, 1, np.random.default_rng(0))[0]
    arms = tuple(f"arm{k}" for k in range(len(table)))
    panel = Panel(arms, (1.0,), tuple(range(4)), table[:, None, :])
    for k in range(1, len(table)):
        found = contrast(panel, arms[k], arms[0], 1.0)
        centre, half = paired_t(table[k] - table[0])
        assert found.interval(0.95) == pytest.approx((centre - half, centre + half))


def test_nothing_is_known_of_the_noise_where_no_run_has_a_replicate():
    """Replicates at the smaller budgets say nothing of the noise at the largest."""
    table = study(3, 4)
    top = table["budget_amount"].max()
    alone = table[(table["budget_amount"] != top) | (table["run_seed"] == 0)]
    found = compare(alone, a="kd", b="no_kd", task="readout_loss", curves=False)
    assert found.interval is None and "these checkpoints" in found.sentence


def test_the_reference_is_the_one_of_the_same_student():
    table = study(3, 3, arms=("kd", "no_kd", "minilm"))
    names = {"kd": "no_kd@big", "no_kd": "no_kd@small", "minilm": "minilm+teacher-4k"}
    table["student"] = table["arm"].map({"kd": "big", "no_kd": "small", "minilm": "small"})
    table["arm"] = table["arm"].map(lambda arm: names.get(arm, arm))
    primary = [v.contrast for v in compare_arms(table, FAST) if v.primary]
    assert primary == [("minilm+teacher-4k", "no_kd@small")]
    unknown = table.assign(student=np.nan, arm=table["arm"].replace({"minilm+teacher-4k": "minilm@small"}))
    primary = [v.contrast for v in compare_arms(unknown, FAST) if v.primary]
    assert primary == [("minilm@small", "no_kd@small")]


def test_two_seeds_are_said_to_resolve_little():
    """One degree of freedom: t = 12.7. Nothing is borrowed from other arms or budgets."""
    found = compare(study(4, 2), a="kd", b="no_kd", task="readout_loss", curves=False)
    assert found.degrees_of_freedom == 1.0
    assert "too few seeds to resolve much" in found.sentence
    assert "too few" not in compare(study(4, 3), a="kd", b="no_kd", task="readout_loss", curves=False).sentence


def test_welch_where_no_seed_is_shared():
    from scipy.stats import ttest_ind

    table = two_arms(1.0, 0.5, seeds=4)
    table.loc[table["arm"] == "B", "run_seed"] += 100
    table = table[table["run_seed"] != 103]
    found = compare(table, a="A", b="B", curves=False)
    one, other = (100 * table.loc[(table["arm"] == arm) & (table["budget_amount"] == 1e14), "value"] for arm in "AB")
    peer = ttest_ind(one, other, equal_var=False)
    assert found.p_value == pytest.approx(peer.pvalue)
    assert found.interval == pytest.approx(tuple(peer.confidence_interval(0.95)))


# Families of contrasts -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), arms=st.integers(2, 6), gap=st.floats(0.0, 3.0), margin=st.sampled_from([0.5, 3.0]))
def test_a_verdict_and_its_interval_never_disagree(seed, arms, gap, margin):
    """The law of the page: whoever reads the interval beside a verdict reads the verdict."""
    rng = np.random.default_rng(seed)
    values = {
        (name, 1e14, s): 0.6 + 0.01 * (gap * k * (k % 2) + rng.standard_normal() * 0.2 * 1.5**k)
        for k, name in enumerate(["no_kd", *(f"kd{i}" for i in range(arms))]) for s in range(3)
    }  # fmt: skip
    verdicts = compare_arms(scores_of(values), FitSpec(y="sst2", margin=margin, resamples=0))
    by_holm = {v.contrast: v.adjusted_p_value < 0.05 for v in verdicts}
    for v in verdicts:
        low, high = v.adjusted_interval
        assert (not low <= 0.0 <= high) == (v.verdict in ("a_better", "b_better")) == by_holm[v.contrast]
        assert (v.verdict == "equivalent") == (low <= 0.0 <= high and -margin < low and high < margin)
        assert low <= v.interval[0] and v.interval[1] <= high
        digits = [f"{end:+.2f}" for end in ((-high, -low) if v.verdict == "b_better" else (low, high))]
        assert " to ".join(digits) in v.sentence


def test_named_primaries_are_the_primaries():
    table = study(3, 3, tasks=("sst2", "qnli"))
    spec = FitSpec(primary=("minilm - tinybert",), resamples=0)
    verdicts = compare_arms(table, spec)
    assert [v.contrast for v in verdicts if v.primary] == [("minilm", "tinybert")]
    only = verdicts[0]
    assert only.adjusted_interval == only.interval and only.adjusted_p_value == only.p_value
    top = [v.contrast for v in verdicts if v.y == "readout_loss" and v.at == only.at and not v.primary]
    assert {"kd - no_kd", "minilm - no_kd", "kd - tinybert"} < {f"{a} - {b}" for a, b in top} and len(top) == 5
    with pytest.raises(CallerError, match="did you mean minilm"):
        compare_arms(table, FitSpec(primary=("minilmm - no_kd",)))
    for wrong, why in (("minilm", "does not name two arms"), ("kd - kd", "names one arm twice")):
        with pytest.raises(ValueError, match=why):
            FitSpec(primary=(wrong,))


def test_more_than_three_unnamed_primaries_are_said():
    table = study(3, 3)
    more = pd.concat([table, *(table[table["arm"] == "kd"].assign(arm=f"kd{k}") for k in range(2))])
    assert any("none of them named" in note for note in compare_arms(more, FAST)[0].notes)
    assert not any("none of them named" in note for note in compare_arms(table, FAST)[0].notes)


def test_arms_of_identical_scores_count_once():
    """A cache that reproduces the live teacher is no further hypothesis, and no further evidence."""
    table = study(3, 3, arms=("kd", "no_kd", "minilm"))
    twice = pd.concat([table, table[table["arm"] == "kd"].assign(arm="kd_cached")])
    once, both = ({v.contrast: v for v in compare_arms(t, FAST) if v.primary} for t in (table, twice))
    for pair, verdict in once.items():
        assert both[pair].adjusted_interval == verdict.adjusted_interval
    assert both["kd_cached", "no_kd"].adjusted_interval == once["kd", "no_kd"].adjusted_interval
    same = compare(twice, a="kd", b="kd_cached", task="readout_loss", curves=False)
    assert same.verdict == "equivalent" and any("identical values" in note for note in same.notes)


def test_a_percentile_bootstrap_of_three_runs_would_not():
    """The reason for t: three replicates resampled cover about 72 %, not 95 %."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((400, 3))
    means = draws[np.arange(400)[:, None, None], rng.integers(0, 3, (400, 500, 3))].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.85


def test_intervals_of_curves_cover():
    """45 studies of 5 budgets x 3 seeds x 4 arms: exponent, curve and multiplier at a nominal 95 %."""
    rng = np.random.default_rng(4)
    truth = multiplier_of_truth("kd", "no_kd", 3e14)
    hits = {"a": 0, "curve": 0, "multiplier": 0}
    for seed in range(45):
        table = study(5, 3, rng=rng)
        spec = FitSpec(resamples=200, seed=seed)
        kd = fit_arms(table[table["arm"].isin(["kd", "no_kd"])], spec)[0]
        low, high = kd.intervals["a"]
        hits["a"] += low <= 0.35 <= high
        at = np.array(kd.band["x"])
        hits["curve"] += (
            np.interp(2e14, at, kd.band["low"]) <= curve("kd", 2e14) <= np.interp(2e14, at, kd.band["high"])
        )
        found = compare(table, a="kd", b="no_kd", task="readout_loss", resamples=200, seed=seed).compute_multiplier
        hits["multiplier"] += found["interval"][0] <= truth <= found["interval"][1]
    # Of 45 at 95 %: 43, give or take 1.5.
    assert all(count >= 39 for count in hits.values()), hits


def test_a_task_of_the_largest_budget_only_is_not_in_the_mean():
    scores = pd.DataFrame([
        {"arm": "a", "budget_amount": b, "budget_unit": "required_flops", "run_seed": 0, "task": task, "value": value}
        for b in (1.0, 2.0)
        for task, value in (("sst2", 0.8), ("stsb", 0.4), ("cola", 0.0))
        if task != "cola" or b == 2.0
    ])  # fmt: skip
    assert averaged_tasks(scores) == ["sst2", "stsb"]
    assert "cola" in outcome_names(scores)
    means = run_values(scores, "score")
    assert list(means["value"]) == pytest.approx([0.6, 0.6])
