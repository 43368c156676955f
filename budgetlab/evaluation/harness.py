"""Tasks of the installed lm-evaluation-harness, asked of a causal model as it stands."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import importlib.util
import io
import logging
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from budgetlab.errors import CallerError
from budgetlab.models import Network
from budgetlab.values import content_hash
from budgetlab.values.scoring import harness_task

_BATCH = 16
_PREFERRED = ("acc_norm", "acc", "exact_match", "f1")
"""The primary metric is the first of these that a task has, else its first."""


def decided_by(task: str) -> tuple[str, str, str]:
    """Return what of the harness decides the scores of a task: its version, the task, and a local file's content.

    A CallerError where it is not installed, or the local file cannot be read.
    """
    if importlib.util.find_spec("lm_eval") is None:
        wrong, remedy = "lm-evaluation-harness is not installed", 'pip install "budgetlab[lm-eval]"'
        raise CallerError(f"evaluate.lm_eval = {task!r}", wrong, remedy)
    local = Path(task).read_text(encoding="utf-8") if task.endswith(".yaml") else ""
    return version("lm_eval"), harness_task(task), content_hash(local)


@functools.lru_cache(maxsize=8)
def _task_manager(folder: str | None) -> Any:
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=folder, include_defaults=folder is None)


def run_harness(
    network: Network, tokenizer: Any, task: str, *, seq_len: int, dtype: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask one task, as the harness does; yield what a `Score` needs: the task's own, and bits a byte of its answers.

    Parameters
    ----------
    network, tokenizer
        A causal model, and its tokenizer as such models want it.
    task
        A name of the harness, or the path of a task's .yaml.
    seq_len
        Longest context in tokens: what is before is cut off.
    dtype
        "float32" or "bfloat16", of the weights.

    Raises
    ------
    CallerError
        When there is no such task, or its data cannot be read.
    """
    evaluator = importlib.import_module("lm_eval.evaluator")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    name, asked = harness_task(task), f"evaluate.lm_eval = {task!r}"
    manager = _task_manager(str(Path(task).parent) if task.endswith(".yaml") else None)
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise CallerError(asked, f"the harness has no task {name!r}", f"{hint}lm_eval ls tasks lists them")
    # Its own attention: ours knows neither padding nor kept keys and values.
    config = copy.deepcopy(network.model.config)
    plain: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    plain.load_state_dict(network.model.state_dict())
    weight = next(network.parameters())
    plain = plain.to(weight.device, dtype=getattr(torch, dtype)).eval()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            model = importlib.import_module("lm_eval.models.huggingface").HFLM(
                pretrained=plain, tokenizer=tokenizer, max_length=seq_len, batch_size=_BATCH
            )
            found: Any = evaluator.simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=1000)
    except Exception as error:  # of its hundreds of tasks, their data and their own code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CallerError(asked, f"it cannot be run ({reason})", "give a task whose data are here") from None
    results, rises = found["results"].get(name, {}), found["higher_is_better"].get(name) or {}
    numbers, errors = _metrics(results)
    if not numbers:
        raise CallerError(asked, "it is a group, or has no number", "name its tasks one by one")
    primary = next((metric for metric in _PREFERRED if metric in numbers), next(iter(numbers)))
    about = {
        "recipe": f"lm-evaluation-harness {version('lm_eval')}, {found['n-shot'].get(name) or 0}-shot",
        "recipe_hash": "none",
        "num_examples": int(found["n-samples"][name]["effective"]),
        "averaged": False,
    }
    bits = bits_per_answer_byte(found["samples"].get(name, ()))
    if bits is not None:
        yield f"{name}_bits_per_byte", {**about, "metric": "bits", "value": bits, "higher_is_better": False}
    rising = rises.get(primary) is not False
    errors = {metric: error for metric, error in errors.items() if metric in numbers}
    further = {"metrics": numbers, "standard_errors": errors}
    yield name, {**about, "metric": primary, "value": numbers[primary], "higher_is_better": rising, **further}


def _metrics(results: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers and standard errors by metric; of several filters the first."""
    numbers: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in results.items():
        metric, comma, _ = key.partition(",")
        if comma and isinstance(value, int | float) and math.isfinite(value):
            is_error = metric.endswith("_stderr")
            (errors if is_error else numbers).setdefault(metric.removesuffix("_stderr"), float(value))
    return numbers, errors


def bits_per_answer_byte(samples: Any) -> float | None:
    """Return the bits a UTF-8 byte of the right answers, summed over examples; None where answers are not rated.

    Accuracy says little of models that hardly know the right answers; how likely these are says more.
    """
    nats, num_bytes = 0.0, 0
    for sample in samples:
        asked = [arguments for arguments in sample["arguments"] if len(arguments) == 2]
        rated = [answer[0] if isinstance(answer, list) else answer for answer in sample["resps"]]
        if not asked or not all(isinstance(each, tuple | list) and len(each) == 2 for each in rated):
            return None
        answers = [str(continuation) for _, continuation in asked]
        right = _right(answers, sample["target"])
        if right is None:
            return None
        nats -= float(rated[right][0])
        num_bytes += len(answers[right].encode())
    return nats / math.log(2) / num_bytes if num_bytes else None


def _right(answers: list[str], target: Any) -> int | None:
    """Which of the answers is the right one."""
    if len(answers) == 1:
        return 0
    stripped = [answer.strip() for answer in answers]
    if isinstance(target, str) and target.strip() in stripped:
        return stripped.index(target.strip())
    known = str(target).isdecimal() and int(target) < len(answers)
    return int(target) if known else None
