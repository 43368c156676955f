"""The next run of a study: first what is untested and could overturn a verdict, then seeds for what is not resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from budgetlab.decisions.evidence import Evidence
from budgetlab.decisions.question import outcome_words
from budgetlab.errors import CallerError
from budgetlab.resampling import t_quantile
from budgetlab.units import format_amount, format_seconds
from budgetlab.values import Assumption, Plan, Verdict

_MOST_SEEDS = 3
_OTHER_RATES = 2


def next_runs(own: Evidence, verdicts: Sequence[Verdict], assumptions: Sequence[Assumption] = ()) -> pd.DataFrame:
    """Say what to run next.

    Parameters
    ----------
    own
        The study: its plan has the cost of a run.
    verdicts
        From `compare_arms`; the primary ones count, or all where none is primary.
    assumptions
        From `assumptions`: those that were not tested and could overturn a verdict come first (another learning rate,
        the all-in compute, another teacher), the cheapest of them before the others.

    Returns
    -------
    DataFrame
        A row a candidate: `adds` (in words), `kind` ("test" or "seeds"), `arms`, `budget_amount`, `seeds`, `cost_flops`
        and `cost_seconds` (of runs from their first step, the teacher's forward pass included; missing where unknown).
        Seeds, which are proposed for contrasts that are not resolved only, have `half_width_now` and
        `half_width_after` (of the contrast's interval, by its own paired t), `narrowing_per_exaflop`, and come in the
        order of that. `predicted` (always). ``attrs["sentence"]`` names the first.

    Raises
    ------
    CallerError
        Where there is nothing to propose.
    """
    chosen = [verdict for verdict in verdicts if verdict.primary] or list(verdicts)
    tests = sorted(_tests(own.plan, chosen, assumptions), key=lambda row: row["cost_flops"])
    seeds = [row for verdict in chosen if verdict.verdict == "not_resolved" for row in _seeds(own.plan, verdict)]
    seeds.sort(key=lambda row: -row["narrowing_per_exaflop"])
    if not (rows := [*tests, *seeds]):
        why = "every primary contrast is resolved and no test is missing"
        if any(verdict.standard_error is None for verdict in chosen):
            why = "nothing is known of the noise between runs"
        raise CallerError(f"next runs of {own.study}", why, "run a second seed, or ask of another outcome")
    table = pd.DataFrame(rows).assign(predicted=True)
    table.attrs["sentence"] = _sentence(rows[0])
    return table


def _sentence(row: dict[str, Any]) -> str:
    cost = format_amount(row["cost_flops"], "required_flops")
    if row["cost_seconds"] is not None:
        cost += f" and {format_seconds(row['cost_seconds'])} of device time"
    if row["kind"] == "test":
        return f"Next run (predicted cost {cost}): {row['adds']}. It is untested and could overturn the verdict."
    widths = f"±{row['half_width_now']:.3g} to ±{row['half_width_after']:.3g}"
    return f"Next run (predicted): {row['adds']} would narrow the interval of {row['of']} from {widths}, for {cost}."


def _tests(plan: Plan, verdicts: Sequence[Verdict], assumptions: Sequence[Assumption]) -> Iterator[dict[str, Any]]:
    untested = {row.name for row in assumptions if row.outcome == "not_tested"}
    top = max((verdict.at.amount for verdict in verdicts), default=0.0)
    arms = list(dict.fromkeys(arm for verdict in verdicts for arm in verdict.contrast if arm in plan.arms))
    distilled = [arm for arm in arms if plan.arms[arm].teacher is not None]
    seeds = len(plan.seeds)
    base = {"kind": "test", "budget_amount": top, "seeds": seeds}
    if "learning rate" in untested and not plan.tuned:
        smallest = min((s.budget.amount for s in plan.schedules if s.feasible), default=top)
        cost = _cost(plan, arms, smallest, _OTHER_RATES)
        adds = f"{_OTHER_RATES} other learning rates for {', '.join(arms)} at the smallest budget, one seed ([tuning])"
        yield {**base, "adds": adds, "arms": ", ".join(arms), "budget_amount": smallest, "seeds": 1, **cost}
    for teacher in plan.teachers:
        taught = [arm for arm in distilled if plan.arms[arm].teacher == teacher.model]
        if not taught or teacher.weights is not None or not teacher.required_flops:
            continue
        others = [arm for arm in arms if arm not in distilled]
        if "teacher's pretraining not charged" in untested and others:
            runs = _cost(plan, taught[:1], top, 1)["cost_flops"]
            spent = seeds * len(others) * (runs + teacher.required_flops)
            adds = f"{', '.join(others)} at the compute of one student and its teacher"
            yield {**base, "adds": adds, "arms": ", ".join(others), "cost_flops": spent, "cost_seconds": None}
        if "another teacher" in untested:
            cost = _cost(plan, taught, top, seeds)
            spent = teacher.required_flops + cost["cost_flops"]
            adds = f"a second {teacher.model} of another seed, and {', '.join(taught)} taught by it"
            yield {**base, "adds": adds, "arms": ", ".join(taught), "cost_flops": spent, "cost_seconds": None}


def _seeds(plan: Plan, verdict: Verdict) -> Iterator[dict[str, Any]]:
    """Further seeds of both arms: each is one more pair, and one more degree of freedom."""
    if verdict.run_sd is None or verdict.num_pairs < 2:
        return
    a, b = verdict.contrast
    at = format_amount(verdict.at.amount, verdict.at.unit)
    level = verdict.adjusted_interval_level or verdict.interval_level
    now = _half_width(verdict.run_sd, verdict.num_pairs, level)
    for count in range(1, _MOST_SEEDS + 1):
        cost = _cost(plan, (a, b), verdict.at.amount, count)
        if not cost["cost_flops"]:
            return
        after = _half_width(verdict.run_sd, verdict.num_pairs + count, level)
        seeds = f"{count} more run seed{'s' * (count > 1)}"
        yield {
            "adds": f"{seeds} of {a} and {b} at {at}", "kind": "seeds", "arms": f"{a}, {b}",
            "budget_amount": verdict.at.amount, "seeds": count, **cost, "half_width_now": now,
            "half_width_after": after,
            "narrowing_per_exaflop": (now - after) / (cost["cost_flops"] / 1e18),
            "of": f"{a} - {b} on {outcome_words(verdict.y)}, in {verdict.unit},",
        }  # fmt: skip


def _half_width(run_sd: float, pairs: int, level: float) -> float:
    return t_quantile((1 + level) / 2, pairs - 1) * run_sd * (2 / pairs) ** 0.5


def _cost(plan: Plan, arms: Iterable[str], amount: float, seeds: int) -> dict[str, Any]:
    wanted = set(arms)
    chosen = [s for s in plan.schedules if s.arm in wanted and s.feasible and abs(s.budget.amount / amount - 1) < 1e-9]
    seconds = [s.device_seconds for s in chosen]
    return {
        "cost_flops": seeds * sum(s.required_flops for s in chosen),
        "cost_seconds": None if None in seconds else seeds * float(sum(seconds)),  # type: ignore[arg-type]
    }
