"""Scores of checkpoints: read-out loss for every arm alike, the own head's loss, fine-tuning on tasks.

All of it is metered outside the budget. Each score has one file under a content key, so a finished one is never
computed twice, and one seed and recipe give one score whatever else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from budgetlab.batches import Batches
from budgetlab.checkpoint import load_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.crew import work
from budgetlab.errors import CallerError
from budgetlab.evaluation.finetune import finetune
from budgetlab.evaluation.probes import PROBES, build_probes
from budgetlab.evaluation.readout import log_unigram, mlm_loss, readout_loss
from budgetlab.evaluation.tasks import GLUE, Task, load_task, majority_score, score_predictions
from budgetlab.hardware import prepare
from budgetlab.models import Network, build_network
from budgetlab.step import load_parameters
from budgetlab.store import Store, read_value
from budgetlab.strategies import build_strategy
from budgetlab.values import EvaluateSpec, Plan, Recipe, RunRecord, Score, content_hash

__all__ = ["GLUE", "PROBES", "Progress", "Task", "build_probes", "evaluate", "load_task"]

YARDSTICK_SEED = 20_240_430
"""Seed of the samples and masks that every network is measured with."""
HELDOUT_SEQUENCES = 1500


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands."""

    what: str
    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class _Subject:
    """A network to be scored: a finished run, or random weights."""

    run_id: str
    key: str
    subject: Literal["run", "teacher", "random"]
    arm: str
    model: str
    record: RunRecord | None
    run_seed: int
    trains_head: bool

    def about(self) -> dict[str, Any]:
        """What a score repeats of its run."""
        record = self.record
        spent = ("steps", "tokens", "target_tokens", "required_flops", "executed_flops", "device_seconds")
        schedule = None if record is None else record.schedule
        return {
            "run_id": self.run_id,
            "subject": self.subject,
            "arm": self.arm,
            "student": self.model,
            "run_seed": self.run_seed,
            "teacher_seed": None if record is None else record.teacher_seed,
            "rung": None if schedule is None else schedule.rung,
            "budget": None if schedule is None else schedule.budget,
            **({} if record is None else {name: getattr(record, name) for name in spent}),
        }


@dataclass(frozen=True)
class _Job:
    subject: _Subject
    task: str
    finetune_seed: int | None
    key: str


def evaluate(
    plan: Plan,
    records: Sequence[RunRecord],
    spec: EvaluateSpec,
    corpus: Corpus,
    store: Store,
    tasks: Sequence[Task],
    *,
    progress: Callable[[Progress], None] | None = None,
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
        Has the checkpoints; gets the scores.
    tasks
        From `load_task`.
    progress
        Told after each score.

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
        When a checkpoint is missing or does not verify.
    """
    say = progress or (lambda where: None)
    subjects = _subjects(plan, records)
    by_name = {task.name: task for task in tasks}
    top = max(schedule.rung for schedule in plan.schedules if schedule.feasible)
    yardstick = (YARDSTICK_SEED, HELDOUT_SEQUENCES, *(getattr(_recipe(plan), name) for name in _MEASURED_WITH))
    contents = {name: task.content_hash() for name, task in by_name.items()}
    jobs = [job for subject in subjects for job in _jobs(subject, spec, corpus, contents, top, yardstick)]
    yardsticks = _yardsticks(corpus, tasks, store)
    todo = [job for job in jobs if not store.score_path(job.subject.run_id, job.key).exists()]
    started = time.monotonic()
    ended = work(_Bench, (plan, spec, corpus, store, by_name), todo, workers=plan.execution.workers)
    for done, (number, _) in enumerate(ended, start=1):
        left = (time.monotonic() - started) / done * (len(todo) - done)
        say(Progress(f"{todo[number].subject.run_id} {todo[number].task}", done, len(todo), left))
    for job in jobs:
        score = read_value(Score, store.score_path(job.subject.run_id, job.key))
        if score.model_copy(update=job.subject.about()) != score:  # its budget has another number in this plan
            store.write_score(job.key, score.model_copy(update=job.subject.about()))
    names = [*yardsticks, *(f"{job.subject.run_id}/{job.key}" for job in jobs)]
    store.write_index(scores=names)
    return store.scores()


def _subjects(plan: Plan, records: Sequence[RunRecord]) -> list[_Subject]:
    found = []
    for record in records:
        if record.status == "complete" and record.kind == "teacher":
            found.append(_subject(record, "teacher", True))
        elif record.status == "complete" and record.kind == "rung":
            strategy = build_strategy(plan.arms[record.arm].strategy, record.arm)
            found.append(_subject(record, "run", strategy.trains_head))
    if not any(subject.subject == "run" for subject in found):
        raise CallerError(f"evaluate {plan.study}", "it has no finished run", "run it first")
    for teacher in plan.teachers:
        if teacher.weights is not None:
            key = content_hash("weights", plan.models[teacher.model].identity())
            run_id = f"{teacher.model}-weights-{key[:8]}"
            found.append(_Subject(run_id, key, "teacher", teacher.model, teacher.model, None, 0, True))
    for model in dict.fromkeys(arm.student for arm in plan.arms.values()):
        for seed in plan.seeds:
            key = content_hash("random", plan.models[model], seed)
            found.append(
                _Subject(f"random-{model}-s{seed}-{key[:8]}", key, "random", "random weights", model, None, seed, False)
            )
    return found


def _subject(record: RunRecord, kind: Literal["run", "teacher"], trains_head: bool) -> _Subject:
    return _Subject(record.run_id, record.key, kind, record.arm, record.student, record, record.run_seed, trains_head)


def _recipe(plan: Plan) -> Recipe:
    """The recipe whose sequence length, masks and precision every network is measured with."""
    return next(iter(plan.arms.values())).recipe


_MEASURED_WITH = ("seq_len", "mask_fraction", "dtype", "attention")
"""What of the first arm's recipe decides the scores of every network."""


def _jobs(
    subject: _Subject,
    spec: EvaluateSpec,
    corpus: Corpus,
    tasks: dict[str, str],
    top: int,
    yardstick: tuple[Any, ...],
) -> list[_Job]:
    """List the scores of a network, each under a key of all that decides it; `tasks` are their content hashes."""

    def job(task: str, seed: int | None, *what: Any) -> _Job:
        return _Job(subject, task, seed, content_hash(subject.key, task, seed, *yardstick, *what))

    jobs = [job("readout_loss", None, spec.readout_tokens, corpus.content_hash)]
    if subject.trains_head:
        jobs.append(job("mlm_loss", None, corpus.content_hash))
    schedule = None if subject.record is None else subject.record.schedule
    for name, task in tasks.items():
        if name in spec.largest_budget_only and schedule is not None and schedule.rung != top:
            continue
        for seed in spec.seeds:
            jobs.append(job(name, seed, recipe_hash(spec), task))
    return jobs


def recipe_hash(spec: EvaluateSpec) -> str:
    """Hash of what decides a fine-tuning's outcome, the seed apart."""
    return content_hash(
        spec.epochs, spec.learning_rate, spec.batch_size, spec.max_train_examples, spec.dropout, spec.pooling
    )


class _Bench:
    """Scores one job after the other; networks and batches are built once."""

    def __init__(self, plan: Plan, spec: EvaluateSpec, corpus: Corpus, store: Store, tasks: dict[str, Task]) -> None:
        self.plan, self.spec, self.corpus, self.store, self.tasks = plan, spec, corpus, store, tasks
        self.device = prepare(plan.execution)
        self.recipe = _recipe(plan)
        self.tokenizer = corpus.tokenizer()
        self.train, self.heldout = (_batches(corpus, stream, self.recipe) for stream in (corpus.train, corpus.heldout))
        self.loaded: tuple[str, Network] | None = None

    def network(self, subject: _Subject) -> Network:
        if self.loaded is None or self.loaded[0] != subject.run_id:
            spec = self.plan.models[subject.model]
            given = subject.subject == "teacher" and subject.record is None
            network = build_network(
                spec if given else spec.untrained(),
                seed=subject.run_seed,
                seq_len=self.recipe.seq_len,
                attention=self.recipe.attention if self.recipe.attention != "auto" else "sdpa",
                device=self.device,
            )
            if subject.record is not None:
                folder = self.store.checkpoints(subject.run_id) / f"step_{subject.record.steps:08d}"
                load_parameters(network, load_checkpoint(folder)[0])
            self.loaded = (subject.run_id, network.eval())
        return self.loaded[1]

    def __call__(self, job: _Job, tell: object, stop_asked: object) -> None:
        network, started = self.network(job.subject), time.perf_counter()
        measured: dict[str, Any]
        if job.task in ("readout_loss", "mlm_loss"):
            heldout_sequences = min(HELDOUT_SEQUENCES, self.heldout.num_samples)
            if job.task == "mlm_loss":
                value, count = mlm_loss(network, self.heldout, sequences=heldout_sequences, dtype=self.recipe.dtype)
            else:
                value, count = readout_loss(
                    network,
                    self.train,
                    self.heldout,
                    train_sequences=min(
                        self.train.num_samples, max(1, self.spec.readout_tokens // self.recipe.seq_len)
                    ),
                    heldout_sequences=heldout_sequences,
                    log_unigram=log_unigram(self.corpus.train, network.word_embeddings.shape[0]),
                    dtype=self.recipe.dtype,
                )
            measured = {"metric": "nats", "value": value, "higher_is_better": False, "num_examples": count}
        else:
            measured = self._finetuned(job, network)
        score = Score(
            **job.subject.about(),
            task=job.task,
            finetune_seed=job.finetune_seed,
            recipe_hash=recipe_hash(self.spec),
            evaluation_seconds=time.perf_counter() - started,
            **measured,
        )
        self.store.write_score(job.key, score)

    def _finetuned(self, job: _Job, network: Network) -> dict[str, Any]:
        task = self.tasks[job.task]
        predictions = finetune(
            network,
            task,
            self.tokenizer,
            self.spec,
            seed=job.finetune_seed or 0,
            max_length=self.recipe.seq_len,
            dtype=self.recipe.dtype,
        )
        table = pd.DataFrame({"label": task.validation_labels, "prediction": predictions})
        path = self.store.run_folder(job.subject.run_id) / "predictions" / f"{job.key}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        return {
            "metric": task.metric,
            "value": score_predictions(task.metric, task.validation_labels, predictions),
            "higher_is_better": True,
            "num_examples": len(task.validation_labels),
            "train_examples": min(len(task.train_labels), self.spec.max_train_examples or len(task.train_labels)),
        }


def _batches(corpus: Corpus, stream: Any, recipe: Recipe) -> Batches:
    return Batches(
        stream,
        corpus.special,
        corpus.vocab_size,
        seq_len=recipe.seq_len,
        masked_per_sequence=recipe.masked_per_sequence,
        run_seed=YARDSTICK_SEED,
    )


def _yardsticks(corpus: Corpus, tasks: Sequence[Task], store: Store) -> list[str]:
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
        found[content_hash("majority", task.name, len(task.validation_labels))] = Score(
            **shared,
            subject="majority",
            arm="majority",
            task=task.name,
            metric=task.metric,
            value=majority_score(task),
            higher_is_better=True,
            num_examples=len(task.validation_labels),
            train_examples=len(task.train_labels),
        )
    for key, score in found.items():
        store.write_score(key, score)
    return [f"{run_id}/{key}" for key in found]
