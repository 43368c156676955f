"""Warm-up: the same number of tokens in every arm and at every budget; per-arm fractions of earlier studies stay."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import profile_of
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import audit, choose_rates, plan
from budgetlab.planner.match import cooldown_steps, fewest_steps, warmup_steps, warmup_tokens
from budgetlab.store import Store
from budgetlab.studies import Study, load_study, profile_key
from budgetlab.study_tables import PRESETS
from budgetlab.values import Plan, Recipe

ROOT = Path(__file__).parent.parent.parent
RECORDED = sorted((ROOT / "results").glob("*/study.toml"))


def with_recipe(folder: Path, lines: str, extra: str = "") -> Study:
    path = write_small_study(folder, extra)
    path.write_text(path.read_text().replace("[recipe]\n", f"[recipe]\n{lines}\n"))
    return load_study(path)


def warmups(made: Plan) -> set[int]:
    return {s.warmup_steps * made.arms[s.arm].recipe.batch_tokens for s in made.schedules if s.feasible}


@pytest.mark.parametrize("ladder", ["branched", "separate"])
@pytest.mark.parametrize("asked", ["", 'warmup_tokens = "64k"'])
def test_every_arm_and_rung_warms_up_for_the_same_tokens(tmp_path: Path, ladder: str, asked: str) -> None:
    study = with_recipe(tmp_path, asked)
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"ladder": ladder})})
    made = plan(study, profile_of(study))
    (tokens,) = warmups(made)
    fewest = min(s.tokens for s in made.schedules if s.rung == 0)
    assert tokens == 64_000 if asked else 0 <= tokens - 0.06 * fewest < 128
    assert f"Every arm warms up for {tokens:,} tokens." in made.audit


def test_a_teacher_warms_up_for_a_share_of_its_own_steps_at_least(tmp_path: Path) -> None:
    cases = {"": 2, "warmup_tokens = 128": 2, "warmup_tokens = 1024": 8, "warmup_fraction = 0.25": 8}
    for asked, steps in cases.items():
        study = with_recipe(tmp_path, asked)  # its teacher is trained for 32 steps of 128 tokens
        (teacher,) = plan(study, profile_of(study)).teachers
        assert (teacher.steps, teacher.warmup_steps) == (32, steps)


def test_a_fraction_is_each_arms_own_and_the_audit_says_what_differs(tmp_path: Path) -> None:
    study = with_recipe(tmp_path, "warmup_fraction = 0.06")
    made = plan(study, profile_of(study))
    own = warmup_tokens(made.schedules, made.arms)
    assert len(set(own.values())) == 4
    before = audit(study)
    assert any("Warm-up is a share of each arm's own steps" in line for line in before)
    assert not any("strategy alone" in line for line in before)
    said = f"vanilla_kd: warm-up of {own['vanilla_kd']:,} tokens, no_kd has {own['no_kd']:,}"
    assert said in made.audit and not any("strategy alone" in line for line in made.audit)


def test_the_audit_keeps_its_warm_up_after_tuning(tmp_path: Path) -> None:
    study = with_recipe(tmp_path, "warmup_fraction = 0.06", "\n[tuning]\nlearning_rate = [1e-3, 2e-3, 4e-3]\n")
    made = plan(study, profile_of(study))
    chosen = choose_rates(made, {t.schedule.arm: abs(t.learning_rate - 2e-3) for t in made.trials})
    assert [line for line in made.audit if "warm-up" in line] == [line for line in chosen.audit if "warm-up" in line]


@pytest.mark.parametrize("path", RECORDED, ids=[path.parent.name for path in RECORDED])
def test_recorded_studies_are_planned_as_they_were(path: Path) -> None:
    study, store = load_study(path), Store(path.parent.parent, path.parent.name)
    profile, recorded = store.read_profile(), store.read_plan()
    assert profile is not None and recorded is not None and profile.study_key == profile_key(study)
    made = plan(study, profile, corpus_tokens=recorded.schedules[0].unique_tokens)
    lengths = [[(s.arm, s.rung, s.tokens, s.steps, s.warmup_steps, s.cooldown_steps) for s in each.schedules]
               for each in (made, recorded)]  # fmt: skip
    assert lengths[0] == lengths[1] and made.teachers == recorded.teachers


@given(tokens=st.integers(0, 10**8), batch=st.sampled_from([64, 1024, 2**15]), cooldown=st.floats(0, 0.9))
def test_the_fewest_steps_hold_warm_up_and_cooldown_and_one_fewer_do_not(
    tokens: int, batch: int, cooldown: float
) -> None:
    recipe = Recipe(warmup_tokens=tokens, batch_tokens=batch, cooldown_fraction=cooldown)
    fewest = fewest_steps(recipe)

    def fit(steps: int) -> bool:
        return warmup_steps(recipe, steps) + cooldown_steps(recipe, steps) <= steps

    assert fit(fewest) and (fewest <= 2 or not fit(fewest - 1))


def test_a_warm_up_longer_than_the_run_is_infeasible(tmp_path: Path) -> None:
    study = with_recipe(tmp_path, 'warmup_tokens = "4.1M"')
    made = plan(study, profile_of(study), budgets=("1.5e9", "3e9"))
    first, second = (s for s in made.schedules if s.arm == "no_kd")
    assert not first.feasible and "smallest feasible budget is 1.5" in (first.reason or "") and second.feasible


def test_both_at_once_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="both warmup_tokens and warmup_fraction are set; give one of them"):
        with_recipe(tmp_path, "warmup_fraction = 0.06\nwarmup_tokens = 4096")


def test_presets_say_tokens() -> None:
    recipes = [load_study(path).recipe for path in PRESETS.glob("*.toml")]
    assert recipes and all(recipe.warmup_tokens and recipe.warmup_fraction is None for recipe in recipes)
