"""Tables of what a token costs: by arm, by phase, in ratios, elsewhere, and at other shapes."""

from __future__ import annotations

from collections.abc import Sequence

from budgetlab.fitting.reference import base_arm
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed, percent, scaled
from budgetlab.units import format_quantity, format_seconds
from budgetlab.values import PHASES, ArmCost, CostProfile, ModelCost, Ratio

_COUNTED = "counted FLOPs a token"
_RATIO = "ratios"
_MODEL = "time model"


def _how(profile: CostProfile) -> str:
    """Where seconds are from: the heading of the columns that follow from them."""
    if profile.predicted_for is not None:
        return "predicted, not measured"
    if profile.timing is None and profile.arms_have_seconds:
        return profile.conventions.get("seconds", "measured elsewhere")
    return "measured on this device"


_SCALES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "F": 1.0}


def profile_sheet(profile: CostProfile) -> Sheet:
    """Return the prices: FLOPs a token by phase as counted, time and memory as measured."""
    costs = [*profile.arms, *profile.teachers]
    reference = base_arm(cost.arm for cost in profile.arms)
    base = next((c.train_required_flops_per_token for c in profile.arms if c.arm == reference), None)
    phases = [phase for phase in PHASES if any(_phase_flops(cost, phase) for cost in costs)]
    phases += sorted({name for cost in costs for name in cost.phases} - set(PHASES))
    parts: list[tuple[Column, list[str]]] = [(Column("arm", left=True), [cost.arm for cost in costs])]
    values = [_phase_flops(cost, phase) for phase in phases for cost in costs]
    totals: list[float | None] = [cost.train_required_flops_per_token for cost in costs]
    unit, cells = scaled([*totals, *values], "FLOP")
    for i, phase in enumerate(phases):
        heading = f"{phase.replace('_', ' ')}\n{unit}".replace("teacher ", "teacher\n", 1).replace(
            "student ", "student\n", 1
        )
        start = len(costs) * (i + 1)
        parts.append((Column(heading, _COUNTED), cells[start : start + len(costs)]))
    parts += [
        (Column(f"all\n{unit}", _COUNTED), cells[: len(costs)]),
        (Column("ratio", _COUNTED), [fixed(t / base if t and base else None, 2) for t in totals]),
        (Column("step\nms", _how(profile)), [_step(cost) for cost in costs]),
        (Column("tokens\na second", _how(profile)), [format_quantity(cost.tokens_per_second) for cost in costs]),
        (Column("memory\nMB", _how(profile)), [fixed(_mega(cost.peak_memory_bytes), 0) for cost in costs]),
        (Column("energy\nmJ a token", _how(profile)), [fixed(_milli(cost.joules_per_token), 2) for cost in costs]),
    ]
    where = profile.environment
    dtypes = ", ".join(dict.fromkeys(cost.dtype for cost in costs))
    levels = {cost.interval_level for cost in costs if cost.seconds_per_step_interval}
    note = f"required FLOPs, two per multiply-add; {where.device_name}, {where.threads} threads, {dtypes}"
    note += f"; ratio: to {reference}"
    if levels:
        note += f"; step time with its {100 * max(levels):g} % interval"
    return Sheet(
        title="Cost of a training step",
        columns=tuple(column for column, _ in parts),
        rows=tuple(zip(*(cells for _, cells in parts), strict=True)),
        notes=(note, *cost_notes(profile)),
        rules=(len(profile.arms),) if profile.teachers else (),
    )


def cost_notes(profile: CostProfile) -> list[str]:
    """Say what agreed, how seconds were taken, and what speaks against them."""
    costs = [*profile.arms, *profile.teachers]
    notes = []
    if all(cost.agreement for cost in costs):
        names = list(dict.fromkeys(name for cost in costs for name in cost.agreement))
        found = [f"{_AGREED.get(name, name)} {_verdict(costs, name)}" for name in names]
        notes.append(f"torch's count against others: {'; '.join(found)}")
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


_AGREED = {"closed form": "closed form of every phase", "fvcore": "fvcore, forward passes,"}


def _verdict(costs: Sequence[ArmCost], name: str) -> str:
    said = {cost.arm: cost.agreement.get(name, "n/a") for cost in costs}
    if len(set(said.values())) == 1:
        return f"{next(iter(said.values()))} for all {len(said)}"
    return ", ".join(f"{arm} {verdict}" for arm, verdict in said.items())


def phase_sheet(profile: CostProfile) -> Sheet:
    """Return where a token's cost goes, an arm and phase a row: FLOPs, their share, seconds and theirs, the rate."""
    rows, rules = [], []
    costs = [*profile.arms, *profile.teachers]
    unit, _ = scaled([cost.train_required_flops_per_token for cost in costs], "FLOP")
    scale = _SCALES[unit[0]]
    for cost in costs:
        rules.append(len(rows))
        whole, seconds = cost.train_required_flops_per_token, cost.seconds_per_step
        for phase in PHASES:
            price = cost.phases[phase]
            flops = price.required_flops_per_token
            without = phase == "teacher_forward" and not flops and not price.executed_flops_per_token
            name = "batch to device" if without else phase.replace("_", " ")
            rows.append(_phase_row(
                cost, name, flops, price.executed_flops_per_token, price.seconds_per_step,
                price.cpu_seconds_per_step, scale,
            ))  # fmt: skip
            if phase == "student_forward" and cost.head_required_flops_per_token:
                head = cost.head_required_flops_per_token
                blank = ("", "", "", "", "")
                rows.append(("", "  of which its head", fixed(head / scale, 3), "", percent(head / whole), *blank))
        rows.append(_phase_row(
            cost, "all", whole, cost.train_executed_flops_per_token, seconds, cost.cpu_seconds_per_step, scale
        ))  # fmt: skip
    how = _how(profile)
    columns = (
        Column("arm", left=True), Column("phase", left=True), Column(f"required\n{unit}", _COUNTED),
        Column(f"executed\n{unit}", _COUNTED), Column("share\n%", _COUNTED), Column("step\nms", how),
        Column("share\n%", how), Column("CPU time\nms", how), Column("GFLOP\na second", how),
        Column("µs\na token", how),
    )  # fmt: skip
    note = "GFLOP a second: required FLOPs over the phase's seconds; a loss of no matrix products still takes time"
    return Sheet("Where a token's cost goes", columns, tuple(rows), (note,), tuple(rules[1:]))


def _phase_row(
    cost: ArmCost, name: str, required: float, executed: float, seconds: float | None, cpu: float | None, scale: float
) -> tuple[str, ...]:
    whole, all_seconds = cost.train_required_flops_per_token, cost.seconds_per_step
    share = None if not seconds or not all_seconds else seconds / all_seconds
    return (
        cost.arm if name in ("teacher forward", "batch to device") else "", name, fixed(required / scale, 3),
        fixed(executed / scale, 3), percent(required / whole), fixed(_milli(seconds), 2),
        "n/a" if share is None else percent(share), fixed(_milli(cpu), 2),
        fixed(required * cost.batch_tokens / seconds / 1e9 if seconds and required else None, 1),
        fixed(1e6 * seconds / cost.batch_tokens if seconds else None, 2),
    )  # fmt: skip


def ratio_sheet(profile: CostProfile) -> Sheet:
    """Return each arm over the first in FLOPs and in time, side by side, with how far one is off the other."""
    costs = [*profile.arms, *profile.teachers]
    first = profile.arms[0]
    on_cpu = any(cost.cpu_seconds_ratio for cost in costs)
    flops = [c.train_required_flops_per_token / first.train_required_flops_per_token for c in costs]
    times = [_time_ratio(cost, first) for cost in costs]
    off = [None if t is None else f / t - 1.0 for f, t in zip(flops, times, strict=True)]
    rate = [cost.required_flops_per_second for cost in costs]
    peaks = [profile.peak_flops_per_second] * len(costs)
    parts: list[tuple[Column, list[str]]] = [
        (Column("arm", left=True), [cost.arm for cost in costs]),
        (Column("FLOPs\nratio", _RATIO), [fixed(f, 3) for f in flops]),
        (
            Column("time\nratio", _RATIO),
            [_with_interval(t, c.seconds_ratio) for t, c in zip(times, costs, strict=True)],
        ),
    ]
    if on_cpu:
        cells = [_with_interval(r.value if (r := c.cpu_seconds_ratio) else None, r) for c in costs]
        parts.append((Column("CPU time\nratio", _RATIO), cells))
    parts += [
        (Column("FLOPs ratio\nis off by", _RATIO), ["n/a" if o is None else f"{100 * o:+.0f} %" for o in off]),
        (Column("tokens\na second", _how(profile)), [_rate(cost) for cost in costs]),
        (Column("TFLOP\na second", _how(profile)), [fixed(None if r is None else r / 1e12, 3) for r in rate]),
        (Column("of peak\ndata sheet", _how(profile)), _shares(rate, peaks)),
        (Column("memory\nMB", _how(profile)), [_memory(cost) for cost in costs]),
        (Column("energy\nmJ a token", _how(profile)), [fixed(_milli(cost.joules_per_token), 2) for cost in costs]),
        (Column("first step\nms more", _how(profile)), [fixed(_milli(cost.first_step_seconds), 0) for cost in costs]),
    ]
    paired = "median over paired rounds of an arm's" if profile.timing else "an arm's"
    notes = [f"time ratio: {paired} seconds a token over {first.arm}'s; the FLOPs ratio is off by itself over it"]
    batches = {cost.arm: cost.largest_micro_batch_sequences for cost in costs}
    if all(cost.seq_len and batches[cost.arm] == cost.batch_tokens // cost.seq_len for cost in costs):
        notes.append("memory holds the whole batch of every arm at once")
    elif any(value is not None for value in batches.values()):
        found = ", ".join(f"{a} {'n/a' if v is None else v}" for a, v in batches.items())
        notes.append(f"largest micro-batch that fits, in sequences: {found}")
    if profile.peak_flops_per_second is not None:
        notes.append(f"peak {profile.peak_flops_per_second / 1e12:.4g} TFLOP a second: {profile.peak_source}")
    sources = dict.fromkeys(c.memory_source for c in costs if c.memory_source)
    notes += [f"memory: {source}" for source in sources]
    notes += [f"energy: {s}" for s in dict.fromkeys(c.joules_source for c in costs if c.joules_source)]
    return Sheet(
        f"Each arm over {first.arm}",
        tuple(column for column, _ in parts),
        tuple(zip(*(cells for _, cells in parts), strict=True)),
        tuple(notes),
        (len(profile.arms),) if profile.teachers else (),
    )


def time_model_sheet(profile: CostProfile) -> Sheet | None:
    """Return the time models with their held-out errors; None without."""
    costs = [cost for cost in (*profile.arms, *profile.teachers) if cost.time_model is not None]
    if not costs:
        return None
    rows = []
    for cost in costs:
        model = cost.time_model
        assert model is not None
        phases = model.phases.values()
        held = ", ".join(f"{h.sequences} × {h.seq_len}: {100 * h.error:+.1f} %" for h in model.held_out)
        rows.append((
            cost.arm, fixed(1e3 * sum(p.constant_seconds for p in phases), 2),
            fixed(1e6 * sum(p.seconds_per_token for p in phases), 2),
            fixed(1e9 * sum(p.seconds_per_token_position for p in phases), 2), held or "n/a",
        ))  # fmt: skip
    models = [cost.time_model for cost in costs if cost.time_model is not None]
    seconds = "CPU time, summed over threads" if models[0].clock == "cpu" else "device time"
    columns = (
        Column("arm", left=True), Column("constant\nms", _MODEL), Column("a token\nµs", _MODEL),
        Column("a token and position\nns", _MODEL), Column("held out\n(sequences × length)", _MODEL),
    )  # fmt: skip
    fitted = [count * length for model in models for count, length in model.shapes]
    held = [h.sequences * h.seq_len for model in models for h in model.held_out]
    notes = [
        f"time model, {seconds}: fitted to at most {max(len(model.shapes) for model in models)} shapes of up to "
        f"{max(fitted)} tokens, held-out shapes of {min(held)} to {max(held)}; predicted over measured, less one",
    ]
    return Sheet("How long another batch or length would take", columns, tuple(rows), tuple(notes))


def _time_ratio(cost: ArmCost, first: ArmCost) -> float | None:
    if cost.seconds_ratio is not None:
        return cost.seconds_ratio.value
    if not cost.seconds_per_step or not first.seconds_per_step:
        return None
    return cost.seconds_per_step / cost.batch_tokens * first.batch_tokens / first.seconds_per_step


def _with_interval(value: float | None, ratio: Ratio | None) -> str:
    text = fixed(value, 3)
    if ratio is None or ratio.interval is None or value is None:
        return text
    return f"{text} [{fixed(ratio.interval[0], 3)}, {fixed(ratio.interval[1], 3)}]"


def _rate(cost: ArmCost) -> str:
    text = format_quantity(cost.tokens_per_second)
    if cost.seconds_per_step_interval is None:
        return text
    ends = (format_quantity(cost.batch_tokens / end) for end in reversed(cost.seconds_per_step_interval))
    return f"{text} [{', '.join(ends)}]"


def _memory(cost: ArmCost) -> str:
    """Allocated, and what the allocator holds for it where that is known."""
    text = fixed(_mega(cost.peak_memory_bytes), 0)
    return text if cost.reserved_memory_bytes is None else f"{text} ({fixed(_mega(cost.reserved_memory_bytes), 0)})"


def _shares(rates: Sequence[float | None], peaks: Sequence[float | None]) -> list[str]:
    return ["n/a" if r is None or p is None else percent(r / p) for r, p in zip(rates, peaks, strict=True)]


def model_sheet(cost: ModelCost) -> Sheet:
    """Return what one language model costs by itself, and which counts agree on it."""
    body, head, backward = (
        cost.body_forward_flops_per_token, cost.head_forward_flops_per_position, cost.backward_flops_per_token
    )  # fmt: skip
    share = f"{100 * cost.target_fraction:g} % of" if cost.target_fraction < 1 else "all"
    rows = [
        ("forward, body", body, ""),
        ("forward, head", head, "at every position"),
        ("backward", backward, "everything trained, head at every position"),
        ("training a token", cost.train_required_flops_per_token, f"head at {share} positions"),
    ]
    unit, cells = scaled([value for _, value, _ in rows], "FLOP")
    columns = (Column("phase", left=True), Column(unit), Column("logits", left=True))
    agree = "; ".join(f"{name}: {found}" for name, found in cost.verdict.items())
    return Sheet(
        title=f"{cost.model}: a {cost.kind} language model ({cost.architecture}), sequences of {cost.seq_len}",
        columns=columns,
        rows=tuple((name, cell, note) for (name, _, note), cell in zip(rows, cells, strict=True)),
        notes=(
            f"{format_quantity(cost.num_params_total)} parameters, {format_quantity(cost.num_params_non_embedding)} "
            "without embedding tables; FLOPs a position, two per multiply-add, attention in full",
            f"counted by torch's counter; {agree}",
        ),
    )


def _phase_flops(cost: ArmCost, phase: str) -> float | None:
    return cost.phases[phase].required_flops_per_token if phase in cost.phases else None


def _step(cost: ArmCost) -> str:
    if cost.seconds_per_step is None:
        return "n/a"
    text = fixed(1e3 * cost.seconds_per_step, 1)
    if cost.seconds_per_step_interval is None:
        return text
    low, high = cost.seconds_per_step_interval
    return f"{text} [{fixed(1e3 * low, 1)}, {fixed(1e3 * high, 1)}]"


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _milli(value: float | None) -> float | None:
    return None if value is None else 1e3 * value
