"""Many workers on the units of a real plan, none of which trains: killed at random, beside leases that nobody renews.

Run as a script it prints as JSON what was found: `python noop_units.py FOLDER SEEDS WORKERS KILLS`.
"""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from small import ENVIRONMENT, write_small_study

from budgetlab.checkpoint import save_checkpoint, step_name
from budgetlab.corpus import build_corpus
from budgetlab.engines import leases
from budgetlab.engines.local import Shared, work
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner.units import Unit, ended_since, plan_units
from budgetlab.store import Store
from budgetlab.studies import dump_study, load_study
from budgetlab.values import NUMERICS_VERSION, RunRecord


class NoOp:
    """Writes what others need of a unit, and notes that it did."""

    def __init__(self, store: Store, notes: Path) -> None:
        self.store, self.notes = store, notes

    def __call__(self, unit: Unit, tell: object, stop_asked: object) -> None:
        about = {"numerics_version": NUMERICS_VERSION, "kind": unit.record_kind, "arm": unit.arm, "student": unit.model}
        record = RunRecord(run_id=unit.run_id, key=unit.key, run_seed=unit.seed, environment=ENVIRONMENT, **about)
        self.store.write_record(record.model_copy(update={"schedule": unit.schedule}))
        for step in unit.keep_steps if unit.record_kind != "rung" else ():
            save_checkpoint(self.store.checkpoints(unit.run_id), step_name(step), {}, {"step": step, "key": unit.key})
        done = {"status": "complete", "schedule": unit.schedule, "steps": unit.last_step}
        self.store.write_record(record.model_copy(update=done))
        with self.notes.open("a") as file:
            file.write(f"{unit.run_id}\n")


def crowd(folder: Path, seeds: int, workers: int, kills: int) -> dict:
    leases.BEAT_SECONDS, leases.EXPIRE_SECONDS = 0.5, 3.0
    study = load_study(write_small_study(folder))
    corpus = build_corpus(study.corpus, roots=study.data_roots, cache=folder / "cache")
    made = plan(study.model_copy(update={"seeds": tuple(range(seeds))}), profile(study, count_only=True))
    store, draw = Store(folder / "results", "small"), random.Random(0)
    store.write_study(dump_study(study.model_copy(update={"seeds": made.seeds})))
    store.write_plan(made)
    units = plan_units(made, corpus, store)
    store.write_index(runs=[unit.run_id for unit in units])
    numbers = {unit.id: number for number, unit in enumerate(units)}
    needs = [[numbers[name] for name in unit.needs] for unit in units]
    # Of workers elsewhere that are gone, whose clocks were wrong.
    stale = draw.sample(units, len(units) // 100)
    with leases.Leases(store.folder / "leases", {}) as own:
        for unit in stale:
            own.take(unit.run_id)
            path = own.folder / unit.run_id
            text = path.read_text().replace(f'"machine": {json.dumps(leases.this_machine())}', '"machine": "another"')
            path.write_text(text)
            os.utime(path, (time.time() + draw.uniform(-600, 600),) * 2)
        own.held.clear()

    def begin(number: int) -> int:
        if (pid := os.fork()) == 0:
            notes = folder / f"notes_{number}"
            with leases.Leases(store.folder / "leases", {"numerics_version": NUMERICS_VERSION}) as own:
                shared = Shared(own, lambda unit: unit.run_id, ended_since(units, store), lambda unit: None)
                for _ in work(NoOp, (store, notes), units, needs=needs, shared=shared):
                    pass
                (folder / f"taken_over_{number}").write_text(str(own.taken_over))
            os._exit(0)
        return pid

    began, started, killed = time.monotonic(), workers, 0
    living = {begin(number) for number in range(workers)}
    status_seconds = None
    while living:
        time.sleep(0.05)
        done = sum(path.read_bytes().count(b"\n") for path in folder.glob("notes_*"))
        if killed < kills and done >= (killed + 1) * len(units) // (kills + 1):
            victim = draw.choice(sorted(living))
            os.kill(victim, signal.SIGKILL)
            killed += 1
        for path in (store.folder / "leases").glob("[!.]*"):
            if draw.random() < 0.02:
                with contextlib.suppress(FileNotFoundError):  # as by a clock that is wrong
                    os.utime(path, (time.time() + draw.uniform(-600, 600),) * 2)
        if status_seconds is None and done > len(units) // 2:
            command = [sys.executable, "-m", "budgetlab", "status", str(folder / "small.toml")]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            asked = [*command, "--results", str(folder / "results"), "--data-root", str(folder)]
            subprocess.run(asked, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            status_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        for pid in list(living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                living.remove(pid)
                if os.WIFSIGNALED(status):
                    living.add(begin(started))
                    started += 1
                else:
                    assert os.waitstatus_to_exitcode(status) == 0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = Counter(name for path in folder.glob("notes_*") for name in path.read_text().split())
    return {
        "units": len(units), "kills": killed, "stale": len(stale), "seconds": time.monotonic() - began,
        "lost": sum(store.record_status(unit.run_id) != "complete" for unit in units),
        "twice": sum(count - 1 for count in times.values()),
        "taken_over": sum(int(path.read_text()) for path in folder.glob("taken_over_*")),
        "cpu_ms_a_unit": 1e3 * (used.ru_utime + used.ru_stime - (status_seconds or 0.0)) / len(units),
        "status_cpu_seconds": status_seconds,
        "leases_left": len(list((store.folder / "leases").glob("*"))),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(crowd(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
