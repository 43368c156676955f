"""What there is to score, named by all that decides its outcome; and the worker that scores one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from budgetlab.batches import batches_of
from budgetlab.checkpoint import load_checkpoint, step_name
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.evaluation.causal import CAUSAL_VERSION, cloze, copying, next_token_loss, word_parts
from budgetlab.evaluation.finetune import Encoded, encode, finetune
from budgetlab.evaluation.harness import decided_by as decided_by_harness
from budgetlab.evaluation.harness import run_harness
from budgetlab.evaluation.metrics import predictions_frame, score_predictions
from budgetlab.evaluation.tasks import Task
from budgetlab.evaluation.yardsticks import (
    ADAPTED_VERSION,
    READOUT_VERSION,
    YARDSTICK_SEED,
    adaptation,
    adapted_loss,
    log_unigram,
    mlm_loss,
    readout_loss,
)
from budgetlab.hardware import prepare
from budgetlab.models import Network, build_network, given_key, load_parameters
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.values import EvaluateSpec, FinetuneRecipe, Plan, RunRecord, Score, content_hash
from budgetlab.values.scoring import (
    CAUSAL_PROBES,
    CONVERGED_NATS,
    READOUT_STEPS,
    harness_scores,
    harness_task,
    recipe_hash,
)

HELDOUT_SEQUENCES = 1500
_MEASURED_WITH = ("seq_len", "mask_fraction", "dtype", "attention")
_OF_CAUSAL = {"documents": "joined"}
"""What decides them beside, and what it is where nothing is hashed for it."""
"""What of the first arm's recipe decides the losses of every network."""
_FINETUNED_WITH = ("seq_len", "dtype", "attention")
_FAILURES = (BudgetlabError, OSError, RuntimeError)  # RuntimeError: torch's own, out of memory among them
_SPENT = ("steps", "tokens", "target_tokens", "required_flops", "executed_flops", "device_seconds")


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
    run_seed: int
    trains_head: bool
    record: RunRecord | None = None

    def about(self) -> dict[str, Any]:
        """What a score repeats of its run."""
        record = self.record
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
            **({} if record is None else {name: getattr(record, name) for name in _SPENT}),
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

    @property
    def jobs(self) -> list[Job]:
        """The fine-tunings that are chosen from."""
        return [job for trials in self.trials.values() for job in trials]


def list_subjects(plan: Plan, records: Sequence[RunRecord]) -> list[Subject]:
    """List the networks: finished runs, teachers, and the students' initial weights for each run seed."""
    found = []
    for record in records:
        if record.status != "complete" or record.kind == "trunk":
            continue
        kind = "teacher" if record.kind == "teacher" else "run"
        head = kind == "teacher" or _trains_head(plan, record.arm)
        weights = record.weights_hash or record.key
        named = (record.run_id, record.key, weights, kind, record.arm, record.student)
        found.append(Subject(*named, record.run_seed, head, record))
    if not any(subject.subject == "run" for subject in found):
        raise CallerError(f"evaluate {plan.study}", "it has no finished run", "run it first")
    hashes = {plan.arms[r.arm].teacher: r.teacher_hash for r in records if r.kind == "rung" and r.teacher_hash}
    taught = {record.teacher_key for record in records}
    for name in [teacher.model for teacher in plan.teachers if teacher.weights is not None]:
        # Runs of an earlier version are keyed by the path alone; its scores go on with theirs.
        by_path = content_hash("weights", plan.models[name].identity())
        key = by_path if by_path in taught else given_key(plan.models[name])
        run_id = f"{name}-weights-{key[:8]}"
        found.append(Subject(run_id, key, hashes.get(name, key), "teacher", name, name, 0, True))
    for model in dict.fromkeys(arm.student for arm in plan.arms.values()):
        for seed in plan.seeds:
            key = content_hash("random", plan.models[model], seed)
            run_id = f"random-{model}-s{seed}-{key[:8]}"
            found.append(Subject(run_id, key, key, "random", "random weights", model, seed, False))
    return found


def list_jobs(
    plan: Plan, subjects: Sequence[Subject], spec: EvaluateSpec, corpus: Corpus, tasks: Mapping[str, Task]
) -> tuple[list[Job], list[Choice]]:
    """List all measurements, and what is to be chosen from those of a grid."""
    how = next(iter(plan.arms.values())).recipe
    measured_with = (YARDSTICK_SEED, HELDOUT_SEQUENCES, *(getattr(how, name) for name in _MEASURED_WITH))
    words = content_hash(sorted(corpus.tokenizer().get_vocab().items())) if tasks or spec.lm_eval else ""
    finetuned_with = (words, *(getattr(how, name) for name in _FINETUNED_WITH))
    data = {(name, split): task.content_hash(split) for name, task in tasks.items() for split in task.validation}
    further = tuple(getattr(how, name) for name, default in _OF_CAUSAL.items() if getattr(how, name) != default)
    measured_with += further
    causal, headless = how.causal, any(not _trains_head(plan, arm) for arm in plan.arms)
    top = max(schedule.rung for schedule in plan.schedules if schedule.feasible)
    steps = () if spec.readout_steps == READOUT_STEPS else (spec.readout_steps,)
    losses = {
        "readout_loss": (READOUT_VERSION, *measured_with, spec.readout_tokens, *steps),
        "adapted_loss": (ADAPTED_VERSION, HELDOUT_SEQUENCES, adaptation(how), spec.adapted_tokens),
        "mlm_loss": (None, *measured_with),
    }
    as_it_stands = {"lm_loss": ("lm_loss", "bits_per_byte"), **{name: (name,) for name in CAUSAL_PROBES}}
    harness = {task: decided_by_harness(task) for task in spec.lm_eval}
    jobs: list[Job] = []
    choices: list[Choice] = []
    for subject in subjects:
        schedule = None if subject.record is None else subject.record.schedule
        left_out = spec.largest_budget_only if schedule is not None and schedule.rung != top else ()
        # Causal arms that all train a head are compared by its loss; else all get the yardsticks.
        shared = headless or not causal
        wanted = {"readout_loss": shared, "mlm_loss": subject.trains_head and not causal}
        wanted["adapted_loss"] = shared and bool(spec.adapted_tokens) and "adapted_loss" not in left_out
        for name, decided_by in losses.items():
            if wanted[name]:
                key = content_hash(subject.key, name, *decided_by, corpus.content_hash)
                jobs.append(Job(subject, name, {name: key}))
        for name, scores in as_it_stands.items() if causal else ():
            # Random weights answer probes too: what is no better than they are tells nothing.
            asked = subject.trains_head if name == "lm_loss" else name in spec.tasks and name not in left_out
            if asked and (subject.trains_head or subject.subject == "random"):
                decided_by = (CAUSAL_VERSION, HELDOUT_SEQUENCES, *measured_with, corpus.content_hash)
                keys = {score: content_hash(subject.key, score, *decided_by) for score in scores}
                jobs.append(Job(subject, name, keys))
        for task, decided_by in harness.items():
            if harness_task(task) not in left_out and (subject.trains_head or subject.subject == "random"):
                seeded = content_hash(subject.key, *decided_by, words, how.seq_len, how.dtype)
                jobs.append(Job(subject, task, {name: content_hash(seeded, name) for name in harness_scores(task)}))
        for name, task in tasks.items():
            if name in left_out:
                continue
            grid: dict[FinetuneRecipe, list[Job]] = {}
            for recipe in spec.recipes(name):
                for seed in spec.seeds_of(name):
                    decided_by = recipe_hash(recipe, *finetuned_with)
                    seeded = content_hash(subject.weights, decided_by, seed, subject.run_seed)
                    keys = {split: content_hash(seeded, data[name, split]) for split in task.validation}
                    grid.setdefault(recipe, []).append(Job(subject, name, keys, seed, recipe))
            trials = [job for points in grid.values() for job in points]
            jobs += trials
            if len(grid) > 1:
                chosen = {
                    (seed, split): content_hash(spec.selection, task.metric, [job.keys[split] for job in trials], seed)
                    for seed in spec.seeds_of(name)
                    for split in task.validation
                }
                choices.append(Choice(subject, name, grid, chosen))
    return jobs, choices


def _trains_head(plan: Plan, arm: str) -> bool:
    return build_strategy(plan.arms[arm].strategy, arm).trains_head


class Scorer:
    """Does one job after the other; each network is loaded, and each task tokenised, once in a process."""

    def __init__(self, plan: Plan, spec: EvaluateSpec, corpus: Corpus, store: Store, tasks: dict[str, Task]) -> None:
        self.plan, self.spec, self.corpus, self.store, self.tasks = plan, spec, corpus, store, tasks
        self.device = prepare(plan.execution)
        self.recipe = next(iter(plan.arms.values())).recipe
        self.train, self.heldout = (
            batches_of(stream, corpus.special, corpus.vocab_size, self.recipe, run_seed=YARDSTICK_SEED)
            for stream in (corpus.train, corpus.heldout)
        )
        self.tokenizer = corpus.tokenizer()
        self.loaded: tuple[str, Network | str] | None = None
        """The last run_id, and its network or why it cannot be had."""
        self.encoded: dict[str, Encoded] = {}

    def __call__(self, job: Job, tell: object, stop_asked: object) -> str | None:
        """Measure and write; return why that could not be done, or None."""
        subject = job.subject
        if self.loaded is None or self.loaded[0] != subject.run_id:
            self.loaded = (subject.run_id, self._load(subject))
        network, started = self.loaded[1], time.perf_counter()
        if isinstance(network, str):
            return network
        try:
            for name, found in self._measure(job, network) if job.recipe is None else self._finetune(job, network):
                seconds = time.perf_counter() - started
                about = {**subject.about(), "task": name, "finetune_seed": job.finetune_seed, "key": job.keys[name]}
                self.store.write_score(job.keys[name], Score(**about, evaluation_seconds=seconds, **found))
        except _FAILURES as error:
            return f"{subject.run_id}, {job.task}: {' '.join(str(error).split())[:300]}"
        return None

    def _load(self, subject: Subject) -> Network | str:
        spec = self.plan.models[subject.model]
        try:
            network = build_network(
                spec.untrained() if subject.subject == "random" else spec,
                seed=subject.run_seed,
                seq_len=self.recipe.seq_len,
                attention=self.recipe.attention if self.recipe.attention != "auto" else "sdpa",
                device=self.device,
            )
            if subject.record is not None:
                folder = self.store.checkpoints(subject.run_id) / step_name(subject.record.steps)
                load_parameters(network, load_checkpoint(folder)[0])
        except _FAILURES as error:
            return f"{subject.run_id}: {' '.join(str(error).split())[:300]}"
        return network.eval()

    def _measure(self, job: Job, network: Network) -> Iterator[tuple[str, dict[str, Any]]]:
        shared = {"heldout_sequences": min(HELDOUT_SEQUENCES, self.heldout.num_samples)}
        if job.task in self.spec.lm_eval:
            how = {"seq_len": self.recipe.seq_len, "dtype": self.recipe.dtype}
            yield from run_harness(network, self.corpus.tokenizer(causal=True), job.task, **how)
            return
        if job.task in ("lm_loss", *CAUSAL_PROBES):
            yield from self._measure_causal(job, network, shared["heldout_sequences"])
            return
        if job.task == "mlm_loss":
            found = mlm_loss(network, self.heldout, dtype=self.recipe.dtype, **shared)
        elif job.task == "adapted_loss":
            how, tokens = adaptation(self.recipe), self.spec.adapted_tokens
            found = adapted_loss(network, self.train, self.heldout, how, tokens=tokens, **shared)
        else:
            found = readout_loss(
                network,
                self.train,
                self.heldout,
                tokens=self.spec.readout_tokens,
                least_steps=self.spec.readout_steps,
                log_unigram=log_unigram(self.corpus.train, network.word_embeddings.shape[0]),
                dtype=self.recipe.dtype,
                **shared,
            )
        half = found.half_value
        yield (
            job.task,
            {
                "metric": "nats",
                "higher_is_better": False,
                "recipe_hash": "none",
                "recipe": found.words,
                "value": found.value,
                "num_examples": found.num_targets,
                "half_value": half,
                "converged": None if half is None else abs(found.value - half) <= CONVERGED_NATS,
            },
        )

    def _measure_causal(
        self, job: Job, network: Network, heldout_sequences: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Measure the own head's losses, or a probe, of a causal model as it stands."""
        corpus, dtype = self.corpus, self.recipe.dtype
        if job.task == "lm_loss":
            how = {"heldout_sequences": heldout_sequences, "documents": corpus.heldout_documents, "dtype": dtype}
            found = next_token_loss(network, self.heldout, **how)
            about = {
                "metric": "nats",
                "higher_is_better": False,
                "recipe_hash": "none",
                "num_examples": found.num_targets,
            }
            further = {"perplexity": math.exp(min(found.nats, 700)), "calibration_error": found.calibration_error}
            if found.bits_per_byte is not None:
                yield "bits_per_byte", {**about, "metric": "bits", "value": found.bits_per_byte}
            yield "lm_loss", {**about, "value": found.nats, "metrics": further}
            return
        if job.task == "cloze":
            parts = word_parts(self.tokenizer.get_vocab(), corpus.vocab_size)
            right = cloze(network, self.heldout, parts, corpus.special.all(), dtype=dtype)
        else:
            right = copying(network, self.heldout, dtype=dtype)
        if not len(right):
            wrong = "no held-out sequence has a whole word to ask for"
            raise CallerError(f"evaluate.tasks {job.task}", wrong, "lengthen the sequences or leave the task out")
        share = float(right.mean())
        yield (
            job.task,
            {
                "metric": "accuracy",
                "higher_is_better": True,
                "recipe_hash": "none",
                "value": share,
                "num_examples": len(right),
                "metrics": {"accuracy": share},
                "standard_errors": {"accuracy": math.sqrt(share * (1 - share) / len(right))},
                "averaged": self.spec.is_averaged(job.task),
            },
        )

    def _finetune(self, job: Job, network: Network) -> Iterator[tuple[str, dict[str, Any]]]:
        task, recipe = self.tasks[job.task], job.recipe
        assert recipe is not None
        if task.name not in self.encoded:
            how = {"max_length": self.recipe.seq_len, "pooling": recipe.pooling}
            self.encoded[task.name] = encode(task, self.tokenizer, **how)
        # Runs of one seed share their fine-tuning seed and examples, runs of others do not: so the spread between run
        # seeds has both in it.
        seed = int(content_hash("finetune", job.subject.run_seed, job.finetune_seed), 16) % 2**31
        outputs = finetune(network, self.encoded[task.name], recipe, seed=seed, dtype=self.recipe.dtype)
        available = len(task.train.labels)
        shared = {
            "train_examples": min(available, recipe.max_train_examples or available),
            "train_available": available,
            "recipe": recipe.words(),
            "recipe_hash": recipe_hash(recipe),
        }
        for split, found in outputs.items():
            frame = predictions_frame(task.validation[split].labels, found)
            # The score is written last: where it is, the predictions are.
            self.store.write_predictions(job.subject.run_id, job.keys[split], frame)
            yield split, {**shared, **score_predictions(frame, task.metric)}
