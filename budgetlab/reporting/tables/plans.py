"""Tables of what is known before and while running: the plan, how far the runs are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from budgetlab.fitting.reference import base_arm
from budgetlab.planner import Standing, compute_statement, ladder_note, standing, tuning_note
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed, percent, scaled
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Budget, Plan, RunRecord, Schedule, TeacherPlan

_PLANNED = "what is planned"
_PRICE = "what it costs, and whether it fits"
_STATES = ("complete", "running", "failed", "missing")


def plan_sheet(plan: Plan) -> Sheet:
    """Return the plan: what every arm gets for every budget, or why it gets nothing."""
    rows, notes = [], []
    for schedule in plan.schedules:
        on = schedule.feasible
        at = format_amount(schedule.budget.amount, schedule.budget.unit)
        rows.append((
            schedule.arm, at, format_quantity(schedule.tokens) if on else "n/a",
            str(schedule.steps) if on else "n/a", fixed(schedule.passes if on else None, 2),
            percent(schedule.unspent_fraction) if on else "n/a", "yes" if on else "no",
        ))  # fmt: skip
        if not on:
            notes.append(f"infeasible: {schedule.arm} at {at}: {schedule.reason or 'no reason given'}")
    for teacher in plan.teachers:
        given = teacher.weights is not None
        rows.append((
            teacher.model, "given" if given else "pretrained", "n/a" if given else format_quantity(teacher.tokens),
            "n/a" if given else str(teacher.steps), "n/a", "n/a", "yes",
        ))  # fmt: skip
    on = [schedule.feasible for schedule in plan.schedules] + [t.weights is None for t in plan.teachers]
    planned: list[Schedule | TeacherPlan] = [*plan.schedules, *plan.teachers]
    reference = plan.costs.get(base_arm(plan.arms) or "")
    costs = [plan.costs.get(s.arm) for s in plan.schedules]
    costs += [plan.teacher_costs.get(t.model) for t in plan.teachers]
    prices = [None if cost is None else cost.train_required_flops_per_token for cost in costs]
    base = reference.train_required_flops_per_token if reference else None
    flop_unit, flops = scaled([p.required_flops if ok else None for p, ok in zip(planned, on, strict=True)], "FLOP")
    price_unit, price_cells = scaled(prices, "FLOP")
    seconds = [fixed(p.device_seconds if ok else None, 1) for p, ok in zip(planned, on, strict=True)]
    parts: list[tuple[Column, list[str]]] = [
        (Column("arm", left=True), [row[0] for row in rows]),
        (Column("budget", left=True), [row[1] for row in rows]),
        (Column("tokens", _PLANNED), [row[2] for row in rows]),
        (Column("steps", _PLANNED), [row[3] for row in rows]),
        (Column("passes", _PLANNED), [row[4] for row in rows]),
        (Column(f"required\n{flop_unit}", _PLANNED), flops),
        (Column("device\ns", _PLANNED), seconds),
        (Column("unspent\n%", _PLANNED), [row[5] for row in rows]),
        (Column(f"{price_unit}\na token", _PRICE), price_cells),
        (Column("ratio", _PRICE), [fixed(p / base if p and base else None, 2) for p in prices]),
        (Column("feasible", _PRICE), [row[6] for row in rows]),
    ]
    ranges = [_range(s.tokens_interval) if isinstance(s, Schedule) else "" for s in planned]
    if any(ranges):
        level = max(s.interval_level for s in plan.schedules)
        parts.insert(3, (Column(f"{100 * level:g} %\ninterval", _PLANNED), ranges))
    seeds = len(plan.seeds)
    notes += [*_repeated(plan), compute_statement(plan), *filter(None, [ladder_note(plan), tuning_note(plan)])]
    return Sheet(
        title=f"Plan: matched in {plan.match}, teacher charge {plan.charge}, {seeds} run seed{'s' * (seeds != 1)}",
        columns=tuple(column for column, _ in parts),
        rows=tuple(zip(*(cells for _, cells in parts), strict=True)),
        notes=tuple(notes),
        rules=(*_starts([schedule.rung for schedule in plan.schedules]), len(plan.schedules)),
    )


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{format_quantity(interval[0])} to {format_quantity(interval[1])}"


def _repeated(plan: Plan) -> list[str]:
    """Say what repeated text is worth at the largest budget."""
    top = [s for s in plan.schedules if s.feasible and s.effective_tokens and (s.passes or 0.0) > 1]
    worth = {s.arm: f"{s.arm} {format_quantity(s.effective_tokens)}" for s in sorted(top, key=lambda s: s.rung)}
    law = "worth in fresh tokens at the largest budget, by a law fitted on causal models (arXiv 2305.16264)"
    return [f"{law}: {', '.join(worth.values())}"] if worth else []


def standing_lines(found: Standing) -> list[str]:
    """Say how far all runs together are, and where each that runs now is."""
    amounts = (found.spent_required_flops, found.planned_required_flops)
    spent, planned = (format_amount(flops, "required_flops") for flops in amounts)
    share = amounts[0] / amounts[1] if amounts[1] else 1.0
    left = "n/a" if found.seconds_left is None else format_seconds(found.seconds_left)
    basis = "as planned" if found.pace is None else f"at {found.pace:.2f} times the planned seconds, as so far"
    done = f"{100 * found.done_fraction:.0f} % done; {left} left {basis}; "
    lines = [f"{done if found.done_fraction < 1 else ''}spent {spent} of {planned} ({100 * share:.0f} %)"]
    for run_id, at, last, loss in found.running:
        shown = "n/a" if loss is None else f"{loss:.3g}"
        lines.append(f"running, or stopped on the way: {run_id}, step {at} of {last}, loss {shown}")
    return lines


def status_sheet(plan: Plan, records: Iterable[RunRecord]) -> Sheet:
    """Return how far a study is: complete of planned runs by arm and budget."""
    records = list(records)
    rungs: dict[int, Budget] = {schedule.rung: schedule.budget for schedule in plan.schedules}
    rows, notes = [], []
    for arm in dict.fromkeys(schedule.arm for schedule in plan.schedules):
        own = [r for r in records if r.kind == "rung" and r.arm == arm and r.schedule is not None]
        cells: list[str] = []
        counts: dict[str, int] = dict.fromkeys(_STATES, 0)
        for rung in rungs:
            asked = next((s for s in plan.schedules if s.arm == arm and s.rung == rung and s.feasible), None)
            here = {r.run_seed: r.status for r in own if asked is not None and answers(r, asked)}
            found = [here.get(seed, "missing") for seed in plan.seeds] if asked is not None else []
            for status in found:
                counts[status] += 1
            cells.append(f"{found.count('complete')}/{len(found)}" if asked is not None else "infeasible")
        rows.append((arm, *cells, *(str(count) for count in counts.values())))
    arms = len(rows)
    for teacher in plan.teachers:
        if teacher.weights is not None:
            continue
        status = next((r.status for r in records if r.kind == "teacher" and r.student == teacher.model), "missing")
        marks = [str(int(status == name)) for name in _STATES]
        rows.append((teacher.model, *("" for _ in rungs), *marks))
    notes = standing_lines(standing(plan, records))
    notes += _overhead_lines(records)
    notes += [f"failed: {r.run_id}: {r.message or 'no message'}" for r in records if r.status == "failed"]
    columns = [Column("arm", left=True)]
    columns += [Column(format_amount(b.amount, b.unit).replace(" ", "\n", 1), "by budget") for b in rungs.values()]
    columns += [Column(name, "all runs") for name in _STATES]
    return Sheet(
        title=f"Runs of {plan.study}: complete of planned ({len(plan.seeds)} run seeds)",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(notes),
        rules=(arms,) if len(rows) > arms else (),
    )


def answers(record: RunRecord, asked: Schedule) -> bool:
    """Return whether a run is of this budget: the number of a budget is another one in another plan."""
    done = record.schedule
    return done is not None and (done.budget, done.steps) == (asked.budget, asked.steps)


def _overhead_lines(records: Iterable[RunRecord]) -> list[str]:
    """Say what went by beside the steps, in wall time of all units together."""
    sums: dict[str, float] = {}
    for record in records:
        for name, seconds in record.overhead_seconds.items():
            sums[name] = sums.get(name, 0.0) + seconds
    shown = [f"{name.replace('_', ' ')} {format_seconds(seconds)}" for name, seconds in sums.items() if seconds]
    return [f"beside the steps, charged to no arm: {', '.join(shown)}"] if shown else []


def _starts(keys: Sequence[object]) -> tuple[int, ...]:
    return tuple(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])
