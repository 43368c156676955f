"""Scores of checkpoints: read-out loss for every arm alike, the own head's loss, fine-tuning on tasks.

All of it is metered outside the budget. Each score has one file under a content key, so a finished one is never
computed twice, and one checkpoint, seed and recipe give one score whatever else runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from budgetlab.corpus import Corpus
from budgetlab.engines.leases import Leases
from budgetlab.engines.local import Shared, work
from budgetlab.errors import BudgetlabError
from budgetlab.evaluation.jobs import Choice, Job, Scorer, list_jobs, list_subjects
from budgetlab.evaluation.metrics import measure, paired_bootstrap, score_predictions, select
from budgetlab.evaluation.probes import PROBES, build_probes
from budgetlab.evaluation.tasks import GLUE, Task, load_task, majority_metrics
from budgetlab.machine import visible_gpus
from budgetlab.store import Store, look_anew, read_value
from budgetlab.values import NUMERICS_VERSION, EvaluateSpec, Plan, RunRecord, Score, content_hash
from budgetlab.values.scoring import recipe_hash

__all__ = ["GLUE", "PROBES", "Progress", "Task", "build_probes", "evaluate", "load_task", "measure", "paired_bootstrap"]


_NO_PACE = 5


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
    left: list[str] | None = None,
) -> list[Score]:
    """Score every finished run of a plan, its teachers, and the baselines; not what another worker is at.

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
    left
        Gets names of what other workers are at, once nothing else is left; without it that is waited for.

    Returns
    -------
    scores
        All scores of this plan: runs, "teacher", "random" (the student's initial weights for each run_seed), "majority"
        (the most frequent answer) and "unigram" (held-out cross-entropy of word frequencies).

    Raises
    ------
    CallerError
        When the plan has no finished run, or another worker's corpus or version of the numerics is not this one's.
    BudgetlabError
        When something could not be scored, and there is no `say`.
    """
    by_name = {task.name: task for task in tasks}
    jobs, choices = list_jobs(plan, list_subjects(plan, records), spec, corpus, by_name)
    # The fine-tunings of a grid are wanted only as far as a choice is to be made from them.
    undecided = [c for c in choices if not all(store.score_path(c.subject.run_id, k).exists() for k in c.keys.values())]
    of_grids = {id(job) for choice in choices for job in choice.jobs}
    wanted = {id(job) for choice in undecided for job in choice.jobs}
    plain = [job for job in jobs if id(job) not in of_grids]
    todo = [
        job
        for job in jobs
        if (id(job) in wanted or id(job) not in of_grids) and not job.has(store, predictions=id(job) in wanted)
    ]
    started, reasons, done = time.monotonic(), Counter[str](), 0

    def ended(job: Job) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            # The first few take the start of the workers on top, and are no pace.
            known = done >= min(_NO_PACE, len(todo))
            seconds_left = (time.monotonic() - started) / done * (len(todo) - done) if known else None
            progress(Progress(f"{job.subject.run_id} {job.task}", done, len(todo), seconds_left))

    def has_ended(job: Job) -> bool:
        look_anew(store.run_folder(job.subject.run_id) / "scores")
        return job.has(store, predictions=id(job) in wanted)

    about = {"numerics_version": NUMERICS_VERSION, "corpus": corpus.content_hash}
    with Leases(store.folder / "leases", about) as leases:
        shared = Shared(
            leases,
            name=lambda job: f"score-{next(iter(job.keys.values()))}",
            has_ended=has_ended,
            tell_ended=ended,
            left=left,
        )
        arguments, execution = (plan, spec, corpus, store, by_name), plan.execution
        gpus = visible_gpus(execution.device)
        for number, reason in work(Scorer, arguments, todo, workers=execution.side_by_side, shared=shared, gpus=gpus):
            if reason is not None:
                reasons[reason] += 1
            ended(todo[number])
    for choice in undecided:
        if all(job.has(store, predictions=True) for job in choice.jobs):
            _choose(choice, spec, store, by_name[choice.task])
    named = [(job.subject, key) for job in plain for key in job.keys.values()]
    named += [(choice.subject, key) for choice in choices for key in choice.keys.values()]
    metrics = {split: task.metric for task in tasks for split in task.validation}
    for subject, key in named:
        score = store.read_score(subject.run_id, key)
        if score is None:
            continue
        # Its budget may have another number in this plan, its task another primary metric.
        about = {**subject.about(), "key": key}
        if (metric := metrics.get(score.task)) is not None:
            averaged = spec.is_averaged(score.task)
            about |= {"metric": metric, "value": score.metrics[metric], "averaged": averaged}
        if score.model_copy(update=about) != score:
            store.write_score(key, score.model_copy(update=about))
    causal = next(iter(plan.arms.values())).recipe.causal
    names = [
        *_baselines(corpus, tasks, spec, store, "lm_loss" if causal else "mlm_loss"),
        *(f"{subject.run_id}/{key}" for subject, key in named),
    ]
    store.write_index(scores=names)
    lines = [f"{reason}{f' ({count} scores)' if count > 1 else ''}" for reason, count in reasons.items()]
    if lines and say is None:
        remedy = "all others are kept; mend this and evaluate again"
        raise BudgetlabError(f"evaluate {plan.study}, {sum(reasons.values())} not scored", "; ".join(lines), remedy)
    if say is not None:
        for line in lines:
            say(line)
    return store.scores()


def _choose(choice: Choice, spec: EvaluateSpec, store: Store, task: Task) -> None:
    """Write the scores of a grid's best point."""
    run_id = choice.subject.run_id
    for split in task.validation:
        trials = {
            recipe: [store.predictions(run_id, job.keys[split]) for job in jobs]
            for recipe, jobs in choice.trials.items()
        }
        frames, words = select(trials, task.metric, spec.selection)
        for frame, seed in zip(frames, spec.seeds_of(task.name), strict=True):
            key = choice.keys[seed, split]
            of_seed = [job.keys[split] for job in choice.jobs if job.finetune_seed == seed]
            spent = [read_value(Score, store.score_path(run_id, each)) for each in of_seed]
            update = {
                **choice.subject.about(),
                **score_predictions(frame, task.metric),
                "key": key,
                "recipe": words,
                "recipe_hash": recipe_hash(*choice.trials, spec.selection),
                "evaluation_seconds": sum(score.evaluation_seconds for score in spent),
            }
            store.write_predictions(run_id, key, frame)
            store.write_score(key, spent[0].model_copy(update=update))


def _baselines(
    corpus: Corpus, tasks: Sequence[Task], spec: EvaluateSpec, store: Store, own_loss: str
) -> list[str]:  # fmt: skip
    """Score what needs no network: each task's majority answer, the unigram entropy; return their index names."""
    run_id = f"yardsticks-{content_hash(corpus.content_hash)[:8]}"
    found = {
        content_hash("unigram", corpus.content_hash, *(() if own_loss == "mlm_loss" else (own_loss,))): {
            "subject": "unigram",
            "task": own_loss,
            "metric": "nats",
            "value": corpus.unigram_entropy_nats,
            "higher_is_better": False,
            "num_examples": len(corpus.heldout),
        }
    }
    for task in tasks:
        for split, examples in task.validation.items():
            metrics = majority_metrics(task, split)
            found[content_hash("majority", task.content_hash(split))] = {
                "subject": "majority",
                "task": split,
                "metric": task.metric,
                "value": metrics[task.metric],
                "metrics": metrics,
                "averaged": spec.is_averaged(split),
                "higher_is_better": True,
                "num_examples": len(examples.labels),
            }
    for key, about in found.items():
        store.write_score(key, Score(run_id=run_id, arm=about["subject"], recipe_hash="none", **about))
    return [f"{run_id}/{key}" for key in found]
