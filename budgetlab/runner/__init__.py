"""Plans become trained checkpoints: teachers first, then for each seed and arm a trunk and its rungs.

A unit of work is one folder named by the content of what it does, so a finished one is never run twice and
a killed one goes on from its last checkpoint with the bits of an uninterrupted run (at equal device and threads).
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from budgetlab.checkpoint import is_whole, load_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.crew import work
from budgetlab.errors import BudgetlabError, CallerError, Terminated
from budgetlab.hardware import emulated_bfloat16, environment, is_out_of_memory, pick_device, prepare
from budgetlab.models import Network, build_network, load_parameters
from budgetlab.ranks import Ranks
from budgetlab.runner.beforehand import check_checkpoints, check_devices, check_given_weights, check_room
from budgetlab.runner.meter import Meter, Moved, Progress
from budgetlab.runner.trackers import Tracker
from budgetlab.runner.training import Training, step_name
from budgetlab.runner.units import Unit, plan_units
from budgetlab.store import Store
from budgetlab.values import Plan, RunRecord

__all__ = ["Progress", "Tracker", "run"]


def run(
    plan: Plan,
    corpus: Corpus,
    store: Store,
    *,
    ranks: Ranks | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
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
    ranks
        The processes that train together (`ranks.joined`), one for each of the plan's devices; None for this one alone.
    progress
        Told now and then where the run stands.
    say
        Told lines for a person: the room that checkpoints take, a pace that is not the planned one.

    Returns
    -------
    records
        One for each teacher and rung of the plan (and trunk that had to run), complete or failed.

    Raises
    ------
    CallerError
        Before anything is trained: when the corpus is too small or another one than planned with, given weights do not
        fit, there are fewer processes than planned devices, a checkpoint is of another run, the disk has no room, or
        another process runs in the same folder.
    BudgetlabError
        When the disk is full: the last checkpoint is whole, and the same command goes on from there.
    KeyboardInterrupt
        After Ctrl-C, once the step is finished and saved.
    Terminated
        After SIGTERM, likewise.
    """
    ranks = ranks or Ranks()
    check_devices(plan, ranks)
    if plan.corpus_hash not in (None, corpus.content_hash):
        asked = f"run of a plan for corpus {plan.corpus_hash}"
        raise CallerError(asked, f"the text is now corpus {corpus.content_hash}", "plan again, or restore the text")
    say = say or (lambda line: None)
    with store.held("run") if ranks.first else nullcontext(True) as locked:
        if not locked:
            say(f"warning: files in {store.folder} cannot be locked: see that nothing else runs there")
        return _run(plan, corpus, store, ranks, progress or (lambda where: None), say)


def _run(
    plan: Plan,
    corpus: Corpus,
    store: Store,
    ranks: Ranks,
    progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> list[RunRecord]:
    units = plan_units(plan, corpus, store)
    check_checkpoints(units, store)
    if ranks.first:
        store.write_index(runs=[unit.run_id for unit in units])
        _number_anew(units, store)
    ranks.wait()  # nobody begins before all have seen what is done
    todo = _unfinished(units, store)
    own = " ".join([corpus.content_hash, *(unit.run_id for unit in todo)])
    if ranks.any(ranks.share(own if ranks.first else None) != own)[0]:
        asked = f"run on {ranks.world} processes"
        raise CallerError(asked, "they do not see the same files", "put --results and the data on a shared disk")
    if ranks.first:
        check_given_weights(todo, plan)
        check_room(todo, plan.execution.keep_checkpoints, plan.execution.side_by_side, store, say)
        if todo and (
            plan.compiled
            or any(cost.compiled is not None for cost in (*plan.costs.values(), *plan.teacher_costs.values()))
        ):
            say(f"torch.compile is {'used' if plan.compiled else 'not used'}: {plan.compile_reason}")
        dtypes = {unit.recipe.dtype for unit in todo}
        if (emulated := emulated_bfloat16(dtypes, pick_device(plan.execution))) is not None:
            say(f"warning: {emulated}")
        if todo and plan.packing_reason:
            say(f"{plan.execution.side_by_side} at a time on the device: {plan.packing_reason}")
    numbers = {unit.run_id: number for number, unit in enumerate(todo)}
    needs = [[numbers[run_id] for run_id in _needs(unit, units) if run_id in numbers] for unit in todo]
    meter = Meter(units, todo, progress, say)
    with _finish_the_step_on_signals() as stop:
        jobs = work(
            _Worker,
            (plan, corpus, store, units, ranks),
            todo,
            needs=needs,
            workers=plan.execution.side_by_side,
            tell=meter,
            stop_asked=lambda: stop.asked,
        )
        try:
            for _ in jobs:
                pass
            if stop.asked:  # after the last step; what would come next must not begin
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not stop.terminated:
                raise
            remedy = "give the same command again; nothing is lost"
            raise Terminated("stopped after saving", remedy) from None
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


class _Worker:
    """Trains one unit after the other; what they share, it makes once: the device, the teachers."""

    def __init__(self, plan: Plan, corpus: Corpus, store: Store, units: list[Unit], ranks: Ranks) -> None:
        self.plan, self.corpus, self.store, self.units, self.ranks = plan, corpus, store, units, ranks
        self.device = prepare(plan.execution, ranks.local)
        self.environment = environment(plan.execution, ranks.local)
        self.teachers: dict[str, Network] = {}
        self.said: set[str] = set()

    def __call__(self, unit: Unit, tell: Callable[[Moved | str], None], stop_asked: Callable[[], bool]) -> None:
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
            began = time.perf_counter()
            needed = [self.store.read_record(run_id) for run_id in _needs(unit, self.units)]
            if self.ranks.any(any(other is None or other.status != "complete" for other in needed))[0]:
                # What it needs has failed and says why; once that is mended, this one runs.
                tell(Moved(unit.run_id, unit.last_step, {}, resumed=True))
                return
            if self.ranks.first:
                self.store.write_record(record)
            training = Training(
                unit,
                record,
                plan=self.plan,
                corpus=self.corpus,
                store=self.store,
                teacher=self._teacher(unit),
                device=self.device,
                ranks=self.ranks,
                say=lambda line: self._say_once(line, tell),
                began=began,
            )
            tell(Moved(unit.run_id, training.at, {}, resumed=True))
            training.go(stop_asked, tell)
            self.ranks.wait()  # what comes next looks at the record
        except OSError as error:
            full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)  # safetensors gives no number
            remedy = f"{'free some room' if full else 'mend that'} and give the same command again; nothing is lost"
            raise BudgetlabError(f"run {unit.run_id}", str(error), remedy) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            remedy = "set execution.micro_batch_sequences lower and give the same command again; nothing is lost"
            raise BudgetlabError(f"run {unit.run_id}", "the device is out of memory", remedy) from error

    def _say_once(self, line: str, tell: Callable[[Moved | str], None]) -> None:
        """Pass on a line, the first of those that begin alike."""
        about = line.split(":")[0]
        if about not in self.said:
            self.said.add(about)
            tell(line)

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
        return ended(unit) and all(is_whole(store.checkpoints(unit.run_id) / step_name(step)) for step in steps)

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


class _Stop:
    """Whether Ctrl-C or SIGTERM came, and whether it was the latter."""

    asked = terminated = False


@contextmanager
def _finish_the_step_on_signals() -> Iterator[_Stop]:
    """Turn Ctrl-C or SIGTERM into a request that the loop honours; a second Ctrl-C acts at once.

    SIGTERM may well come twice: to every process of a job, and passed on by torchrun.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            stop.terminated = False  # nothing more is saved
            raise KeyboardInterrupt
        stop.terminated = stop.terminated or (number == signal.SIGTERM and not stop.asked)
        stop.asked = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
