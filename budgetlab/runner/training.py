"""One unit of work from its first step, or its last checkpoint, to its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from budgetlab.batches import Batches, keyed_uniform
from budgetlab.checkpoint import latest_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint, tensors_hash
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError
from budgetlab.hardware import device_clock
from budgetlab.models import Network
from budgetlab.runner.units import Unit
from budgetlab.step import build_step, learning_rate_factor
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.values import Plan, Point, RunRecord

__all__ = ["Training", "step_name"]

POINTS_PER_RUN, SIGNS_EVERY_POINTS = 40, 5
CHECKPOINT_EVERY_SECONDS = 30.0
_DROPOUT_STREAM = 99


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step_{step:08d}"


class Training:
    """One unit in progress; building it restores its last checkpoint.

    Parameters
    ----------
    unit
        What to train.
    record
        What is known of it before the first step.
    plan, corpus, store
        Where it belongs, what it reads, where it writes.
    teacher
        The frozen teacher, on the device.
    device
        Where it runs.
    """

    def __init__(
        self,
        unit: Unit,
        record: RunRecord,
        *,
        plan: Plan,
        corpus: Corpus,
        store: Store,
        teacher: Network | None,
        device: torch.device,
    ) -> None:
        self.unit, self.record, self.plan, self.store, self.device = unit, record, plan, store, device
        self.checkpoints = store.checkpoints(unit.run_id)
        strategy = build_strategy(unit.strategy, unit.arm)
        self.step = build_step(unit.arm, strategy, unit.spec, teacher, unit.recipe, seed=unit.seed, device=device)
        self.batches = Batches(
            corpus.train,
            corpus.special,
            corpus.vocab_size,
            seq_len=unit.recipe.seq_len,
            masked_per_sequence=unit.recipe.masked_per_sequence,
            run_seed=unit.seed,
            static_masks=plan.corpus.masking == "static",
            unique_tokens=None if unit.kind == "teacher" else plan.corpus.unique_tokens,
        )
        self.at, self.tokens, self.target_tokens, self.device_seconds = 0, 0, 0, 0.0
        self._restore()

    def _restore(self) -> None:
        # A plan with a budget in between wants a branch point that an earlier plan's trunk went past.
        wanted = [step for step in self.unit.keep_steps if not (self.checkpoints / step_name(step)).is_dir()]
        path = latest_checkpoint(self.checkpoints, step_name(min(wanted, default=self.unit.last_step)))
        if path is None and self.unit.trunk is not None:
            path = self.store.checkpoints(self.unit.trunk) / step_name(self.unit.first_step)
        if path is not None:
            tensors, state = load_checkpoint(path)
            self.step.load_tensors(tensors)
            self.at, self.tokens, self.target_tokens = state["step"], state["tokens"], state["target_tokens"]
            self.device_seconds = state["device_seconds"]
        # Points past the checkpoint will be made again.
        points = [point for point in self.store.read_points(self.unit.run_id) if point.step <= self.at]
        self.store.write_points(self.unit.run_id, points)

    def go(self, stop_asked: Callable[[], bool], on_point: Callable[[int, float], None]) -> RunRecord:
        """Train to the last step.

        Parameters
        ----------
        stop_asked
            Looked at after each step; the step is then saved.
        on_point
            Told (step, loss).

        Raises
        ------
        KeyboardInterrupt
            When it was asked to stop, after saving.
        """
        unit, recipe = self.unit, self.unit.recipe
        teacher_hash = self.step.teacher_hash()
        micro = self.plan.execution.micro_batch_sequences
        every = max(1, (unit.last_step - unit.first_step) // POINTS_PER_RUN)
        clock = device_clock(self.device)
        mark, saved_at = clock(), time.monotonic()
        sums: dict[str, torch.Tensor] = {}
        counted = 0
        if unit.last_step == 0:  # an untrained teacher
            self._save()
        while self.at < unit.last_step:
            batch = self.batches.step(self.at, recipe.batch_sequences)
            steps = unit.last_step
            rate = recipe.learning_rate * learning_rate_factor(
                recipe, self.at, steps, unit.warmup_steps, unit.cooldown_steps
            )
            terms = self.step.run(
                batch,
                rate,
                micro_batch_sequences=None if micro == "auto" else micro,
                dropout_seed=int(keyed_uniform(unit.seed, _DROPOUT_STREAM, self.at) * 2**31),
            )
            if recipe.clip_norm:
                terms["clipped_fraction"] = (terms["gradient_norm"] > recipe.clip_norm).float()
            sums = {name: sums[name] + term if name in sums else term for name, term in terms.items()}
            self.at, counted = self.at + 1, counted + 1
            self.tokens += batch.tokens
            self.target_tokens += len(batch.target_ids)
            stopping, ended = stop_asked(), self.at == unit.last_step
            # Not the device's clock, which would wait for the device after every step.
            due = self.at in unit.keep_steps or time.monotonic() - saved_at > CHECKPOINT_EVERY_SECONDS
            if not (stopping or ended or due or self.at % every == 0):
                continue
            # A checkpoint is always a point as well, so that a resumed run has the points of an uninterrupted one
            # up to there, and no step is counted twice in a mean.
            seconds = clock() - mark
            self.device_seconds += seconds * self.plan.execution.devices
            losses = {name: float(total) / counted for name, total in sums.items()}
            signs = {name: losses.pop(name) for name in ("gradient_norm", "clipped_fraction") if name in losses}
            found = {**losses, "gradient_norm": signs["gradient_norm"]}
            if not all(math.isfinite(value) for value in found.values()):
                what = f"arm {unit.arm}: not finite by step {self.at}: {found}"
                return self._write("failed", f"{what}; try a lower recipe.learning_rate than {recipe.learning_rate:g}")
            if self.at % (every * SIGNS_EVERY_POINTS) == 0 or ended:
                signs |= self.step.signs(batch)
            self._append_point(losses, signs, rate)
            on_point(self.at, sum(losses.values()))
            if stopping or ended or due:
                self._save()
                saved_at = time.monotonic()
            sums, counted, mark = {}, 0, clock()
            if stopping and not ended:
                raise KeyboardInterrupt
        if self.step.teacher_hash() != teacher_hash:
            raise BudgetlabError(f"run {unit.run_id}", "the frozen teacher's weights changed", "report this")
        return self._write("complete")

    def _append_point(self, losses: dict[str, float], signs: dict[str, float], learning_rate: float) -> None:
        losses = {"loss": sum(losses.values()), **losses}
        point = Point(step=self.at, learning_rate=learning_rate, losses=losses, signs=signs, **self._spent())
        self.store.append_point(self.unit.run_id, point)

    def _spent(self) -> dict[str, Any]:
        """What was really fed and drawn so far, and what it cost at the profile's prices per position and target."""
        cost = self.unit.cost
        return {
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "required_flops": cost.required_flops(self.tokens, self.target_tokens),
            "executed_flops": cost.executed_flops(self.tokens, self.target_tokens),
            "device_seconds": self.device_seconds,
        }

    def _save(self) -> None:
        state = {"step": self.at, **self._spent()}
        save_checkpoint(self.checkpoints, step_name(self.at), self.step.tensors(), state)
        kept = {step_name(step) for step in (*self.unit.keep_steps, self.at)}
        remove_checkpoints(self.checkpoints, keep=kept)

    def _write(self, status: str, message: str = "") -> RunRecord:
        weights = tensors_hash(dict(self.step.student.named_parameters()))
        update = {"status": status, "message": message, "weights_hash": weights, "steps": self.at, **self._spent()}
        record = self.record.model_copy(update=update)
        self.store.write_record(record)
        return record.model_copy(update={"points": self.store.read_points(record.run_id)})
