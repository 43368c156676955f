"""Tables of what is known before and while running: the plan, how far the runs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from budgetlab.planner import compute_statement, ladder_note, standing, tuning_note
from budgetlab.reporting.tables.sheets import Column, Sheet, percent
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Plan, PlannedCache, RunRecord, Schedule
from budgetlab.values.specs import base_arm

_PLANNED = "what is planned"
_PRICE = "what it costs, and whether it fits"
_STATES = ("complete", "running", "failed", "missing")


def plan_sheet(plan: Plan) -> Sheet:
    """Return the plan: what every arm gets for every budget, or why it gets nothing."""
    base = plan.costs.get(base_arm(plan.arms) or "")
    rows: list[dict[str, Any]] = []
    notes = []
    for schedule in plan.schedules:
        at = format_amount(schedule.budget.amount, schedule.budget.unit)
        known = schedule.model_dump(include=_SHOWN) if schedule.feasible else {}
        fits, cost = "yes" if schedule.feasible else "no", plan.costs.get(schedule.arm)
        ends = [format_quantity(end) for end in schedule.tokens_interval or ()]
        rows.append({**known, "arm": schedule.arm, "budget": at, "fits": fits, "cost": cost, "ends": " to ".join(ends)})
        if not schedule.feasible:
            notes.append(f"infeasible: {schedule.arm} at {at}: {schedule.reason or 'no reason given'}")
    for teacher in plan.teachers:
        known = {} if teacher.weights is not None else teacher.model_dump(include=_SHOWN)
        made, cost = "pretrained" if teacher.weights is None else "given", plan.teacher_costs.get(teacher.model)
        rows.append({**known, "arm": teacher.model, "budget": made, "fits": "yes", "cost": cost, "ends": ""})
    for row in rows:
        row["price"] = None if row["cost"] is None else row["cost"].train_required_flops_per_token
        row["ratio"] = row["price"] / base.train_required_flops_per_token if row["price"] and base else None
    columns = [
        Column("arm", "arm", left=True),
        Column("budget", "budget", left=True),
        Column("tokens", "tokens", format_quantity, _PLANNED),
        Column("steps", "steps", group=_PLANNED),
        Column("passes", "passes", 2, _PLANNED),
        Column("required\n{unit}", "required_flops", "FLOP", _PLANNED),
        Column("device\ns", "device_seconds", 1, _PLANNED),
        Column("unspent\n%", "unspent_fraction", percent, _PLANNED),
        Column("{unit}", "price", "FLOP\na token", _PRICE),
        Column("ratio", "ratio", 2, _PRICE),
        Column("feasible", "fits", group=_PRICE),
    ]
    if any(row["ends"] for row in rows):
        level = max(s.interval_level for s in plan.schedules)
        columns.insert(3, Column(f"{100 * level:g} %\ninterval", "ends", group=_PLANNED))
    seeds, rungs = len(plan.seeds), [schedule.rung for schedule in plan.schedules]
    return Sheet.of(
        f"Plan: matched in {plan.match}, teacher charge {plan.charge}, {seeds} run seed{'s' * (seeds != 1)}",
        rows,
        columns,
        [
            *notes,
            *map(cache_note, plan.caches),
            _repeated(plan),
            compute_statement(plan),
            ladder_note(plan) or "",
            tuning_note(plan) or "",
        ],
        [*(i for i in range(1, len(rungs)) if rungs[i] != rungs[i - 1]), len(rungs)],
    )


_SHOWN = {"tokens", "steps", "passes", "required_flops", "device_seconds", "unspent_fraction"}


def cache_note(cache: PlannedCache) -> str:
    """Say what of a teacher is kept for which arms, and what that changes."""
    arms, first = ", ".join(cache.arms), cache.arms[0]
    live, cached = (
        format_quantity(float(found[first]), "tokens") for found in (cache.tokens_live, cache.tokens_cached)
    )
    if not cache.made:
        return f"the teacher of {arms} reads along: {cache.reason}"
    size = f"{format_quantity(cache.bytes, 'B')} on disk at most, {format_quantity(cache.bytes_per_token, 'B')} a token"
    made = f"{format_quantity(cache.required_flops, 'FLOP')} to make in {cache.copies}"
    reads = f"{cache.readers} readers a copy (it pays from {cache.break_even_readers:.2g} on)"
    tokens = f"{first} reads {cached}, and {live} with a live one"
    return f"the teacher of {arms} is asked once ({cache.reason}): {size}, {made}; {reads}; {tokens}"


def _repeated(plan: Plan) -> str:
    """Say what repeated text is worth at the largest budget."""
    top = [s for s in plan.schedules if s.feasible and s.effective_tokens and (s.passes or 0.0) > 1]
    worth = {s.arm: f"{s.arm} {format_quantity(s.effective_tokens)}" for s in sorted(top, key=lambda s: s.rung)}
    law = "worth in fresh tokens at the largest budget, by a law fitted on causal models (arXiv 2305.16264)"
    return f"{law}: {', '.join(worth.values())}" if worth else ""


def status_sheet(plan: Plan, records: Iterable[RunRecord]) -> Sheet:
    """Return how far a study is: complete of planned runs by arm and budget."""
    records = list(records)
    budgets = {schedule.rung: schedule.budget for schedule in plan.schedules}
    rows: list[dict[Any, str]] = []
    for arm in dict.fromkeys(schedule.arm for schedule in plan.schedules):
        planned = {s.rung: s for s in plan.schedules if s.arm == arm and s.feasible}
        own = [r for r in records if r.kind == "rung" and r.arm == arm]
        row: dict[Any, str] = {"arm": arm, **dict.fromkeys(budgets, "infeasible")}
        counts: Counter[str] = Counter()
        for rung, schedule in planned.items():
            here = {r.run_seed: r.status for r in own if answers(r, schedule)}
            states = [here.get(seed, "missing") for seed in plan.seeds]
            counts.update(states)
            row[rung] = f"{states.count('complete')}/{len(states)}"
        rows.append(row | {state: str(counts[state]) for state in _STATES})
    arms = len(rows)
    for teacher in (teacher for teacher in plan.teachers if teacher.weights is None):
        status = next((r.status for r in records if r.kind == "teacher" and r.student == teacher.model), "missing")
        counted = {state: str(int(status == state)) for state in _STATES}
        rows.append({"arm": teacher.model, **dict.fromkeys(budgets, ""), **counted})
    columns = [Column("arm", "arm", left=True)]
    for rung, budget in budgets.items():
        heading = format_amount(budget.amount, budget.unit).replace(" ", "\n", 1)
        columns.append(Column(heading, lambda row, rung=rung: row[rung], group="by budget"))
    columns += [Column(state, state, group="all runs") for state in _STATES]
    failed = [f"failed: {r.run_id}: {r.message or 'no message'}" for r in records if r.status == "failed"]
    return Sheet.of(
        f"Runs of {plan.study}: complete of planned ({len(plan.seeds)} run seeds)",
        rows,
        columns,
        [*_standing_lines(plan, records), _overheads(records), *failed],
        (arms,) if len(rows) > arms else (),
    )


def workers_sheet(leases: Sequence[Mapping[str, Any]], plan: Plan, records: Iterable[RunRecord]) -> Sheet:
    """Return who is at work on what, by the leases of a study."""
    steps = {unit.id: (unit.first_step, unit.last_step) for unit in plan.units()}
    reached = {record.run_id: record for record in records}
    rows: list[dict[str, Any]] = []
    for lease in leases:
        record, job = reached.get(lease["job"]), lease["job"]
        first, last = steps.get(job.rpartition("-")[0], (0, 0))
        at = None if record is None else max(record.steps, record.points[-1].step if record.points else first)
        share = None if at is None or last == first else max(0, at - first) / (last - first)
        ends = "its process is gone" if lease["gone"] else ""
        rows.append({**lease, "share": share, "ends": ends})
    columns = [
        Column("host", "host", left=True),
        Column("process", "pid"),
        Column("is at", "job", left=True),
        Column("share\n%", "share", percent),
        Column("attempt", "attempt"),
        Column("", "ends", left=True),
    ]
    return Sheet.of(f"Workers of {plan.study}", rows, columns)


def answers(record: RunRecord, asked: Schedule) -> bool:
    """Return whether a run is of this budget: the number of a budget is another one in another plan."""
    done = record.schedule
    return done is not None and (done.budget, done.steps) == (asked.budget, asked.steps)


def _standing_lines(plan: Plan, records: list[RunRecord]) -> list[str]:
    """Say how far all runs together are, and where each that runs now is."""
    found = standing(plan, records)
    amounts = (found.spent_required_flops, found.planned_required_flops)
    spent, planned = (format_amount(flops, "required_flops") for flops in amounts)
    share = amounts[0] / amounts[1] if amounts[1] else 1.0
    basis = "as planned" if found.pace is None else f"at {found.pace:.2f} times the planned seconds, as so far"
    done = f"{100 * found.done_fraction:.0f} % done; {format_seconds(found.seconds_left)} left {basis}; "
    lines = [f"{done if found.done_fraction < 1 else ''}spent {spent} of {planned} ({100 * share:.0f} %)"]
    for run_id, at, last, loss in found.running:
        shown = "n/a" if loss is None else f"{loss:.3g}"
        lines.append(f"running, or stopped on the way: {run_id}, step {at} of {last}, loss {shown}")
    return lines


def _overheads(records: list[RunRecord]) -> str:
    """Say what went by beside the steps, in wall time of all units together."""
    sums: Counter[str] = Counter()
    for record in records:
        sums.update(record.overhead_seconds)
    shown = [f"{name.replace('_', ' ')} {format_seconds(seconds)}" for name, seconds in sums.items() if seconds]
    return f"beside the steps, charged to no arm: {', '.join(shown)}" if shown else ""
