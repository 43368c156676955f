"""Values become tidy tables: a row a thing, in the units of the values, unknown missing."""

from pathlib import Path

import pandas as pd
import pytest

import budgetlab
from budgetlab.fitting.scores import average_words, averaged_tasks, uninformative_words
from budgetlab.values import Budget, CostProfile, PhaseCost, Score

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


def score(subject: str, student: str, value: float, *, task: str = "rte", run: int = 0, tuning: int = 0) -> Score:
    arm = {"run": f"no_kd {student}", "random": "random weights"}.get(subject, student)
    return Score(
        run_id=f"{subject}-{student}-s{run}", subject=subject, arm=arm, student=student, run_seed=run,  # type: ignore[arg-type]
        finetune_seed=tuning, task=task, metric="accuracy", value=value, higher_is_better=True, num_examples=277,
        standard_errors={"accuracy": 0.001}, recipe_hash="0", rung=0 if subject == "run" else None,
        budget=Budget(amount=1e12, unit="required_flops") if subject == "run" else None,
    )  # fmt: skip


def test_fine_tuning_seeds_of_a_run_are_no_runs() -> None:
    """Random weights of three runs, of three fine-tunings each: as scattered as three values, not as nine."""
    seeds = [(run, tuning) for run in range(3) for tuning in range(3)]
    floor = [score("random", "small", 0.50 + 0.04 * (run - 1), run=run, tuning=tuning) for run, tuning in seeds]
    informative = [
        budgetlab.scores_frame([*floor, score("teacher", "large", top), score("run", "small", 0.55)])["informative"]
        for top in (0.50 + 3.1 * 0.04 / 3**0.5, 0.50 + 2.9 * 0.04 / 3**0.5)
    ]
    # The standard error of three runs is 0.04 / √3; of nine values it would be 0.035 / 3.
    assert [found.dropna().tolist() for found in informative] == [[True], [False]]
    one = [score("random", "small", 0.50 + 0.04 * (tuning - 1), tuning=tuning) for tuning in range(3)]
    alone = budgetlab.scores_frame([*one, score("teacher", "large", 0.565), score("run", "small", 0.55)])
    assert alone["informative"].dropna().tolist() == [False]  # a run by itself scatters as its fine-tunings do


def test_a_task_is_informative_if_every_teacher_is_ahead() -> None:
    others = [score("random", "small", 0.50), score("run", "small", 0.55), score("teacher", "large", 0.70)]
    for second, told in ((0.60, True), (0.54, False)):
        frame = budgetlab.scores_frame([*others, score("teacher", "weak", second)])
        assert frame["informative"].dropna().tolist() == [told]
    assert "rte (teacher 54.0, random weights 50.0, standard error 0.1)" in uninformative_words(frame)


def test_all_sizes_average_the_same_tasks() -> None:
    rows = [score("teacher", "large", 0.70, task=task) for task in ("rte", "qnli")]
    for student, floors in {"small": (0.50, 0.50), "middle": (0.68, 0.50)}.items():
        for task, floor in zip(("rte", "qnli"), floors, strict=True):
            rows += [score("random", student, floor + shift, task=task, run=run)
                     for run, shift in ((0, -0.01), (1, 0.01)) for _ in range(1 + run)]  # fmt: skip
            rows.append(score("run", student, 0.69, task=task))
    frame = budgetlab.scores_frame(rows)
    assert averaged_tasks(frame) == ["qnli"]
    numbers = "(teacher 70.0, random weights 68.0, standard error 1.0)"
    told = f"not informative at some size, so in no mean: rte at middle {numbers}"
    assert uninformative_words(frame) == told and average_words(frame).endswith(told)
    one = frame[frame["student"] != "small"]
    told = f"not informative at this size, so in no mean: rte {numbers}"
    assert uninformative_words(one) == told
    bare = one[one["subject"] == "run"]
    assert uninformative_words(bare) == "not informative at this size, so in no mean: rte"


def test_tasks_of_which_nothing_is_known_are_named_once() -> None:
    rows = [score("run", "small", 0.6, task=task) for task in ("rte", "qnli", "sst2")]
    yardsticks = [
        score("teacher", "large", 0.9),
        score("random", "small", 0.5),
        score("teacher", "large", 1, task="qnli"),
    ]
    frame = budgetlab.scores_frame([*rows, *yardsticks])
    assert average_words(frame).endswith("; whether qnli, sst2 tell anything is not known")
    assert "known" not in average_words(frame.drop(columns="informative"))
    assert "known" not in average_words(budgetlab.scores_frame(rows))
