"""`run` from its first step to its record against the bare training step in a loop: what everything else costs.

    python benchmarks/run.py [--rounds 3] [--steps 1200] [--sizes 2x128 4x256] [--workers 2]

Rounds alternate between the two in one process, one thread. Both take the same steps of one arm; the loop has its
batch ready, `run` draws and masks samples, meters phases, logs points, looks at signals, saves checkpoints, and ends
with a transformers folder and a record. With `--workers N` it is four trainings instead, N side by side against one
after the other, both through `run`, N processes of one thread each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from budgetlab.batches import Batches
from budgetlab.corpus import Corpus, build_corpus
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run
from budgetlab.runner.units import plan_units
from budgetlab.step import build_step
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.studies import load_study
from budgetlab.values import Plan

STUDY = """
extends = "presets/demo.toml"
name = "speed"
seeds = [0]
[execution]
threads = 1
[models.student]
num_layers = {layers}
hidden_size = {hidden}
num_heads = 4
intermediate_size = {inner}
[plan]
budgets = ["{budget}"]
ladder = "separate"
"""


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def prepared(layers: int, hidden: int, steps: int, folder: Path) -> tuple[Plan, Corpus]:
    path = folder / f"speed{layers}x{hidden}.toml"
    path.write_text(STUDY.format(layers=layers, hidden=hidden, inner=4 * hidden, budget="1e15"))
    study = load_study(path)
    study = study.model_copy(update={"arms": {"no_kd": study.arms["no_kd"]}})
    corpus = build_corpus(study.corpus, cache=folder / "cache")
    made = plan(study, profile(study))
    short = {"steps": steps, "warmup_steps": steps // 20, "cooldown_steps": steps // 5}
    return made.model_copy(update={"schedules": tuple(s.model_copy(update=short) for s in made.schedules)}), corpus


def pack(layers: int, hidden: int, rounds: int, steps: int, workers: int, folder: Path) -> None:
    made, corpus = prepared(layers, hidden, steps, folder)
    rates: dict[int, list[float]] = {1: [], workers: []}
    for number in range(rounds):
        for side_by_side, found in rates.items():
            execution = made.execution.model_copy(update={"workers": side_by_side})
            four = made.model_copy(update={"seeds": tuple(range(4)), "execution": execution})
            began = time.perf_counter()
            records = run(four, corpus, Store(folder / f"packed{layers}x{hidden}-{side_by_side}-{number}", "speed"))
            found.append(sum(record.tokens for record in records) / (time.perf_counter() - began))
    ratios = [many / one for one, many in zip(rates[1], rates[workers], strict=True)]
    print(f"\n{layers} x {hidden}, four trainings of {steps} steps, {workers} side by side, {rounds} rounds: tokens "
          f"a second, all, over one by one {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] "
          f"({statistics.median(rates[1]):,.0f} to {statistics.median(rates[workers]):,.0f})")  # fmt: skip


def measure(layers: int, hidden: int, rounds: int, steps: int, folder: Path) -> None:
    made, corpus = prepared(layers, hidden, steps, folder)
    unit = plan_units(made, corpus)[0]
    recipe = unit.recipe
    step = build_step(unit.arm, build_strategy(unit.strategy), unit.spec, None, recipe, seed=0, device="cpu")
    batches = Batches(corpus.train, corpus.special, corpus.vocab_size, seq_len=recipe.seq_len,
                      masked_per_sequence=recipe.masked_per_sequence, run_seed=0)  # fmt: skip
    batch = batches.step(0, recipe.batch_sequences)
    step.run(batch, 1e-4)
    ratios: dict[str, list[float]] = {}
    for number in range(rounds):
        wall, cpu = clocks()
        for _ in range(steps):
            step.run(batch, 1e-4)
        bare = [after - before for before, after in zip((wall, cpu), clocks(), strict=True)]
        seeded = made.model_copy(update={"seeds": (number,)})
        wall, cpu = clocks()
        (record,) = run(seeded, corpus, Store(folder / f"results{layers}x{hidden}", "speed"))
        whole = [after - before for before, after in zip((wall, cpu), clocks(), strict=True)]
        spent = record.overhead_seconds
        trained = record.device_seconds + spent["data_wait"] + spent["evaluation"]
        found = {
            "run / loop, wall, from first step to last": trained / bare[0],
            "run / loop, wall, with start, checkpoints, export and record": whole[0] / bare[0],
            "run / loop, CPU time, with all of that": whole[1] / bare[1],
            "waiting for data": spent["data_wait"] / whole[0],
            "checkpoint, export and record": spent["checkpoint"] / whole[0],
            "device seconds / planned": record.device_seconds / (steps * (unit.cost.seconds_per_step or 1.0)),
            "CPU time of the run / planned": whole[1] / (steps * (unit.cost.cpu_seconds_per_step or 1.0)),
        }
        for name, value in found.items():
            ratios.setdefault(name, []).append(value)
    print(f"\n{layers} x {hidden}, {recipe.batch_sequences} x {recipe.seq_len}, {recipe.dtype}, {recipe.attention}, "
          f"{steps} steps, {rounds} rounds: median [lowest, highest]")  # fmt: skip
    for name, values in ratios.items():
        print(f"  {name:<62} {statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--sizes", nargs="+", default=["2x128", "4x256"], metavar="LAYERSxHIDDEN")
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.sizes:
            layers, hidden = map(int, size.split("x"))
            if asked.workers:
                pack(layers, hidden, asked.rounds, asked.steps, asked.workers, Path(folder))
            else:
                measure(layers, hidden, asked.rounds, asked.steps, Path(folder))


if __name__ == "__main__":
    main()
