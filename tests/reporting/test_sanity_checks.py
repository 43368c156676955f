"""The checks compare the stated numbers with the stated thresholds, and a missing number never passes."""

from __future__ import annotations

import pytest
import reporting_values as values

from budgetlab.fitting.scores import LOSSES
from budgetlab.reporting import SanityCheck, conclude, conclude_study, sanity_checks

TEACHER, UNIGRAM, RANDOM = range(3)


def changed(test, **update):
    return [score.model_copy(update=update) if test(score) else score for score in values.scores()]


def test_a_study_above_the_threshold_passes_all_checks_and_ends_with_its_verdicts():
    checks = sanity_checks(values.scores())
    assert all(check.passed and check.judged for check in checks)
    sentence = conclude(checks, values.verdicts())
    assert sentence == (
        "At 4.00 TFLOP, on the read-out loss and for this teacher, in nats with 95 % intervals: "
        "no_kd is better than vanilla_kd by 0.105 [+0.043, +0.167]; "
        "minilm against no_kd is not resolved (-0.052 [-0.114, +0.010], detectable 0.087); "
        "no_kd is better than tinybert by 0.203 [+0.141, +0.265]. It rests on the read-out loss alone: no second "
        "yardstick was measured."
    )


def test_each_check_states_its_numbers_and_units():
    checks = sanity_checks(values.scores())
    assert "nats per target token: teacher 4.61" in checks[TEACHER].sentence
    assert "(at least 0.30 below needed)" in checks[TEACHER].sentence
    assert "unigram entropy 6.03" in checks[UNIGRAM].sentence
    assert "replaced (matthews): " in checks[RANDOM].sentence
    assert "random weights 51.4" in checks[RANDOM].sentence


def test_the_teacher_must_be_ahead_by_exactly_the_threshold():
    def students(value):
        found = changed(lambda s: s.task == "mlm_loss" and s.subject == "run", value=value)
        return sanity_checks(found)[TEACHER].passed

    assert students(4.91)
    assert not students(4.90)


def test_one_student_too_near_the_teacher_at_any_budget_fails():
    near = changed(lambda s: s.task == "mlm_loss" and s.arm == "vanilla_kd" and s.rung == 0, value=4.7)
    check = sanity_checks(near)[TEACHER]
    assert check.judged and not check.passed
    assert "0.09 below the nearest" in check.sentence


def test_the_best_student_must_be_half_a_nat_below_the_unigram_entropy():
    weak = changed(lambda s: s.subject == "unigram", value=5.5)
    assert not sanity_checks(weak)[UNIGRAM].passed


def test_every_arm_must_beat_random_weights_on_every_task_at_the_largest_budget():
    weak = changed(lambda s: s.task == "belongs" and s.arm == "minilm" and s.rung == 2, value=0.514)
    check = sanity_checks(weak)[RANDOM]
    assert not check.passed
    assert check.sentence.endswith("not above: minilm on belongs.")
    early = changed(lambda s: s.task == "belongs" and s.arm == "minilm" and s.rung == 0, value=0.4)
    assert sanity_checks(early)[RANDOM].passed


def test_on_glue_one_student_must_be_clearly_above_random_weights():
    """Labels teach random weights much there, so one clear lead is asked for, and who has none is named."""
    names = {"belongs": "stsb", "replaced": "sst2"}
    glue = [score.model_copy(update={"task": names.get(score.task, score.task)}) for score in values.scores()]
    check = sanity_checks(glue)[RANDOM]
    assert check.passed and "every arm on stsb" in check.sentence.partition("clearly above:")[2]
    level = [
        score.model_copy(update={"value": 0.5})
        if score.task in names.values() and score.subject != "teacher"
        else score
        for score in glue
    ]
    check = sanity_checks(level)[RANDOM]
    assert check.judged and not check.passed and "clearly above: none" in check.sentence
    one_seed = [score for score in glue if score.subject != "run" or score.run_seed == 0]
    check = sanity_checks(one_seed)[RANDOM]
    assert not check.passed and not check.judged


def test_a_failed_check_replaces_the_verdict():
    weak = changed(lambda s: s.subject == "unigram", value=5.5)
    sentence = conclude(sanity_checks(weak), values.verdicts())
    assert sentence.startswith("below the learning threshold")
    assert "no_kd" not in sentence


def test_a_missing_number_passes_no_check_and_fails_none():
    for missing, index in (("teacher", TEACHER), ("unigram", UNIGRAM), ("random", RANDOM)):
        checks = sanity_checks([s for s in values.scores() if s.subject != missing])
        assert not checks[index].passed and not checks[index].judged
        assert "n/a" in checks[index].sentence
        sentence = conclude(checks, values.verdicts())
        assert sentence.startswith("no verdict: numbers are missing")
    assert not any(check.passed for check in sanity_checks([]))


def test_an_arm_that_was_planned_but_not_scored_is_missing():
    some = [s for s in values.scores() if not (s.arm == "tinybert" and s.rung == 2)]
    check = sanity_checks(some, arms=values.ARMS, rung=2)[RANDOM]
    assert not check.passed and not check.judged
    assert "tinybert n/a" in check.sentence


def test_without_verdicts_there_is_none():
    passed = [SanityCheck(name="a", passed=True, sentence="b.")]
    assert conclude(passed, []).startswith("no verdict:")


def test_one_primary_contrast_ends_the_study_in_its_own_words():
    primary, *others = values.verdicts()
    others = [verdict.model_copy(update={"primary": False}) for verdict in others]
    assert conclude([], [primary, *others]).startswith(primary.sentence)
    second = primary.model_copy(update={"y": "adapted_loss", "primary": False})
    assert conclude([], [primary, second, *others]) == primary.sentence


def test_all_four_verdicts_have_words():
    better = values.verdicts()[0].model_copy(
        update={"verdict": "a_better", "difference": 0.005, "interval": (0.001, 0.009)}
    )
    equal = values.verdicts()[1].model_copy(
        update={"verdict": "equivalent", "difference": 0.001, "interval": (-0.004, 0.006)}
    )
    single = values.verdicts()[2].model_copy(update={"verdict": "not_resolved", "interval": None})
    sentence = conclude([], [better, equal, single])
    assert "vanilla_kd is better than no_kd by 0.005, less than the margin of 0.01, [+0.001, +0.009]" in sentence
    assert "minilm and no_kd are equivalent within 0.01 (+0.001 [-0.004, +0.006])" in sentence
    assert "these checkpoints of tinybert and no_kd differ by -0.203, which one run per arm cannot resolve" in sentence


def of(one, **changes):
    return one.model_copy(update=changes)


@pytest.fixture
def lead():
    """The first primary contrast, as one that the first arm wins."""
    first = next(v for v in values.verdicts() if v.primary)
    return of(first, verdict="a_better", difference=0.4, interval=(0.3, 0.5), adjusted_interval=None)


def test_two_yardsticks_that_disagree_are_the_verdict(lead):
    """Neither loss is then the answer, and both stand in the sentence."""
    changes = {"y": "adapted_loss", "primary": False}
    turned = of(lead, verdict="b_better", difference=-0.4, interval=(-0.5, -0.3), **changes)
    sentence = conclude([], [lead, turned])
    assert "disagree, so neither is the verdict" in sentence and "the adapted loss" in sentence
    assert "disagree" not in conclude([], [lead, of(lead, **changes)])


def test_an_outcome_that_contradicts_stands_in_the_sentence(lead):
    a, b = lead.contrast
    changes = {"y": "score", "unit": "points", "primary": False, "interval": (-2.1, -1.2), "difference": -1.7}
    turned = of(lead, verdict="b_better", **changes)
    sentence = conclude([], [lead, turned])
    assert f"But on the mean score, in points, {b} is better than {a} by 1.7 [+1.2, +2.1]." in sentence
    assert "But" not in conclude([], [lead, of(turned, verdict="not_resolved")])
    assert "But" not in conclude([], [lead, of(turned, informative=False)])


def test_what_was_not_tuned_is_said():
    first = next(v for v in values.verdicts() if v.primary)
    assert "One learning rate was used for all arms, not tuned." in conclude([], [of(first, tuned=False)])
    assert "not tuned" not in conclude([], [of(first, tuned=True)])


def test_a_task_that_tells_nothing_gives_no_verdict():
    first = next(v for v in values.verdicts() if v.primary)
    assert conclude([], [of(first, y="sst2", unit="points", informative=False)]).startswith(
        "no verdict: sst2 is not informative"
    )


def test_a_study_without_tasks_is_judged_on_its_loss():
    losses = [s for s in values.scores() if s.task in LOSSES]
    check = sanity_checks(losses)[RANDOM]
    assert check.judged and check.passed and "in nats: readout_loss" in check.sentence
    level = changed(lambda s: s.subject == "run" and s.task == "readout_loss", value=9.0)
    check = sanity_checks([s for s in level if s.task in LOSSES])[RANDOM]
    assert check.judged and not check.passed


def test_students_of_given_weights_are_said_to_be_pretrained_on():
    plan = values.plan()
    students = {arm.student for arm in plan.arms.values()}
    given = {name: plan.models[name].model_copy(update={"weights": "bert"}) for name in students}
    continued = plan.model_copy(update={"models": {**plan.models, **given}})
    said = "Students start from given weights: this is continued pretraining."
    assert conclude_study(continued, values.scores(), values.verdicts()).sentence.endswith(said)
    assert "given weights" not in conclude_study(plan, values.scores(), values.verdicts()).sentence
