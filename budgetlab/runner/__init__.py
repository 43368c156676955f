"""Plans become trained checkpoints: teachers first, then for each seed and arm a trunk and its rungs.

A unit of work is one folder named by the content of what it does, so a finished one is never run twice and
a killed one goes on from its last checkpoint with the bits of an uninterrupted run (at equal device and threads).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from budgetlab.checkpoint import load_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.crew import work
from budgetlab.errors import BudgetlabError, CallerError, Terminated
from budgetlab.hardware import environment, prepare
from budgetlab.models import Network, build_network
from budgetlab.runner.training import Training, step_name
from budgetlab.runner.units import Unit, plan_units
from budgetlab.step import load_parameters
from budgetlab.store import Store
from budgetlab.values import Plan, RunRecord

__all__ = ["Progress", "run"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    run_id: str
    step: int
    steps: int
    loss: float
    done_fraction: float
    """Of all units together, by their planned seconds."""
    seconds_left: float | None


def run(
    plan: Plan, corpus: Corpus, store: Store, *, progress: Callable[[Progress], None] | None = None
) -> list[RunRecord]:
    """Run every unit of a plan that is not finished yet.

    Parameters
    ----------
    plan
        From `planner.plan`.
    corpus
        The tokens.
    store
        Where records and checkpoints go.
    progress
        Told now and then where the run stands.

    Returns
    -------
    records
        One for each teacher and rung of the plan (and trunk that had to run), complete or failed.

    Raises
    ------
    CallerError
        When the corpus is too small, given weights do not fit, more than one device is asked for, or another process
        runs in the same folder.
    BudgetlabError
        When the disk is full: the last checkpoint is whole, and the same command goes on from there.
    KeyboardInterrupt
        After Ctrl-C, once the step is finished and saved.
    Terminated
        After SIGTERM, likewise.
    """
    if plan.execution.devices != 1:
        asked = f"execution.devices = {plan.execution.devices}"
        raise CallerError(asked, "a run takes one device so far", "set it to 1, or only plan")
    with store.held("run"):
        return _run(plan, corpus, store, progress or (lambda where: None))


def _run(plan: Plan, corpus: Corpus, store: Store, progress: Callable[[Progress], None]) -> list[RunRecord]:
    units = plan_units(plan, corpus)
    store.write_index(runs=[unit.run_id for unit in units])
    _number_anew(units, store)
    todo = _unfinished(units, store)
    numbers = {unit.run_id: number for number, unit in enumerate(todo)}
    needs = [[numbers[run_id] for run_id in _needs(unit, units) if run_id in numbers] for unit in todo]
    meter = _Meter(todo, progress)
    with _finish_the_step_on_signals() as stop:
        jobs = work(
            _Worker,
            (plan, corpus, store, units),
            todo,
            needs=needs,
            workers=plan.execution.workers,
            tell=meter,
            stop_asked=stop.is_set,
        )
        try:
            for _ in jobs:
                pass
        except KeyboardInterrupt:
            if not stop.terminated:
                raise
            raise Terminated(
                "SIGTERM", "stopped after saving", "give the same command again; nothing is lost"
            ) from None
    return store.records()


def _number_anew(units: list[Unit], store: Store) -> None:
    """Give finished runs the budget that they answer in the plan as it is now."""
    for unit in units:
        record = store.read_record(unit.run_id)
        if record is None or record.schedule is None or unit.schedule is None:
            continue
        if (record.schedule.rung, record.schedule.budget) != (unit.schedule.rung, unit.schedule.budget):
            store.write_record(record.model_copy(update={"schedule": unit.schedule}))


def _needs(unit: Unit, units: list[Unit]) -> list[str]:
    """List the units that must have ended before this one: its teacher, its trunk."""
    return [
        other.run_id
        for other in units
        if other.run_id == unit.trunk or (other.kind == "teacher" and other.model == unit.teacher)
    ]


@dataclass(frozen=True)
class _Moved:
    """What a worker tells: where a unit stands now."""

    run_id: str
    step: int
    loss: float
    resumed: bool = False


class _Meter:
    """Adds up what the workers tell into one share and one time left."""

    def __init__(self, todo: list[Unit], progress: Callable[[Progress], None]) -> None:
        self.units = {unit.run_id: unit for unit in todo}
        self.at = {unit.run_id: unit.first_step for unit in todo}
        self.progress, self.started = progress, time.monotonic()
        self.left = sum((unit.last_step - unit.first_step) * unit.step_price for unit in todo)
        self.total, self.trained = self.left or 1.0, 0.0

    def __call__(self, moved: _Moved) -> None:
        unit = self.units[moved.run_id]
        price = (moved.step - self.at[moved.run_id]) * unit.step_price
        self.at[moved.run_id] = moved.step
        self.left -= price
        if moved.resumed:
            return
        self.trained += price
        left = max(0.0, self.left * (time.monotonic() - self.started) / self.trained)
        fraction = 1.0 - max(0.0, self.left) / self.total
        self.progress(Progress(unit.run_id, moved.step, unit.last_step, moved.loss, fraction, left))


class _Worker:
    """Trains one unit after the other; what they share, it makes once: the device, the teachers."""

    def __init__(self, plan: Plan, corpus: Corpus, store: Store, units: list[Unit]) -> None:
        self.plan, self.corpus, self.store, self.units = plan, corpus, store, units
        self.device, self.environment = prepare(plan.execution), environment(plan.execution)
        self.teachers: dict[str, Network] = {}

    def __call__(self, unit: Unit, tell: Callable[[_Moved], None], stop_asked: Callable[[], bool]) -> None:
        record = RunRecord(
            run_id=unit.run_id,
            key=unit.key,
            kind=unit.kind,
            arm=unit.arm,
            student=unit.model,
            schedule=unit.schedule,
            run_seed=unit.seed,
            teacher_seed=unit.teacher_seed,
            teacher_key=unit.teacher_key,
            environment=self.environment,
        )
        try:
            needed = [self.store.read_record(run_id) for run_id in _needs(unit, self.units)]
            if any(other is None or other.status != "complete" for other in needed):
                return  # what it needs has failed and says why; once that is mended, this one runs
            self.store.write_record(record)
            training = Training(
                unit,
                record,
                plan=self.plan,
                corpus=self.corpus,
                store=self.store,
                teacher=self._teacher(unit),
                device=self.device,
            )
            tell(_Moved(unit.run_id, training.at, float("nan"), resumed=True))
            training.go(stop_asked, lambda step, loss: tell(_Moved(unit.run_id, step, loss)))
        except OSError as error:
            remedy = "free some room and give the same command again; nothing is lost"
            raise BudgetlabError(f"run {unit.run_id}", str(error), remedy) from error

    def _teacher(self, unit: Unit) -> Network | None:
        """The teacher of a unit, built once."""
        name = unit.teacher
        if name is None:
            return None
        if name not in self.teachers:
            attention = unit.recipe.attention if unit.recipe.attention != "auto" else "sdpa"
            made = next((other for other in self.units if other.kind == "teacher" and other.model == name), None)
            network = build_network(
                self.plan.models[name] if made is None else made.spec,
                seq_len=unit.recipe.seq_len,
                attention=attention,
                device=self.device,
            )
            if made is not None:
                folder = self.store.checkpoints(made.run_id) / step_name(made.last_step)
                load_parameters(network, load_checkpoint(folder)[0])
            self.teachers[name] = network
        return self.teachers[name]


def _unfinished(units: list[Unit], store: Store) -> list[Unit]:
    """Units with work left, and the trunks and teachers that these need; a failed unit is left alone."""

    def ended(unit: Unit) -> bool:
        record = store.read_record(unit.run_id)
        return record is not None and record.status in ("complete", "failed")

    def kept(unit: Unit, steps: tuple[int, ...]) -> bool:
        record = store.read_record(unit.run_id)
        if record is not None and record.status == "failed":
            return True
        return ended(unit) and all((store.checkpoints(unit.run_id) / step_name(step)).is_dir() for step in steps)

    rungs = [unit for unit in units if unit.kind == "rung" and not ended(unit)]
    branch_points = {unit.trunk: () for unit in rungs}
    branch_points = {trunk: tuple(unit.first_step for unit in rungs if unit.trunk == trunk) for trunk in branch_points}
    trunks = [
        unit
        for unit in units
        if unit.kind == "trunk" and unit.run_id in branch_points and not kept(unit, branch_points[unit.run_id])
    ]
    wanted = {unit.teacher for unit in (*trunks, *rungs)}
    teachers = [
        unit
        for unit in units
        if unit.kind == "teacher" and not (kept(unit, unit.keep_steps) if unit.model in wanted else ended(unit))
    ]
    chosen = {id(unit) for unit in (*teachers, *trunks, *rungs)}
    return [unit for unit in units if id(unit) in chosen]


class _Stop(threading.Event):
    """Set by the first Ctrl-C or SIGTERM; remembers which."""

    terminated = False


@contextmanager
def _finish_the_step_on_signals() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop honours; a second one acts at once."""
    asked = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            asked.terminated = False  # nothing more is saved
            raise KeyboardInterrupt
        asked.terminated = number == signal.SIGTERM
        asked.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
