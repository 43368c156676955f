"""The same trials for every arm, what they cost, and what they decide."""

import pytest
from prices import profile_of
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import choose_rates, plan, trial_plan, tuning_note
from budgetlab.studies import Study, load_study

TUNING = "\n[tuning]\nlearning_rate = [5e-4, 1e-3, 2e-3]\n"


def tuned(tmp_path, extra: str = "") -> Study:
    return load_study(write_small_study(tmp_path, TUNING + extra))


def test_every_arm_gets_the_same_trials_at_the_smallest_budget(tmp_path) -> None:
    study = tuned(tmp_path)
    made = plan(study, profile_of(study))
    assert {(t.arm, t.learning_rate) for t in made.trials} == {(a, r) for a in study.arms for r in (5e-4, 1e-3, 2e-3)}
    smallest = {s.arm: s.tokens for s in made.schedules if s.rung == 0}
    assert all(trial.schedule.tokens == smallest[trial.arm] for trial in made.trials)
    assert "outside the budgets" in (tuning_note(made) or "")
    trials = trial_plan(made)
    assert (trials.ladder, trials.seeds, len(trials.arms)) == ("separate", (0,), 12)
    assert trials.arms["minilm~0.002"].recipe.learning_rate == 2e-3


def test_a_charged_trial_leaves_less_for_the_run(tmp_path) -> None:
    study = tuned(tmp_path, "charge = true\n")
    made = plan(study, profile_of(study), budgets=("1e9", "1e10"))
    free = plan(study.model_copy(update={"tuning": None}), profile_of(study), budgets=("1e9", "1e10"))
    for paid, whole in zip(made.schedules, free.schedules, strict=True):
        if paid.rung == 0:
            assert not paid.feasible and "3 trials of learning rates take" in (paid.reason or "")
        else:
            first = next(s for s in free.schedules if s.arm == paid.arm and s.rung == 0)
            assert paid.steps == pytest.approx(whole.steps - 3 * first.steps, abs=1)
            assert paid.tuning_charge == pytest.approx(3 * first.required_flops)
            assert paid.teacher_charge + paid.tuning_charge + paid.required_flops <= 1e10
    assert "charged to the budgets" in (tuning_note(made) or "")


def test_the_lowest_loss_decides_and_the_audit_says_so(tmp_path) -> None:
    study = tuned(tmp_path)
    made = plan(study, profile_of(study))
    losses = {t.schedule.arm: 5.0 + abs(t.learning_rate - 1e-3) for t in made.trials}
    del losses["tinybert~0.001"]  # it diverged
    chosen = choose_rates(made, losses)
    assert {name: arm.recipe.learning_rate for name, arm in chosen.arms.items()} == {
        "no_kd": 1e-3, "vanilla_kd": 1e-3, "minilm": 1e-3, "tinybert": 5e-4,
    }  # fmt: skip
    said = [line for line in chosen.audit if "the best of" in line]
    assert len(said) == 4 and "at the end of the range" in said[3] and "at the end" not in said[0]
    with pytest.raises(CallerError, match="every trial failed"):
        choose_rates(made, {name: loss for name, loss in losses.items() if not name.startswith("minilm")})
