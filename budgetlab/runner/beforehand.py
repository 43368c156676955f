"""What is looked at before anything is trained: devices, checkpoints, given teachers, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from budgetlab.checkpoint import read_state
from budgetlab.errors import CallerError
from budgetlab.models import build_network
from budgetlab.ranks import Ranks
from budgetlab.runner.trackers import make_trackers
from budgetlab.runner.units import Unit, bytes_needed
from budgetlab.store import Store
from budgetlab.units import format_quantity
from budgetlab.values import Plan


def check_devices(plan: Plan, ranks: Ranks) -> None:
    """Refuse other processes than the plan has devices for."""
    execution = plan.execution
    planned = f"{execution.devices} device{'s' * (execution.devices > 1)}"
    if ranks.world != execution.devices:
        start = f"start it with torchrun --nproc-per-node {execution.devices} -m budgetlab run ..."
        remedy = f"{start}, or plan for {ranks.world}" if execution.devices > 1 else "start it without torchrun"
        processes = f"{ranks.world} process{'es' * (ranks.world > 1)}"
        raise CallerError(f"run of a plan for {planned}", f"there {'is' if ranks.world == 1 else 'are'} {processes}",
                          remedy)  # fmt: skip
    if ranks.world > 1 and execution.side_by_side > 1:
        raise CallerError(f"run on {planned}", f"execution.workers = {execution.workers}", "set it to 1")
    recipes = {name: arm.recipe for name, arm in plan.arms.items()}
    recipes |= {teacher.model: plan.recipe for teacher in plan.teachers if teacher.weights is None}
    for name, recipe in recipes.items():
        if recipe.batch_sequences % ranks.world:
            asked = f"{name}: {recipe.batch_sequences} sequences a step on {planned}"
            raise CallerError(asked, "they cannot be shared evenly", "change recipe.batch_tokens")
    make_trackers(execution.trackers, Path())


def check_checkpoints(units: list[Unit], store: Store) -> None:
    """Refuse checkpoints that were put where they do not belong."""
    for unit in units:
        for path in store.checkpoints(unit.run_id).glob("step_*"):
            if (read_state(path) or {}).get("key", unit.key) != unit.key:
                raise CallerError(f"checkpoint {path}", "it is of another run", "delete its folder, and run again")


def check_given_weights(todo: list[Unit], plan: Plan) -> None:
    """Load given weights once, before anything is trained: they may not fit."""
    lengths = {unit.teacher: unit.recipe.seq_len for unit in todo if unit.teacher is not None}
    lengths |= {unit.model: unit.recipe.seq_len for unit in todo if unit.student_key is not None}
    for name, seq_len in lengths.items():
        if plan.models[name].weights is not None:
            build_network(plan.models[name], seq_len=seq_len)


def check_room(todo: list[Unit], newest: int, workers: int, store: Store, say: Callable[[str], None]) -> None:
    """State the room that checkpoints will take, and refuse to begin where there is less."""
    if not todo:
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    folders = (store.run_folder(unit.run_id) / part for unit in todo for part in ("checkpoints", "model"))
    if any(unit.kept_bytes for unit in todo):
        folders = (*folders, *store.cache.glob("teacher-*"))
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    needed = max(0, bytes_needed(todo, newest, workers) - there)
    free = shutil.disk_usage(store.folder).free
    needs, has = format_quantity(needed, "B"), format_quantity(free, "B")
    if needed > free:
        remedy = "free some room, lower execution.keep_checkpoints, or choose another --results"
        raise CallerError(f"run in {store.folder}", f"checkpoints take about {needs} more, {has} are free", remedy)
    say(f"checkpoints will take about {needs} more at most; {has} are free")
