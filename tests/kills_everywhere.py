"""Kill run and evaluate, on one worker and on two, again and again; print as JSON what was found. Not a test.

`test_stress.py` starts it. Three of four kills are aimed: they come once a checkpoint, or a score or its predictions,
is seen being written. What a kill was inside of is told by what it left behind, never by what was aimed at: a folder
`checkpoints/.step_*.partial` is there from the first line of a save to its last alone, and a file `.*.partial` in
`scores` or `predictions` while that file is written. All other half-written files count as `another file`.
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


PLACES = {
    "save": ("runs/*/checkpoints/.step_*[0-9].partial",),
    "score": ("runs/*/scores/.*.partial", "runs/*/predictions/.*.partial"),
}


def unfinished(store: Store) -> dict[str, set[Path]]:
    """What is half written: checkpoints; scores and their predictions."""
    return {what: {path for where in places for path in store.folder.glob(where)} for what, places in PLACES.items()}


def partial(store: Store) -> dict[str, set[Path]]:
    """What is half written, all other files too."""
    found = unfinished(store)
    return {**found, "another file": {*store.folder.rglob(".*.partial")} - found["save"] - found["score"]}


def is_new(found: dict[str, set[Path]], left: dict[str, set[Path]]) -> list[str]:
    return [what for what, paths in found.items() if paths - left[what]]


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
inside = {verb: dict.fromkeys((*PLACES, "another file", "no file"), 0) for verb in ("run", "evaluate")}
done = {"run": 0, "evaluate": 0}
results = {}
for workers in (1, 2):
    store = Store(folder / f"killed-{workers}", "small")
    for verb in ("run", "evaluate"):
        trial = 0
        while trial < kills // 4:
            left, before = partial(store), scored(store)
            child, ended = begun(verb, store, workers), False
            aimed, until = trial % 4 != 0, time.monotonic() + draw.uniform(8.0, 16.0)
            while not ended and (not is_new(unfinished(store), left) if aimed else time.monotonic() < until):
                ended = child.poll() is not None
            if ended:  # by itself: all of it is done; there must be something left to kill
                assert child.returncode == 0, f"{verb} on {workers} workers ended with {child.returncode}"
                shutil.rmtree(store.folder) if verb == "run" else [
                    shutil.rmtree(path) for path in store.folder.glob("runs/*/scores")
                ]
                continue
            (os.kill if trial % 3 == 2 else os.killpg)(child.pid, signal.SIGKILL)
            child.wait()
            trial, done[verb] = trial + 1, done[verb] + 1
            wrong += [] if gone(child.pid) else [f"{verb} on {workers}, kill {trial}: a process outlived it"]
            inside[verb][[*is_new(partial(store), left), "no file"][0]] += 1
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
