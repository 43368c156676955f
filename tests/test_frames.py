"""Values become tidy tables: a row a thing, in the units of the values, unknown missing."""

from pathlib import Path

import pandas as pd
import pytest

import budgetlab
from budgetlab.values import CostProfile, PhaseCost

ROOT = Path(__file__).parent.parent
STORE = budgetlab.Store(ROOT / "results", "wikipedia_small")


@pytest.fixture(scope="module")
def profile() -> CostProfile:
    found = STORE.read_profile()
    assert found is not None
    return found


def test_tables_are_what_the_csv_files_hold(profile: CostProfile) -> None:
    plan = STORE.read_plan()
    assert plan is not None
    made = {"profile": budgetlab.phases_frame(profile), "plan": budgetlab.plan_frame(plan)}
    for name, table in made.items():
        written = pd.read_csv(STORE.folder / f"{name}.csv")
        shared = [column for column in written if column in table]
        assert len(table) == len(written) and {"arm", *shared} == set(written.columns)
        for column in written.select_dtypes("number"):
            pd.testing.assert_series_equal(table[column].astype(float), written[column].astype(float))


def test_costs_are_ratios_to_the_first_arm(profile: CostProfile) -> None:
    table = budgetlab.costs_frame(profile).set_index("arm")
    assert list(table.index) == [cost.arm for cost in (*profile.arms, *profile.teachers)]
    assert table.loc["no_kd", ["flops_ratio", "seconds_ratio", "flops_ratio_off"]].tolist() == [1.0, 1.0, 0.0]
    minilm = table.loc["minilm"]
    assert minilm["flops_ratio"] == minilm["required_flops_per_token"] / table.loc["no_kd", "required_flops_per_token"]
    assert minilm["ratio_low"] < minilm["seconds_ratio"] < minilm["ratio_high"]
    assert minilm["flops_ratio_off"] == minilm["flops_ratio"] / minilm["seconds_ratio"] - 1
    assert set(table["closed form"]) == set(table["fvcore"]) == {"equal"}


def test_costs_without_rounds_take_seconds_a_token_and_counts_alone_have_none() -> None:
    published = budgetlab.read_profile(ROOT / "experiments" / "paper_6l.profile.json")
    table = budgetlab.costs_frame(published).set_index("arm")
    assert table.loc["minilm", "seconds_ratio"] == pytest.approx(4.6 / 2.6)
    bare = {"seconds_per_step": None, "tokens_per_second": None}
    arms = tuple(cost.model_copy(update=bare) for cost in published.arms)
    counted = budgetlab.costs_frame(published.model_copy(update={"arms": arms}))
    assert counted[["seconds_per_step", "seconds_ratio", "flops_ratio_off"]].isna().all(axis=None)
    assert counted["flops_ratio"].notna().all()


def test_records_stand_beside_their_plan() -> None:
    records = STORE.records()
    table = budgetlab.records_frame(records)
    assert list(table["run_id"]) == [record.run_id for record in records]
    rungs, others = table[table["kind"] == "rung"], table[table["kind"] != "rung"]
    assert (rungs["required_flops"] == rungs["planned_required_flops"]).all()
    assert (rungs["tokens"] == rungs["planned_tokens"]).all()
    assert len(others) and others[["rung", "planned_tokens", "planned_device_seconds"]].isna().all(axis=None)
    assert budgetlab.records_frame([]).empty


def test_points_have_a_column_a_term() -> None:
    records = STORE.records()
    table = budgetlab.points_frame(records)
    assert len(table) == sum(len(record.points) for record in records)
    minilm = table[table["arm"] == "minilm"]
    assert minilm[["queries", "keys", "values", "gradient_norm"]].notna().all(axis=None) and minilm["mlm"].isna().all()
    assert budgetlab.points_frame([]).empty


def test_verdicts_are_one_row_each() -> None:
    fits, verdicts = STORE.read_fits()
    table = budgetlab.verdicts_frame(verdicts)
    assert len(table) == len(verdicts) and table["primary"].sum() == 3
    first, verdict = table.iloc[0], verdicts[0]
    assert (first["a"], first["b"]) == verdict.contrast and (first["low"], first["high"]) == verdict.interval
    assert verdict.compute_multiplier is not None and verdict.decomposition is not None
    assert first["compute_multiplier"] == verdict.compute_multiplier["value"]
    assert first["effect_of_tokens_low"] == verdict.decomposition["effect_of_tokens"]["interval"][0]
    assert first["curves_over"] == "required_flops"
    assert table.loc[table["y"] != first["y"], ["gain_per_token", "curves_over"]].isna().all(axis=None)
    assert set(budgetlab.fits_frame(fits)["arm"]) == {"minilm", "no_kd", "tinybert", "vanilla_kd"}
    assert budgetlab.verdicts_frame([]).empty


def test_a_profile_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(budgetlab.CallerError, match="no such file"):
        budgetlab.read_profile(tmp_path / "profile.json")
    (tmp_path / "other.json").write_text(
        PhaseCost(required_flops_per_token=1, executed_flops_per_token=1).model_dump_json()
    )
    with pytest.raises(budgetlab.CallerError, match="not one"):
        budgetlab.read_profile(str(tmp_path / "other.json"))
