"""Evaluation whole: what is stored, that nothing is done twice, how a grid is chosen from, and that others go on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from budgetlab import evaluation
from budgetlab.batches import keyed_uniform
from budgetlab.checkpoint import save_checkpoint
from budgetlab.errors import BudgetlabError
from budgetlab.evaluation import measure, paired_bootstrap
from budgetlab.evaluation.metrics import predictions_frame, score_predictions, select
from budgetlab.fitting.scores import LOSSES
from budgetlab.frames import scores_frame
from budgetlab.values import EvaluateSpec, FinetuneRecipe, Score

SPEC = EvaluateSpec(tasks=("mrpc", "stsb", "mnli"), seeds=(0, 1), epochs=1, learning_rate=1e-3,
                    readout_tokens=1024, adapted_tokens=1024)  # fmt: skip


@pytest.fixture(scope="module")
def scores(trained) -> list[Score]:
    return trained.evaluate(SPEC)


def of(scores: list[Score], **wanted: object) -> list[Score]:
    return [s for s in scores if all(getattr(s, name) == value for name, value in wanted.items())]


def timeless(scores: list[Score]) -> list[Score]:
    return [s.model_copy(update={"evaluation_seconds": 0.0}) for s in scores]


def test_every_network_and_yardstick_has_every_task(scores: list[Score]) -> None:
    of_masked = {"mlm_loss", "readout_loss", "adapted_loss"}
    assert {s.task for s in scores} == {*of_masked, "mrpc", "stsb", "mnli", "mnli_mismatched"}
    for task in ("mrpc", "stsb", "mnli", "mnli_mismatched"):
        assert {s.subject for s in of(scores, task=task)} == {"run", "teacher", "random", "majority"}
        assert len(of(scores, task=task, subject="run", arm="no_kd")) == 2 * 2  # run seeds x fine-tuning seeds
    assert [s.task for s in scores if s.arm == "no_kd" and not s.averaged] == ["mnli_mismatched"] * 4


def test_a_score_has_all_metrics_loss_error_and_what_was_used(scores: list[Score], trained) -> None:
    for score in of(scores, subject="run"):
        if score.task in LOSSES:
            continue
        frame = trained.store.predictions(score.run_id, score.key)
        labels, predictions = frame["label"].to_numpy(), frame["prediction"].to_numpy()
        assert score.metrics == pytest.approx(measure(labels, predictions))
        assert score.value == score.metrics[score.metric] and score.num_examples == len(frame)
        assert score.validation_loss is not None and 0 < score.validation_loss < 20
        assert score.standard_errors.keys() == score.metrics.keys()
        assert score.degenerate is (len(set(predictions)) == 1)
        assert score.train_examples == 64 and "of" in score.subset
        if score.task != "stsb":
            logits = frame[[name for name in frame if name.startswith("logit_")]].to_numpy(dtype=float)
            assert (logits.argmax(-1) == predictions).all()
            of_right = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(-1))
            assert score.validation_loss == pytest.approx(-of_right.mean(), rel=1e-4)


def test_what_is_stored_is_enough_for_paired_tests(scores: list[Score], trained) -> None:
    one, other = (of(scores, task="mrpc", arm=arm, run_seed=0, finetune_seed=0)[0] for arm in ("no_kd", "vanilla_kd"))
    a, b = (trained.store.predictions(score.run_id, score.key) for score in (one, other))
    assert paired_bootstrap(a, b, "f1", resamples=200).difference == pytest.approx(one.value - other.value)


def test_nothing_is_scored_twice_and_what_is_lost_is_scored_again(
    scores: list[Score], trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    inner = evaluation.work
    monkeypatch.setattr(evaluation, "work", lambda *given, **more: (done.extend(given[2]), inner(*given, **more))[1])
    assert timeless(trained.evaluate(SPEC)) == timeless(scores) and done == []
    lost = of(scores, task="mnli_mismatched", subject="run")[0]
    trained.store.score_path(lost.run_id, lost.key).unlink()
    again = trained.evaluate(SPEC)
    assert [(job.task, job.subject.run_id) for job in done] == [("mnli", lost.run_id)]
    assert timeless(again) == timeless(scores)


def test_a_key_follows_checkpoint_data_recipe_and_seed_and_nothing_else(scores: list[Score], trained) -> None:
    def keys(**changes: object) -> set[str]:
        spec = SPEC.model_copy(update={"tasks": ("mrpc",), **changes})
        jobs, _ = evaluation.list_jobs(
            trained.plan,
            evaluation.list_subjects(trained.plan, trained.records),
            spec,
            trained.corpus,
            {"mrpc": evaluation.load_task("mrpc", spec, folder=trained.glue)},
        )
        return {key for job in jobs if job.task == "mrpc" for key in job.keys.values()}

    assert keys() == {s.key for s in of(scores, task="mrpc") if s.subject != "majority"}
    assert keys() == keys(average=("mrpc",), readout_tokens=99, primary={"mrpc": "accuracy"}, own={})
    for changed in ({"epochs": 2}, {"learning_rate": 2e-3}, {"dropout": 0.0}, {"max_train_examples": 9}):
        assert not keys() & keys(**changed)
    assert keys() < keys(seeds=(0, 1, 2))
    reread = [r.model_copy(update={"weights_hash": "other"}) if r.kind == "rung" else r for r in trained.records]
    before, trained.records = trained.records, reread
    assert len(keys() & {s.key for s in scores}) == 3 * 2  # teacher and two sets of random weights are what they were
    trained.records = before


def test_primary_metric_and_average_are_definitions_and_cost_no_run(scores: list[Score], trained) -> None:
    spec = SPEC.model_copy(update={"primary": {"mrpc": "accuracy"}, "average": ("mrpc", "mnli", "mnli_mismatched")})
    other = trained.evaluate(spec)
    for before, after in zip(scores, other, strict=True):
        if before.task == "mrpc":
            assert (after.metric, after.value) == ("accuracy", before.metrics["accuracy"])
    assert {s.task for s in other if s.averaged and s.subject == "run"} >= {"mrpc", "mnli", "mnli_mismatched"}
    assert not any(s.averaged for s in of(other, task="stsb"))
    assert timeless(trained.evaluate(SPEC)) == timeless(scores)


def test_a_grid_is_chosen_from_by_halves(trained) -> None:
    how = {"tasks": ("rte",), "seeds": (0, 1), "learning_rate": (1e-4, 3e-3), "batch_size": (16, 32), "epochs": 1}
    found = trained.evaluate(EvaluateSpec.model_validate({**how, "readout_tokens": 1024}))
    own = of(found, task="rte", subject="run", arm="no_kd")
    assert len(own) == 2 * 2 and all(
        "of 4, each half of the set by the best on the other half" in s.recipe for s in own
    )
    best = trained.evaluate(EvaluateSpec.model_validate({**how, "selection": "maximum", "readout_tokens": 1024}))
    top = of(best, task="rte", subject="run", arm="no_kd")
    assert all("best of 4 on the set it is reported on" in s.recipe for s in top)
    for seed in (0, 1):
        of_run = [[s.value for s in scores if s.run_seed == seed] for scores in (own, top)]
        assert np.mean(of_run[1]) >= np.mean(of_run[0]) - 0.3  # of 40 examples


def test_cross_fit_reports_no_example_by_a_point_that_was_chosen_on_it() -> None:
    examples = 400
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=examples)
    first = keyed_uniform(0, 3, np.arange(examples)) < 0.5
    points = [FinetuneRecipe(epochs=1, learning_rate=rate, batch_size=1) for rate in (1e-4, 2e-4)]
    # The first point is right on the first half only, the second on the second half only.
    right = [first, ~first]
    trials = {
        point: [pd.DataFrame({"example": np.arange(examples), "label": labels,
                              "prediction": np.where(good, labels, 1 - labels)})]
        for point, good in zip(points, right, strict=True)
    }  # fmt: skip
    (frame,), words = select(trials, "accuracy", "cross_fit")
    assert list(frame["example"]) == list(range(examples))
    # Chosen on one half, wrong on the other: nothing is right, though each point is on half of the set.
    assert measure(frame["label"].to_numpy(), frame["prediction"].to_numpy())["accuracy"] == 0.0
    assert words.startswith("0.0002 x 1, 1 epochs and 0.0001 x 1, 1 epochs; of 2, each half")
    (kept,), _ = select(trials, "accuracy", "maximum")
    assert measure(kept["label"].to_numpy(), kept["prediction"].to_numpy())["accuracy"] > 0.4


def test_one_answer_and_no_answer_are_flagged() -> None:
    labels = np.array([0, 1, 1, 0])
    constant = np.array([[0.0, 1.0]] * 4, dtype=np.float32)
    found = score_predictions(predictions_frame(labels, constant), "accuracy")
    assert found["degenerate"] is True and found["value"] == 0.5
    broken = score_predictions(predictions_frame(labels, np.full((4, 2), np.nan, dtype=np.float32)), "accuracy")
    assert broken["degenerate"] is True and broken["validation_loss"] is None
    varied = constant.copy()
    varied[0] = [2.0, 0.0]
    assert score_predictions(predictions_frame(labels, varied), "accuracy")["degenerate"] is False
    numbers = labels.astype(float)
    for outputs in (np.full((4, 1), np.inf), np.ones((4, 1))):
        found = score_predictions(predictions_frame(numbers, outputs.astype(np.float32)), "pearson")
        assert found["degenerate"] is True and found["value"] == 0.0


def test_a_checkpoint_of_another_architecture_is_one_line_and_the_others_go_on(trained) -> None:
    spec = SPEC.model_copy(update={"tasks": ("rte",), "seeds": (7,)})
    victim = next(r for r in trained.records if r.kind == "rung" and r.arm == "no_kd" and r.run_seed == 1)
    folder = trained.store.checkpoints(victim.run_id)
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        save_checkpoint(folder, f"step_{victim.steps:08d}", {"student.other": torch.ones(2)}, {})
        said: list[str] = []
        found = trained.evaluate(spec, say=said.append)
        assert len(said) == 1 and "other tensors than the network" in said[0] and "\n" not in said[0]
        scored_runs = {(s.arm, s.run_seed) for s in of(found, task="rte", subject="run")}
        assert scored_runs == {("no_kd", 0), ("vanilla_kd", 0), ("vanilla_kd", 1)}
        with pytest.raises(BudgetlabError, match=r"1 not scored: .*all others are kept"):
            trained.evaluate(spec)
    finally:
        shutil.rmtree(folder)
        hidden.rename(folder)
    assert len(of(trained.evaluate(spec), task="rte", subject="run")) == 4


def test_the_table_has_metrics_subset_and_error(scores: list[Score]) -> None:
    frame = scores_frame(scores)
    row = frame[(frame["task"] == "mrpc") & (frame["subject"] == "run")].iloc[0]
    assert json.loads(row["metrics"]).keys() == {"accuracy", "f1", "macro_f1", "matthews"}
    assert row["subset"] == "64 of 3,668 train, 40 of 408 validation" and row["standard_error"] > 0
