"""What scores one network after the other: each is loaded, and each task tokenised, once in a process."""

from __future__ import annotations

import time
from typing import Any

from budgetlab.batches import Batches
from budgetlab.checkpoint import load_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError
from budgetlab.evaluation.finetune import Encoded, encode, finetune
from budgetlab.evaluation.jobs import HELDOUT_SEQUENCES, YARDSTICK_SEED, Job, Subject, yardstick_recipe
from budgetlab.evaluation.readout import Yardstick, adaptation, adapted_loss, log_unigram, mlm_loss, readout_loss
from budgetlab.evaluation.selection import predictions_frame, scored
from budgetlab.evaluation.tasks import Task
from budgetlab.hardware import prepare
from budgetlab.models import Network, build_network, load_parameters
from budgetlab.store import Store
from budgetlab.values import EvaluateSpec, Plan, Recipe, Score, content_hash
from budgetlab.values.scoring import CONVERGED_NATS, recipe_hash


class Bench:
    """Does one `Job` after the other."""

    def __init__(self, plan: Plan, spec: EvaluateSpec, corpus: Corpus, store: Store, tasks: dict[str, Task]) -> None:
        self.plan, self.spec, self.corpus, self.store, self.tasks = plan, spec, corpus, store, tasks
        self.device = prepare(plan.execution)
        self.recipe = yardstick_recipe(plan)
        self.tokenizer = corpus.tokenizer()
        self.train, self.heldout = (_batches(corpus, stream, self.recipe) for stream in (corpus.train, corpus.heldout))
        self.loaded: tuple[str, Network | str] | None = None
        self.encoded: dict[str, Encoded] = {}

    def __call__(self, job: Job, tell: object, stop_asked: object) -> str | None:
        """Measure and write; return why that could not be done, or None."""
        try:
            network, started = self.network(job.subject), time.perf_counter()
            if isinstance(network, str):
                return network
            (self._finetuned if job.recipe is not None else self._measured)(job, network, started)
        except (BudgetlabError, OSError, RuntimeError) as error:  # RuntimeError: torch's own, out of memory among them
            return f"{job.subject.run_id}, {job.task}: {' '.join(str(error).split())[:300]}"
        return None

    def network(self, subject: Subject) -> Network | str:
        """Return the network, or why it cannot be had."""
        if self.loaded is None or self.loaded[0] != subject.run_id:
            try:
                self.loaded = (subject.run_id, self._load(subject))
            except (BudgetlabError, OSError, RuntimeError) as error:
                self.loaded = (subject.run_id, f"{subject.run_id}: {' '.join(str(error).split())[:300]}")
        return self.loaded[1]

    def _load(self, subject: Subject) -> Network:
        spec = self.plan.models[subject.model]
        network = build_network(
            spec.untrained() if subject.subject == "random" else spec,
            seed=subject.run_seed,
            seq_len=self.recipe.seq_len,
            attention=self.recipe.attention if self.recipe.attention != "auto" else "sdpa",
            device=self.device,
        )
        if subject.record is not None:
            folder = self.store.checkpoints(subject.run_id) / f"step_{subject.record.steps:08d}"
            load_parameters(network, load_checkpoint(folder)[0])
        return network.eval()

    def _measured(self, job: Job, network: Network, started: float) -> None:
        heldout_sequences = min(HELDOUT_SEQUENCES, self.heldout.num_samples)
        found: dict[str, Any] = {"metric": "nats", "higher_is_better": False}
        if job.task == "mlm_loss":
            value, count = mlm_loss(network, self.heldout, sequences=heldout_sequences, dtype=self.recipe.dtype)
            found |= {"value": value, "num_examples": count}
        else:
            made = self._yardstick(job.task, network, heldout_sequences)
            settled = None if made.half_value is None else abs(made.value - made.half_value) <= CONVERGED_NATS
            found |= {"value": made.value, "num_examples": made.num_targets, "half_value": made.half_value,
                      "converged": settled, "recipe": made.words}  # fmt: skip
        self._write(job, job.task, "none", started, found)

    def _yardstick(self, name: str, network: Network, heldout_sequences: int) -> Yardstick:
        if name == "adapted_loss":
            return adapted_loss(
                network,
                self.train,
                self.heldout,
                adaptation(self.recipe),
                tokens=self.spec.adapted_tokens,
                heldout_sequences=heldout_sequences,
            )
        return readout_loss(
            network,
            self.train,
            self.heldout,
            tokens=self.spec.readout_tokens,
            heldout_sequences=heldout_sequences,
            log_unigram=log_unigram(self.corpus.train, network.word_embeddings.shape[0]),
            dtype=self.recipe.dtype,
        )

    def _finetuned(self, job: Job, network: Network, started: float) -> None:
        assert job.recipe is not None
        task = self.tasks[job.task]
        if task.name not in self.encoded:
            how = {"max_length": self.recipe.seq_len, "pooling": job.recipe.pooling}
            self.encoded[task.name] = encode(task, self.tokenizer, **how)
        # Runs of one seed share their fine-tuning seed and examples, runs of others do not: so the spread between run
        # seeds has both in it.
        seed = int(content_hash("finetune", job.subject.run_seed, job.finetune_seed), 16) % 2**31
        outputs = finetune(network, self.encoded[task.name], job.recipe, seed=seed, dtype=self.recipe.dtype)
        available = len(task.train.labels)
        shared = {
            "train_examples": min(available, job.recipe.max_train_examples or available),
            "train_available": available,
            "recipe": job.recipe.words(),
        }
        for split, found in outputs.items():
            frame = predictions_frame(task.validation[split].labels, found)
            # The score is written last: where it is, the predictions are.
            self.store.write_predictions(job.subject.run_id, job.keys[split], frame)
            self._write(job, split, recipe_hash(job.recipe), started, {**shared, **scored(task, frame)})

    def _write(self, job: Job, name: str, how: str, started: float, found: dict[str, Any]) -> None:
        score = Score(
            **job.subject.about(),
            task=name,
            finetune_seed=job.finetune_seed,
            recipe_hash=how,
            key=job.keys[name],
            evaluation_seconds=time.perf_counter() - started,
            **found,
        )
        self.store.write_score(job.keys[name], score)


def _batches(corpus: Corpus, stream: Any, recipe: Recipe) -> Batches:
    return Batches(
        stream,
        corpus.special,
        corpus.vocab_size,
        seq_len=recipe.seq_len,
        masked_per_sequence=recipe.masked_per_sequence,
        run_seed=YARDSTICK_SEED,
    )
