"""A plan in the words and files of others: a methods paragraph, a table for a paper, arguments of other trainers."""

from __future__ import annotations

from typing import Any

from budgetlab.errors import CallerError, unknown_name
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Plan, Schedule

__all__ = ["compute_statement", "latex_table", "methods_paragraph", "training_arguments"]

_CHARGES = {
    "none": "the teacher is not charged",
    "inference": "the teacher's forward pass is charged, its pretraining is not",
    "pretraining": "the teacher's forward pass and its whole pretraining are charged",
}


def methods_paragraph(plan: Plan) -> str:
    """Say in one paragraph what is compared, at what budgets, and what is charged."""
    recipe, arms = plan.recipe, plan.arms
    students = ", ".join(_shape(plan, name) for name in dict.fromkeys(arm.student for arm in arms.values()))
    teachers = ", ".join(
        _shape(plan, name) for name in dict.fromkeys(arm.teacher for arm in arms.values() if arm.teacher)
    )
    budgets = ", ".join(
        dict.fromkeys(format_amount(schedule.budget.amount, schedule.budget.unit) for schedule in plan.schedules)
    )
    charge = _CHARGES.get(
        plan.charge, f"the teacher's pretraining is shared among {plan.charge.split(':')[-1]} students"
    )
    data = (
        f"the arms read at most {format_quantity(plan.corpus.unique_tokens)} unique tokens"
        if plan.corpus.unique_tokens
        else "text is not limited"
    )
    ladder = "a cooldown branch of one run" if plan.ladder == "branched" else "a run of its own"
    return (
        f"We compare {', '.join(arms)} at equal {plan.match.replace('_', ' ')} ({budgets}); {charge}. "
        f"Students: {students}{f'; teachers: {teachers}' if teachers else ''}. All arms use sequences of "
        f"{recipe.seq_len} tokens, batches of {recipe.batch_tokens:,} tokens, a peak learning rate of "
        f"{recipe.learning_rate:g} with a {recipe.schedule} schedule, and {len(plan.seeds)} run "
        f"seed{'s' * (len(plan.seeds) != 1)}; {data}. Each budget is {ladder}, in whole steps that never exceed it "
        f"(at most {_largest_rest(plan):.2g} % unspent). Compute counts two FLOPs per multiply-add of every matrix "
        f"product that the loss needs, forward and backward."
    )


def _shape(plan: Plan, name: str) -> str:
    spec = plan.models[name]
    return f"{name} ({spec.num_layers} layers, width {spec.hidden_size})"


def _largest_rest(plan: Plan) -> float:
    return max((100 * schedule.unspent_fraction for schedule in plan.schedules if schedule.feasible), default=0.0)


def latex_table(plan: Plan) -> str:
    """Lay the schedules out as a LaTeX table (booktabs)."""
    rows = [
        " & ".join([
            schedule.arm.replace("_", r"\_"), format_amount(schedule.budget.amount, schedule.budget.unit),
            *((format_quantity(schedule.tokens), f"{schedule.steps:,}",
               format_amount(schedule.required_flops, "required_flops")) if schedule.feasible
              else ("infeasible", "n/a", "n/a")),
        ]) + r" \\"
        for schedule in plan.schedules
    ]  # fmt: skip
    head = [r"\begin{tabular}{llrrr}", r"\toprule", r"arm & budget & tokens & steps & compute \\", r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}"])


def compute_statement(plan: Plan) -> str:
    """Say what the whole plan costs: every arm, budget and seed, and the teachers; seconds where they are known."""
    kept = _trained(plan)
    flops = len(plan.seeds) * sum(schedule.required_flops * share for schedule, share in kept)
    teachers = sum(teacher.required_flops for teacher in plan.teachers)
    seconds = [schedule.device_seconds for schedule, _ in kept]
    time = "device time was not measured"
    if all(value is not None for value in seconds):
        total = len(plan.seeds) * sum((value or 0.0) * share for value, (_, share) in zip(seconds, kept, strict=True))
        total += sum(teacher.device_seconds or 0.0 for teacher in plan.teachers)
        time = f"{format_seconds(total)} of device time, predicted from the profile"
    return (
        f"All runs together need {format_amount(flops, 'required_flops')} in the arms and "
        f"{format_amount(teachers, 'required_flops') if teachers else 'nothing'} for pretraining teachers ({time})."
    )


def _trained(plan: Plan) -> list[tuple[Schedule, float]]:
    """Schedules, and the share of each that is trained for itself: on a branched ladder the trunk runs once."""
    feasible = [schedule for schedule in plan.schedules if schedule.feasible]
    if plan.ladder != "branched":
        return [(schedule, 1.0) for schedule in feasible]
    longest = {arm: max(s.steps - s.cooldown_steps for s in feasible if s.arm == arm) for arm in plan.arms
               if any(s.arm == arm for s in feasible)}  # fmt: skip
    shares = []
    for schedule in feasible:
        carries_trunk = schedule.steps - schedule.cooldown_steps == longest.get(schedule.arm)
        own = schedule.steps if carries_trunk else schedule.cooldown_steps
        if carries_trunk:
            del longest[schedule.arm]
        shares.append((schedule, own / schedule.steps))
    return shares


def training_arguments(plan: Plan, arm: str, rung: int = -1) -> dict[str, Any]:
    """Return one schedule as keyword arguments of transformers' `TrainingArguments`; plain JSON.

    Parameters
    ----------
    plan, arm
        Whose schedule.
    rung
        Index of the budget, smallest first; -1 is the largest.

    Raises
    ------
    CallerError
        When there is no such arm or budget, it is infeasible, or the schedule has no counterpart there.
    """
    if arm not in plan.arms:
        raise unknown_name("arm", arm, plan.arms)
    found = sorted((s for s in plan.schedules if s.arm == arm), key=lambda schedule: schedule.rung)
    if not -len(found) <= rung < len(found):
        raise CallerError(f"rung {rung} of {arm}", f"it has rungs 0 to {len(found) - 1}", "choose one of them")
    schedule, recipe = found[rung], plan.arms[arm].recipe
    if not schedule.feasible:
        raise CallerError(f"rung {rung} of {arm}", f"infeasible: {schedule.reason}", "raise the budget")
    stable = schedule.steps - schedule.warmup_steps - schedule.cooldown_steps
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"lr_scheduler_type": "linear"},
        "cosine": {"lr_scheduler_type": "cosine"},
        "inverse_sqrt": {"lr_scheduler_type": "inverse_sqrt"},
        "wsd": {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {
                "num_decay_steps": schedule.cooldown_steps, "num_stable_steps": stable, "decay_type": "linear",
                "min_lr_ratio": 0.0,
            },
        },
    }  # fmt: skip
    return {
        "max_steps": schedule.steps,
        "per_device_train_batch_size": recipe.batch_sequences,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
        "max_grad_norm": recipe.clip_norm if recipe.clip_norm is not None else 0.0,
        "bf16": recipe.dtype == "bfloat16",
        **kinds[recipe.schedule],
    }
