"""``trainer_state.json`` of transformers' Trainer: a row a logged step, columns by a documented map.

What a state holds is what `Trainer.log` appended to `log_history` (transformers 5, `trainer_callback.TrainerState`):
dictionaries with `step` and `epoch`, `loss` and `learning_rate` of training, ``eval_...`` of evaluations, and, where
`include_num_input_tokens_seen` is set, `num_input_tokens_seen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.intake.files import number, read_json

TRAINER_COLUMNS: Mapping[str, str] = {
    "step": "step",
    "epoch": "epoch",
    "tokens": "num_input_tokens_seen",
    "train_loss": "loss",
    "loss": "eval_loss",
    "learning_rate": "learning_rate",
    "estimated_flops": "total_flos",
    "train_seconds": "train_runtime",
}
"""Our column <- the Trainer's key; every other ``eval_...`` keeps its name."""
TRAINER_DEFINITIONS: Mapping[str, str] = {
    "tokens": "num_input_tokens_seen: input tokens as the Trainer counts them, padding included by default",
    "loss": "eval_loss: mean over evaluation batches, in nats a token where the model returns cross-entropy",
    "estimated_flops": "total_flos: transformers' own estimate, six per input token and parameter without embeddings; "
    "no count of what was needed or run",
}
"""What the columns mean, for the record of a fit."""
_NOT_METRICS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
_OF_STATE = ("num_input_tokens_seen", "total_flos")


def read_trainer_state(path: str | Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read one run's ``trainer_state.json``.

    Parameters
    ----------
    path
        The file, or the checkpoint folder that it lies in.
    columns
        Further or other columns, our name to the Trainer's key, over `TRAINER_COLUMNS`.

    Returns
    -------
    DataFrame
        A row a logged step, in order: the columns of the map that the file has, other ``eval_...`` by their own names,
        and `final` (the last step). The state's own tokens and FLOPs stand at the last step where the log has none.
        What is not logged is missing; a count of 0 tokens or FLOPs is one that was not made. ``attrs["definitions"]``
        says what the columns mean.

    Raises
    ------
    CallerError
        When the file is missing, empty, cut, in another encoding, no trainer state, has no logged step, or lacks a key
        that `columns` asks for.
    """
    file = Path(path)
    file = file / "trainer_state.json" if file.is_dir() else file
    state = read_json(file, "trainer state")
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CallerError(f"trainer state {file}", "it has no log_history", "give the Trainer's trainer_state.json")
    names = {**TRAINER_COLUMNS, **(columns or {})}
    rows: dict[float, dict[str, Any]] = {}
    for entry in history:
        step = number(entry.get("step"))
        if step is not None:
            rows.setdefault(step, {}).update({key: number(value) for key, value in entry.items()})
    if not rows:
        raise CallerError(f"trainer state {file}", "its log_history has no step", "log or evaluate at least once")
    ordered = [rows[step] for step in sorted(rows)]
    for key in _OF_STATE:
        if ordered[-1].get(key) is None:
            ordered[-1][key] = number(state.get(key))
        for row in ordered:
            row[key] = row.get(key) or None
    seen = {key for row in ordered for key, value in row.items() if value is not None}
    lacking = [key for name, key in (columns or {}).items() if key not in seen and name in names]
    if lacking:
        known = ", ".join(sorted(seen))
        raise CallerError(f"trainer state {file}", f"no key {', '.join(lacking)}", f"it has {known}")
    used = {name: key for name, key in names.items() if key in seen}
    others = sorted(key for key in seen if key.startswith("eval_") and key not in {*used.values(), *_NOT_METRICS})
    table = pd.DataFrame(
        [{name: row.get(key) for name, key in used.items()} | {key: row.get(key) for key in others} for row in ordered]
    )
    table["final"] = table["step"] == table["step"].max()
    table.attrs["definitions"] = {name: text for name, text in TRAINER_DEFINITIONS.items() if name in table}
    return table
