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
    from budgetlab.errors import BudgetlabError, CallerError
    from budgetlab.evaluation import build_probes, evaluate, load_task, mcnemar, paired_bootstrap
    from budgetlab.fitting import certify, compare, compare_arms, fit, fit_arms, optimum, predict
    from budgetlab.planner import plan, power, sensitivity, what_if
    from budgetlab.profiler import profile
    from budgetlab.reporting import report
    from budgetlab.reporting.figures import cost_figure, loss_figure, plan_figure, score_figure
    from budgetlab.runner import run
    from budgetlab.store import Store, fits_frame, scores_frame
    from budgetlab.studies import Study, audit, load_study

_HOMES = {
    "BudgetlabError": "errors",
    "CallerError": "errors",
    "Corpus": "corpus",
    "Store": "store",
    "Study": "studies",
    "audit": "studies",
    "build_corpus": "corpus",
    "build_probes": "evaluation",
    "certify": "fitting",
    "compare": "fitting",
    "compare_arms": "fitting",
    "cost_figure": "reporting.figures",
    "evaluate": "evaluation",
    "fit": "fitting",
    "fit_arms": "fitting",
    "fits_frame": "store",
    "load_study": "studies",
    "load_task": "evaluation",
    "loss_figure": "reporting.figures",
    "mcnemar": "evaluation",
    "optimum": "fitting",
    "paired_bootstrap": "evaluation",
    "plan": "planner",
    "plan_figure": "reporting.figures",
    "power": "planner",
    "predict": "fitting",
    "profile": "profiler",
    "report": "reporting",
    "run": "runner",
    "score_figure": "reporting.figures",
    "scores_frame": "store",
    "sensitivity": "planner",
    "what_if": "planner",
}

__all__ = [
    "BudgetlabError",
    "CallerError",
    "Corpus",
    "Store",
    "Study",
    "audit",
    "build_corpus",
    "build_probes",
    "certify",
    "compare",
    "compare_arms",
    "cost_figure",
    "evaluate",
    "fit",
    "fit_arms",
    "fits_frame",
    "load_study",
    "load_task",
    "loss_figure",
    "mcnemar",
    "optimum",
    "paired_bootstrap",
    "plan",
    "plan_figure",
    "power",
    "predict",
    "profile",
    "report",
    "run",
    "score_figure",
    "scores_frame",
    "sensitivity",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'budgetlab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"budgetlab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
