"""What the commands cost: CPU seconds of all their processes, and the largest resident set, beside their targets.

    python benchmarks/commands.py [--only PART_OF_A_NAME ...]
    python benchmarks/commands.py --long                        # also the demo, the quick one and the tests

Commands run in processes of their own on copies of the recorded results. Ten thousand finished runs are the recorded
ones of wikipedia_small with further seeds, their losses a little apart. The second demo needs a finished one: that of
results/demo, or what `--long` made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "budgetlab"]
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT),
}  # fmt: skip


class Spent(NamedTuple):
    """What a process took with all that it started, and what it printed."""

    cpu_seconds: float
    megabytes: float
    printed: str


def spend(command: list[str], folder: Path) -> Spent:
    """Run a command to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=errors)
        _, status, use = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors.read()[-2000:]}")
        return Spent(use.ru_utime + use.ru_stime, use.ru_maxrss / 1024, out.read())


def fifty_arms() -> None:
    """Compare, fit, decide on and report 50 arms at 4 budgets with 3 seeds; print the seconds."""
    sys.path.insert(0, str(ROOT / "tests" / "decisions"))
    import decision_values as values
    import numpy as np

    from budgetlab.decisions import Evidence, decide
    from budgetlab.fitting import compare_arms, fit_arms
    from budgetlab.reporting import report
    from budgetlab.values import CostProfile, Environment, FitSpec

    draw, arms = np.random.default_rng(1), ("no_kd", *(f"minilm+{number:02d}" for number in range(49)))
    near = {"floor": 0.05 * draw.standard_normal(50), "exponent": 0.02 * draw.standard_normal(50)}
    size = np.exp(0.2 * draw.standard_normal(50))
    curves = {arm: (2.0 + near["floor"][k], 1.5 * size[k], 0.35 + near["exponent"][k]) for k, arm in enumerate(arms)}
    plan, spec = values.plan(arms=arms, budgets=(1e13, 3e13, 9e13, 2.7e14)), FitSpec()
    scores = values.scores(plan, curves=curves)
    here = Environment(device="cpu", device_name="", threads=1, python="", torch="", transformers="", budgetlab="")
    teacher = values.cost("no_kd", num_params=1_600_000).model_copy(update={"arm": "teacher"})
    profile = CostProfile(
        study=plan.study, arms=tuple(plan.costs.values()), teachers=(teacher,), conventions={}, environment=here
    )
    plan = plan.model_copy(update={"teacher_costs": {"teacher": teacher}})
    began = time.process_time()
    verdicts = compare_arms(scores, spec)
    compared = time.process_time() - began
    fits = fit_arms(scores, spec)
    decisions = decide(Evidence(plan.study, plan, scores), spec, verdicts, fits=fits)
    with tempfile.TemporaryDirectory() as folder:
        report(study=plan.study, plan=plan, profile=profile, records=[], scores=scores, fits=fits, verdicts=verdicts,
               folder=Path(folder), decisions=decisions)  # fmt: skip
    print(json.dumps([compared, time.process_time() - began]))


def million_rows() -> None:
    """Fit a million rows of a Chinchilla surface with its certificate; print the seconds."""
    sys.path.insert(0, str(ROOT / "tests" / "fitting"))
    import numpy as np
    from fitting_tables import surface

    from budgetlab.fitting import fit

    table = surface(1_000_000, np.random.default_rng(0))
    began = time.process_time()
    fit(table, law="chinchilla", resamples=0)
    print(json.dumps([time.process_time() - began]))


INSIDE = {action.__name__: action for action in (fifty_arms, million_rows)}


def inside(name: str, folder: Path) -> tuple[list[float], float]:
    """CPU seconds that an action prints, without its imports, and its memory."""
    spent = spend([sys.executable, str(Path(__file__).resolve()), "--inside", name], folder)
    return json.loads(spent.printed.splitlines()[-1]), spent.megabytes


def with_more_seeds(folder: Path, count: int) -> str:
    """Give the recorded wikipedia_small so many finished runs; return its study file."""
    results = folder / "results" / "wikipedia_small"
    index = json.loads((results / "index.json").read_text())
    first = [run for run in index["runs"] if "-s0-" in run and not run.startswith("teacher")]
    scores = {run: [name for name in index["scores"] if name.startswith(run)] for run in first}
    seeds, draw = range(count // len(first)), random.Random(0)
    for seed in seeds[3:]:
        for run in first:
            other = run.replace("-s0-", f"-s{seed}-")
            index["runs"].append(other)
            index["scores"] += [name.replace(run, other) for name in scores[run]]
            for path in (results / "runs" / run).rglob("*.json*"):
                text = path.read_text().replace(run, other).replace('"run_seed": 0', f'"run_seed": {seed}')
                if '"task": "readout_loss"' in text:
                    apart = draw.gauss(1.0, 0.002)
                    text = re.sub(r'"value": ([0-9.]+)', lambda of, by=apart: f'"value": {float(of[1]) * by}', text)
                copy = results / "runs" / other / path.relative_to(results / "runs" / run)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(text)
    (results / "index.json").write_text(json.dumps(index))
    study = folder / "experiments" / "wikipedia_small.toml"
    study.write_text(study.read_text().replace("seeds = [0, 1, 2]", f"seeds = {list(seeds)}", 1))
    spend([*COMMAND, "plan", str(study)], folder)
    return str(study)


def rows(folder: Path, long: bool, asked: Callable[[str], bool]) -> Iterator[tuple[str, float, float, float | None]]:
    """Yield a name, its target in CPU seconds, what it took, and megabytes."""
    study = "experiments/wikipedia_small.toml"
    table = folder / "table.csv"
    table.write_text("num_params,tokens,loss\n")
    with table.open("a") as file:
        draw = random.Random(0)
        for _ in range(200):
            size, tokens = 10 ** draw.uniform(7, 10), 10 ** draw.uniform(8, 11)
            loss = (1.8 + 400 / size**0.34 + 410 / tokens**0.28) * draw.gauss(1.0, 0.003)
            file.write(f"{size},{tokens},{loss}\n")
    for name, target, arguments in (
        ("--help", 0.2, ["--help"]),
        ("plan, recorded profile", 0.9, ["plan", study]),
        ("status", 0.9, ["status", study]),
        ("fit --table, 200 rows", 1.2, ["fit", "--table", str(table), "--law", "chinchilla"]),
        ("report of wikipedia_small", 8.0, ["report", study]),
    ):
        if asked(name):
            yield name, target, *spend([*COMMAND, *arguments], folder)[:2]
    names = ("compare_arms, 50 arms x 4 budgets x 3 seeds", "and with fit, decide and report")
    if any(map(asked, names)):
        seconds, memory = inside("fifty_arms", folder)
        for name, target, spent in zip(names, (10.0, 25.0), seconds, strict=True):
            yield name, target, spent, memory
    if asked(name := "fit of 1,000,000 rows, certified"):
        seconds, memory = inside("million_rows", folder)
        yield name, 20.0, seconds[0], memory
    verbs = {f"{verb} of 10,000 finished runs": (verb, target) for verb, target in (("status", 3.0), ("report", 60.0))}
    if any(map(asked, verbs)):
        many = with_more_seeds(folder, 10_000)
        for name, (verb, target) in verbs.items():
            if asked(name):
                yield name, target, *spend([*COMMAND, verb, many], folder)[:2]
    demo = folder / "demo"
    if long:
        if asked("demo"):
            yield "demo", 540.0, *spend([*COMMAND, "demo", "--results", str(demo)], folder)[:2]
            quick = [*COMMAND, "demo", "--quick", "--results", str(folder / "quick")]
            yield "demo --quick", 330.0, *spend(quick, folder)[:2]
        if asked("make test"):
            yield "make test", 540.0, *spend(["make", "test"], ROOT)[:2]
    elif (ROOT / "results" / "demo" / "report.html").is_file() and asked("second demo"):
        for part in ("demo", "cache"):
            shutil.copytree(ROOT / "results" / part, demo / part)
    if demo.is_dir():
        yield "second demo", 3.0, *spend([*COMMAND, "demo", "--results", str(demo)], folder)[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART_OF_A_NAME")
    parser.add_argument("--long", action="store_true", help="also the demos and the tests, many minutes")
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        INSIDE[asked.inside]()
        return
    print(f"{'':46}{'CPU s':>8}{'target':>8}{'MB':>7}")
    with tempfile.TemporaryDirectory() as made:
        for part in ("results", "experiments"):
            shutil.copytree(ROOT / part, Path(made) / part, ignore=shutil.ignore_patterns("demo*", "cache"))
        for name, target, spent, memory in rows(
            Path(made), asked.long, lambda name: any(part in name for part in asked.only)
        ):
            late = "  over" if spent > target else ""
            print(f"{name:46}{spent:8.2f}{target:8.1f}{memory:7.0f}{late}", flush=True)


if __name__ == "__main__":
    main()
