"""What is looked at before anything is trained: devices, checkpoints, given weights, room on the disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

from budgetlab.checkpoint import read_state
from budgetlab.errors import CallerError
from budgetlab.hardware import emulated_bfloat16, pick_device
from budgetlab.models import build_network
from budgetlab.ranks import Ranks
from budgetlab.runner.trackers import find_tracker
from budgetlab.runner.units import Unit
from budgetlab.store import Store
from budgetlab.units import format_quantity
from budgetlab.values import NUMERICS_VERSION, Plan


def check_devices(plan: Plan, ranks: Ranks) -> None:
    """Refuse other processes than the plan has devices for, and trackers that are not there."""
    execution = plan.execution
    planned = f"{execution.devices} device{'s' * (execution.devices > 1)}"
    if ranks.world != execution.devices:
        start = f"start it with torchrun --nproc-per-node {execution.devices} -m budgetlab run ..."
        remedy = f"{start}, or plan for {ranks.world}" if execution.devices > 1 else "start it without torchrun"
        wrong = "there is 1 process" if ranks.world == 1 else f"there are {ranks.world} processes"
        raise CallerError(f"run of a plan for {planned}", wrong, remedy)
    if ranks.world > 1 and execution.side_by_side > 1:
        raise CallerError(f"run on {planned}", f"execution.workers = {execution.workers}", "set it to 1")
    recipes = {name: arm.recipe for name, arm in plan.arms.items()}
    recipes |= {teacher.model: plan.recipe for teacher in plan.teachers if teacher.weights is None}
    for name, recipe in recipes.items():
        if recipe.batch_sequences % ranks.world:
            asked = f"{name}: {recipe.batch_sequences} sequences a step on {planned}"
            raise CallerError(asked, "they cannot be shared evenly", "change recipe.batch_tokens")
    for name in execution.trackers:
        find_tracker(name)


def check_checkpoints(units: list[Unit], store: Store) -> None:
    """Refuse checkpoints that were put where they do not belong, and runs of another version of the numerics."""
    for unit in units:
        version = store.record_status(unit.run_id, of="numerics_version")
        if version not in (None, NUMERICS_VERSION):
            asked = f"run {unit.run_id}"
            wrong = f"it was trained with version {version} of the numerics, which is {NUMERICS_VERSION} here"
            raise CallerError(asked, wrong, "go on with that version of budgetlab, or choose another --results")
        for path in store.checkpoints(unit.run_id).glob("step_*"):
            if (read_state(path) or {}).get("key", unit.key) != unit.key:
                raise CallerError(f"checkpoint {path}", "it is of another run", "delete its folder, and run again")


def check_room(todo: list[Unit], plan: Plan, store: Store, say: Callable[[str], None]) -> None:
    """Load given weights once, which may not fit; state the room that checkpoints take, and how steps are taken."""
    if not todo:
        return
    execution = plan.execution
    lengths = {unit.teacher: unit.recipe.seq_len for unit in todo if unit.teacher is not None}
    lengths |= {unit.model: unit.recipe.seq_len for unit in todo if unit.student_key is not None}
    for name, seq_len in lengths.items():
        if plan.models[name].weights is not None:
            build_network(plan.models[name], seq_len=seq_len)
    store.folder.mkdir(parents=True, exist_ok=True)
    folders = [store.run_folder(unit.run_id) / part for unit in todo for part in ("checkpoints", "model")]
    caches = [cache for cache in plan.caches if any(unit.arm.partition("~")[0] in cache.arms for unit in todo)]
    kept = sum(cache.bytes for cache in caches if cache.made)
    if any(unit.cached for unit in todo):
        folders += store.cache.glob("teacher-*")
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    needed = max(0, kept + bytes_needed(todo, execution.keep_checkpoints, execution.side_by_side) - there)
    free = shutil.disk_usage(store.folder).free
    needs, has = format_quantity(needed, "B"), format_quantity(free, "B")
    if needed > free:
        remedy = "free some room, lower execution.keep_checkpoints, or choose another --results"
        what = f"checkpoints take about {needs} more"
        if kept:
            what = f"checkpoints and teachers' answers ({format_quantity(kept, 'B')}) take about {needs} more"
        raise CallerError(f"run in {store.folder}", f"{what}, {has} are free", remedy)
    say(f"checkpoints will take about {needs} more at most; {has} are free")
    if plan.compiled or any(cost.compiled is not None for cost in (*plan.costs.values(), *plan.teacher_costs.values())):
        say(f"torch.compile is {'used' if plan.compiled else 'not used'}: {plan.compile_reason}")
    if (emulated := emulated_bfloat16({unit.recipe.dtype for unit in todo}, pick_device(execution))) is not None:
        say(f"warning: {emulated}")
    for cache in caches:
        how = (
            f"kept ({cache.kept}), {format_quantity(cache.bytes, 'B')} at most" if cache.made else "asked at every step"
        )
        say(f"teacher {cache.teacher} of {', '.join(cache.arms)} is {how}: {cache.reason}")
    if plan.packing_reason:
        say(f"{execution.side_by_side} at a time on the device: {plan.packing_reason}")


def bytes_needed(units: list[Unit], newest: int, workers: int) -> int:
    """Return about what the checkpoints of these units take on disk at most.

    Float32 weights, and AdamW's two moments where a unit goes on from there: a trunk keeps that at every branch point;
    a rung and a teacher end as weights and as a transformers folder. While one trains, its `newest` are there too, and
    the one that is being written. Of a cached teacher its logits, once for each arm and seed.
    """
    weights = [4 * unit.cost.num_params_total for unit in units]
    times = [3 * len(unit.keep_steps) if unit.kind == "trunk" else 2 for unit in units]
    training = sorted((3 * (newest + 1) * own for own in weights), reverse=True)[:workers]
    cached: dict[tuple[str, int], float] = {}
    for unit in units:
        cached[unit.arm, unit.seed] = max(cached.get((unit.arm, unit.seed), 0.0), cache_bytes(unit))
    return sum(n * own for n, own in zip(times, weights, strict=True)) + sum(training) + math.ceil(sum(cached.values()))


def cache_bytes(unit: Unit) -> float:
    """Return what a teacher that its strategy keeps takes on disk; 0 of others."""
    if math.isinf(unit.teacher_steps) or unit.kept is None or unit.planned_cache:
        return 0.0
    sequences = math.ceil(min(unit.last_step, unit.teacher_steps) * unit.recipe.batch_sequences)
    return sequences * unit.kept.bytes_per_token(unit.spec.vocab_size or 0, unit.recipe.masked_per_sequence)
