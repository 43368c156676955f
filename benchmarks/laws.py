"""Every law through one engine: CPU seconds of a certified fit and of 1,000 resamples, beside published procedures.

    python benchmarks/laws.py

Tables are the published ones from $BUDGETLAB_DATA_ROOT where there are any for a law, else 200 rows that the law
made, with noise of 0.3 %. Beside them run the procedures that the publications of two laws describe: L-BFGS-B from a
4 x 4 grid for repeated data, and for the broken power law 160,000 grid points, then curve_fit. Of the grid a sample is
run and scaled up.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit, minimize

from budgetlab.fitting import fit
from budgetlab.laws import Law, data_constrained, get_law, law_names

_GRID_POINTS, _SAMPLE = 160_000, 4_000


def cpu_seconds(action: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of a call, and what it returned."""
    began = time.process_time()
    result = action()
    return time.process_time() - began, result


def made(law: Law, rows: int = 200) -> pd.DataFrame:
    """Make runs of a law."""
    rng = np.random.default_rng(0)
    if not law.terms:
        params, ranges = law.typical, law.ranges
    else:
        # Terms of like size at the centre of the inputs, exponents apart from each other.
        params = {name: 0.3 + 0.07 * k for k, name in enumerate(law.exponents)}
        for term in law.terms:
            params[term.coefficient] = 1.8 * float(np.prod([1e9 ** params[p] for p in term.exponents.values()]))
        ranges = dict.fromkeys(law.inputs, (3e7, 3e10))
    inputs = {name: np.exp(rng.uniform(*np.log(ranges[name]), rows)) for name in law.inputs}
    return pd.DataFrame(inputs | {law.outcome: law.predict(params, inputs) * np.exp(0.003 * rng.standard_normal(rows))})


def table_for(name: str, root: Path | None) -> tuple[pd.DataFrame, dict[str, object], str]:
    """Return a law's table, settings of its fit, and what it is."""
    folder = None if root is None else root / "scaling"
    if (
        name == "data_constrained"
        and folder
        and (path := folder / "datablations" / "data_constrained_182.csv").is_file()
    ):
        pinned = {k: v for k, v in data_constrained.PUBLISHED.params.items() if k not in ("R_D", "R_N")}
        return (
            pd.read_csv(path),
            {"columns": {"num_params": "params", "loss": "val_loss"}, "pinned": pinned},
            "published",
        )
    if name == "bnsl" and folder and (path := folder / "bnsl" / "four_digit_addition.csv").is_file():
        table = pd.read_csv(path)
        columns = {"x": "train_size", "y": "test_cross_entropy"}
        return table[table["split"] == "train"], {"columns": columns, "objective": "squared_log1p"}, "published"
    return made(get_law(name)), {}, "made"


def lbfgs_grid(table: pd.DataFrame) -> float:
    """Repeated data from 4 x 4 starts of the two decays between 0 and 20, finite differences: the objective reached."""
    inputs = {"num_params": table["params"].to_numpy(), "tokens": table["tokens"].to_numpy(),
              "unique_tokens": table["unique_tokens"].to_numpy()}  # fmt: skip
    log_loss = np.log(table["val_loss"].to_numpy())

    def objective(theta: np.ndarray) -> float:
        params = data_constrained.PUBLISHED.params | {"R_D": theta[0], "R_N": theta[1]}
        residual = np.abs(log_loss - np.log(data_constrained.LAW.predict(params, inputs)))
        return float(np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum())

    grid = itertools.product(np.linspace(1, 20, 4), np.linspace(1, 20, 4))
    bounds = [(1e-2, None)] * 2
    return min(float(minimize(objective, start, method="L-BFGS-B", bounds=bounds).fun) for start in grid)


def brute_then_curve_fit(table: pd.DataFrame) -> tuple[float, float]:
    """A broken power law from a grid of its six parameters: CPU seconds, the grid's scaled up, and the objective."""
    x, y = table["train_size"].to_numpy(dtype=float), table["test_cross_entropy"].to_numpy()

    def law(x: np.ndarray, a: float, b: float, c0: float, c1: float, log_d1: float, f1: float) -> np.ndarray:
        power = c1 * f1 * np.logaddexp(0.0, (np.log(x) - log_d1) / f1)
        return np.log1p(a + b * np.exp(-c0 * np.log(x) - power))

    rng = np.random.default_rng(0)
    low, high = np.array([0, 0, 0, 0, np.log(x.min()), 0.01]), np.array([1, 5, 0.5, 8, np.log(x.max()), 1])
    began = time.process_time()
    starts = rng.uniform(low, high, (_SAMPLE, 6))
    errors = [float(((law(x, *start) - np.log1p(y)) ** 2).sum()) for start in starts]
    grid = (time.process_time() - began) * _GRID_POINTS / _SAMPLE
    spent, ends = cpu_seconds(lambda: curve_fit(law, x, np.log1p(y), starts[int(np.argmin(errors))], maxfev=20_000)[0])
    return grid + spent, float(((law(x, *ends) - np.log1p(y)) ** 2).sum())  # type: ignore[misc]


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="*", default=list(law_names()), help="which laws; all by default")
    parser.add_argument("--resamples", type=int, default=1000)
    asked = parser.parse_args()
    root = os.environ.get("BUDGETLAB_DATA_ROOT")
    print(f"{'law':18}{'rows':>6}{'table':>11}{'fit':>9}{f'{asked.resamples:,} draws':>13}   CPU s, one thread; status")
    for name in asked.laws:
        table, settings, kind = table_for(name, Path(root) if root else None)
        once, found = cpu_seconds(lambda t=table, n=name, s=settings: fit(t, law=n, resamples=0, **s))
        both, drawn = cpu_seconds(lambda t=table, n=name, s=settings: fit(t, law=n, resamples=asked.resamples, **s))
        kept = f"{drawn.resamples} kept"
        print(
            f"{name:18}{len(table):6}{kind:>11}{once:9.3f}{max(0.0, both - once):13.2f}   {found.status}, {kept}",
            flush=True,
        )
        if name == "data_constrained" and kind == "published":
            spent, reached = cpu_seconds(lambda t=table: lbfgs_grid(t))
            gap = reached / found.objective - 1
            print(
                f"  L-BFGS-B from a 4 x 4 grid: {spent:.2f} s, {spent / once:.1f} times ours; ends {gap:.1e} above ours"
            )
        if name == "bnsl" and kind == "published":
            spent, reached = brute_then_curve_fit(table)
            gap = reached / found.objective - 1
            print(
                f"  grid of 160,000, curve_fit: {spent:.2f} s, {spent / once:.1f} times ours; ends {gap:.1e} above ours"
            )


if __name__ == "__main__":
    main()
