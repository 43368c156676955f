"""The same trials for every arm, what they cost, and what they decide."""

import pytest
from prices import profile_of
from small import write_small_study

from budgetlab.cli.open_study import scored_with
from budgetlab.errors import CallerError
from budgetlab.planner import (
    choose_rates,
    methods_paragraph,
    plan,
    trial_losses,
    trial_plan,
    trials_key,
    tuning_note,
)
from budgetlab.studies import Study, load_study
from budgetlab.units import format_amount
from budgetlab.values import Plan, Score, TuningSpec

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


@pytest.mark.parametrize("ladder", ["branched", "separate"])
def test_charged_trials_are_as_long_as_the_run_that_is_left(tmp_path, ladder: str) -> None:
    study = tuned(tmp_path, "charge = true\n")
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"ladder": ladder})})
    made = plan(study, profile_of(study), budgets=("1e9", "1e10"))
    free = plan(study.model_copy(update={"tuning": None}), profile_of(study), budgets=("1e9", "1e10"))
    for paid, whole in zip(made.schedules, free.schedules, strict=True):
        tried = [trial.schedule for trial in made.trials if trial.arm == paid.arm]
        assert paid.feasible and len(tried) == 3
        if paid.rung == 0:
            assert all(abs(trial.steps - paid.steps) <= 3 for trial in tried)
        assert paid.steps == pytest.approx(whole.steps - sum(trial.steps for trial in tried), abs=1)
        assert paid.tuning_charge == pytest.approx(sum(trial.required_flops for trial in tried))
        assert paid.tuning_charge + paid.required_flops <= paid.budget.amount * (1 + 1e-12)
    assert "charged to the budgets" in (tuning_note(made) or "")


def test_an_arm_that_cannot_pay_for_charged_trials_does_not_run_untried(tmp_path) -> None:
    study = tuned(tmp_path, "charge = true\n")
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"tolerance_fraction": 0.9})})
    price = 300 * 128
    made = plan(study, profile_of(study), budgets=(9 * price,))
    by_arm = {schedule.arm: schedule for schedule in made.schedules}
    assert by_arm["no_kd"].feasible and by_arm["no_kd"].tuning_charge > 0
    assert not by_arm["vanilla_kd"].feasible and "with 3 trials" in (by_arm["vanilla_kd"].reason or "")
    assert {trial.arm for trial in made.trials} == {"no_kd"}


def test_an_arm_that_cannot_pay_at_the_smallest_budget_is_tried_at_its_own(tmp_path) -> None:
    study = tuned(tmp_path)
    teacher = 600 * 4096
    made = plan(study, profile_of(study), budgets=(0.9 * teacher, 1e9), teacher_charge="pretraining")
    lengths = {trial.arm: trial.schedule.tokens for trial in made.trials}
    feasible = {(s.arm, s.rung): s for s in made.schedules}
    assert not feasible["minilm", 0].feasible and feasible["minilm", 1].feasible
    assert lengths["no_kd"] == feasible["no_kd", 0].tokens and lengths["minilm"] == feasible["minilm", 1].tokens


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
    assert len(said) == 4 and "at the end" not in said[0]
    assert said[3].endswith("at the end of the range, not tuned: extend the grid below 0.0005")
    assert "strategy alone" not in "\n".join(chosen.audit) and chosen.tried and not chosen.tuned
    assert "5e-4" not in methods_paragraph(chosen) and "0.0005 (tinybert)" in methods_paragraph(chosen)
    nan = choose_rates(made, {**losses, "no_kd~0.0005": float("nan")})
    assert nan.arms["no_kd"].recipe.learning_rate == 1e-3
    with pytest.raises(CallerError, match="every trial failed"):
        choose_rates(made, {name: loss for name, loss in losses.items() if not name.startswith("minilm")})


def test_tuned_is_only_what_lies_between_two_others(tmp_path) -> None:
    study = tuned(tmp_path)
    made = plan(study, profile_of(study))
    assert not made.tried and not made.tuned

    def chosen(best: float, diverged: tuple[float, ...] = ()) -> Plan:
        losses = {
            t.schedule.arm: abs(t.learning_rate - (best if t.arm == "minilm" else 1e-3))
            for t in made.trials
            if t.arm != "minilm" or t.learning_rate not in diverged
        }
        return choose_rates(made, losses)

    assert chosen(1e-3).tuned and not any("extend" in line for line in chosen(1e-3).audit)
    for best, words in ((5e-4, "below 0.0005"), (2e-3, "above 0.002")):
        edge = chosen(best)
        assert edge.tried and not edge.tuned and edge.arms["minilm"].recipe.learning_rate == best
        (line,) = (line for line in edge.audit if "extend the grid" in line)
        assert line.startswith("minilm: ") and line.endswith(words)
    assert chosen(1e-3, diverged=(2e-3,)).tuned  # a rate that diverged was tried, and is worse
    single = study.model_copy(update={"tuning": TuningSpec(learning_rate=(1e-3,))})
    one = plan(single, profile_of(single))
    assert not choose_rates(one, {t.schedule.arm: 5.0 for t in one.trials}).tuned


@pytest.mark.parametrize("teacher_charge", ["inference", "pretraining"])
def test_trials_take_a_share_of_the_largest_budget_with_several_seeds(tmp_path, teacher_charge: str) -> None:
    study = tuned(tmp_path, "budget_share = 0.1\nseeds = [3, 5]\n")
    made = plan(study, profile_of(study), budgets=("3e9", "3e10"), teacher_charge=teacher_charge)
    assert {t.seeds for t in made.trials} == {(3, 5)} and trial_plan(made).seeds == (3, 5)
    top = {s.arm: s for s in made.schedules if s.rung == 1}
    for trial in made.trials:
        left = top[trial.arm].budget.amount - top[trial.arm].teacher_charge
        assert trial.schedule.required_flops == pytest.approx(0.1 * left, rel=0.01)
        assert trial.schedule.warmup_steps == made.trials[0].schedule.warmup_steps
    flops = 2 * sum(trial.schedule.required_flops for trial in made.trials)
    note = tuning_note(made) or ""
    assert "at 0.1 of the largest budget with seeds 3, 5" in note and format_amount(flops, "required_flops") in note


def test_all_seeds_of_charged_trials_are_paid_for(tmp_path) -> None:
    study = tuned(tmp_path, "charge = true\nbudget_share = 0.05\nseeds = [3, 5]\n")
    study = study.model_copy(update={"plan": study.plan.model_copy(update={"tolerance_fraction": 0.9})})
    made = plan(study, profile_of(study), budgets=("1e9", "1e10"))
    for schedule in made.schedules:
        spent = 2 * sum(t.schedule.required_flops for t in made.trials if t.arm == schedule.arm)
        assert schedule.tuning_charge == pytest.approx(spent)
        if schedule.rung == 0:
            assert not schedule.feasible and "with 6 trials of learning rates" in (schedule.reason or "")
        else:
            assert schedule.feasible and spent + schedule.required_flops <= 1e10 * (1 + 1e-12)


def test_the_mean_over_seeds_decides_and_a_missing_seed_is_a_diverged_trial(tmp_path) -> None:
    study = tuned(tmp_path, "seeds = [3, 5]\n")
    made = plan(study, profile_of(study))

    def score(trial: str, seed: int, value: float, task: str = "readout_loss") -> Score:
        return Score(run_id=trial, arm=trial, run_seed=seed, task=task, metric="nats",
                     value=value, recipe_hash="none", higher_is_better=False, num_examples=1)  # fmt: skip

    given = [score("no_kd~0.001", 3, 5.0), score("no_kd~0.001", 5, 6.0), score("no_kd~0.002", 3, 1.0),
             score("no_kd~0.001", 3, 9.0, task="mlm_loss")]  # fmt: skip
    assert trial_losses(made, given) == {"no_kd~0.001": 5.5}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("seeds = [0, 0]\n", "must be distinct"),
        ("charge = true\nbudget_share = 0.4\n", "3 charged trials of 0.4 of the largest budget leave nothing"),
        ("budget_share = 0\n", "greater than 0"),
        ("seeds = [-1]\n", "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_tried_is_one_line(tmp_path, lines: str, words: str) -> None:
    with pytest.raises(CallerError, match=words):
        tuned(tmp_path, lines)


def test_trials_of_another_study_decide_nothing(tmp_path) -> None:
    study = tuned(tmp_path)
    key = trials_key(plan(study, profile_of(study)))
    wider = study.models["student"].model_copy(update={"hidden_size": 64})
    for changed in (
        study.model_copy(update={"seeds": (5, 6)}),
        study.model_copy(update={"models": {**study.models, "student": wider}}),
        study.model_copy(update={"plan": study.plan.model_copy(update={"budgets": ("3e9", "6e9")})}),
        study.model_copy(update={"corpus": study.corpus.model_copy(update={"masking": "static"})}),
        study.model_copy(update={"recipe": study.recipe.model_copy(update={"learning_rate": 9e-3})}),
    ):
        assert trials_key(plan(changed, profile_of(changed))) != key
    again = study.model_copy(update={"plan": study.plan.model_copy(update={"budgets": ("1.5e9", "9e9")})})
    assert trials_key(plan(again, profile_of(again))) == key


def test_rates_must_be_above_zero(tmp_path) -> None:
    path = write_small_study(tmp_path, "\n[tuning]\nlearning_rate = [0.0, 1e-3]\n")
    with pytest.raises(CallerError, match="greater than 0"):
        load_study(path)


def test_replaced_weights_make_other_trials(tmp_path) -> None:
    study = tuned(tmp_path)
    given = study.models["student"].model_copy(update={"weights": str(tmp_path / "given")})
    made = plan(study, profile_of(study)).model_copy(update={"models": {**study.models, "student": given}})
    weights = tmp_path / "given" / "model.safetensors"
    weights.parent.mkdir()
    keys = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        keys.append(trials_key(made, *scored_with(made, study.evaluate)))
    assert keys[0] != keys[1] and keys[0] == keys[2]
