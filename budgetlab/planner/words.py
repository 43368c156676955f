"""A plan in the words and files of others: a methods paragraph, a table for a paper, arguments of other trainers."""

from __future__ import annotations

from typing import Any

from budgetlab.errors import CallerError, unknown_name
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Arm, Plan, Schedule

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
        f"We compare {', '.join(arms)} at equal {_matched(plan.match)} ({budgets}); {charge}. "
        f"Students: {students}{f'; teachers: {teachers}' if teachers else ''}. All arms use sequences of "
        f"{recipe.seq_len} tokens, batches of {recipe.batch_tokens:,} tokens, a peak learning rate of "
        f"{_by_arm(arms)} with a {recipe.schedule} schedule, and {len(plan.seeds)} run "
        f"seed{'s' * (len(plan.seeds) != 1)}; {data}. Each budget is {ladder}, in whole steps that never exceed it "
        f"(at most {_largest_rest(plan):.2g} % unspent). Compute counts two FLOPs per multiply-add of every matrix "
        f"product that the loss needs, forward and backward."
    )


def _by_arm(arms: dict[str, Arm]) -> str:
    """Learning rates: one, or whose is which."""
    rates: dict[float, list[str]] = {}
    for arm in arms.values():
        rates.setdefault(arm.recipe.learning_rate, []).append(arm.name)
    if len(rates) == 1:
        return f"{next(iter(rates)):g}"
    return " and ".join(f"{rate:g} ({', '.join(names)})" for rate, names in rates.items())


def _matched(match: str) -> str:
    if match.startswith("tokens:"):
        return f"required FLOPs, those of the tokens that {match.removeprefix('tokens:')} reads"
    return match.removeprefix("equal_").replace("_", " ").replace("flops", "FLOPs").replace("usd", "cost in US dollars")


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
    """Say what the whole plan costs: every arm, budget and seed, and the teachers; time and money where known."""
    spent = ladder_costs(plan)[plan.ladder]
    teachers = [teacher for teacher in plan.teachers if teacher.weights is None]
    flops = sum(teacher.required_flops for teacher in teachers)
    trials = sum(trial.schedule.required_flops for trial in plan.trials)
    tried = f", {format_amount(trials, 'required_flops')} in trials of learning rates" if trials else ""
    time = "device time was not measured"
    if spent["device_seconds"] is not None:
        execution = plan.execution
        total = spent["device_seconds"] + sum(teacher.device_seconds or 0.0 for teacher in teachers)
        total += sum(trial.schedule.device_seconds or 0.0 for trial in plan.trials)
        time = f"{format_seconds(total)} of device time, predicted from the profile"
        if execution.devices > 1:
            time += f"; {format_seconds(total / execution.devices)} on {execution.devices} devices"
        if execution.usd_per_device_hour is not None:
            time += f"; {format_amount(total / 3600 * execution.usd_per_device_hour, 'usd')}"
    arms = format_amount(spent["required_flops"] or 0.0, "required_flops")
    teaching = format_amount(flops, "required_flops") if flops else "nothing"
    return f"All runs together need {arms} in the arms{tried} and {teaching} for pretraining teachers ({time})."


def ladder_costs(plan: Plan) -> dict[str, dict[str, float | None]]:
    """Sum the arms' cost over budgets and seeds, trained as one trunk with branches, or each budget by itself.

    Returns
    -------
    dict
        For "branched" and "separate": `required_flops` and `device_seconds`, None where it is not known, and for
        branches where a schedule has no cooldown to branch off for.
    """
    found: dict[str, dict[str, float | None]] = {}
    for ladder in ("branched", "separate"):
        kept = _trained(plan, ladder)
        cuttable = all(schedule.cooldown_steps for schedule, _ in kept) or plan.ladder == "branched"
        if ladder == "branched" and not cuttable:
            found[ladder] = {"required_flops": None, "device_seconds": None}
            continue
        seconds = [None if s.device_seconds is None else s.device_seconds * share for s, share in kept]
        found[ladder] = {
            "required_flops": len(plan.seeds) * sum(schedule.required_flops * share for schedule, share in kept),
            "device_seconds": None
            if any(value is None for value in seconds)
            else len(plan.seeds) * sum(value or 0.0 for value in seconds),
        }
    return found


def ladder_note(plan: Plan) -> str | None:
    """Say what the ladder costs, and what the other one would; None where there is one budget."""
    if len({schedule.rung for schedule in plan.schedules}) < 2:
        return None
    costs = {name: cost["required_flops"] for name, cost in ladder_costs(plan).items()}
    other = "separate" if plan.ladder == "branched" else "branched"
    shown = {name: "n/a" if value is None else format_amount(value, "required_flops") for name, value in costs.items()}
    return f"the {plan.ladder} ladder trains {shown[plan.ladder]} in the arms; {other} it would be {shown[other]}"


def _trained(plan: Plan, ladder: str) -> list[tuple[Schedule, float]]:
    """Schedules, and the share of each that is trained for itself: on a branched ladder the trunk runs once."""
    feasible = [schedule for schedule in plan.schedules if schedule.feasible]
    if ladder != "branched":
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


def run_description(plan: Plan, arm: str, rung: int = -1) -> dict[str, Any]:
    """Return one schedule for any trainer: steps, batch, schedule, optimizer, strategy; plain JSON, units in the names.

    Raises
    ------
    CallerError
        When there is no such arm or budget, or it is infeasible.
    """
    schedule = _schedule_of(plan, arm, rung)
    recipe, what = plan.arms[arm].recipe, plan.arms[arm]
    teacher = None if what.teacher is None else plan.models[what.teacher].model_dump(mode="json", exclude_none=True)
    return {
        "arm": arm, "strategy": what.strategy.model_dump(mode="json"),
        "student": plan.models[what.student].model_dump(mode="json", exclude_none=True), "teacher": teacher,
        "budget": schedule.budget.model_dump(), "steps": schedule.steps, "tokens": schedule.tokens,
        "warmup_steps": schedule.warmup_steps, "cooldown_steps": schedule.cooldown_steps,
        "batch_sequences": recipe.batch_sequences, **recipe.model_dump(mode="json"),
        "required_flops": schedule.required_flops, "device_seconds": schedule.device_seconds, "seeds": list(plan.seeds),
    }  # fmt: skip


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
    schedule, recipe = _schedule_of(plan, arm, rung), plan.arms[arm].recipe
    if recipe.batch_sequences % plan.execution.devices:
        asked = f"{recipe.batch_sequences} sequences a step on {plan.execution.devices} devices"
        raise CallerError(asked, "not the same number on each", "change batch_tokens or devices")
    stable = schedule.steps - schedule.warmup_steps - schedule.cooldown_steps
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"lr_scheduler_type": "linear"},
        "cosine": {"lr_scheduler_type": "cosine"},
        "inverse_sqrt": {"lr_scheduler_type": "inverse_sqrt"},
        **{
            name: {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {
                    "num_decay_steps": schedule.cooldown_steps, "num_stable_steps": stable, "decay_type": shape,
                    "min_lr_ratio": 0.0,
                },
            }
            for name, shape in (("wsd", "linear"), ("wsd_sqrt", "1-sqrt"))
        },
    }  # fmt: skip
    return {
        "max_steps": schedule.steps,
        "per_device_train_batch_size": recipe.batch_sequences // plan.execution.devices,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
        "max_grad_norm": recipe.clip_norm,
        "bf16": recipe.dtype == "bfloat16",
        **(
            {"use_cpu": True}
            if "cpu" in (plan.execution.device, plan.execution.device == "auto" and plan.device)
            else {}
        ),
        **kinds[recipe.schedule],
    }


def _schedule_of(plan: Plan, arm: str, rung: int) -> Schedule:
    if arm not in plan.arms:
        raise unknown_name("arm", arm, plan.arms)
    found = sorted((s for s in plan.schedules if s.arm == arm), key=lambda schedule: schedule.rung)
    if not -len(found) <= rung < len(found):
        raise CallerError(f"rung {rung} of {arm}", f"it has rungs 0 to {len(found) - 1}", "choose one of them")
    if not found[rung].feasible:
        raise CallerError(f"rung {rung} of {arm}", f"infeasible: {found[rung].reason}", "raise the budget")
    return found[rung]
