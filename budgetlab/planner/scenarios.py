"""The same arithmetic under other settings: sensitivity, all-in cost, cached teachers, power, other throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.planner.match import plan
from budgetlab.planner.prices import StepCost, effective_tokens, loss_factor, step_cost, step_price, taught_steps
from budgetlab.planner.standing import ladder_costs
from budgetlab.resampling import detectable_difference, seeds_to_resolve
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study
from budgetlab.units import MATCHES
from budgetlab.values import ArmCost, CostProfile, ExecutionSpec, Plan, StrategySpec


def sensitivity(study: Study, profile: CostProfile) -> pd.DataFrame:
    """Table of each arm's tokens at the largest budget under every meaning of compute that the profile can price.

    The budget in each currency is what the first feasible arm spends on its tokens in the study's own plan. Charges:
    none, inference, pretraining, and cached (inference once per unique token, in required FLOPs, where the strategy
    allows it).

    Returns
    -------
    DataFrame
        Columns match, charge, arm, tokens, ratio (to the first feasible arm); missing where an arm is infeasible, or
        its teacher's cost unknown in that currency.
    """
    base = plan(study, profile)
    # Trials are the study's own; and an arm whose steps are large beside a currency's budget is shown all the same.
    free = study.plan.model_copy(update={"tolerance_fraction": 0.999, "ladder": "separate"})
    study = study.model_copy(update={"plan": free, "tuning": None})
    reference = next(arm for arm in study.arms if any(s.feasible for s in base.schedules if s.arm == arm))
    top = max((s for s in base.schedules if s.arm == reference and s.feasible), key=lambda s: s.rung)

    def spent(unit: str, charge: str) -> float:
        price = step_price(study.execution, base.costs[reference], unit, charge)
        return price * top.steps * (1 + 1e-9)  # so that rounding takes no step away

    def tokens(arm: str, budget: str, match: str, charge: str) -> int | None:
        alone = study.model_copy(update={"arms": {arm: study.arms[arm]}})
        try:
            schedule = plan(alone, profile, budgets=(budget,), match=match, teacher_charge=charge).schedules[0]
        except CallerError:  # infeasible, or not priced
            return None
        return schedule.tokens if schedule.feasible else None

    rows = []
    for match, unit in MATCHES.items():
        for charge in ("inference",) if match == "equal_tokens" else ("none", "inference", "pretraining"):
            try:
                budget = f"{spent(unit, charge)!r} {unit.replace('joules', 'J')}"
            except CallerError:
                continue  # not priced in this profile: no row
            rows += [(match, charge, arm, tokens(arm, budget, match, charge)) for arm in study.arms]
    flops = spent("required_flops", "inference")
    same = free.model_copy(update={"match": "required_flops", "teacher_charge": "inference", "budgets": (flops,)})
    cached = cached_teacher(study.model_copy(update={"plan": same}), profile).to_dict("records")
    rows += [("required_flops", "cached", row["arm"], row["tokens_cached"]) for row in cached]
    found = pd.DataFrame(rows, columns=["match", "charge", "arm", "tokens"]).astype({"tokens": float})
    return found.assign(ratio=found["tokens"] / top.tokens)


def definition_notes(table: pd.DataFrame, *, by: float = 0.1) -> list[str]:
    """Say of each arm how far its tokens depend on what "the same compute" means, hence whose verdict could.

    Parameters
    ----------
    table
        From `sensitivity`.
    by
        A range wider than this share of its lower end is one on which a verdict could depend.
    """
    table = table[(table["match"] != "equal_tokens") & ((table["charge"] != "cached") | table["tokens"].notna())]
    notes = []
    for arm in pd.unique(table["arm"]):
        own = table[table["arm"] == arm]
        rows = own.dropna(subset="ratio").sort_values("ratio")
        lacking = [str(charge) for charge in pd.unique(own.loc[own["ratio"].isna(), "charge"])]
        wide = len(rows) > 1 and rows["ratio"].iloc[-1] > rows["ratio"].iloc[0] * (1 + by)
        parts = []
        if wide:
            ends = [rows.iloc[0], rows.iloc[-1]]
            shown = " to ".join(f"{end['ratio']:.2f} ({end['match']}, {end['charge']})" for end in ends)
            parts.append(f"{shown} of the first arm's tokens")
        if lacking:
            parts.append(f"infeasible or unknown under {', '.join(lacking)}")
        if parts:
            notes.append(f"{arm}: {'; '.join(parts)}; its verdict could depend on the definition")
    return notes


def what_if(scenarios: pd.DataFrame) -> pd.DataFrame:
    """Plan every row of a table: the planner's arithmetic, vectorised.

    Parameters
    ----------
    scenarios
        Columns `budget` and `price_per_token` (the student's own part of a step) in one currency; optional
        `teacher_per_token` (its forward pass), `teacher_pretraining`, `students_per_teacher` (1), `charge` ("none",
        "inference", "pretraining", which is divided among the students), `batch_tokens` (1), `unique_tokens`,
        `cached_teacher` (its forward pass is paid once per unique token).

    Returns
    -------
    DataFrame
        The columns given, and `steps`, `tokens`, `passes`, `effective_tokens`, `unspent_fraction`, `feasible` (at least
        one step).

    Raises
    ------
    CallerError
        For a missing column, an unknown charge, a price that is not above zero, or a cached teacher without
        `unique_tokens`.
    """
    asked = f"{len(scenarios)} scenarios"
    missing = [name for name in ("budget", "price_per_token") if name not in scenarios]
    if missing:
        raise CallerError(asked, f"no column {', '.join(missing)}", "add it")
    defaults = {
        "teacher_per_token": 0.0,
        "teacher_pretraining": 0.0,
        "students_per_teacher": 1.0,
        "batch_tokens": 1.0,
        "unique_tokens": np.inf,
        "cached_teacher": False,
        "charge": "inference",
    }
    given = {name: scenarios.get(name, pd.Series(value, scenarios.index)) for name, value in defaults.items()}
    charge, cached = given.pop("charge"), given.pop("cached_teacher").to_numpy(bool)
    unknown = sorted(set(charge) - {"none", "inference", "pretraining"})
    if unknown:
        remedy = "use none, inference or pretraining with students_per_teacher"
        raise CallerError(f"charge {unknown}", "unknown", remedy)
    budget, own = (scenarios[name].to_numpy(float) for name in ("budget", "price_per_token"))
    forward, pretraining, students, batch, unique = (column.to_numpy(float) for column in given.values())
    if not ((own > 0).all() and (batch > 0).all() and (students > 0).all()):
        raise CallerError(asked, "a price, batch or number of students is not above zero", "correct it")
    if np.isinf(unique[cached]).any():
        raise CallerError("cached_teacher", "how often text is repeated is unknown", "give unique_tokens")
    pays = (charge != "none").to_numpy()
    upfront = np.where(charge == "pretraining", pretraining / students, 0.0)
    first = (own + np.where(pays, forward, 0.0)) * batch
    price = StepCost(first, own * batch, np.where(cached & pays, unique / batch, np.inf))
    steps = price.steps(budget, upfront)
    tokens = steps * batch
    known = np.isfinite(unique)
    read = np.where(known, unique, np.maximum(tokens, 1.0))
    return scenarios.assign(
        steps=steps,
        tokens=tokens,
        passes=np.where(known, tokens / read, np.nan),
        effective_tokens=effective_tokens(tokens, read),
        unspent_fraction=np.where(steps > 0, 1.0 - (upfront + price.cost(steps)) / budget, 1.0),
        feasible=steps > 0,
    )


def all_in(study: Study, profile: CostProfile) -> pd.DataFrame:
    """Say what plain pretraining of the same student would read for all that a distilled arm costs, teacher included.

    Returns
    -------
    DataFrame
        A row a distilled arm and budget, in required FLOPs: `arm`, `rung`, `tokens`, `spent_flops` (student and teacher
        forward), `teacher_flops` (its pretraining; None where it is unknown), `all_in_flops`, `reference`, and
        `reference_tokens` for the same.
    """
    made = plan(study, profile, teacher_charge="inference")
    alone = [arm for arm in study.arms.values() if arm.teacher is None] or list(study.arms.values())
    pretraining = {teacher.model: teacher.required_flops or None for teacher in made.teachers}
    rows = []
    for schedule in made.schedules:
        teacher = study.arms[schedule.arm].teacher
        if teacher is None or not schedule.feasible:
            continue
        bill, student = pretraining.get(teacher), study.arms[schedule.arm].student
        reference = next((arm.name for arm in alone if arm.student == student), alone[0].name)
        price = made.costs[reference].train_required_flops_per_token
        total = None if bill is None else schedule.required_flops + bill
        rows.append({
            "arm": schedule.arm, "rung": schedule.rung, "tokens": schedule.tokens,
            "spent_flops": schedule.required_flops, "teacher_flops": bill, "all_in_flops": total,
            "reference": reference, "reference_tokens": None if total is None else math.floor(total / price),
        })  # fmt: skip
    return pd.DataFrame(rows)


def cached_teacher(study: Study, profile: CostProfile, *, top_k: int | None = None) -> pd.DataFrame:
    """Say what it would save, and store, to run the teacher once per unique token and to keep its logits.

    It is possible only where a strategy reads nothing of the teacher but logits at masked positions, and masks are
    static. A cache costs one pass of the teacher, so it pays from the second pass on: `saves` says whether the arm
    makes one (in FLOPs; reading and writing it are not priced).

    Parameters
    ----------
    study, profile
        With `corpus.unique_tokens`, else one pass of each arm's largest budget counts as unique.
    top_k
        Logits kept at a target, in 2 bytes each and 2 or 4 for its index; None keeps all of them.

    Returns
    -------
    DataFrame
        A row a distilled arm: `possible` and `why_not`, `passes`, `tokens_live`, `tokens_cached` at the largest budget,
        `saves` (more than one pass), `bytes_per_token`, `total_bytes`, `absurd` (more than a terabyte).
    """
    arms = {}
    for name, arm in study.arms.items():
        settings = {key: value for key, value in arm.strategy.settings.items() if key != "cached"}
        uncached = StrategySpec(name=arm.strategy.name, **settings)
        arms[name] = arm.model_copy(update={"strategy": uncached})
    study = study.model_copy(update={"arms": arms})
    made = plan(study, profile)
    last = max(schedule.rung for schedule in made.schedules)
    rows = []
    for schedule in made.schedules:
        arm = study.arms[schedule.arm]
        if arm.teacher is None or schedule.rung != last or not schedule.feasible:
            continue
        teacher = study.models[arm.teacher]
        needs = build_strategy(arm.strategy, arm.name).teacher_needs(study.models[arm.student], teacher)
        why = None if study.corpus.masking == "static" else 'masks are dynamic; set corpus.masking = "static"'
        if needs.logits != "masked" or needs.hidden or needs.qkv or needs.scores:
            why = "its loss reads more than logits at masked positions"
        cost, vocab = made.costs[arm.name], teacher.vocab_size or 0
        kept = vocab if top_k is None else min(top_k, vocab)
        size = kept * (2 if top_k is None else 4 if vocab <= 65_536 else 6) * cost.target_fraction
        unique = study.corpus.unique_tokens or schedule.tokens
        price = step_cost(ExecutionSpec(), cost, "required_flops", teacher_steps=unique / cost.batch_tokens)
        steps = price.steps(schedule.required_flops, 0.0)
        rows.append(
            {
                "arm": arm.name,
                "possible": why is None,
                "why_not": why,
                "passes": schedule.tokens / unique,
                "tokens_live": schedule.tokens,
                "tokens_cached": int(steps) * cost.batch_tokens if why is None else None,
                "saves": schedule.tokens > unique,
                "bytes_per_token": size,
                "total_bytes": size * unique,
                "absurd": size * unique > 1e12,
            }
        )
    return pd.DataFrame(rows)


def written_text(study: Study, profile: CostProfile) -> pd.DataFrame:
    """Price distillation on text that a model writes, which is planned here and not trained: required FLOPs alone.

    "sequence_level": the teacher writes every token of the text once, a forward pass each, and the student learns it,
    three times its forward pass (Kim and Rush 2016, arXiv 1606.07947). "on_policy": the student writes every token, the
    teacher reads it, and the student learns (Agarwal et al. 2023, arXiv 2306.13649, with lambda = 1). Every position is
    written, none is a prompt; a pass with kept keys and values costs what the forward pass of training does.

    Returns
    -------
    DataFrame
        A row a method, student and teacher of causal arms that compare logits, at the largest budget: `method`, `arm`,
        which pays for the same, `student`, `teacher`, `flops_per_token` (while the text is new), `tokens`, `ratio` (to
        what `arm` reads). No rows for masked models.
    """
    made, rows, seen = plan(study, profile), [], set()
    for schedule in sorted((s for s in made.schedules if s.feasible), key=lambda s: -s.rung):
        arm, cost = study.arms[schedule.arm], made.costs[schedule.arm]
        pair = (arm.student, arm.teacher)
        compares = arm.teacher is not None and build_strategy(arm.strategy, arm.name).by_rows
        if not (compares and study.models[arm.student].causal) or pair in seen:
            continue
        seen.add(pair)
        asked = (study.execution, cost, "required_flops", study.plan.teacher_charge)
        own, kept = step_price(*asked), taught_steps(arm, study.corpus.unique_tokens)
        spent = float(step_cost(*asked, kept).cost(schedule.steps)) * (1 + 1e-9)  # rounding takes no step away
        writing = cost.phases["student_forward"].required_flops_per_token * cost.batch_tokens
        new = math.inf if study.corpus.unique_tokens is None else study.corpus.unique_tokens / cost.batch_tokens
        later = step_price(study.execution, cost, "required_flops", "none")
        prices = {"sequence_level": StepCost(own, later, new), "on_policy": StepCost(own + writing, own + writing)}
        for method, price in prices.items():
            tokens = int(price.steps(spent, 0.0)) * cost.batch_tokens
            rows.append({
                "method": method, "arm": arm.name, "student": arm.student, "teacher": arm.teacher,
                "flops_per_token": price.first / cost.batch_tokens, "tokens": tokens, "ratio": tokens / schedule.tokens,
            })  # fmt: skip
    return pd.DataFrame(rows)


def with_throughput(
    profile: CostProfile, table: pd.DataFrame, source: str, execution: ExecutionSpec | None = None
) -> CostProfile:
    """Take seconds from a throughput that was measured elsewhere, in another trainer or published.

    Parameters
    ----------
    profile
        Counted FLOPs of the arms.
    table
        Columns `arm` and `tokens_per_second` (of all devices together); optional `low` and `high` of its interval.
    source
        Where it comes from; kept in the profile's conventions.
    execution
        The devices that gave it together; one by default.

    Raises
    ------
    CallerError
        For a missing column or arm, or a throughput that is not above zero.
    """
    asked = f"throughput from {source}"
    missing = {"arm", "tokens_per_second"} - set(table.columns)
    if missing:
        raise CallerError(asked, f"no column {', '.join(sorted(missing))}", "add it")
    rates = pd.to_numeric(table["tokens_per_second"], errors="coerce")
    rows = {str(row["arm"]): row for row in table.to_dict("records")}
    absent = [cost.arm for cost in profile.arms if cost.arm not in rows]
    if absent:
        raise CallerError(asked, f"no row for {', '.join(absent)}", "add one for every arm")
    wrong = [str(arm) for arm in table["arm"][~((rates > 0) & np.isfinite(rates))]]
    if wrong:
        raise CallerError(asked, f"no number above zero for {', '.join(wrong)}", "correct it")
    # Prices are those of one device by itself; what several lose to each other is added when planning.
    together = 1.0 if execution is None else execution.devices / loss_factor(execution)

    def timed(cost: ArmCost) -> ArmCost:
        row = rows.get(cost.arm)
        if row is None:
            return cost
        rate = float(row["tokens_per_second"]) / together
        ends = [float(row[end]) / together for end in ("high", "low") if not pd.isna(row.get(end, np.nan))]
        interval = (cost.batch_tokens / ends[0], cost.batch_tokens / ends[1]) if len(ends) == 2 else None
        return cost.model_copy(
            update={
                "seconds_per_step": cost.batch_tokens / rate,
                "seconds_per_step_interval": interval,
                "tokens_per_second": rate,
                "phases": {n: price.model_copy(update={"seconds_per_step": None}) for n, price in cost.phases.items()},
                "steps_timed": 0,
            }
        )

    names = {cost.arm for cost in profile.arms}
    return profile.model_copy(
        update={
            "arms": tuple(timed(cost) for cost in profile.arms),
            # A row whose name an arm and a teacher share is the arm's.
            "teachers": tuple(cost if cost.arm in names else timed(cost) for cost in profile.teachers),
            "conventions": {**profile.conventions, "seconds": f"measured elsewhere: {source}"},
        }
    )


def power(plan: Plan, *, run_sd: float, differences: Sequence[float], level: float = 0.95) -> pd.DataFrame:
    """Say how many run seeds a plan needs to resolve differences between two arms, and what those runs cost.

    Parameters
    ----------
    plan
        Each contrast takes its own paired t: ``seeds - 1`` degrees of freedom, however many arms there are.
    run_sd
        Standard deviation of one run at the largest budget, pairing by seed removed (`Verdict.run_sd`).
    differences
        In the unit of `run_sd`.
    level
        Of the interval that must exclude zero, four times in five.

    Returns
    -------
    DataFrame
        A row a difference: `difference`, `seeds` per arm (missing above 100,000), `required_flops` and `device_seconds`
        of all arms and budgets with so many seeds (missing where unknown), `resolved_now` with the plan's own seeds.

    Raises
    ------
    CallerError
        When the spread or a difference is not above zero, or there is one arm only.
    """
    arms, seeds = len({s.arm for s in plan.schedules if s.feasible}), len(plan.seeds)
    if arms < 2:
        raise CallerError("power", f"the plan has {arms} feasible arm", "a difference needs two")
    if not run_sd > 0 or not all(difference > 0 for difference in differences):
        raise CallerError(f"power of {list(differences)} at a spread of {run_sd}", "not above zero", "correct it")
    spent = ladder_costs(plan)[plan.ladder]
    now = detectable_difference(run_sd * float(np.sqrt(2 / seeds)), seeds - 1, level) if seeds > 1 else np.inf
    rows = []
    for difference in differences:
        needed = seeds_to_resolve(difference, run_sd, level)
        scale = None if needed is None else needed / seeds
        cost = {key: None if value is None or scale is None else value * scale for key, value in spent.items()}
        rows.append({"difference": difference, "seeds": needed, **cost, "resolved_now": now <= difference})
    return pd.DataFrame(rows).astype({"seeds": "Int64"})
