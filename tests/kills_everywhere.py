"""Kill run and evaluate, on one worker and on two, again and again; print as JSON what was found. Not a test.

`test_stress.py` starts it. Two of three kills are aimed: they come once a file that is being written is seen, and
were inside a save or a score where that file was left behind.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from budgetlab.checkpoint import load_checkpoint
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.store import Store
from budgetlab.studies import dump_study, load_study

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
study = load_study(folder / "small.toml")
arms = {name: study.arms[name] for name in ("no_kd", "minilm")}
study = study.model_copy(update={"arms": arms, "seeds": (0,)})
made = plan(study, profile(study, count_only=True), budgets=(2e9, 6e9))
draw = random.Random(1)


def begun(verb: str, store: Store, workers: int) -> subprocess.Popen[bytes]:
    """Do a verb in a process group of its own."""
    here = made.model_copy(update={"execution": made.execution.model_copy(update={"workers": workers})})
    store.write_plan(here)
    store.write_study(dump_study(study))
    command = [sys.executable, "-m", "budgetlab", verb, str(store.folder / "plan.json")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def partial(store: Store) -> set[str]:
    return {str(path) for path in store.folder.rglob(".*.partial")}


def scored(store: Store) -> dict[str, float]:
    paths = store.folder.glob("runs/*/scores/*.json")
    return {f"{path.parent.parent.name}/{path.stem}": json.loads(path.read_text())["value"] for path in paths}


def gone(group: int) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def finish(verb: str, store: Store, workers: int) -> None:
    status = begun(verb, store, workers).wait()
    assert status == 0, f"{verb} on {workers} workers ended with {status}"


wrong: list[str] = []
inside = {"run": 0, "evaluate": 0}
done = {"run": 0, "evaluate": 0}
results = {}
for workers in (1, 2):
    store = Store(folder / f"killed-{workers}", "small")
    for verb in ("run", "evaluate"):
        trial = 0
        while trial < kills // 4:
            left, before = partial(store), scored(store)
            child, ended = begun(verb, store, workers), False
            aimed, until = trial % 3 != 0, time.monotonic() + draw.uniform(8.0, 16.0)
            while not ended and (not partial(store) - left if aimed else time.monotonic() < until):
                ended = child.poll() is not None
            if ended:  # by itself: all of it is done; there must be something left to kill
                assert child.returncode == 0, f"{verb} on {workers} workers ended with {child.returncode}"
                shutil.rmtree(store.folder) if verb == "run" else [
                    shutil.rmtree(path) for path in store.folder.glob("runs/*/scores")
                ]
                continue
            (os.kill if trial % 2 else os.killpg)(child.pid, signal.SIGKILL)
            child.wait()
            trial, done[verb] = trial + 1, done[verb] + 1
            wrong += [] if gone(child.pid) else [f"{verb} on {workers}, kill {trial}: a process outlived it"]
            inside[verb] += bool(partial(store) - left)
            for path in store.folder.glob("runs/*/checkpoints/step_*"):
                load_checkpoint(path)  # raises where one is torn
            if not before.items() <= scored(store).items():
                wrong.append(f"{verb} on {workers}, kill {trial}: a score is gone or another")
        finish(verb, store, workers)
    results[workers] = store
whole = Store(folder / "whole", "small")
for verb in ("run", "evaluate"):
    finish(verb, whole, 1)
print(json.dumps({
    "kills": done, "inside": inside, "wrong": wrong,
    "hashes": [{r.run_id: r.state_hash for r in store.records()} for store in (whole, *results.values())],
    "scores": [{f"{s.run_id}/{s.key}": s.value for s in store.scores()} for store in (whole, *results.values())],
}))  # fmt: skip
