"""The next run: what is untested first, then seeds for what is not resolved."""

from __future__ import annotations

import decision_values as values
import pytest

from budgetlab.decisions import assumptions, next_runs
from budgetlab.errors import CallerError
from budgetlab.resampling import t_quantile
from budgetlab.values import Assumption


@pytest.fixture(scope="module")
def own():
    return values.evidence(values.plan())


@pytest.fixture(scope="module")
def close():
    """Two arms so close that three seeds do not tell them apart."""
    curves = {"minilm": (2.0, 1.5, 0.35), "vanilla_kd": (2.0, 1.2, 0.35)}
    return values.evidence(values.plan(), curves=curves, noise=0.02)


def untested(*names: str) -> list[Assumption]:
    return [Assumption(name=name, tested="x", outcome="not_tested", missing="y") for name in names]


def test_seeds_are_never_proposed_for_what_is_resolved(own, close) -> None:
    verdicts = values.verdicts(own)
    assert all(v.verdict != "not_resolved" for v in verdicts if v.primary)
    rows = assumptions(own.scores, own.plan, values.spec(), verdicts, simulations=19)
    assert set(next_runs(own, verdicts, rows)["kind"]) == {"test"}
    with pytest.raises(CallerError, match="every primary contrast is resolved and no test is missing"):
        next_runs(own, verdicts)
    verdicts = values.verdicts(close)
    open_pairs = {", ".join(v.contrast) for v in verdicts if v.primary and v.verdict == "not_resolved"}
    assert open_pairs and set(next_runs(close, verdicts)["arms"]) == open_pairs


def test_what_is_untested_comes_first_and_the_cheapest_of_it(close) -> None:
    verdicts = values.verdicts(close)
    names = ("another teacher", "learning rate", "teacher's pretraining not charged")
    found = next_runs(close, verdicts, untested(*names))
    kinds = list(found["kind"])
    assert kinds == sorted(kinds, key=["test", "seeds"].index) and kinds.count("test") == 3
    costs = found.loc[found["kind"] == "test", "cost_flops"]
    assert list(costs) == sorted(costs)
    assert "could overturn the verdict" in found.attrs["sentence"]
    teacher = found[found["adds"].str.startswith("a second teacher")].iloc[0]
    top = [s for s in close.plan.schedules if s.rung == 2 and s.arm != "no_kd"]
    assert teacher["cost_flops"] == 5e13 + 3 * sum(s.required_flops for s in top)
    all_in = found[found["adds"].str.contains("one student and its teacher")].iloc[0]
    assert all_in["arms"] == "no_kd" and all_in["cost_flops"] == pytest.approx(3 * (9e13 + 5e13), rel=0.01)


def test_a_seed_is_a_pair_and_a_degree_of_freedom(close) -> None:
    verdict = next(v for v in values.verdicts(close) if v.primary and v.contrast == ("minilm", "no_kd"))
    found = next_runs(close, [verdict])
    low, high = verdict.adjusted_interval
    assert found["half_width_now"].iloc[0] == pytest.approx((high - low) / 2)
    level = verdict.adjusted_interval_level
    spent = {s.arm: s.required_flops for s in close.plan.schedules if s.rung == 2}
    for row in found.itertuples():
        pairs = 3 + row.seeds
        half = t_quantile((1 + level) / 2, pairs - 1) * verdict.run_sd * (2 / pairs) ** 0.5
        assert row.half_width_after == pytest.approx(half)
        assert row.cost_flops == row.seeds * (spent["minilm"] + spent["no_kd"])
    assert found["narrowing_per_exaflop"].is_monotonic_decreasing
    assert "minilm - no_kd on read-out loss" in found.attrs["sentence"]


def test_noise_that_is_unknown_foretells_nothing() -> None:
    one = values.evidence(values.plan(seeds=1))
    with pytest.raises(CallerError, match="nothing is known of the noise between runs"):
        next_runs(one, values.verdicts(one))
