"""Scores of checkpoints: read-out loss for every arm alike, the own head's loss, fine-tuning on tasks.

All of it is metered outside the budget. Each score has one file under a content key, so a finished one is never
computed twice, and one checkpoint, seed and recipe give one score whatever else runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from budgetlab.corpus import Corpus
from budgetlab.crew import work
from budgetlab.errors import BudgetlabError
from budgetlab.evaluation.bench import Bench
from budgetlab.evaluation.jobs import Choice, list_jobs, list_subjects
from budgetlab.evaluation.metrics import mcnemar, measure, paired_bootstrap
from budgetlab.evaluation.probes import PROBES, build_probes
from budgetlab.evaluation.selection import scored, select
from budgetlab.evaluation.tasks import GLUE, Task, load_task, majority_metrics
from budgetlab.store import Store, read_value
from budgetlab.values import EvaluateSpec, Plan, RunRecord, Score, content_hash
from budgetlab.values.scoring import recipe_hash

__all__ = ["GLUE", "PROBES", "Progress", "Task", "build_probes", "evaluate", "load_task", "mcnemar", "measure",
           "paired_bootstrap"]  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands."""

    what: str
    done: int
    total: int
    seconds_left: float | None


def evaluate(
    plan: Plan,
    records: Sequence[RunRecord],
    spec: EvaluateSpec,
    corpus: Corpus,
    store: Store,
    tasks: Sequence[Task],
    *,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Score]:
    """Score every finished run of a plan, its teachers, and the yardsticks.

    Parameters
    ----------
    plan
        What was asked.
    records
        From `run`; those that are complete are scored.
    spec
        How it is scored.
    corpus
        For the losses.
    store
        Has the checkpoints; gets the scores, and for tasks the predictions.
    tasks
        From `load_task`.
    progress
        Told after each score.
    say
        Told in one line each what could not be scored, while the others go on. Without it that is raised at the end.

    Returns
    -------
    scores
        All scores of this plan: runs, "teacher", "random" (the student's initial weights for each run_seed), "majority"
        (the most frequent answer) and "unigram" (held-out cross-entropy of word frequencies).

    Raises
    ------
    CallerError
        When the plan has no finished run.
    BudgetlabError
        When something could not be scored, and there is no `say`.
    """
    show = progress or (lambda where: None)
    by_name = {task.name: task for task in tasks}
    jobs, choices = list_jobs(plan, list_subjects(plan, records), spec, corpus, by_name)
    # The fine-tunings of a grid are wanted only as far as a choice is to be made from them.
    open_choices = [choice for choice in choices if not choice.has(store)]
    of_grids = {id(job) for choice in choices for trials in choice.trials.values() for job in trials}
    wanted = {id(job) for choice in open_choices for trials in choice.trials.values() for job in trials}
    plain = [job for job in jobs if id(job) not in of_grids]
    todo = [
        job
        for job in jobs
        if (id(job) in wanted and not job.has(store, predictions=True))
        or (id(job) not in of_grids and not job.has(store))
    ]
    started, reasons = time.monotonic(), Counter[str]()
    ended = work(Bench, (plan, spec, corpus, store, by_name), todo, workers=plan.execution.side_by_side)
    for done, (number, reason) in enumerate(ended, start=1):
        if reason is not None:
            reasons[reason] += 1
        left = (time.monotonic() - started) / done * (len(todo) - done)
        show(Progress(f"{todo[number].subject.run_id} {todo[number].task}", done, len(todo), left))
    for choice in open_choices:
        if all(job.has(store, predictions=True) for trials in choice.trials.values() for job in trials):
            _choose(choice, spec, store, by_name[choice.task])
    named = [(job.subject, key) for job in plain for key in job.keys.values()]
    named += [(choice.subject, key) for choice in choices for key in choice.keys.values()]
    metrics = {split: task.metric for task in tasks for split in task.validation}
    for subject, key in named:
        score = store.read_score(subject.run_id, key)
        if score is not None:  # its budget may have another number in this plan, its task another primary metric
            about = {**subject.about(), "key": key, **_as_defined(score, metrics, spec)}
            if score.model_copy(update=about) != score:
                store.write_score(key, score.model_copy(update=about))
    names = [*_yardsticks(corpus, tasks, spec, store), *(f"{subject.run_id}/{key}" for subject, key in named)]
    store.write_index(scores=names)
    lines = [f"{reason}{f' ({count} scores)' if count > 1 else ''}" for reason, count in reasons.items()]
    if lines and say is None:
        remedy = "all others are kept; mend this and evaluate again"
        raise BudgetlabError(f"evaluate {plan.study}, {sum(reasons.values())} not scored", "; ".join(lines), remedy)
    for line in lines:
        assert say is not None
        say(line)
    return store.scores()


def _as_defined(score: Score, metrics: dict[str, str], spec: EvaluateSpec) -> dict[str, Any]:
    """What the study's definitions make of a score: the primary metric, and whether it is averaged."""
    if score.task not in metrics:
        return {}
    metric = metrics[score.task]
    return {"metric": metric, "value": score.metrics[metric], "averaged": spec.is_averaged(score.task)}


def _choose(choice: Choice, spec: EvaluateSpec, store: Store, task: Task) -> None:
    """Write the scores of a grid's best point."""
    for split in task.validation:
        trials = {
            recipe: [store.predictions(choice.subject.run_id, job.keys[split]) for job in jobs]
            for recipe, jobs in choice.trials.items()
        }
        frames, words = select(trials, task.metric, spec.selection)
        for frame, seed in zip(frames, spec.seeds_of(task.name), strict=True):
            key = choice.keys[seed, split]
            of_seed = [job for jobs in choice.trials.values() for job in jobs if job.finetune_seed == seed]
            spent = [read_value(Score, store.score_path(choice.subject.run_id, job.keys[split])) for job in of_seed]
            update = {
                **choice.subject.about(),
                **scored(task, frame),
                "key": key,
                "recipe": words,
                "recipe_hash": recipe_hash(*choice.trials, spec.selection),
                "evaluation_seconds": sum(score.evaluation_seconds for score in spent),
            }
            store.write_predictions(choice.subject.run_id, key, frame)
            store.write_score(key, spent[0].model_copy(update=update))


def _yardsticks(corpus: Corpus, tasks: Sequence[Task], spec: EvaluateSpec, store: Store) -> list[str]:
    """Score what needs no network: each task's majority answer, the unigram entropy; return their index names."""
    run_id = f"yardsticks-{content_hash(corpus.content_hash)[:8]}"
    shared: dict[str, Any] = {"run_id": run_id, "recipe_hash": "none"}
    unigram = Score(
        **shared,
        subject="unigram",
        arm="unigram",
        task="mlm_loss",
        metric="nats",
        value=corpus.unigram_entropy_nats,
        higher_is_better=False,
        num_examples=len(corpus.heldout),
    )
    found = {content_hash("unigram", corpus.content_hash): unigram}
    for task in tasks:
        for split, examples in task.validation.items():
            metrics = majority_metrics(task, split)
            found[content_hash("majority", task.content_hash(split))] = Score(
                **shared,
                subject="majority",
                arm="majority",
                task=split,
                metric=task.metric,
                value=metrics[task.metric],
                metrics=metrics,
                averaged=spec.is_averaged(split),
                higher_is_better=True,
                num_examples=len(examples.labels),
            )
    for key, score in found.items():
        store.write_score(key, score)
    return [f"{run_id}/{key}" for key in found]
