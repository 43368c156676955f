"""A plan in words: what differs between arms, a paragraph, a table, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budgetlab.planner.standing import ladder_costs
from budgetlab.studies import Study
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Arm, ModelSpec, Plan, Value

_CHARGES = {
    "none": "the teacher is not charged",
    "inference": "the teacher's forward pass is charged, its pretraining is not",
    "cache": "the teacher's forward pass is made once, and its cost shared by the runs that read what was kept",
    "pretraining": "the teacher's forward pass and its whole pretraining are charged",
}
_MATCHES = {
    "required_flops": "required FLOPs",
    "executed_flops": "executed FLOPs",
    "device_seconds": "device seconds",
    "joules": "joules",
    "usd": "cost in US dollars",
    "equal_tokens": "tokens",
}
_METHODS = (
    "We compare {arms} at equal {match} ({budgets}); {charge}. Students: {students}. All arms use sequences of "
    "{seq_len} tokens, batches of {batch:,} tokens, a peak learning rate of {rates} with a {schedule} schedule, and "
    "{seeds}; {data}. Each budget is {ladder}, in whole steps that never exceed it (at most {unspent:.2g} % unspent). "
    "Compute counts two FLOPs per multiply-add of every matrix product that the loss needs, forward and backward."
)
_LATEX = r"""\begin{tabular}{llrrr}
\toprule
arm & budget & tokens & steps & compute \\
\midrule
%s
\bottomrule
\end{tabular}"""


def audit(study: Study) -> tuple[str, ...]:
    """Say what differs between the arms of a study, one line each, and what all of them share."""
    return compare_recipes(study.arms, study.models)


def compare_recipes(
    arms: Mapping[str, Arm], models: Mapping[str, ModelSpec], warmups: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Say what differs between the arms, one line each, the strategy first; then what holds for all of them."""
    lines = []
    for arm in arms.values():
        settings = [f"{key} = {value}" for key, value in arm.strategy.settings.items()]
        settings += [f"teacher {arm.teacher}"] if arm.teacher else []
        settings += [f"teacher reduced to {arm.kept}"] if arm.kept else []
        settings += ["teacher reads the words to be guessed"] if arm.teacher_reads == "unmasked" else []
        shown = f" ({', '.join(settings)})" if settings else ""
        lines.append(f"{arm.name}: strategy {arm.strategy.name}{shown}")
    first = next(iter(arms.values()))
    taught = next((arm for arm in arms.values() if arm.teacher is not None), first)
    for arm in arms.values():
        for role, mine, other in (("student", arm.student, first), ("teacher", arm.teacher, taught)):
            theirs = getattr(other, role)
            if mine is None or mine == theirs:
                continue
            pairs = _differences(models[mine], models[theirs])
            shown = "; ".join(f"{field} {one}, {other.name} has {two}" for field, one, two in pairs)
            lines.append(f"{arm.name}: {role} {mine}: {shown or 'equal to that of ' + other.name}")
        for field, mine, theirs in _differences(arm.recipe, first.recipe):
            lines.append(f"{arm.name}: recipe.{field} {mine}, {first.name} has {theirs}")
    if warmups is None and any(arm.recipe.warmup_fraction for arm in arms.values()):
        lines.append(
            "Warm-up is a share of each arm's own steps (recipe.warmup_fraction), so its tokens differ with them."
        )
    warmups = warmups or {}
    one, reference = next(iter(warmups.items()), ("", 0))
    lines += [f"{name}: warm-up of {tokens:,} tokens, {one} has {reference:,}"
              for name, tokens in warmups.items() if tokens != reference]  # fmt: skip
    lines.append(
        "All arms share the student, the recipe, the order of samples and the masks; they differ in strategy alone."
        if len(lines) == len(arms)
        else "All arms share run seeds, order of samples, masks and the fine-tuning recipe."
    )
    for name in dict.fromkeys(arm.student for arm in arms.values() if models[arm.student].weights is not None):
        before = models[name].pretrained_for or "an unknown amount"
        start = f"{name} starts from weights = {models[name].weights!r}: this is continued pretraining"
        lines.append(f"{start}; what came before ({before}) is in no budget, and random weights are another start.")
    pretrained = [arm.name for arm in arms.values() if models[arm.student].pretrain is not None]
    lines += [f"{name}: its student starts at random; that model's pretraining is a teacher's." for name in pretrained]
    if len(set(warmups.values())) == 1:
        lines.append(f"Every arm warms up for {reference:,} tokens.")
    for teacher in dict.fromkeys(arm.teacher for arm in arms.values() if arm.teacher is not None):
        lines.append(f"Of {teacher} there is one, with one seed: what is found holds for it.")
    return tuple(lines)


def _differences(one: Value, other: Value) -> list[tuple[str, Any, Any]]:
    pairs = [(field, getattr(one, field), getattr(other, field)) for field in type(one).model_fields]
    return [(field, mine, theirs) for field, mine, theirs in pairs if mine != theirs]


def methods_paragraph(plan: Plan) -> str:
    """Say in one paragraph what is compared, at what budgets, and what is charged."""
    recipe, arms = plan.recipe, plan.arms

    def shapes(names: list[str]) -> str:
        specs = {name: plan.models[name] for name in names}
        return ", ".join(f"{n} ({spec.num_layers} layers, width {spec.hidden_size})" for n, spec in specs.items())

    rates: dict[float, list[str]] = {}
    for arm in arms.values():
        rates.setdefault(arm.recipe.learning_rate, []).append(arm.name)
    whose = " and ".join(f"{rate:g} ({', '.join(names)})" for rate, names in rates.items())
    tokens_of = f"required FLOPs, those of the tokens that {plan.match.removeprefix('tokens:')} reads"
    shared = f"the teacher's pretraining is shared among {plan.charge.split(':')[-1]} students"
    teachers = [arm.teacher for arm in arms.values() if arm.teacher]
    students = shapes([arm.student for arm in arms.values()])
    limit, count = plan.corpus.unique_tokens, len(plan.seeds)
    budgets = [format_amount(schedule.budget.amount, schedule.budget.unit) for schedule in plan.schedules]
    return _METHODS.format(
        arms=", ".join(arms),
        match=_MATCHES.get(plan.match, tokens_of),
        budgets=", ".join(dict.fromkeys(budgets)),
        charge=_CHARGES.get(plan.charge, shared),
        students=f"{students}; teachers: {shapes(teachers)}" if teachers else students,
        seq_len=recipe.seq_len,
        batch=recipe.batch_tokens,
        rates=f"{next(iter(rates)):g}" if len(rates) == 1 else whose,
        schedule=recipe.schedule,
        seeds=f"{count} run seed{'s' * (count != 1)}",
        data=f"the arms read at most {format_quantity(limit)} unique tokens" if limit else "text is not limited",
        ladder="a cooldown branch of one run" if plan.ladder == "branched" else "a run of its own",
        unspent=max((100 * s.unspent_fraction for s in plan.schedules if s.feasible), default=0.0),
    )


def latex_table(plan: Plan) -> str:
    """Lay the schedules out as a LaTeX table (booktabs)."""
    rows = []
    for s in plan.schedules:
        known = format_quantity(s.tokens), f"{s.steps:,}", format_amount(s.required_flops, "required_flops")
        cells = known if s.feasible else ("infeasible", "n/a", "n/a")
        rows.append((s.arm.replace("_", r"\_"), format_amount(s.budget.amount, s.budget.unit), *cells))
    return _LATEX % "\n".join(" & ".join(row) + r" \\" for row in rows)


def compute_statement(plan: Plan) -> str:
    """Say what the whole plan costs: every arm, budget and seed, and the teachers; time and money where known."""
    spent, execution = ladder_costs(plan)[plan.ladder], plan.execution
    teachers = [teacher for teacher in plan.teachers if teacher.weights is None]
    flops = sum(teacher.required_flops for teacher in teachers)
    trials = sum(unit.required_flops for unit in plan.units() if unit.kind == "trial")
    tried = f", {format_amount(trials, 'required_flops')} in trials of learning rates" if trials else ""
    time = "device time was not measured"
    if spent["device_seconds"] is not None:
        total = spent["device_seconds"] + sum(teacher.device_seconds or 0.0 for teacher in teachers)
        total += sum(t.schedule.device_seconds or 0.0 for t in plan.trials for _ in t.seeds or plan.seeds[:1])
        time = f"{format_seconds(total)} of device time, predicted from the profile"
        if execution.devices > 1:
            time += f"; {format_seconds(total / execution.devices)} on {execution.devices} devices"
        if execution.usd_per_device_hour is not None:
            time += f"; {format_amount(total / 3600 * execution.usd_per_device_hour, 'usd')}"
    arms = format_amount(spent["required_flops"] or 0.0, "required_flops")
    teaching = format_amount(flops, "required_flops") if flops else "nothing"
    return f"All runs together need {arms} in the arms{tried} and {teaching} for pretraining teachers ({time})."
