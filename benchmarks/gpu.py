"""What a GPU has to show, in one command: every part writes a record, and the records merge to a table and a figure.

    PYTHONPATH=. python benchmarks/gpu.py --out results/gpu [--parts device,probe,...]    # or: make gpu
    PYTHONPATH=. python benchmarks/gpu.py --out DIR --device cpu --tiny                   # every part at toy size

A part takes less than eight minutes: what does not fit, fails or lacks a package is left out with its reason, and the
next part begins. Nothing is downloaded or installed; texts are made up. A part that is run again replaces its record.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from gpu_parts import PART_SECONDS, PARTS, Bench

from budgetlab.hardware import environment

GOALS = {"planned": "seconds within 3 %", "trainer": "twice Trainer's bfloat16", "runner": "2 % over the step",
         "arms": "utilisation 0.40 at 6x768 with 32k tokens a step, 0.50 with 64k"}  # fmt: skip


def merge(out: Path) -> None:
    """Write the records of all parts as one table, and as one figure where matplotlib is."""
    records = [json.loads(path.read_text()) for name in PARTS if (path := out / f"{name}.json").exists()]
    lines = ["| part | what | found |", "|---|---|---|"]
    for record in records:
        for row in record["rows"]:
            found = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "what"
            )
            lines.append(f"| {record['part']} | {row['what']} | {' '.join(found.split())} |")
        lines += [f"| {record['part']} | left out | {' '.join(reason.split())} |" for reason in record["left_out"]]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    bars = {f"{record['part']}: {row['what']}": row[name] for record in records for row in record["rows"]
            for name in ("utilisation", "times_trainer", "times_loop", "measured_over_planned", "runner_over_steps")
            if isinstance(row.get(name), float)}  # fmt: skip
    figure = Figure(figsize=(8, 1 + 0.25 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(bars), list(bars.values()))
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.5)
    figure.savefig(out / "figure.svg")


def main() -> None:
    """Run the parts that were asked for, and merge all records that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="every part at toy size")
    asked = parser.parse_args()
    if unknown := set(asked.parts.split(",")) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    warnings.simplefilter("ignore")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            bench, began = Bench(asked.device, asked.tiny, Path(folder)), time.monotonic()
            bench.until = began + PART_SECONDS
            bench.attempt(name, lambda name=name, bench=bench: PARTS[name](bench))
        record = {"part": name, "goal": GOALS.get(name), "seconds": round(time.monotonic() - began, 1),
                  "environment": environment(bench.execution).model_dump(), "tiny": asked.tiny,
                  "rows": bench.rows, "left_out": bench.left_out}  # fmt: skip
        (asked.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {len(bench.rows)} rows in {record['seconds']} s", *bench.left_out, sep="\n  left out: ")
    merge(asked.out)


if __name__ == "__main__":
    main()
