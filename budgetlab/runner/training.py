"""The training loop: one unit from its first step, or its last checkpoint, to its record."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from budgetlab.batches import keyed_uniform
from budgetlab.checkpoint import load_checkpoint, step_name
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError
from budgetlab.hardware import environment, is_out_of_memory, prepare
from budgetlab.models import Network, build_network, load_parameters
from budgetlab.ranks import Ranks
from budgetlab.runner.progress import Moved
from budgetlab.runner.state import SIGNS, TrainingState
from budgetlab.runner.units import Unit
from budgetlab.store import Store
from budgetlab.values import NUMERICS_VERSION, Plan, Recipe, RunRecord

POINTS_PER_RUN, SIGNS_EVERY_POINTS = 40, 5
CHECKPOINT_EVERY_SECONDS, CHECKPOINT_SHARE = 30.0, 0.01
"""Not oftener than this, and not so often that saving takes a larger share of the time."""
TELL_EVERY_SECONDS = 1.0
MOST_UNASKED_STEPS = 64
"""Between which several processes do not ask whether one of them is to stop."""
PACE_STEPS = (3, 23)
"""Between which the pace is compared with the plan: the very first steps choose kernels and make optimizer state."""
DIVERGED = 10.0
"""A mean loss so many times that of the first point is divergence."""
_DROPOUT_STREAM = 99
Made = TypeVar("Made")


class Trainer:
    """Trains one unit after another; what they share is made once: the device, the teachers."""

    def __init__(self, plan: Plan, corpus: Corpus, store: Store, units: list[Unit], ranks: Ranks) -> None:
        self.plan, self.corpus, self.store, self.units, self.ranks = plan, corpus, store, units, ranks
        self.run_ids = {unit.id: unit.run_id for unit in units}
        self.device = prepare(plan.execution, ranks.local)
        self.environment = environment(plan.execution, ranks.local)
        self._teachers: dict[str, Network] = {}
        self._said: set[str] = set()

    def __call__(self, unit: Unit, tell: Callable[[Moved | str], None], stop_asked: Callable[[], bool]) -> None:
        """Train one unit to its last step and write its record; what it needs must have been trained."""
        began, plan, ranks, recipe = time.perf_counter(), self.plan, self.ranks, unit.recipe

        def say(line: str) -> None:  # the first of those that begin alike
            if (about := line.split(":")[0]) not in self._said:
                self._said.add(about)
                tell(line)

        with _failures_named(unit.run_id):
            needed = [self.store.read_record(self.run_ids[name]) for name in unit.needs if name in self.run_ids]
            if ranks.any(any(record is None or record.status != "complete" for record in needed))[0]:
                # What it needs has failed and says why; once that is mended, this one runs.
                tell(Moved(unit.run_id, unit.last_step, resumed=True))
                return
            record = RunRecord(
                run_id=unit.run_id,
                key=unit.key,
                numerics_version=NUMERICS_VERSION,
                kind=unit.record_kind,
                arm=unit.arm,
                student=unit.model,
                schedule=unit.schedule,
                run_seed=unit.seed,
                teacher_seed=unit.teacher_seed,
                teacher_key=unit.teacher_key,
                environment=self.environment,
            )
            if ranks.first:
                self.store.write_record(record)
            run = TrainingState(
                unit, record, plan, self.corpus, self.store, self.teacher(unit), self.device, ranks, say
            )
            step, ledger, means = run.step, run.ledger, run.means
            ledger.overheads["start"] += time.perf_counter() - began
            tell(Moved(unit.run_id, run.at, resumed=True))

            with run.tracked(), Prefetch(run.samples, unit.last_step) as prefetch:
                if run.cache is not None:
                    run.cache.make(unit.last_step * recipe.batch_sequences, ledger.counter, stop_asked, say)
                if plan.compiled and run.at < unit.last_step:
                    with ledger.overhead("compile"):
                        step.warm_up(prefetch.step(run.at)[0], run.micro_batch_sequences)
                        ranks.wait()
                ledger.mark()
                every = max(1, (unit.last_step - unit.first_step) // POINTS_PER_RUN)
                seconds = unit.cost.seconds_per_step if ranks.world > 1 else None
                ask_every = max(1, min(MOST_UNASKED_STEPS, int(1.0 / seconds))) if seconds else 1
                told_step = run.at
                saved_at = told_at = time.monotonic()
                save_every, pace_from = CHECKPOINT_EVERY_SECONDS, 0.0

                while run.at < unit.last_step:
                    # Data: this process's samples, drawn and masked while the device was at the step before.
                    with ledger.overhead("data_wait"):
                        batch, digest, staged = prefetch.step(run.at)
                    ledger.count(batch, digest)

                    # The step, at a rate that follows from its number alone; nothing in it waits for the device.
                    rate = recipe.learning_rate * learning_rate_factor(
                        recipe, run.at, unit.last_step, unit.warmup_steps, unit.cooldown_steps
                    )
                    ledger.meter.begin()
                    terms = step.run(
                        staged,
                        rate,
                        micro_batch_sequences=run.micro_batch_sequences,
                        dropout_seed=int(keyed_uniform(unit.seed, _DROPOUT_STREAM, run.at, ranks.rank) * 2**31),
                        on_phase=ledger.meter,
                    )
                    if recipe.clip_norm:
                        terms["clipped_fraction"] = (terms["gradient_norm"] > recipe.clip_norm).float()
                    means.add(terms)
                    run.at += 1

                    # What is due after it; all processes decide alike, and ask each other about once a second.
                    now, done = time.monotonic(), run.at - run.began_at
                    ended = run.at == unit.last_step
                    point = ended or run.at % every == 0
                    stopping = due = False
                    if point or run.at in unit.keep_steps or run.at % ask_every == 0:
                        stopping, due = ranks.any(stop_asked(), ranks.first and now - saved_at >= save_every)
                    save = not ended and (stopping or due or run.at in unit.keep_steps)
                    if ranks.first and now - told_at >= TELL_EVERY_SECONDS:
                        tell(run.moved((run.at - told_step) / (now - told_at)))
                        told_at, told_step = now, run.at
                    if done in PACE_STEPS:
                        ledger.settle()
                        if done == PACE_STEPS[1] and ranks.first:
                            run.compare_pace(ledger.device_seconds - pace_from, PACE_STEPS[1] - PACE_STEPS[0])
                        pace_from = ledger.device_seconds
                    if not (point or save):
                        continue

                    # Divergence ends this unit alone.
                    ledger.settle()
                    losses = means.all()
                    if (wrong := divergence(losses, run.first_loss)) is not None:
                        lower = f"try a lower recipe.learning_rate than {recipe.learning_rate:g}"
                        run.end("failed", f"arm {unit.arm}: {wrong} by step {run.at}; {lower}")
                        return

                    if point:
                        look = ended or run.at % (every * SIGNS_EVERY_POINTS) == 0
                        run.log_point(losses, rate, batch if look else None)

                    # A checkpoint now and then, where rungs branch off, and before a stop.
                    if save:
                        took = run.save()
                        saved_at = time.monotonic()
                        save_every = max(CHECKPOINT_EVERY_SECONDS, took / CHECKPOINT_SHARE)
                    with ledger.overhead("checkpoint"):
                        ranks.wait()  # for the first one, which writes; not within the next step
                    ledger.mark()
                    if stopping and not ended:
                        raise KeyboardInterrupt

                if step.teacher_hash() != run.teacher_hash:
                    raise BudgetlabError(f"run {unit.run_id}", "the frozen teacher's weights changed", "report this")
                tell(Moved(unit.run_id, run.at))
                run.end("complete")

    def teacher(self, unit: Unit) -> Network | None:
        """Return the teacher of a unit, built once."""
        name = unit.teacher
        if name is not None and name not in self._teachers:
            trained = next((other for other in self.units if other.kind == "teacher" and other.model == name), None)
            network = build_network(
                self.plan.models[name] if trained is None else trained.spec,
                seq_len=unit.recipe.seq_len,
                attention=unit.recipe.attention if unit.recipe.attention != "auto" else "sdpa",
                device=self.device,
            )
            if trained is not None:
                folder = self.store.checkpoints(trained.run_id) / step_name(trained.last_step)
                load_parameters(network, load_checkpoint(folder)[0])
            self._teachers[name] = network
        return None if name is None else self._teachers[name]


class Prefetch(Generic[Made]):
    """What `make(step)` returns for one step after the other, the next made in the background; for a `with` block."""

    def __init__(self, make: Callable[[int], Made], last_step: int) -> None:
        self._make, self._last_step, self._at = make, last_step, -1
        self._next: Future[Made] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __enter__(self) -> Prefetch[Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def step(self, step: int) -> Made:
        """Return this step's, and begin to make the next one's."""
        found = self._next.result() if self._next is not None and self._at == step else self._make(step)
        self._at, self._next = step + 1, None
        if self._at < self._last_step:
            self._next = self._pool.submit(self._make, self._at)
        return found


def learning_rate_factor(recipe: Recipe, step: int, steps: int, warmup_steps: int, cooldown_steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Linear warm-up, then constant with a cooldown to zero, linear ("wsd") or by 1 - sqrt of its share that is over
    ("wsd_sqrt"; both Hägele et al. 2024, arXiv 2405.18392), or linear, cosine or inverse square root decay. The clock
    never enters.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if recipe.schedule == "inverse_sqrt":
        return (max(warmup_steps, 1) / (step + 1)) ** 0.5
    if recipe.cools_down:
        left = min(1.0, (steps - step) / cooldown_steps) if cooldown_steps else 1.0
        return left if recipe.schedule == "wsd" else 1.0 - (1.0 - left) ** 0.5
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 1.0 - progress if recipe.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def divergence(means: Mapping[str, float], first_loss: float | None) -> str | None:
    """Say what makes these means of terms and signs no training; None where nothing does."""
    found = {name: value for name, value in means.items() if name != "clipped_fraction"}
    if not all(map(math.isfinite, found.values())):
        return f"not finite ({', '.join(f'{name} {value:.4g}' for name, value in found.items())})"
    loss = sum(value for name, value in found.items() if name not in SIGNS)
    if first_loss is not None and loss > DIVERGED * abs(first_loss):
        return f"diverged (loss {loss:.4g}, which began at {first_loss:.4g})"
    return None


@contextmanager
def _failures_named(run_id: str) -> Iterator[None]:
    """Turn what the disk and the device refuse into one line with its remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)  # safetensors gives no number
        remedy = f"{'free some room' if full else 'mend that'} and give the same command again; nothing is lost"
        raise BudgetlabError(f"run {run_id}", str(error), remedy) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "set execution.micro_batch_sequences lower and give the same command again; nothing is lost"
        raise BudgetlabError(f"run {run_id}", "the device is out of memory", remedy) from error
