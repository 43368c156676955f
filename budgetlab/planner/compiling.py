"""How a plan uses the device: whether torch.compile is worth its time, how many trainings go side by side."""

from __future__ import annotations

from budgetlab.studies import Study
from budgetlab.units import format_seconds
from budgetlab.values import ArmCost, CostProfile, ExecutionSpec, Plan

_WORTH_PACKING = 1.1


def decide_compiling(study: Study, made: Plan, profile: CostProfile) -> tuple[bool, str]:
    """Say whether a plan's networks are to be compiled, and why.

    With `execution.compile = "auto"` they are where the seconds that faster steps save, at the unfavourable end of the
    measured interval, are more than those of compiling each training anew.
    """
    asked = study.execution.compile
    if asked != "auto":
        return asked == "always", f"as asked: execution.compile = {asked}"
    if any(cost.compiled is None for cost in (*profile.arms, *profile.teachers)):
        return False, "not measured: a CPU gains little from it (execution.compile = always measures and uses it)"
    saves = costs = 0.0
    for cost, steps, trainings in _trainings(made):
        assert cost.compiled is not None
        ratio = cost.compiled.seconds_ratio
        worst = ratio.interval[1] if ratio.interval is not None else ratio.value
        saves += steps * (cost.seconds_per_step or 0.0) * (1.0 - worst)
        costs += trainings * cost.compiled.compile_seconds
    said = (
        f"faster steps save {format_seconds(max(0.0, saves))} of device time, compiling takes {format_seconds(costs)}"
    )
    return saves > costs, said


def _trainings(made: Plan) -> list[tuple[ArmCost, int, int]]:
    """Price, steps and number of trainings of each arm and teacher."""
    found = [(made.teacher_costs[t.model], t.steps, 1) for t in made.teachers if t.steps]
    for arm in made.arms:
        own = [s for s in made.schedules if s.arm == arm and s.feasible]
        if not own:
            continue
        steps, count = sum(s.steps for s in own), len(own)
        if made.ladder == "branched":
            steps = sum(s.cooldown_steps for s in own) + max(s.steps - s.cooldown_steps for s in own)
            count += 1
        found.append((made.costs[arm], steps * len(made.seeds), count * len(made.seeds)))
    return found


def decide_packing(study: Study, profile: CostProfile) -> tuple[ExecutionSpec, str]:
    """Say how many trainings go side by side on the device, and why; a number that was asked for stays.

    With `execution.workers = "auto"` it is the number at which their steps were fastest together, if that is by a
    tenth faster than one alone.
    """
    execution = study.execution
    if execution.workers != "auto":
        return execution, ""
    workers, why = 1, "not measured"
    if execution.devices > 1:
        why = "each training has several"
    elif profile.packing is not None:
        best = max(profile.packing, key=lambda found: found.speed_ratio, default=None)
        why = "it has no room for more" if best is None else (
            f"{best.processes} take {best.speed_ratio:.2f} times the steps a second of one"
        )  # fmt: skip
        if best is not None and best.speed_ratio >= _WORTH_PACKING:
            workers = best.processes
    return execution.model_copy(update={"workers": workers}), why


def compiled_prices(profile: CostProfile) -> CostProfile:
    """Return the prices of compiled steps, where they were measured; FLOPs, memory and energy stay."""

    def faster(cost: ArmCost) -> ArmCost:
        if cost.compiled is None or cost.seconds_per_step is None:
            return cost
        ratio, ends = cost.compiled.seconds_ratio.value, cost.seconds_per_step_interval
        phases = {
            name: price if price.seconds_per_step is None
            else price.model_copy(update={"seconds_per_step": price.seconds_per_step * ratio})
            for name, price in cost.phases.items()
        }  # fmt: skip
        update = {"phases": phases, "seconds_per_step": cost.seconds_per_step * ratio}
        if cost.tokens_per_second is not None:
            update["tokens_per_second"] = cost.tokens_per_second / ratio
        if ends is not None:
            update["seconds_per_step_interval"] = (ends[0] * ratio, ends[1] * ratio)
        return cost.model_copy(update=update)

    arms, teachers = (tuple(map(faster, costs)) for costs in (profile.arms, profile.teachers))
    return profile.model_copy(update={"arms": arms, "teachers": teachers})
