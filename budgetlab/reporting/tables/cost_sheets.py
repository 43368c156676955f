"""Tables of what a token costs: by arm, by phase, in ratios, and at other shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from budgetlab.frames import costs_frame
from budgetlab.reporting.tables.sheets import (
    Column,
    Sheet,
    bracketed,
    fixed,
    number,
    percent,
    plain_rows,
    scaled,
)
from budgetlab.units import format_quantity, format_seconds
from budgetlab.values import PHASES, ArmCost, CostProfile, ModelCost
from budgetlab.values.specs import base_arm

_ARM = Column("arm", "arm", left=True)
_COUNTED, _RATIO, _MODEL = "counted FLOPs a token", "ratios", "time model"
_AGREED = {"closed form": "closed form of every phase", "fvcore": "fvcore, forward passes,"}
_milli, _mega = partial(number, times=1e3), partial(number, per=1e6)


def _basis(profile: CostProfile) -> str:
    """Where seconds are from: the heading of the columns that follow from them."""
    if profile.predicted_for is not None:
        return "predicted, not measured"
    if profile.timing is None and profile.arms_have_seconds:
        return profile.conventions.get("seconds", "measured elsewhere")
    return "measured on this device"


def _costs(profile: CostProfile) -> list[ArmCost]:
    return [*profile.arms, *profile.teachers]


def _rules(profile: CostProfile) -> tuple[int, ...]:
    return (len(profile.arms),) if profile.teachers else ()


def profile_sheet(profile: CostProfile) -> Sheet:
    """Return the prices: FLOPs a token by phase as counted, time and memory as measured."""
    costs, basis = _costs(profile), _basis(profile)
    reference = base_arm(cost.arm for cost in profile.arms)
    base = next((c.train_required_flops_per_token for c in profile.arms if c.arm == reference), None)

    def flops(phase: str) -> Callable[[ArmCost], float | None]:
        return lambda cost: cost.phases[phase].required_flops_per_token if phase in cost.phases else None

    def ratio(cost: ArmCost) -> float | None:
        total = cost.train_required_flops_per_token
        return total / base if total and base else None

    phases = [phase for phase in PHASES if any(map(flops(phase), costs))]
    phases += sorted({phase for cost in costs for phase in cost.phases} - set(PHASES))
    columns = [_ARM]
    for phase in phases:
        heading = phase.replace("teacher_", "teacher\n").replace("student_", "student\n").replace("_", " ")
        columns.append(Column(f"{heading}\n{{unit}}", flops(phase), "FLOP", _COUNTED))
    columns += [
        Column("all\n{unit}", "train_required_flops_per_token", "FLOP", _COUNTED),
        Column("ratio", ratio, 2, _COUNTED),
        Column("step\nms", _step, group=basis),
        Column("tokens\na second", "tokens_per_second", format_quantity, basis),
        Column("memory\nMB", "peak_memory_bytes", _mega(0), basis),
        Column("energy\nmJ a token", "joules_per_token", _milli(2), basis),
    ]
    where = profile.environment
    dtypes = ", ".join(dict.fromkeys(cost.dtype for cost in costs))
    levels = {cost.interval_level for cost in costs if cost.seconds_per_step_interval}
    note = f"required FLOPs, two per multiply-add; {where.device_name}, {where.threads} threads, {dtypes}"
    note += f"; ratio: to {reference}"
    if levels:
        note += f"; step time with its {100 * max(levels):g} % interval"
    return Sheet.of("Cost of a training step", costs, columns, [note, *cost_notes(profile)], _rules(profile))


def _step(cost: ArmCost) -> str:
    interval = cost.seconds_per_step_interval
    return _milli(1)(cost.seconds_per_step) + _around(interval and [1e3 * end for end in interval], 1)


def _around(ends: Sequence[float] | None, decimals: int) -> str:
    return "" if ends is None else f" {bracketed(ends, decimals, '')}"


def cost_notes(profile: CostProfile) -> list[str]:
    """Say what agreed, how seconds were taken, and what speaks against them."""
    costs, notes = _costs(profile), []
    if all(cost.agreement for cost in costs):
        said = []
        for name in dict.fromkeys(name for cost in costs for name in cost.agreement):
            by_arm = {cost.arm: cost.agreement.get(name, "n/a") for cost in costs}
            alike = f"{next(iter(by_arm.values()))} for all {len(by_arm)}"
            each = ", ".join(f"{arm} {verdict}" for arm, verdict in by_arm.items())
            said.append(f"{_AGREED.get(name, name)} {alike if len(set(by_arm.values())) == 1 else each}")
        notes.append(f"torch's count against others: {'; '.join(said)}")
    if profile.predicted_for is not None:
        notes.append(f"seconds are predicted, not measured: {profile.predicted_for}")
    elif profile.timing is None and profile.arms_have_seconds:
        notes.append(f"seconds: {profile.conventions.get('seconds', 'n/a')}")
    if (timing := profile.timing) is not None:
        waited = "n/a" if timing.waiting_share is None else f"{100 * timing.waiting_share:.1f} %"
        least = format_seconds(timing.measured_seconds)
        notes.append(f"{timing.rounds} paired rounds, at least {least} of every arm; waiting for a core: {waited}")
        notes += [f"warning: {line}" for line in timing.warnings]
    return notes


def phase_sheet(profile: CostProfile) -> Sheet:
    """Return where a token's cost goes, an arm and phase a row: FLOPs, their share, seconds and theirs, the rate."""
    basis = _basis(profile)
    unit, _ = scaled([cost.train_required_flops_per_token for cost in _costs(profile)], "FLOP")
    scale = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "F": 1.0}[unit[0]]
    rows: list[tuple[str, ...]] = []
    rules = []
    for cost in _costs(profile):
        rules.append(len(rows))
        whole, whole_seconds = cost.train_required_flops_per_token, cost.seconds_per_step
        head = cost.head_required_flops_per_token
        parts = [
            (phase.replace("_", " "), price.required_flops_per_token, price.executed_flops_per_token,
             price.seconds_per_step, price.cpu_seconds_per_step)
            for phase, price in ((phase, cost.phases[phase]) for phase in PHASES)
        ]  # fmt: skip
        if not parts[0][1] and not parts[0][2]:  # without a teacher its phase has only what comes before the step
            parts[0] = ("batch to device", *parts[0][1:])
        parts.append(("all", whole, cost.train_executed_flops_per_token, whole_seconds, cost.cpu_seconds_per_step))
        for place, (name, required, executed, seconds, cpu) in enumerate(parts):
            rows.append((
                "" if place else cost.arm, name, fixed(required / scale, 3), fixed(executed / scale, 3),
                percent(required / whole), _milli(2)(seconds),
                percent(seconds / whole_seconds if seconds and whole_seconds else None), _milli(2)(cpu),
                fixed(required * cost.batch_tokens / seconds / 1e9 if seconds and required else None, 1),
                fixed(1e6 * seconds / cost.batch_tokens if seconds else None, 2),
            ))  # fmt: skip
            if name == "student forward" and head:
                rows.append(("", "  of which its head", fixed(head / scale, 3), "", percent(head / whole), *[""] * 5))
    counted = [f"required\n{unit}", f"executed\n{unit}", "share\n%"]
    timed = ["step\nms", "share\n%", "CPU time\nms", "GFLOP\na second", "µs\na token"]
    columns = [_ARM, Column("phase", left=True), *(Column(heading, group=_COUNTED) for heading in counted)]
    columns += [Column(heading, group=basis) for heading in timed]
    note = "GFLOP a second: required FLOPs over the phase's seconds; a loss of no matrix products still takes time"
    return Sheet("Where a token's cost goes", tuple(columns), tuple(rows), (note,), tuple(rules[1:]))


def ratio_sheet(profile: CostProfile) -> Sheet:
    """Return each arm over the first in FLOPs and in time, side by side, with how far one is off the other."""
    costs, basis, first = _costs(profile), _basis(profile), profile.arms[0]
    peak = profile.peak_flops_per_second

    def time_ratio(row: dict[str, Any]) -> str:
        ends = None if row["ratio_low"] is None else (row["ratio_low"], row["ratio_high"])
        return fixed(row["seconds_ratio"], 3) + _around(ends, 3)

    def cpu_ratio(row: dict[str, Any]) -> str:
        ratio = row["cost"].cpu_seconds_ratio
        return "n/a" if ratio is None else fixed(ratio.value, 3) + _around(ratio.interval, 3)

    def rate(row: dict[str, Any]) -> str:
        cost = row["cost"]
        ends = [format_quantity(cost.batch_tokens / end) for end in reversed(cost.seconds_per_step_interval or ())]
        return format_quantity(cost.tokens_per_second) + (f" [{', '.join(ends)}]" if ends else "")

    def memory(row: dict[str, Any]) -> str:
        """Allocated, and what the allocator holds for it where that is known."""
        held = row["cost"].reserved_memory_bytes
        return _mega(0)(row["cost"].peak_memory_bytes) + ("" if held is None else f" ({_mega(0)(held)})")

    def of_peak(row: dict[str, Any]) -> float | None:
        done = row["cost"].required_flops_per_second
        return None if done is None or peak is None else done / peak

    def off(share: float | None) -> str:
        return "n/a" if share is None else f"{100 * share:+.0f} %"

    rows = [{**row, "cost": cost} for row, cost in zip(plain_rows(costs_frame(profile)), costs, strict=True)]
    columns = [
        _ARM,
        Column("FLOPs\nratio", "flops_ratio", 3, _RATIO),
        Column("time\nratio", time_ratio, group=_RATIO),
        *([Column("CPU time\nratio", cpu_ratio, group=_RATIO)] if any(c.cpu_seconds_ratio for c in costs) else []),
        Column("FLOPs ratio\nis off by", "flops_ratio_off", off, _RATIO),
        Column("tokens\na second", rate, group=basis),
        Column("TFLOP\na second", lambda row: row["cost"].required_flops_per_second, number(3, per=1e12), basis),
        Column("of peak\ndata sheet", of_peak, percent, basis),
        Column("memory\nMB", memory, group=basis),
        Column("energy\nmJ a token", "joules_per_token", _milli(2), basis),
        Column("first step\nms more", lambda row: row["cost"].first_step_seconds, _milli(0), basis),
    ]
    paired = "median over paired rounds of an arm's" if profile.timing else "an arm's"
    notes = [f"time ratio: {paired} seconds a token over {first.arm}'s; the FLOPs ratio is off by itself over it"]
    batches = {cost.arm: cost.largest_micro_batch_sequences for cost in costs}
    if all(cost.seq_len and batches[cost.arm] == cost.batch_tokens // cost.seq_len for cost in costs):
        notes.append("memory holds the whole batch of every arm at once")
    elif any(value is not None for value in batches.values()):
        found = ", ".join(f"{a} {'n/a' if v is None else v}" for a, v in batches.items())
        notes.append(f"largest micro-batch that fits, in sequences: {found}")
    if peak is not None:
        notes.append(f"peak {peak / 1e12:.4g} TFLOP a second: {profile.peak_source}")
    notes += [f"memory: {source}" for source in dict.fromkeys(c.memory_source for c in costs if c.memory_source)]
    notes += [f"energy: {source}" for source in dict.fromkeys(c.joules_source for c in costs if c.joules_source)]
    return Sheet.of(f"Each arm over {first.arm}", rows, columns, notes, _rules(profile))


def time_model_sheet(profile: CostProfile) -> Sheet | None:
    """Return the time models with their held-out errors; None without."""
    models = {cost.arm: cost.time_model for cost in _costs(profile) if cost.time_model is not None}
    if not models:
        return None
    rows = [
        {
            "arm": arm,
            **{
                name: sum(getattr(phase, name) for phase in model.phases.values())
                for name in ("constant_seconds", "seconds_per_token", "seconds_per_token_position")
            },
            "held": ", ".join(f"{h.sequences} × {h.seq_len}: {100 * h.error:+.1f} %" for h in model.held_out),
        }
        for arm, model in models.items()
    ]
    columns = (
        _ARM,
        Column("constant\nms", "constant_seconds", _milli(2), _MODEL),
        Column("a token\nµs", "seconds_per_token", number(2, times=1e6), _MODEL),
        Column("a token and position\nns", "seconds_per_token_position", number(2, times=1e9), _MODEL),
        Column("held out\n(sequences × length)", lambda row: row["held"] or "n/a", group=_MODEL),
    )
    clock = next(iter(models.values())).clock
    seconds = "CPU time, summed over threads" if clock == "cpu" else "device time"
    fitted = [count * length for model in models.values() for count, length in model.shapes]
    held = [h.sequences * h.seq_len for model in models.values() for h in model.held_out]
    note = (
        f"time model, {seconds}: fitted to at most {max(len(model.shapes) for model in models.values())} shapes of up "
        f"to {max(fitted)} tokens, held-out shapes of {min(held)} to {max(held)}; predicted over measured, less one"
    )
    return Sheet.of("How long another batch or length would take", rows, columns, [note])


def model_sheet(cost: ModelCost) -> Sheet:
    """Return what one language model costs by itself, and which counts agree on it."""
    share = f"{100 * cost.target_fraction:g} % of" if cost.target_fraction < 1 else "all"
    rows = [
        {"phase": phase, "flops": flops, "logits": logits}
        for phase, flops, logits in (
            ("forward, body", cost.body_forward_flops_per_token, ""),
            ("forward, head", cost.head_forward_flops_per_position, "at every position"),
            ("backward", cost.backward_flops_per_token, "everything trained, head at every position"),
            ("training a token", cost.train_required_flops_per_token, f"head at {share} positions"),
        )
    ]
    return Sheet.of(
        f"{cost.model}: a {cost.kind} language model ({cost.architecture}), sequences of {cost.seq_len}",
        rows,
        [Column("phase", "phase", left=True), Column("{unit}", "flops", "FLOP"), Column("logits", "logits", left=True)],
        [
            f"{format_quantity(cost.num_params_total)} parameters, {format_quantity(cost.num_params_non_embedding)} "
            "without embedding tables; FLOPs a position, two per multiply-add, attention in full",
            f"counted by torch's counter; {'; '.join(f'{name}: {found}' for name, found in cost.verdict.items())}",
        ],
    )
