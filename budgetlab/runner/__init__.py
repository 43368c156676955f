"""Plans become trained checkpoints: teachers first, then for each seed and arm a trunk and its rungs.

A unit of work is one folder named by the content of what it does, so a finished one is never run twice and
a killed one goes on from its last checkpoint with the bits of an uninterrupted run (at equal device and threads).
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from budgetlab.corpus import Corpus
from budgetlab.engines.leases import Leases, read_leases
from budgetlab.engines.local import Shared, work
from budgetlab.errors import CallerError, LostRank, Terminated
from budgetlab.machine import ASKING_TO_END, visible_gpus
from budgetlab.ranks import Ranks
from budgetlab.runner.preflight import check_checkpoints, check_devices, check_room
from budgetlab.runner.progress import Moved, Progress, ProgressMeter
from budgetlab.runner.trackers import Tracker
from budgetlab.runner.training import Trainer
from budgetlab.runner.units import Unit, ended_since, plan_units, unfinished
from budgetlab.store import Store, write_whole
from budgetlab.values import NUMERICS_VERSION, Plan, RunRecord, content_hash

__all__ = ["Progress", "Tracker", "run"]


def run(
    plan: Plan,
    corpus: Corpus,
    store: Store,
    *,
    ranks: Ranks | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    left: list[str] | None = None,
) -> list[RunRecord]:
    """Run every unit of a plan that is not finished yet, and that no other worker is at.

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
    left
        Gets the run_ids that other workers are at, once nothing else is left; without it that is waited for.

    Returns
    -------
    records
        One for each teacher and rung of the plan (and trunk that had to run), complete or failed.

    Raises
    ------
    CallerError
        Before anything is trained: when the corpus is too small or another one than planned with, given weights do not
        fit, there are fewer processes than planned devices, a checkpoint is of another run, the disk has no room, or
        a record or a worker in the same folder is of another plan, corpus or version of the numerics.
    BudgetlabError
        When the disk is full: the last checkpoint is whole, and the same command goes on from there.
    KeyboardInterrupt
        After Ctrl-C, once the step is finished and saved.
    Terminated
        After SIGTERM or SIGUSR1, likewise.
    """
    ranks, say = ranks or Ranks(), say or (lambda line: None)
    check_devices(plan, ranks)
    if plan.corpus_hash not in (None, corpus.content_hash):
        asked = f"run of a plan for corpus {plan.corpus_hash}"
        raise CallerError(asked, f"the text is now corpus {corpus.content_hash}", "plan again, or restore the text")
    units = plan_units(plan, corpus, store)
    what = content_hash(*(unit.run_id for unit in units))
    about = {"numerics_version": NUMERICS_VERSION, "corpus": corpus.content_hash, f"plan of {store.part}": what}
    leases = Leases(store.folder / "leases", about)
    with leases if ranks.first else nullcontext():
        check_checkpoints(units, store)
        if ranks.first:
            store.tidy()
            for lease in read_leases(leases.folder):
                if not lease["gone"]:
                    say(f"process {lease['pid']} on {lease['host']} is at {lease['job']}; this one takes what is left")
            store.write_index(runs=[unit.run_id for unit in units])
            for unit in units:  # finished runs answer the budgets of the plan as it is now
                record, schedule = store.read_record(unit.run_id), unit.schedule
                if record is None or record.schedule is None or schedule is None:
                    continue
                if (record.schedule.rung, record.schedule.budget) != (schedule.rung, schedule.budget):
                    store.write_record(record.model_copy(update={"schedule": schedule}))
        ranks.wait()  # nobody begins before all have seen what is done
        todo = unfinished(units, store)
        own = " ".join([corpus.content_hash, *(unit.run_id for unit in todo)])
        if ranks.any(ranks.share(own if ranks.first else None) != own)[0]:
            asked = f"run on {ranks.world} processes"
            raise CallerError(asked, "they do not see the same files", "put --results and the data on a shared disk")
        if ranks.first:
            check_room(todo, plan, store, say)
        numbers = {unit.id: number for number, unit in enumerate(todo)}
        needs = [[numbers[name] for name in unit.needs if name in numbers] for unit in todo]
        meter = ProgressMeter(units, todo, progress or (lambda where: None), say, plan.execution.side_by_side)
        shared = Shared(
            leases,
            name=lambda unit: unit.run_id,
            has_ended=ended_since(todo, store),
            tell_ended=lambda unit: meter(Moved(unit.run_id, unit.last_step, resumed=True)),
            left=left,
        )
        with _signals_as_requests() as stop:
            jobs = work(
                Trainer if left is None else _Enduring,
                (plan, corpus, store, units, ranks),
                todo,
                needs=needs,
                workers=plan.execution.side_by_side,
                tell=meter,
                stop_asked=lambda: stop.asked,
                shared=shared if ranks.first else None,
                agree=lambda choose: int(ranks.share(str(choose()) if ranks.first else None)),
                gpus=visible_gpus(plan.execution.device),
            )
            try:
                for _ in jobs:
                    pass
                if stop.asked:  # after the last step; what would come next must not begin
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                if stop.asked_by is None:
                    raise
                remedy = "give the same command again; nothing is lost"
                raise Terminated("stopped after saving", remedy, stop.asked_by) from None
    return store.records()


class _Enduring(Trainer):
    """A trainer whose unit may fail of itself: its record says so, its folder has the log, and others go on."""

    def __call__(self, unit: Unit, tell: Callable[[Moved | str], None], stop_asked: Callable[[], bool]) -> None:
        """Train one unit."""
        try:
            super().__call__(unit, tell, stop_asked)
        except Exception as error:
            record = self.store.read_record(unit.run_id)
            # What is wrong with the study, the disk or another process would not spare the next unit.
            if isinstance(error, CallerError | LostRank) or isinstance(error.__cause__, OSError) or record is None:
                raise
            write_whole(self.store.log_path(unit.run_id), traceback.format_exc())
            said = f"{error}; {self.store.log_path(unit.run_id)} has the log"
            self.store.write_record(record.model_copy(update={"status": "failed", "message": said}))


class _Stop:
    """Whether Ctrl-C or another signal came, and the name of the latter."""

    asked = False
    asked_by: str | None = None


@contextmanager
def _signals_as_requests() -> Iterator[_Stop]:
    """Turn Ctrl-C, SIGTERM or SIGUSR1 into a request that the loop honours; a second Ctrl-C acts at once.

    SIGTERM may well come twice: to every process of a job, and passed on by torchrun.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            stop.asked_by = None  # nothing more is saved
            raise KeyboardInterrupt
        if number != signal.SIGINT and not stop.asked:
            stop.asked_by = signal.Signals(number).name
        stop.asked = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, *ASKING_TO_END)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
