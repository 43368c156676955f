"""One unit of work from its first step, or its last checkpoint, to its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from budgetlab.batches import Batches, keyed_uniform
from budgetlab.checkpoint import (
    is_whole,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    tensors_hash,
)
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.hardware import find_energy_counter, find_peak
from budgetlab.modelcard import model_card
from budgetlab.models import Network, export_model, load_parameters
from budgetlab.ranks import Ranks
from budgetlab.runner.feed import Feed
from budgetlab.runner.learning_rate import learning_rate_factor
from budgetlab.runner.ledger import Ledger
from budgetlab.runner.means import Means
from budgetlab.runner.meter import Moved
from budgetlab.runner.teacher_cache import TeacherCache
from budgetlab.runner.trackers import Trackers, make_trackers
from budgetlab.runner.units import Unit
from budgetlab.runner.watch import SIGNS, other_pace, what_is_wrong
from budgetlab.step import build_step
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.values import Plan, Point, RunRecord, content_hash

POINTS_PER_RUN, SIGNS_EVERY_POINTS = 40, 5
CHECKPOINT_EVERY_SECONDS, CHECKPOINT_SHARE = 30.0, 0.01
"""Not oftener than this, and not so often that saving takes a larger share of the time."""
TELL_EVERY_SECONDS = 1.0
FIRST_STEPS = (3, 23)
"""Between which the pace is compared with the plan: the very first steps choose kernels and make optimizer state."""
_DROPOUT_STREAM = 99


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step_{step:08d}"


class Training:
    """One unit in progress; building it restores its last checkpoint."""

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
        ranks: Ranks,
        say: Callable[[str], None],
        began: float,
    ) -> None:
        self.unit, self.record, self.plan, self.corpus, self.store = unit, record, plan, corpus, store
        self.ranks, self.say = ranks, say
        self.checkpoints = store.checkpoints(unit.run_id)
        strategy = build_strategy(unit.strategy, unit.arm)
        self.step = build_step(
            unit.arm, strategy, unit.spec, teacher, unit.recipe, seed=unit.seed, device=device, ranks=ranks,
            compiled=plan.compiled,
        )  # fmt: skip
        micro, unique = plan.execution.micro_batch_sequences, plan.corpus.unique_tokens
        self.micro_batch_sequences = None if micro == "auto" else micro
        shape = {"seq_len": unit.recipe.seq_len, "masked_per_sequence": unit.recipe.masked_per_sequence}
        self.batches = Batches(
            corpus.train, corpus.special, corpus.vocab_size, **shape, run_seed=unit.seed,
            static_masks=plan.corpus.masking == "static", unique_tokens=None if unit.kind == "teacher" else unique,
        )  # fmt: skip
        # Units side by side on one device cannot tell whose joules they are.
        counter = find_energy_counter(device) if plan.execution.side_by_side == 1 else None
        if counter is not None and device.type == "cpu" and ranks.local > 0:
            counter = replace(counter, joules=lambda: 0.0)  # the machine's first process reads for all of it
        self.teacher_hash = self.step.teacher_hash()
        self.kept: TeacherCache | None = None
        if strategy.keeps_teacher:
            about = {"corpus": unit.corpus_key, "run_seed": unit.seed, "teacher": self.teacher_hash}
            self.kept = TeacherCache(store.cache, self.step, self.batches, about, ranks)
        self.ledger = Ledger(unit.cost, device, ranks, counter, self.kept)
        peak = find_peak(record.environment.device_name)
        self.peak = peak.flops_per_second(unit.recipe.dtype) if peak is not None else None
        self.at, self.means = 0, Means(ranks)
        self.state_hash: str | None = None
        self._restore(device)
        self.ledger.overheads["start"] += time.perf_counter() - began
        self.ledger.mark()

    def _restore(self, device: torch.device) -> None:
        # A plan with a budget in between wants a branch point that an earlier plan's trunk went past.
        wanted = [step for step in self.unit.keep_steps if not is_whole(self.checkpoints / step_name(step))]
        path = latest_checkpoint(self.checkpoints, step_name(min(wanted, default=self.unit.last_step)))
        if path is None and self.unit.trunk is not None:
            path = self.store.checkpoints(self.unit.trunk) / step_name(self.unit.first_step)
        # What the first process sees is what all go on from.
        shared = self.ranks.share("" if path is None else str(path))
        if shared:
            path = Path(shared)
            tensors, state = load_checkpoint(path)
            if state["teacher_hash"] != self.teacher_hash:
                began_with = f"it began with a teacher {state['teacher_hash']}, which is now {self.teacher_hash}"
                remedy = "bring the old weights back, or delete the run's folder and its trunk's"
                raise CallerError(f"run {self.unit.run_id}", began_with, remedy)
            self.at, self.state_hash = state["step"], state.get("state_hash")
            if self.state_hash is None:
                self.step.load_tensors(tensors)
            else:  # all of it is done; only its weights were kept
                load_parameters(self.step.student, tensors)
            own = path.parent == self.checkpoints
            # A branch's steps began with its trunk; its overheads are its own.
            self.ledger.load(state["ledger"] if own else {**state["ledger"], "overheads": self.ledger.overheads})
            if own:
                self.means.load(state["logged"], device)
        # Points past the checkpoint will be made again.
        points = [point for point in self.store.read_points(self.unit.run_id) if point.step <= self.at]
        self.first_loss = points[0].losses["loss"] if points else None
        if self.ranks.first:
            self.store.write_points(self.unit.run_id, points)

    def go(self, stop_asked: Callable[[], bool], tell: Callable[[Moved], None]) -> RunRecord:
        """Train to the last step."""
        unit, status = self.unit, "running"
        folder = self.store.run_folder(unit.run_id)
        made = make_trackers(self.plan.execution.trackers, folder) if self.ranks.first else {}
        self.trackers = Trackers(made, self.say)
        with self.ledger.overhead("checkpoint"):
            self.trackers.start(self._config())
        try:
            if self.kept is not None:
                samples = unit.last_step * unit.recipe.batch_sequences
                self.kept.make(samples, self.ledger.counter, stop_asked, self.say)
                self.ledger.mark()
            if self.plan.compiled and self.at < unit.last_step:
                self._compile()
            with self._feed() as feed:
                record = self._train(feed, stop_asked, tell)
            status = record.status
        finally:
            self.trackers.finish(status)
        return record

    def _feed(self) -> Feed:
        return Feed(self.batches, self.unit.recipe.batch_sequences, self.ranks, self.unit.last_step, self.kept)

    def _compile(self) -> None:
        with self.ledger.overhead("compile"), self._feed() as feed:
            self.step.warm_up(feed.step(self.at)[0], self.micro_batch_sequences)
            self.ranks.wait()
        self.ledger.mark()

    def _config(self) -> dict[str, Any]:
        unit = self.unit
        return {
            "study": self.plan.study, "run_id": unit.run_id, "arm": unit.arm, "kind": unit.kind, "run_seed": unit.seed,
            "steps": unit.last_step, "strategy": unit.strategy.name, "teacher": unit.teacher, **unit.strategy.settings,
            **unit.recipe.model_dump(mode="json"),
        }  # fmt: skip

    def _train(self, feed: Feed, stop_asked: Callable[[], bool], tell: Callable[[Moved], None]) -> RunRecord:
        unit, ledger = self.unit, self.ledger
        every = max(1, (unit.last_step - unit.first_step) // POINTS_PER_RUN)
        began_at, saved_at, save_every = self.at, time.monotonic(), CHECKPOINT_EVERY_SECONDS
        told_at, told_step, pace_from = time.monotonic(), self.at, 0.0
        while self.at < unit.last_step:
            batch = self._one_step(feed)
            now, done = time.monotonic(), self.at - began_at
            stopping, due = self.ranks.any(stop_asked(), self.ranks.first and now - saved_at >= save_every)
            ended = self.at == unit.last_step
            point = ended or self.at % every == 0
            save = stopping or ended or due or self.at in unit.keep_steps
            if self.ranks.first and now - told_at >= TELL_EVERY_SECONDS:
                tell(self._moving((self.at - told_step) / (now - told_at)))
                told_at, told_step = now, self.at
            if done in FIRST_STEPS:
                ledger.settle()
                if done == FIRST_STEPS[0]:
                    pace_from = ledger.device_seconds
                elif self.ranks.first:
                    self._say_pace((ledger.device_seconds - pace_from) / (FIRST_STEPS[1] - FIRST_STEPS[0]))
            if not (point or save):
                continue
            ledger.settle()
            losses = self.means.all()
            if (wrong := what_is_wrong(losses, self.first_loss)) is not None:
                lower = f"try a lower recipe.learning_rate than {unit.recipe.learning_rate:g}"
                return self._write("failed", f"arm {unit.arm}: {wrong} by step {self.at}; {lower}")
            if point:
                self._add_point(losses, batch if ended or self.at % (every * SIGNS_EVERY_POINTS) == 0 else None)
            if save and not ended:
                self._save()
                saved_at = time.monotonic()
                save_every = max(CHECKPOINT_EVERY_SECONDS, self.took_to_save / CHECKPOINT_SHARE)
            with ledger.overhead("checkpoint"):
                self.ranks.wait()  # for the first one, which writes; not within the next step
            ledger.mark()
            if stopping and not ended:
                raise KeyboardInterrupt
        if self.step.teacher_hash() != self.teacher_hash:
            raise BudgetlabError(f"run {unit.run_id}", "the frozen teacher's weights changed", "report this")
        tell(Moved(unit.run_id, self.at, {}))
        return self._finish()

    def _one_step(self, feed: Feed) -> Any:
        """Take the next step; nothing in it waits for the device."""
        unit, recipe, ledger, ranks = self.unit, self.unit.recipe, self.ledger, self.ranks
        with ledger.overhead("data_wait"):
            batch, digest = feed.step(self.at)
        ledger.feed(batch, digest)
        factor = learning_rate_factor(recipe, self.at, unit.last_step, unit.warmup_steps, unit.cooldown_steps)
        self.rate = recipe.learning_rate * factor
        ledger.meter.begin()
        terms = self.step.run(
            batch,
            self.rate,
            micro_batch_sequences=self.micro_batch_sequences,
            dropout_seed=int(keyed_uniform(unit.seed, _DROPOUT_STREAM, self.at, ranks.rank) * 2**31),
            on_phase=ledger.meter,
        )
        if recipe.clip_norm:
            terms["clipped_fraction"] = (terms["gradient_norm"] > recipe.clip_norm).float()
        self.means.add(terms)
        self.at += 1
        return batch

    def _moving(self, steps_per_second: float) -> Moved:
        losses = {name: mean for name, mean in self.means.own().items() if name not in SIGNS}
        recipe, cost = self.unit.recipe, self.unit.cost
        tokens_per_second = steps_per_second * recipe.batch_tokens
        flops_per_second = tokens_per_second * cost.train_required_flops_per_token
        share = None if self.peak is None else flops_per_second / (self.peak * self.ranks.world)
        return Moved(self.unit.run_id, self.at, losses, tokens_per_second, share)

    def _say_pace(self, seconds_per_step: float) -> None:
        here, there = self.record.environment.device_name, self.plan.device_name
        unit, steps = self.unit, FIRST_STEPS[1] - FIRST_STEPS[0]
        planned = None
        if unit.cost.seconds_per_step is not None:
            planned = unit.price.between(self.at - steps, self.at) / steps
        said = other_pace(planned, self.plan.execution, seconds_per_step, here, there)
        if said is not None:
            self.say(f"{self.unit.arm}: {said}, seen in {FIRST_STEPS[1]} steps")

    def _add_point(self, means: dict[str, float], batch: Any) -> None:
        signs = {name: means.pop(name) for name in SIGNS if name in means}
        if batch is not None:
            with self.ledger.overhead("evaluation"):
                signs |= self.step.signs(batch)
        losses = {"loss": sum(means.values()), **means}
        self.first_loss = losses["loss"] if self.first_loss is None else self.first_loss
        point = Point(step=self.at, learning_rate=self.rate, losses=losses, signs=signs, **self.ledger.spent())
        self.means.clear()
        if self.ranks.first:
            self.store.append_point(self.unit.run_id, point)
            with self.ledger.overhead("checkpoint"):
                values = {**losses, **signs, "learning_rate": self.rate, **self.ledger.spent()}
                self.trackers.log(self.at, values)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.at,
            "key": self.unit.key,
            "teacher_hash": self.teacher_hash,
            "ledger": self.ledger.state(),
            "logged": self.means.state(),
            "passing": self.at not in self.unit.keep_steps,
        }

    def _save(self) -> None:
        """Save all that is needed to go on bit for bit, and say so in the record."""
        with self.ledger.overhead("checkpoint"):
            state = self._state()
            began = time.monotonic()
            if self.ranks.first:
                save_checkpoint(self.checkpoints, step_name(self.at), self.step.tensors(), state)
                self._tidy(newest=self.plan.execution.keep_checkpoints)
                self.store.write_record(self._updated("running"))
            self.took_to_save = time.monotonic() - began

    def _finish(self) -> RunRecord:
        """Keep what others need of it: all of it where rungs branch off, the weights alone of a rung or a teacher."""
        unit, state = self.unit, self._state()
        if not self.ranks.first:
            return self.record.model_copy(update={"status": "complete"})
        if self.state_hash is None:  # else it was killed between here and the record
            logged = [(p.step, p.learning_rate, p.losses, p.signs) for p in self.store.read_points(unit.run_id)]
            tensors = self.step.tensors()
            self.state_hash = content_hash(tensors_hash(tensors), logged)
            with self.ledger.overhead("checkpoint"):
                if unit.kind != "trunk":
                    state["state_hash"] = self.state_hash
                    tensors = {name: value for name, value in tensors.items() if name.startswith("student.")}
                save_checkpoint(self.checkpoints, step_name(self.at), tensors, state)
        with self.ledger.overhead("checkpoint"):
            record = self._updated("complete")
            if unit.kind != "trunk":
                folder = self.store.model_folder(unit.run_id)
                card, tokenizer = model_card(self.plan, record), self.corpus.tokenizer()
                export_model(self.step.student, tokenizer, card, folder, seq_len=unit.recipe.seq_len)
            self._tidy(newest=0)
        return self._written(record.model_copy(update={"overhead_seconds": dict(self.ledger.overheads)}))

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

    def _write(self, status: str, message: str) -> RunRecord:
        record = self._updated(status).model_copy(update={"message": message})
        return self._written(record) if self.ranks.first else record

    def _updated(self, status: str) -> RunRecord:
        ended = status != "running"
        weights = tensors_hash(dict(self.step.student.named_parameters())) if ended else None
        account = self.ledger.account(self.batches.unique_tokens)
        hashes = {"teacher_hash": self.teacher_hash, "weights_hash": weights, "state_hash": self.state_hash}
        said = {"status": status, "steps": self.at, "scaling_efficiency": self._scaling_efficiency()}
        return self.record.model_copy(update={**said, **hashes, **account})

    def _scaling_efficiency(self) -> float | None:
        """What `execution.scaling_efficiency` should have been."""
        took, here = self.ledger.device_seconds, self.record.environment.device_name
        if self.ranks.world == 1 or not took or self.plan.device_name != here:
            return None
        return self.unit.price.cost(self.at) / took

    def _written(self, record: RunRecord) -> RunRecord:
        self.store.write_record(record)
        return record.model_copy(update={"points": self.store.read_points(record.run_id)})
