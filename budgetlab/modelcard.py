"""The README.md of a trained checkpoint: what it is, what it cost, what it scores."""

from __future__ import annotations

from collections.abc import Iterable

from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Plan, RunRecord, Score


def model_card(plan: Plan, record: RunRecord, scores: Iterable[Score] = ()) -> str:
    """Describe one checkpoint in Markdown, with the front matter that the hub reads."""
    arm = None if record.kind == "teacher" else plan.arms[record.arm]
    recipe, cost = (plan.recipe, plan.teacher_costs[record.arm]) if arm is None else (arm.recipe, plan.costs[arm.name])
    strategy = (
        f"{'causal' if recipe.causal else 'masked'} language modelling (no_kd)" if arm is None else arm.strategy.name
    )
    settings = "" if arm is None else ", ".join(f"{k} = {v!r}" for k, v in sorted(arm.strategy.settings.items()))
    teacher = "none" if arm is None or arm.teacher is None else f"`{arm.teacher}`"
    role = "teacher" if record.kind == "teacher" else "arm"
    schedule = record.schedule
    head = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'text-generation' if recipe.causal else 'fill-mask'}",
        f"tags: [budgetlab, {'causal-lm' if recipe.causal else 'masked-lm'}]",
        "---",
        "",
        f"# {record.arm}, {record.tokens:,} tokens, run seed {record.run_seed}",
        "",
        f"Trained by budgetlab {record.environment.budgetlab} for the study `{plan.study}` (run `{record.run_id}`).",
    ]
    if any("predictions" in name or "cls." in name or "lm_head" in name for name in cost.idle_parameters):
        head += ["", "**Its head was not trained**: this strategy's loss reads none. Fine-tune the trunk."]
    rows = [
        (role, f"`{record.arm}`"),
        ("strategy", strategy + (f" ({settings})" if settings else "")),
        ("teacher", teacher),
        ("recipe", ", ".join(f"{name} {value}" for name, value in recipe.model_dump(mode="json").items())),
        ("tokens", f"{record.tokens:,} positions, {record.target_tokens:,} targets, {record.unique_tokens:,} unique"),
        ("steps", f"{record.steps:,}"),
        ("budget", "n/a" if schedule is None else format_amount(schedule.budget.amount, schedule.budget.unit)),
        ("required FLOPs", f"{record.required_flops:.6g} ({format_quantity(record.required_flops, 'FLOP')})"),
        ("executed FLOPs", f"{record.executed_flops:.6g} ({format_quantity(record.executed_flops, 'FLOP')})"),
        ("device time", f"{format_seconds(record.device_seconds)} on {record.environment.device_name}"),
        ("energy", "n/a" if record.joules is None else format_quantity(record.joules, "J")),
        ("parameters", f"{cost.num_params_total:,} ({cost.num_params_non_embedding:,} without embeddings)"),
        ("weights hash", f"`{record.weights_hash}`"),
    ]
    lines = [*head, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), "", "## Scores", ""]
    own = sorted((s for s in scores if s.run_id == record.run_id), key=lambda s: (s.task, s.finetune_seed or 0))
    measured = [
        f"| {score.task}{f' ({score.subset})' if score.subset else ''} | {score.metric} | "
        f"{'n/a' if score.finetune_seed is None else score.finetune_seed} | {score.value:.4f} | "
        f"{score.num_examples:,} |"
        for score in own
    ]
    if not measured:
        return "\n".join([*lines, "Not measured yet: `budgetlab evaluate` adds them.", ""])
    table = ["| task | metric | fine-tuning seed | value | examples |", "|---|---|---|---|---|", *measured]
    return "\n".join([*lines, *table, ""])
