"""Results of lm-evaluation-harness: a row a task and metric.

``results`` holds per task ``"METRIC,FILTER": value`` beside ``"METRIC_stderr,FILTER"`` (before version 0.4 without a
filter), ``higher_is_better`` says which way a metric goes, ``n-samples`` how many examples there were, and
``group_subtasks`` which entries are averages of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.intake.files import number, read_json

_HIGHER = {
    "acc": True, "acc_norm": True, "acc_bytes": True, "acc_mutual_info": True, "exact_match": True, "em": True,
    "f1": True, "mcc": True, "bleu": True, "chrf": True, "mc1": True, "mc2": True, "perplexity": False,
    "word_perplexity": False, "byte_perplexity": False, "bits_per_byte": False, "brier_score": False, "ter": False,
}  # fmt: skip
"""Where the file does not say."""
_NOT_METRICS = ("alias", "name", "sample_len", "sample_count")


def read_harness(path: str | Path, *, groups: bool = False) -> pd.DataFrame:
    """Read the results file of one model.

    Parameters
    ----------
    path
        ``results_*.json``.
    groups
        Whether averages over subtasks are rows too; by default only tasks are, so that nothing counts twice.

    Returns
    -------
    DataFrame
        `task`, `metric`, `filter`, `value`, `standard_error` (missing where the harness has none), `higher_is_better`,
        `num_examples` (missing in old files), `num_fewshot`, `model`, `primary` (the first metric of its task).
        ``attrs["left_out"]`` counts metrics of which nobody says whether more is better.

    Raises
    ------
    CallerError
        When the file cannot be read, is cut, is no results file, or has no number.
    """
    file = Path(path)
    found = read_json(file, "harness results")
    results = found.get("results")
    if not isinstance(results, dict) or not all(isinstance(entry, dict) for entry in results.values()):
        raise CallerError(f"harness results {file}", 'it has no "results" by task', "give the harness's results_*.json")
    subtasks = _mapping(found.get("group_subtasks"))
    sizes, shots = _mapping(found.get("n-samples")), _mapping(found.get("n-shot"))
    model = found.get("model_name") or _mapping(found.get("config")).get("model")
    rows, left_out = [], 0
    for task, entry in results.items():
        if subtasks.get(task) and not groups:
            continue
        first = True
        ways = {**_HIGHER, **{k: v for k, v in _mapping(_mapping(found.get("higher_is_better")).get(task)).items()
                              if isinstance(v, bool)}}  # fmt: skip
        for key, value in entry.items():
            metric, _, rule = key.partition(",")
            amount = number(value)
            if (
                metric.endswith("_stderr")
                or amount is None
                or metric in ("alias", "name", "sample_len", "sample_count")
            ):
                continue
            if metric not in ways:
                left_out += 1
                continue
            rows.append({
                "task": task, "metric": metric, "filter": rule or "none", "value": amount,
                "standard_error": number(entry.get(f"{metric}_stderr,{rule}" if rule else f"{metric}_stderr")),
                "higher_is_better": ways[metric], "num_examples": number(_mapping(sizes.get(task)).get("effective")),
                "num_fewshot": number(shots.get(task)), "model": model, "primary": first,
            })  # fmt: skip
            first = False
    if not rows:
        raise CallerError(f"harness results {file}", "no task has a number", "evaluate at least one task")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
