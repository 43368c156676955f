"""Kill a run again and again at random moments; print as JSON what was found. Not a test: `test_kills.py` starts it.

One process loads torch and forks a child for each trial, so that a trial takes a fraction of a second. The child saves
after every step; what it acknowledges, and whether it is inside a save, it writes into memory that both share.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from budgetlab.checkpoint import latest_checkpoint, load_checkpoint
from budgetlab.corpus import build_corpus
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run, state, training
from budgetlab.store import Store
from budgetlab.studies import load_study

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
study = load_study(folder / "small.toml")
corpus = build_corpus(study.corpus, roots=study.data_roots, cache=folder / "cache")
arms = {name: study.arms[name] for name in ("no_kd", "tinybert")}
study = study.model_copy(update={"arms": arms, "seeds": (0,)})
# Long enough that no trial reaches the end, whatever the machine.
made = plan(study, profile(study, count_only=True), budgets=(float(sys.argv[3]),))
usual = training.CHECKPOINT_EVERY_SECONDS, training.CHECKPOINT_SHARE
training.CHECKPOINT_EVERY_SECONDS, training.CHECKPOINT_SHARE = 0.0, float("inf")

FORMAT = "2i200s"  # inside a save; the number of saves; the checkpoint that the last one made
shared = mmap.mmap(-1, struct.calcsize(FORMAT))
save = state.save_checkpoint


def acknowledged() -> tuple[int, int, str]:
    within, count, path = struct.unpack(FORMAT, shared[:])
    return within, count, path.rstrip(b"\0").decode()


def watched(where: Path, name: str, *rest: object) -> Path:
    _, count, last = acknowledged()
    shared[:] = struct.pack(FORMAT, 1, count, last.encode())
    path = save(where, name, *rest)
    shared[:] = struct.pack(FORMAT, 0, count + 1, str(path.relative_to(folder)).encode())
    return path


state.save_checkpoint = watched
draw = random.Random(1)
store = Store(folder / "killed", "small")
inside = finished = saves = 0
wrong: list[str] = []
seen: dict[str, set[int]] = {}
for trial in range(kills):
    shared[:] = struct.pack(FORMAT, 0, 0, b"")
    child = os.fork()
    if child == 0:
        run(made, corpus, store)
        os._exit(0)
    until = time.monotonic() + 60
    while not acknowledged()[1] and time.monotonic() < until:
        time.sleep(0.001)  # the moment counts from the first save on
    time.sleep(draw.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    finished += os.WIFEXITED(status)
    within, count, last = acknowledged()
    inside, saves = inside + within, saves + count
    for path in store.folder.glob("runs/*/checkpoints/step_*"):
        load_checkpoint(path)  # raises where one is torn
    if not last:
        wrong.append(f"trial {trial}: nothing was saved")
        continue
    newest, step = latest_checkpoint((folder / last).parent), int(last.rpartition("_")[2])
    if newest is None or newest.name < Path(last).name:
        wrong.append(f"trial {trial}: {last} was saved, {newest} is the newest")
    points = {point.step for point in store.read_points(Path(last).parent.parent.name)}
    gone = {at for at in seen.get(last[:-9], set()) - points if at <= step}
    wrong += [f"trial {trial}: the points at {gone} are gone"] if gone else []
    seen[last[:-9]] = {at for at in points if at <= step}
training.CHECKPOINT_EVERY_SECONDS, training.CHECKPOINT_SHARE = usual  # nobody kills what follows
killed = run(made, corpus, store)
whole = run(made, corpus, Store(folder / "whole", "small"))
print(json.dumps({
    "kills": kills, "inside_a_save": inside, "saves": saves, "reached_the_end": finished, "wrong": wrong,
    "hashes": {r.run_id: r.state_hash for r in killed}, "expected": {r.run_id: r.state_hash for r in whole},
}))  # fmt: skip
