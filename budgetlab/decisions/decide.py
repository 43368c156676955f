"""All that bears on a decision, from one study's records, and the next run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from budgetlab.decisions.assumptions import assumptions_of
from budgetlab.decisions.evidence import Evidence, alternatives, outcome_words
from budgetlab.decisions.teacher_budget import all_in_frontier, capacity_gap, verdict_map
from budgetlab.errors import CallerError
from budgetlab.fitting import compare_arms
from budgetlab.resampling import t_quantile
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Assumption, CurveFit, FitSpec, Plan, Verdict

_MOST_SEEDS = 3
_OTHER_RATES = 2


@dataclass(frozen=True)
class Decisions:
    """What a study's verdicts rest on, and what follows from them."""

    assumptions: tuple[Assumption, ...] = ()
    next_runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Candidates, best first; ``attrs["sentence"]`` names the first."""
    verdict_map: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Over student size, all-in compute and students that share the teacher, from the study's own curves."""
    frontier: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Every measured arm and budget in all-in compute."""
    gap: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Students beside their teachers."""
    by_text: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    """How much text there is -> the verdicts with it, this study's first; empty where no other study varies that."""
    notes: tuple[str, ...] = ()
    """What could not be said, and why."""


def decide(
    own: Evidence,
    spec: FitSpec,
    verdicts: Sequence[Verdict],
    *,
    fits: Sequence[CurveFit] = (),
    beside: Sequence[Evidence] = (),
) -> Decisions:
    """Test what a study's verdicts rest on; nothing where there is no verdict.

    Parameters
    ----------
    own
        The study: its plan and scores.
    spec
        Law, columns and level.
    verdicts
        From `compare_arms`.
    fits
        From `fit_arms`, for what may be predicted beyond the budgets.
    beside
        Other studies, whose arms may test what this one's cannot.
    """
    if not verdicts:
        return Decisions()
    notes: list[str] = []

    def known(make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        try:
            return make()
        except CallerError as error:
            notes.append(str(error))
            return pd.DataFrame()

    rows = assumptions_of(own, spec, verdicts, beside)
    charged = own.plan.charge == "inference" and "required_flops" in own.scores
    return Decisions(
        assumptions=rows,
        next_runs=known(lambda: next_runs(own, verdicts, rows)),
        verdict_map=known(lambda: verdict_map(own, spec, fits=fits)),
        frontier=all_in_frontier(own, spec) if charged else pd.DataFrame(),
        gap=capacity_gap(own, spec),
        by_text=_by_text(own, spec, verdicts, beside),
        notes=tuple(notes),
    )


def _by_text(
    own: Evidence, spec: FitSpec, verdicts: Sequence[Verdict], beside: Sequence[Evidence]
) -> dict[str, tuple[Verdict, ...]]:
    """Compare the arms of other studies too that differ from this one in the amount of text and in nothing else."""

    def text(plan: Plan) -> str:
        unique = plan.corpus.unique_tokens
        return "all of the text" if unique is None else f"{format_quantity(unique)} unique tokens"

    primary = [verdict for verdict in verdicts if verdict.primary]
    found = {text(own.plan): tuple(verdicts)}
    for other in beside:
        alone = primary and all(
            any((pair.where, pair.a, pair.b) == (other, *verdict.contrast)
                for pair in alternatives(own, [other], *verdict.contrast, verdict.y, differs_in="text"))
            for verdict in primary
        )  # fmt: skip
        if alone:
            try:
                found.setdefault(text(other.plan), compare_arms(other.scores, spec))
            except CallerError:
                continue  # its scores cannot be compared
    return found if len(found) > 1 else {}


def next_runs(own: Evidence, verdicts: Sequence[Verdict], assumptions: Sequence[Assumption] = ()) -> pd.DataFrame:
    """Say what to run next: first what is untested and could overturn a verdict, then seeds for what is not resolved.

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
    table, first = pd.DataFrame(rows).assign(predicted=True), rows[0]
    cost = format_amount(first["cost_flops"], "required_flops")
    if first["cost_seconds"] is not None:
        cost += f" and {format_seconds(first['cost_seconds'])} of device time"
    sentence = f"Next run (predicted cost {cost}): {first['adds']}. It is untested and could overturn the verdict."
    if first["kind"] == "seeds":
        widths = f"±{first['half_width_now']:.3g} to ±{first['half_width_after']:.3g}"
        sentence = f"Next run (predicted): {first['adds']} would narrow the interval of {first['of']} from {widths}, "
        sentence += f"for {cost}."
    table.attrs["sentence"] = sentence
    return table


def _tests(plan: Plan, verdicts: Sequence[Verdict], assumptions: Sequence[Assumption]) -> Iterator[dict[str, Any]]:
    """Runs that would test what is untested and could overturn a verdict."""
    untested = {row.name for row in assumptions if row.outcome == "not_tested"}
    top = max((verdict.at.amount for verdict in verdicts), default=0.0)
    arms = list(dict.fromkeys(arm for verdict in verdicts for arm in verdict.contrast if arm in plan.arms))
    others, seeds = [arm for arm in arms if plan.arms[arm].teacher is None], len(plan.seeds)

    def row(adds: str, of: Sequence[str], cost: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        base = {"kind": "test", "budget_amount": top, "seeds": seeds, "adds": adds, "arms": ", ".join(of)}
        return {**base, **changes, **cost}

    if "learning rate" in untested and not plan.tuned:
        smallest = min((s.budget.amount for s in plan.schedules if s.feasible), default=top)
        adds = f"{_OTHER_RATES} other learning rates for {', '.join(arms)} at the smallest budget, one seed ([tuning])"
        yield row(adds, arms, _cost(plan, arms, smallest, _OTHER_RATES), budget_amount=smallest, seeds=1)
    for teacher in plan.teachers:
        taught = [arm for arm in arms if plan.arms[arm].teacher == teacher.model]
        if not taught or teacher.weights is not None or not teacher.required_flops:
            continue
        if "teacher's pretraining not charged" in untested and others:
            one = _cost(plan, taught[:1], top, 1)["cost_flops"] + teacher.required_flops
            adds = f"{', '.join(others)} at the compute of one student and its teacher"
            yield row(adds, others, {"cost_flops": seeds * len(others) * one, "cost_seconds": None})
        if "another teacher" in untested:
            spent = teacher.required_flops + _cost(plan, taught, top, seeds)["cost_flops"]
            adds = f"a second {teacher.model} of another seed, and {', '.join(taught)} taught by it"
            yield row(adds, taught, {"cost_flops": spent, "cost_seconds": None})


def _seeds(plan: Plan, verdict: Verdict) -> Iterator[dict[str, Any]]:
    """Further seeds of both arms: each is one more pair, and one more degree of freedom."""
    run_sd, pairs, (a, b) = verdict.run_sd, verdict.num_pairs, verdict.contrast
    if run_sd is None or pairs < 2:
        return
    level = verdict.adjusted_interval_level or verdict.interval_level
    at = format_amount(verdict.at.amount, verdict.at.unit)
    sizes = range(pairs, pairs + _MOST_SEEDS + 1)
    now, *afterwards = (t_quantile((1 + level) / 2, n - 1) * run_sd * (2 / n) ** 0.5 for n in sizes)
    for count, after in enumerate(afterwards, start=1):
        cost = _cost(plan, (a, b), verdict.at.amount, count)
        if not cost["cost_flops"]:
            return
        seeds = f"{count} more run seed{'s' * (count > 1)}"
        yield {
            "adds": f"{seeds} of {a} and {b} at {at}", "kind": "seeds", "arms": f"{a}, {b}",
            "budget_amount": verdict.at.amount, "seeds": count, **cost, "half_width_now": now,
            "half_width_after": after, "narrowing_per_exaflop": (now - after) / (cost["cost_flops"] / 1e18),
            "of": f"{a} - {b} on {outcome_words(verdict.y)}, in {verdict.unit},",
        }  # fmt: skip


def _cost(plan: Plan, arms: Iterable[str], amount: float, seeds: int) -> dict[str, Any]:
    """Cost of so many seeds of arms at an amount of the budget."""
    wanted = set(arms)
    chosen = [s for s in plan.schedules if s.arm in wanted and s.feasible and abs(s.budget.amount / amount - 1) < 1e-9]
    seconds = [s.device_seconds for s in chosen]
    return {
        "cost_flops": seeds * sum(s.required_flops for s in chosen),
        "cost_seconds": None if None in seconds else seeds * float(sum(seconds)),  # type: ignore[arg-type]
    }
