"""Where one training stands: its networks, samples and sums, restored from and saved to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from budgetlab.batches import MaskedBatch, batches_of
from budgetlab.checkpoint import (
    is_whole,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    step_name,
    tensors_hash,
)
from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.hardware import find_energy_counter, find_peak
from budgetlab.modelcard import model_card
from budgetlab.models import Network, export_model, load_parameters
from budgetlab.planner.prices import loss_factor
from budgetlab.ranks import Ranks
from budgetlab.runner.ledger import Ledger, Means
from budgetlab.runner.progress import Moved
from budgetlab.runner.teacher_cache import TeacherCache
from budgetlab.runner.trackers import tracker_callback
from budgetlab.runner.units import Unit
from budgetlab.step import build_step
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.strategies.caching import keeps_all_positions, same_for_all_seeds
from budgetlab.transfer import Staged, stage
from budgetlab.values import Plan, Point, RunRecord, content_hash

SIGNS = ("gradient_norm", "clipped_fraction")
"""What is logged beside the loss's terms."""
OTHER_PACE = 1.25


class TrainingState:
    """What the loop has at hand for one unit, and where it stands; building it restores the last checkpoint."""

    def __init__(
        self,
        unit: Unit,
        record: RunRecord,
        plan: Plan,
        corpus: Corpus,
        store: Store,
        teacher: Network | None,
        device: torch.device,
        ranks: Ranks,
        say: Callable[[str], None],
    ) -> None:
        self.unit, self.record, self.plan, self.corpus, self.store = unit, record, plan, corpus, store
        self.ranks, self.say = ranks, say
        self.checkpoints = store.checkpoints(unit.run_id)
        self.step = build_step(
            unit.arm,
            build_strategy(unit.strategy, unit.arm),
            unit.spec,
            teacher,
            unit.recipe,
            seed=unit.seed,
            device=device,
            ranks=ranks,
            bfloat16_gradients=plan.execution.bfloat16_gradients,
            compiled=plan.compiled,
            kept=unit.kept,
            teacher_unmasked=unit.teacher_reads == "unmasked",
        )
        micro = plan.execution.micro_batch_sequences
        self.micro_batch_sequences = None if micro == "auto" else micro
        self.batches = batches_of(
            corpus.train,
            corpus.special,
            corpus.vocab_size,
            unit.recipe,
            run_seed=unit.seed,
            static_masks=plan.corpus.masking == "static",
            unique_tokens=None if unit.kind == "teacher" else plan.corpus.unique_tokens,
        )
        # Units side by side on one device cannot tell whose joules they are.
        counter = find_energy_counter(device) if plan.execution.side_by_side == 1 else None
        if counter is not None and device.type == "cpu" and ranks.local > 0:
            counter = replace(counter, joules=lambda: 0.0)  # the machine's first process reads for all of it
        self.teacher_hash = self.step.teacher_hash()
        self.cache: TeacherCache | None = None
        if unit.cached:
            arm = plan.arms[unit.arm]
            seed = None if same_for_all_seeds(arm) else unit.seed
            about = {"corpus": corpus.content_hash, "run_seed": seed, "teacher": self.teacher_hash}
            about |= {"masked_per_sequence": None if seed is None else unit.recipe.masked_per_sequence}
            assert teacher is not None
            self.cache = TeacherCache(
                store.cache,
                self.step,
                self.batches,
                about,
                ranks,
                all_positions=keeps_all_positions(arm, self.step.strategy, unit.spec, teacher.spec),
                taught_tokens=round(unit.teacher_steps * unit.recipe.batch_tokens),
                phase="teacher_forward" if self.step.strategy.keeps_teacher else "cache",
            )
        self.ledger, self.means = Ledger(unit.cost, device, ranks, counter, self.cache), Means(ranks)
        self.at = 0
        self.state_hash: str | None = None

        # A plan with a budget in between wants a branch point that an earlier plan's trunk went past.
        wanted = [step for step in unit.keep_steps if not is_whole(self.checkpoints / step_name(step))]
        path = latest_checkpoint(self.checkpoints, step_name(min(wanted, default=unit.last_step)))
        if path is None and unit.trunk is not None:
            path = store.checkpoints(unit.trunk) / step_name(unit.first_step)
        # What the first process sees is what all go on from.
        if shared := ranks.share("" if path is None else str(path)):
            path = Path(shared)
            tensors, state = load_checkpoint(path)
            if state["teacher_hash"] != self.teacher_hash:
                began_with = f"it began with a teacher {state['teacher_hash']}, which is now {self.teacher_hash}"
                remedy = "bring the old weights back, or delete the run's folder and its trunk's"
                raise CallerError(f"run {unit.run_id}", began_with, remedy)
            self.at, self.state_hash = state["step"], state.get("state_hash")
            if self.state_hash is None:
                self.step.load_tensors(tensors)
            else:  # all of it is done; only its weights were kept
                load_parameters(self.step.student, tensors)
            if path.parent == self.checkpoints:
                self.ledger.load(state["ledger"])
                self.means.load(state["logged"], device)
            else:  # a branch's steps began with its trunk; its overheads and its means are its own
                own = {name: getattr(self.ledger, name) for name in ("overheads", "overhead_joules")}
                self.ledger.load({**state["ledger"], **own})
        self.began_at = self.at
        # Points past the checkpoint will be made again.
        points = [point for point in store.read_points(unit.run_id) if point.step <= self.at]
        self.first_loss = points[0].losses["loss"] if points else None
        if ranks.first:
            store.write_points(unit.run_id, points)

    def samples(self, step: int) -> tuple[MaskedBatch, int, MaskedBatch | Staged]:
        """Return what this process is fed at a step, its digest, and the batch on its way to the device."""
        batch = self.batches.step(step, self.unit.recipe.batch_sequences, self.ranks.rank, self.ranks.world)
        digest = batch.digest(step)
        if self.cache is not None:
            batch = replace(batch, kept=self.cache.read(batch))
        return batch, digest, stage(batch, self.micro_batch_sequences, self.step.device)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Tell trackers that the training begins, and how it ended; their time is a checkpoint's."""
        unit, names = self.unit, self.plan.execution.trackers if self.ranks.first else ()
        self.track = tracker_callback(names, self.store.run_folder(unit.run_id), self.say)
        with self.ledger.overhead("checkpoint"):
            config = {"study": self.plan.study, "run_id": unit.run_id, "arm": unit.arm, "kind": unit.record_kind}
            config |= {"run_seed": unit.seed, "steps": unit.last_step}
            config |= {"strategy": unit.strategy.name, "teacher": unit.teacher, **unit.strategy.settings}
            self.track("start", config | unit.recipe.model_dump(mode="json"))
        try:
            yield
        finally:
            self.track("finish", self.record.status)

    def moved(self, steps_per_second: float) -> Moved:
        """Return where it stands, with the losses of this process's samples."""
        losses = {name: mean for name, mean in self.means.own().items() if name not in SIGNS}
        tokens_per_second = steps_per_second * self.unit.recipe.batch_tokens
        peak = find_peak(self.record.environment.device_name)
        most = None if peak is None else peak.flops_per_second(self.unit.recipe.dtype, self.plan.execution.tf32)
        flops_per_second = tokens_per_second * self.unit.cost.train_required_flops_per_token
        share = None if most is None else flops_per_second / (most * self.ranks.world)
        return Moved(self.unit.run_id, self.at, losses, tokens_per_second, share)

    def compare_pace(self, seconds: float, steps: int) -> None:
        """Say where the last steps took another time than was planned, or were timed elsewhere."""
        if self.unit.cost.seconds_per_step is None:
            return
        planned = self.unit.price.between(self.at - steps, self.at) * loss_factor(self.plan.execution)
        times = seconds / planned
        elsewhere = self.plan.device_name not in (None, self.record.environment.device_name)
        if elsewhere or not 1 / OTHER_PACE <= times <= OTHER_PACE:
            here, there = (f"{1e3 * amount / steps:.4g} ms" for amount in (seconds, planned))
            where = f" on {self.plan.device_name}" if elsewhere else ""
            said = f"a step takes {here} of device time here, {there} were planned{where}: {times:.2f} times"
            self.say(f"{self.unit.arm}: {said}, seen in {self.at - self.began_at} steps")

    def log_point(self, means: dict[str, float], rate: float, batch: MaskedBatch | None) -> None:
        """Write a point; with a batch also how the optimiser fares on it."""
        signs = {name: means.pop(name) for name in SIGNS if name in means}
        if batch is not None:
            with self.ledger.overhead("evaluation"):
                signs |= self.step.signs(batch)
        losses = {"loss": sum(means.values()), **means}
        self.first_loss = losses["loss"] if self.first_loss is None else self.first_loss
        self.means.clear()
        if self.ranks.first:
            spent = self.ledger.spent()
            point = Point(step=self.at, learning_rate=rate, losses=losses, signs=signs, **spent)
            self.store.append_point(self.unit.run_id, point)
            with self.ledger.overhead("checkpoint"):
                self.track("log", self.at, {**losses, **signs, "learning_rate": rate, **spent})

    def save(self) -> float:
        """Save all that is needed to go on bit for bit, say so in the record, and return the seconds it took."""
        with self.ledger.overhead("checkpoint"):
            state = self._state()
            began = time.monotonic()
            if self.ranks.first:
                save_checkpoint(self.checkpoints, step_name(self.at), self.step.tensors(), state)
                self._tidy(newest=self.plan.execution.keep_checkpoints)
                self.store.write_record(self._updated("running"))
            return time.monotonic() - began

    def end(self, status: str, message: str = "") -> None:
        """Write the record; of a complete unit first what others need of it.

        That is all of it where rungs branch off, and of a rung or a teacher the weights alone.
        """
        unit, state, weights_only = self.unit, self._state(), self.unit.kind != "trunk"
        complete = status == "complete" and self.ranks.first
        if complete and self.state_hash is None:  # else it was killed between here and the record
            logged = [(p.step, p.learning_rate, p.losses, p.signs) for p in self.store.read_points(unit.run_id)]
            tensors = self.step.tensors()
            self.state_hash = content_hash(tensors_hash(tensors), logged)
            with self.ledger.overhead("checkpoint"):
                if weights_only:
                    state["state_hash"] = self.state_hash
                    tensors = {name: value for name, value in tensors.items() if name.startswith("student.")}
                save_checkpoint(self.checkpoints, step_name(self.at), tensors, state)
        with self.ledger.overhead("checkpoint"):
            record = self._updated(status).model_copy(update={"message": message})
            if complete and weights_only:
                card, tokenizer = model_card(self.plan, record), self.corpus.tokenizer(causal=unit.spec.causal)
                folder = self.store.model_folder(unit.run_id)
                export_model(self.step.student, tokenizer, card, folder, seq_len=unit.recipe.seq_len)
            if complete:
                self._tidy(newest=0)
        self.record = record.model_copy(update={"overhead_seconds": dict(self.ledger.overheads)})
        if self.ranks.first:
            self.store.write_record(self.record)
        self.ranks.wait()  # what comes next looks at the record

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.at,
            "key": self.unit.key,
            "teacher_hash": self.teacher_hash,
            "ledger": self.ledger.state(),
            "logged": self.means.state(),
            "passing": self.at not in self.unit.keep_steps,
        }

    def _tidy(self, newest: int) -> None:
        """Delete the checkpoints that only this training could want, but the newest few.

        What rungs branch off and what is evaluated stays, also where it was an earlier plan that asked for it.
        """
        kept = {step_name(step) for step in self.unit.keep_steps}
        passing = sorted(
            path.name
            for path in self.checkpoints.glob("step_*")
            # An earlier plan may have gone further: what it left there is none of this one's newest.
            if path.name <= step_name(self.at) and path.name not in kept and (read_state(path) or {}).get("passing")
        )
        remove_checkpoints(self.checkpoints, passing[: max(0, len(passing) - newest)])

    def _updated(self, status: str) -> RunRecord:
        """Return the record with all that was taken so far."""
        weights = None if status == "running" else tensors_hash(dict(self.step.student.named_parameters()))
        hashes = {"teacher_hash": self.teacher_hash, "weights_hash": weights, "state_hash": self.state_hash}
        efficiency, took = None, self.ledger.device_seconds
        if self.ranks.world > 1 and took and self.plan.device_name == self.record.environment.device_name:
            efficiency = self.unit.price.cost(self.at) / took  # what execution.scaling_efficiency should have been
        said = {"status": status, "steps": self.at, "scaling_efficiency": efficiency}
        return self.record.model_copy(update={**said, **hashes, **self.ledger.account(self.batches.unique_tokens)})
