"""Scaling-law and compute-budget analysis for the question: distil, or pretrain on more tokens.

The values and the verbs, in the order in which data flows:

    load_study -> profile -> plan -> run -> evaluate -> fit -> report

torch loads with the first verb that needs it; planning, fitting and reporting never do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgetlab.corpus import Corpus, build_corpus
    from budgetlab.decisions import (
        Evidence,
        all_in_frontier,
        assumptions,
        assumptions_frame,
        best_split,
        capacity_gap,
        decide,
        next_runs,
        published_gap,
        published_map,
        verdict_map,
    )
    from budgetlab.errors import BudgetlabError, CallerError
    from budgetlab.evaluation import build_probes, evaluate, load_task, mcnemar, paired_bootstrap
    from budgetlab.fitting import (
        average_words,
        certify,
        choose_law,
        compare,
        compare_arms,
        fit,
        fit_arms,
        frontier,
        isoflop,
        optimum,
        predict,
        two_step,
    )
    from budgetlab.frames import (
        costs_frame,
        fits_frame,
        phases_frame,
        plan_frame,
        points_frame,
        records_frame,
        scores_frame,
        verdicts_frame,
    )
    from budgetlab.intake import as_scores, read_harness, read_table, read_tracker_csv, read_trainer_state
    from budgetlab.planner import all_in, audit, cached_teacher, definition_notes, plan, power, sensitivity, what_if
    from budgetlab.profiler import profile
    from budgetlab.reporting import conclude_study, report
    from budgetlab.reporting.figures import (
        cost_figure,
        decomposition_figure,
        frontier_figure,
        isoflop_figure,
        loss_figure,
        map_figure,
        plan_figure,
        score_figure,
        spent_figure,
        verdict_figure,
    )
    from budgetlab.runner import run
    from budgetlab.store import Store, read_profile
    from budgetlab.strategies import Strategy
    from budgetlab.studies import Study, load_study
    from budgetlab.values import Needs

_HOMES = {
    "BudgetlabError": "errors",
    "CallerError": "errors",
    "Corpus": "corpus",
    "Evidence": "decisions",
    "Needs": "values",
    "Store": "store",
    "Strategy": "strategies",
    "Study": "studies",
    "all_in": "planner",
    "all_in_frontier": "decisions",
    "as_scores": "intake",
    "assumptions": "decisions",
    "assumptions_frame": "decisions",
    "audit": "planner",
    "average_words": "fitting",
    "best_split": "decisions",
    "build_corpus": "corpus",
    "build_probes": "evaluation",
    "cached_teacher": "planner",
    "capacity_gap": "decisions",
    "certify": "fitting",
    "choose_law": "fitting",
    "compare": "fitting",
    "conclude_study": "reporting",
    "compare_arms": "fitting",
    "cost_figure": "reporting.figures",
    "costs_frame": "frames",
    "decide": "decisions",
    "decomposition_figure": "reporting.figures",
    "definition_notes": "planner",
    "evaluate": "evaluation",
    "fit": "fitting",
    "fit_arms": "fitting",
    "fits_frame": "frames",
    "frontier": "fitting",
    "frontier_figure": "reporting.figures",
    "isoflop": "fitting",
    "isoflop_figure": "reporting.figures",
    "load_study": "studies",
    "load_task": "evaluation",
    "loss_figure": "reporting.figures",
    "map_figure": "reporting.figures",
    "mcnemar": "evaluation",
    "next_runs": "decisions",
    "optimum": "fitting",
    "paired_bootstrap": "evaluation",
    "phases_frame": "frames",
    "plan": "planner",
    "plan_figure": "reporting.figures",
    "plan_frame": "frames",
    "points_frame": "frames",
    "power": "planner",
    "predict": "fitting",
    "profile": "profiler",
    "published_gap": "decisions",
    "published_map": "decisions",
    "read_harness": "intake",
    "read_profile": "store",
    "read_table": "intake",
    "read_tracker_csv": "intake",
    "read_trainer_state": "intake",
    "records_frame": "frames",
    "report": "reporting",
    "run": "runner",
    "score_figure": "reporting.figures",
    "scores_frame": "frames",
    "sensitivity": "planner",
    "spent_figure": "reporting.figures",
    "two_step": "fitting",
    "verdict_figure": "reporting.figures",
    "verdict_map": "decisions",
    "verdicts_frame": "frames",
    "what_if": "planner",
}

__all__ = [
    "BudgetlabError",
    "CallerError",
    "Corpus",
    "Evidence",
    "Needs",
    "Store",
    "Strategy",
    "Study",
    "all_in",
    "all_in_frontier",
    "as_scores",
    "assumptions",
    "assumptions_frame",
    "audit",
    "average_words",
    "best_split",
    "build_corpus",
    "build_probes",
    "cached_teacher",
    "capacity_gap",
    "certify",
    "choose_law",
    "compare",
    "compare_arms",
    "conclude_study",
    "cost_figure",
    "costs_frame",
    "decide",
    "decomposition_figure",
    "definition_notes",
    "evaluate",
    "fit",
    "fit_arms",
    "fits_frame",
    "frontier",
    "frontier_figure",
    "isoflop",
    "isoflop_figure",
    "load_study",
    "load_task",
    "loss_figure",
    "map_figure",
    "mcnemar",
    "next_runs",
    "optimum",
    "paired_bootstrap",
    "phases_frame",
    "plan",
    "plan_figure",
    "plan_frame",
    "points_frame",
    "power",
    "predict",
    "profile",
    "published_gap",
    "published_map",
    "read_harness",
    "read_profile",
    "read_table",
    "read_tracker_csv",
    "read_trainer_state",
    "records_frame",
    "report",
    "run",
    "score_figure",
    "scores_frame",
    "sensitivity",
    "spent_figure",
    "two_step",
    "verdict_figure",
    "verdict_map",
    "verdicts_frame",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'budgetlab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"budgetlab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
