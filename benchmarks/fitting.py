"""Fitting against its peers, side by side in one run: CPU seconds of one thread, objectives reached, coverage.

    python benchmarks/fitting.py                          # ours against Epoch's procedure
    python benchmarks/fitting.py --peer venv/bin/python   # and the package chinchilla, installed there
    python benchmarks/fitting.py --coverage               # and the simulated coverage of every interval

The points are Epoch's 240 from $BUDGETLAB_DATA_ROOT where it is set, else 240 made ones. The peers' procedures are
long: a random sample of their starts is run and scaled up, and the sample is printed beside the time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from budgetlab.fitting import certify, compare, fit, fit_arms, predict
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import read_points
from budgetlab.laws import get_law
from budgetlab.resampling import t_quantile
from budgetlab.values import FitSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fitting"))
from fitting_tables import CURVES, DESIGNS, coverage_of, crossing_study, curve, noisy_tables, paired_t, study

DELTA = 1e-3
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.366}
HOFFMANN = np.array([np.log(1.6934), np.log(406.4), np.log(410.7), 0.33917, 0.28491])


def points() -> tuple[pd.DataFrame, str]:
    """Return the table that everything is timed on, and its name."""
    root = os.environ.get("BUDGETLAB_DATA_ROOT")
    path = Path(root or ".") / "scaling" / "epoch-chinchilla" / "svg_extracted_data.csv"
    if root and path.is_file():
        raw = pd.read_csv(path).sort_values("loss", ascending=False).iloc[5:]
        size, flops = raw["Model Size"].to_numpy(), raw["Training FLOP"].to_numpy()
        table = pd.DataFrame({"num_params": size, "tokens": flops / (6 * size), "loss": raw["loss"].to_numpy()})
        return table, "Epoch's 240 points"
    rng = np.random.default_rng(0)
    return surface(240, rng), "240 made points"


def surface(count: int, rng: np.random.Generator, noise: float = 0.01) -> pd.DataFrame:
    """Make runs of a known law."""
    size = np.exp(rng.uniform(np.log(4e7), np.log(1e10), count))
    tokens = np.exp(rng.uniform(np.log(5e8), np.log(5e11), count))
    loss = get_law("chinchilla").predict(TRUTH, {"num_params": size, "tokens": tokens})
    return pd.DataFrame(
        {"num_params": size, "tokens": tokens, "loss": loss * np.exp(noise * rng.standard_normal(count))}
    )


def cpu_seconds(action: Callable[[], object], repeats: int = 1) -> tuple[float, object]:
    """CPU seconds of the fastest of several calls, and what the last returned."""
    best, result = np.inf, None
    for _ in range(repeats):
        began = time.process_time()
        result = action()
        best = min(best, time.process_time() - began)
    return best, result


# Epoch's procedure, written down from its description ------------------------------------------------------------


def huber_sum(theta: np.ndarray, table: dict[str, np.ndarray]) -> float:
    """Sum of Huber(1e-3) of log residuals at (log E, log A, log B, alpha, beta)."""
    residual = np.abs(table["y"] - np.log(sum(_terms(theta, table))))
    return float(np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA)).sum())


def huber_gradient(theta: np.ndarray, table: dict[str, np.ndarray]) -> np.ndarray:
    """Exact gradient of `huber_sum`; by hand, which is kinder to the peer than its automatic one."""
    terms = _terms(theta, table)
    total = sum(terms)
    slope = -np.clip(table["y"] - np.log(total), -DELTA, DELTA) / total
    e, a, b = (term * slope for term in terms)
    return np.array([e.sum(), a.sum(), b.sum(), -(a * table["n"]).sum(), -(b * table["d"]).sum()])


def _terms(theta: np.ndarray, table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    e, a, b, alpha, beta = theta
    return np.full_like(table["n"], np.exp(e)), np.exp(a - alpha * table["n"]), np.exp(b - beta * table["d"])


def epoch_grid(table: pd.DataFrame, sample: int) -> tuple[float, float]:
    """4,500 starts of L-BFGS-B with finite differences: CPU seconds of all, from a sample, and the best objective."""
    logs = {"n": np.log(table["num_params"].to_numpy()), "d": np.log(table["tokens"].to_numpy())}
    logs["y"] = np.log(table["loss"].to_numpy())
    grid = list(
        itertools.product(
            np.linspace(-1, 1, 5), np.arange(0, 30, 5), np.arange(0, 30, 5), np.linspace(0, 2, 5), np.linspace(0, 2, 5)
        )
    )
    chosen = np.random.default_rng(0).choice(len(grid), sample, replace=False)
    began = time.process_time()
    with np.errstate(all="ignore"):
        ends = [minimize(huber_sum, grid[i], args=(logs,), method="L-BFGS-B") for i in chosen]
    return (time.process_time() - began) * len(grid) / sample, min(float(end.fun) for end in ends)


def epoch_bootstrap(table: pd.DataFrame, resamples: int, sample: int) -> float:
    """One BFGS per resample, from Hoffmann's parameters: CPU seconds of all, from a sample."""
    logs = {"n": np.log(table["num_params"].to_numpy()), "d": np.log(table["tokens"].to_numpy())}
    logs["y"] = np.log(table["loss"].to_numpy())
    rng = np.random.default_rng(0)
    began = time.process_time()
    for _ in range(sample):
        rows = rng.integers(0, len(table), len(table))
        part = {name: values[rows] for name, values in logs.items()}
        minimize(huber_sum, HOFFMANN, args=(part,), jac=huber_gradient, method="BFGS")
    return (time.process_time() - began) * resamples / sample


# The installable peer -------------------------------------------------------------------------------------------

PEER = """
import functools, json, os, resource, sys, tempfile
import numpy as np, pandas as pd
import chinchilla
from chinchilla._metrics import log_huber
table = pd.read_csv(sys.argv[1])
folder = tempfile.mkdtemp()
pd.DataFrame({"C": 6 * table.num_params * table.tokens, "N": table.num_params, "D": table.tokens,
              "loss": table.loss}).to_csv(os.path.join(folder, "df.csv"), index=False)
axis = lambda low, high: np.linspace(low, high, int(sys.argv[2]))
grid = dict(e=axis(0.1, 0.7), a=axis(3, 8), b=axis(3, 9), alpha=axis(0.2, 0.6), beta=axis(0.2, 0.6))
cc = chinchilla.Chinchilla(folder, param_grid=grid, loss_fn=functools.partial(log_huber, delta=1e-3), log_level=50)
cc.visualizer.optim = lambda *a, **k: None
cpu = lambda: sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
began = cpu()
cc.fit()
params = {name: float(getattr(cc, name)) for name in ("E", "A", "B", "alpha", "beta")}
print(json.dumps({"cpu": cpu() - began, "params": params}))
"""


def peer_fit(python: str, table: pd.DataFrame, per_axis: int) -> dict:
    """Fit with the package ``chinchilla`` in another environment, on a coarser grid than its README's 5^5."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.csv"
        table.to_csv(path, index=False)
        done = subprocess.run(
            [python, "-c", PEER, str(path), str(per_axis)], capture_output=True, text=True, check=False, cwd=folder
        )
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Coverage --------------------------------------------------------------------------------------------------------


def coverage(repeats: int) -> None:
    """Print how often intervals at a nominal 95 % hold the truth, over simulated tables and studies."""
    coverage_of_differences()
    error = 100 * (0.95 * 0.05 / repeats) ** 0.5
    print(f"\nother nominal 95 % intervals, {repeats} repetitions (standard error {error:.1f} %)")
    coverage_of_multipliers(repeats)
    coverage_of_surfaces(repeats)
    coverage_of_curves(repeats)


def coverage_of_differences(tables: int = 20_000) -> None:
    """Of the paired t of every contrast by itself, over the designs of noise."""
    print(f"\ndifferences of two arms, nominal 95 %, {tables:,} tables a design: least and most of any contrast")
    began = time.process_time()
    for skewed in (False, True):
        for name in DESIGNS:
            cells = []
            for seeds in (3, 5, 8):
                rng = np.random.default_rng([seeds, list(DESIGNS).index(name)])
                shares = coverage_of(noisy_tables(name, seeds, tables, rng, skewed)).values()
                cells.append(f"n = {seeds}: {100 * min(shares):.1f} to {100 * max(shares):.1f}")
            print(f"  {name + (', exponential noise' if skewed else ''):75} {'   '.join(cells)}")
    print("width against one variance pooled over three contrasts of four arms, equal noise: ", end="")
    print(", ".join(f"n = {n}: {width_over_pooled(n):.2f}" for n in (3, 5, 8)))
    print(f"{time.process_time() - began:.0f} CPU s")


def width_over_pooled(seeds: int, arms: int = 4, tables: int = 20_000) -> float:
    """Mean half-width of the own paired t over that of a variance pooled over the arms, at equal noise."""
    noise = np.random.default_rng(0).standard_normal((tables, arms, seeds))
    own = paired_t(noise[:, 1] - noise[:, 0])[1].mean()
    residuals = noise - noise.mean(1, keepdims=True) - noise.mean(2, keepdims=True) + noise.mean((1, 2), keepdims=True)
    freedom = (arms - 1) * (seeds - 1)
    pooled = np.sqrt((residuals**2).sum((1, 2)) / freedom * 2 / seeds).mean() * t_quantile(0.975, freedom)
    return float(own / pooled)


def coverage_of_multipliers(repeats: int) -> None:
    """Of the compute multiplier and the crossover under unequal and related noise."""
    for seeds, (kd, no_kd), trunk, growth in itertools.product(
        (3, 5), ((0.004, 0.004), (0.012, 0.002), (0.002, 0.012)), (0.0, 0.5), (1.0, 2.0)
    ):
        hits, known = ({"multiplier": 0, "crossover": 0} for _ in range(2))
        for seed in range(repeats):
            scores, truth = crossing_study(
                seeds, {"kd": kd, "no_kd": no_kd}, trunk, growth, np.random.default_rng(seed)
            )
            verdict = compare(scores, a="kd", b="no_kd", task="readout_loss")
            for name, found in (("multiplier", verdict.compute_multiplier), ("crossover", verdict.crossover)):
                if found and found["interval"]:
                    known[name] += 1
                    hits[name] += int(found["interval"][0] <= truth[name] <= found["interval"][1])
        shown = ", ".join(f"{k} {100 * hits[k] / max(1, n):.1f} (n {n})" for k, n in known.items())
        noise = f"noise {kd:g} and {no_kd:g}, x {growth:g} a budget, trunk correlation {trunk:g}"
        print(f"  2 arms x 3 budgets x {seeds} seeds, {noise}: {shown}")


def coverage_of_surfaces(repeats: int) -> None:
    """Of a Chinchilla fit's parameters, optimum and predictions."""
    at = {"num_params": 7e10, "tokens": 1.4e12}
    for count, interval in ((240, "rows"), (60, "rows"), (60, "wild")):
        hits, usable = {}, 0
        for seed in range(repeats):
            table = surface(count, np.random.default_rng(seed))
            found = fit(table, law="chinchilla", interval=interval, resamples=1000, seed=seed)
            truth = TRUTH | {"optimal_tokens_exponent": TRUTH["alpha"] / (TRUTH["alpha"] + TRUTH["beta"])}
            for name, value in truth.items():
                low, high = found.intervals[name] or (np.nan, np.nan)
                hits[name] = hits.get(name, 0) + int(low <= value <= high)
            if found.usable_for != "nothing":
                usable += 1
                row = predict(found, at).iloc[0]
                inside = row["low"] <= float(get_law("chinchilla").predict(TRUTH, at)) <= row["high"]
                hits["prediction"] = hits.get("prediction", 0) + int(inside)
        asked = {name: usable if name == "prediction" else repeats for name in hits}
        shown = ", ".join(f"{name} {100 * hit / asked[name]:.1f}" for name, hit in hits.items())
        print(f"  {count} points, {interval}: {shown} (predictions of {usable} usable fits)")


def coverage_of_curves(repeats: int) -> None:
    """Of compute multipliers, exponents and curves, with runs related between budgets and not."""
    for budgets, seeds, trunk in itertools.product((3, 4, 5), (2, 3, 5), (0.0, 0.5)):
        hits = {"difference": 0, "multiplier": 0, "exponent": 0, "curve": 0}
        known = {"exponent": 0, "curve": 0, "multiplier": 0}
        level = curve("no_kd", 3e14)
        grid = np.geomspace(1e12, 3e14, 20_000)
        truth = 3e14 / grid[np.argmax(curve("kd", grid) <= level)]
        for seed in range(repeats):
            scores = study(budgets, seeds, trunk=trunk, rng=np.random.default_rng(seed))
            verdict = compare(scores, a="kd", b="no_kd", task="readout_loss", resamples=500, seed=seed)
            low, high = verdict.interval or (np.nan, np.nan)
            hits["difference"] += int(low <= curve("no_kd", 3e14) - curve("kd", 3e14) <= high)
            ends = (verdict.compute_multiplier or {}).get("interval")
            if ends is not None:
                known["multiplier"] += 1
                hits["multiplier"] += int(ends[0] <= truth <= ends[1])
            for found in fit_arms(scores, FitSpec(resamples=500, seed=seed)):
                if found.intervals.get("a"):
                    _, _, exponent = CURVES[str(found.arm)]
                    low, high = found.intervals["a"] or (np.nan, np.nan)
                    known["exponent"] += 1
                    hits["exponent"] += int(low <= exponent <= high)
                    known["curve"] += 1
                    x = np.array(found.band["x"])
                    ends = [np.interp(2e14, x, found.band[end]) for end in ("low", "high")]
                    hits["curve"] += int(ends[0] <= curve(str(found.arm), 2e14) <= ends[1])
        shown = [f"difference {100 * hits['difference'] / repeats:.1f}"]
        shown += [f"{k} {100 * hits[k] / n:.1f} (n {n})" if n else f"{k} n/a" for k, n in known.items()]
        print(f"  4 arms x {budgets} budgets x {seeds} seeds, trunk correlation {trunk:g}: " + ", ".join(shown))


def main() -> None:
    """Time, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=150, help="of Epoch's 4,500 starts, and of its resamples")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has the package chinchilla")
    parser.add_argument("--peer-grid", type=int, default=2, help="points per axis of the peer's grid (its README: 5)")
    parser.add_argument("--coverage", type=int, nargs="?", const=200, default=0, metavar="REPEATS")
    parser.add_argument("--large", action="store_true", help="also 10^5 rows")
    asked = parser.parse_args()
    table, name = points()
    print(f"{name}, {len(table)} rows; law chinchilla, Huber({DELTA:g}) on log residuals; CPU seconds, one thread")
    law, objective = get_law("chinchilla"), Objective("huber_log", DELTA)

    once, solution = cpu_seconds(
        lambda: solve(read_points(table, law), law, objective, pinned={}, certify=False), repeats=7
    )
    certified, found = cpu_seconds(lambda: fit(table, law="chinchilla", resamples=0), repeats=5)
    many, drawn = cpu_seconds(lambda: fit(table, law="chinchilla", resamples=4000, interval="rows"), repeats=2)
    many -= certified
    grid, best = epoch_grid(table, asked.sample)
    theirs = epoch_bootstrap(table, 4000, asked.sample)
    optimum = found.objective
    print(f"{'':46}{'CPU s':>10}{'ratio':>9}  relative gap of the objective")
    print(f"{'ours, one fit with its 8 starts':46}{once:10.4f}{1:9}  {solution.value / optimum - 1:.1e}")
    print(f"{'ours, with certificate':46}{certified:10.4f}{certified / once:9.1f}  0 (status {found.status})")
    print(f"{f'Epoch, 4,500 starts (from {asked.sample})':46}{grid:10.2f}{grid / once:9.0f}  {best / optimum - 1:.1e}")
    if asked.peer:
        other = peer_fit(asked.peer, table, asked.peer_grid)
        scaled = other["cpu"] * (5 / asked.peer_grid) ** 5
        gap = certify(table, other["params"], law="chinchilla").certificate["gap"]
        label = f"chinchilla 0.2.0, 3,125 starts (from {asked.peer_grid**5})"
        print(f"{label:46}{scaled:10.2f}{scaled / once:9.0f}  {gap:.1e}")
    print(f"{f'ours, {drawn.resamples:,} bootstrap fits, all converged':46}{many:10.4f}{1:9}")
    print(f"{f'Epoch, 4,000 bootstrap fits (from {asked.sample})':46}{theirs:10.2f}{theirs / many:9.0f}")
    print(f"standard errors: {', '.join(f'{k} {v:.5g}' for k, v in drawn.standard_errors.items())}")
    if asked.large:
        for rows, resamples in ((100_000, 100), (10_000, 1_000)):
            big = surface(rows, np.random.default_rng(0))
            spent, _ = cpu_seconds(lambda big=big, resamples=resamples: fit(big, law="chinchilla", resamples=resamples))
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{rows:,} rows, {resamples:,} resamples: {spent:.1f} CPU s, peak memory so far {peak:.0f} MB")
    if asked.coverage:
        coverage(asked.coverage)


if __name__ == "__main__":
    main()
