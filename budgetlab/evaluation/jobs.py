"""What there is to score: networks, and for each the measurements, named by all that decides their outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.evaluation.readout import ADAPTED_VERSION, READOUT_VERSION, adaptation
from budgetlab.evaluation.tasks import Task
from budgetlab.models import given_key
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.values import EvaluateSpec, FinetuneRecipe, Plan, Recipe, RunRecord, content_hash
from budgetlab.values.scoring import recipe_hash

YARDSTICK_SEED = 20_240_430
"""Seed of the samples and masks that every network is measured with."""
HELDOUT_SEQUENCES = 1500

_MEASURED_WITH = ("seq_len", "mask_fraction", "dtype", "attention")
"""What of the first arm's recipe decides the losses of every network."""
_FINETUNED_WITH = ("seq_len", "dtype", "attention")


@dataclass(frozen=True)
class Subject:
    """A network to be scored: a finished run, a teacher, or random weights."""

    run_id: str
    key: str
    weights: str
    """Hash of its weights, or of what they follow from."""
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
class Job:
    """One measurement: a loss, or one fine-tuning, which yields a score for each validation set."""

    subject: Subject
    task: str
    keys: dict[str, str]
    """The score's name -> its key."""
    finetune_seed: int | None = None
    recipe: FinetuneRecipe | None = None

    def has(self, store: Store, *, predictions: bool = False) -> bool:
        """Whether its scores are there, and their predictions where these are needed."""
        paths = [store.score_path(self.subject.run_id, key) for key in self.keys.values()]
        if predictions:
            paths += [store.predictions_path(self.subject.run_id, key) for key in self.keys.values()]
        return all(path.exists() for path in paths)


@dataclass(frozen=True)
class Choice:
    """Scores that are chosen from the fine-tunings of a grid: for each seed and validation set, a key."""

    subject: Subject
    task: str
    trials: dict[FinetuneRecipe, list[Job]] = field(default_factory=dict)
    keys: dict[tuple[int, str], str] = field(default_factory=dict)

    def has(self, store: Store) -> bool:
        """Whether its scores are there."""
        return all(store.score_path(self.subject.run_id, key).exists() for key in self.keys.values())


def yardstick_recipe(plan: Plan) -> Recipe:
    """Return the recipe whose sequence length, masks and precision every network is measured with."""
    return next(iter(plan.arms.values())).recipe


def list_subjects(plan: Plan, records: Sequence[RunRecord]) -> list[Subject]:
    """List the networks: finished runs, teachers, and the students' initial weights for each run seed."""
    found = []
    for record in records:
        if record.status != "complete" or record.kind not in ("teacher", "rung"):
            continue
        kind: Literal["run", "teacher"] = "teacher" if record.kind == "teacher" else "run"
        trains_head = kind == "teacher" or build_strategy(plan.arms[record.arm].strategy, record.arm).trains_head
        weights = record.weights_hash or record.key
        found.append(
            Subject(record.run_id, record.key, weights, kind, record.arm, record.student, record, record.run_seed,
                    trains_head)
        )  # fmt: skip
    if not any(subject.subject == "run" for subject in found):
        raise CallerError(f"evaluate {plan.study}", "it has no finished run", "run it first")
    hashes = {plan.arms[r.arm].teacher: r.teacher_hash for r in records if r.kind == "rung" and r.teacher_hash}
    taught = {r.teacher_key for r in records}
    for teacher in plan.teachers:
        if teacher.weights is not None:
            # Runs of an earlier version are keyed by the path alone; its scores go on with theirs.
            spec = plan.models[teacher.model]
            by_path = content_hash("weights", spec.identity())
            key = by_path if by_path in taught else given_key(spec)
            run_id = f"{teacher.model}-weights-{key[:8]}"
            weights = hashes.get(teacher.model, key)
            found.append(Subject(run_id, key, weights, "teacher", teacher.model, teacher.model, None, 0, True))
    for model in dict.fromkeys(arm.student for arm in plan.arms.values()):
        for seed in plan.seeds:
            key = content_hash("random", plan.models[model], seed)
            run_id = f"random-{model}-s{seed}-{key[:8]}"
            found.append(Subject(run_id, key, key, "random", "random weights", model, None, seed, False))
    return found


def list_jobs(
    plan: Plan, subjects: Sequence[Subject], spec: EvaluateSpec, corpus: Corpus, tasks: Mapping[str, Task]
) -> tuple[list[Job], list[Choice]]:
    """List all measurements, and what is to be chosen from those of a grid."""
    how = yardstick_recipe(plan)
    yardstick = (YARDSTICK_SEED, HELDOUT_SEQUENCES, *(getattr(how, name) for name in _MEASURED_WITH))
    top = max(schedule.rung for schedule in plan.schedules if schedule.feasible)
    data = {(name, split): task.content_hash(split) for name, task in tasks.items() for split in task.validation}
    words = content_hash(sorted(corpus.tokenizer().get_vocab().items())) if tasks else ""
    finetuned_with = (words, *(getattr(how, name) for name in _FINETUNED_WITH))
    jobs: list[Job] = []
    choices: list[Choice] = []
    for subject in subjects:
        base = (subject.key, "readout_loss", READOUT_VERSION, *yardstick, spec.readout_tokens, corpus.content_hash)
        jobs.append(Job(subject, "readout_loss", {"readout_loss": content_hash(*base)}))
        schedule = None if subject.record is None else subject.record.schedule
        below = schedule is not None and schedule.rung != top
        if spec.adapted_tokens and not (below and "adapted_loss" in spec.largest_budget_only):
            base = (subject.key, "adapted_loss", ADAPTED_VERSION, HELDOUT_SEQUENCES, adaptation(how),
                    spec.adapted_tokens, corpus.content_hash)  # fmt: skip
            jobs.append(Job(subject, "adapted_loss", {"adapted_loss": content_hash(*base)}))
        if subject.trains_head:
            base = (subject.key, "mlm_loss", None, *yardstick, corpus.content_hash)
            jobs.append(Job(subject, "mlm_loss", {"mlm_loss": content_hash(*base)}))
        for name, task in tasks.items():
            if below and name in spec.largest_budget_only:
                continue

            def finetuning(seed: int, recipe: FinetuneRecipe, task: Task = task, subject: Subject = subject) -> Job:
                how = recipe_hash(recipe, *finetuned_with)
                seeded = content_hash(subject.weights, how, seed, subject.run_seed)
                keys = {s: content_hash(seeded, data[task.name, s]) for s in task.validation}
                return Job(subject, task.name, keys, seed, recipe)

            grid = {recipe: [finetuning(seed, recipe) for seed in spec.seeds_of(name)] for recipe in spec.recipes(name)}
            jobs += [job for trials in grid.values() for job in trials]
            if len(grid) > 1:
                choices.append(_choice(subject, task, grid, spec))
    return jobs, choices


def _choice(subject: Subject, task: Task, grid: dict[FinetuneRecipe, list[Job]], spec: EvaluateSpec) -> Choice:
    trials = [job for points in grid.values() for job in points]
    keys = {
        (seed, split): content_hash(spec.selection, task.metric, [job.keys[split] for job in trials], seed)
        for seed in spec.seeds_of(task.name)
        for split in task.validation
    }
    return Choice(subject, task.name, grid, keys)
