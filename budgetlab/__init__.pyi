# The public names and where they are defined: read by type checkers, and by `__init__.py` to load them when used.

from .corpus import Corpus as Corpus, build_corpus as build_corpus
from .decisions import (
    Evidence as Evidence,
    all_in_frontier as all_in_frontier,
    assumptions as assumptions,
    assumptions_frame as assumptions_frame,
    capacity_gap as capacity_gap,
    decide as decide,
    next_runs as next_runs,
    verdict_map as verdict_map,
)
from .errors import BudgetlabError as BudgetlabError, CallerError as CallerError
from .evaluation import (
    build_probes as build_probes,
    evaluate as evaluate,
    load_task as load_task,
    paired_bootstrap as paired_bootstrap,
)
from .fitting import (
    average_words as average_words,
    certify as certify,
    compare as compare,
    compare_arms as compare_arms,
    fit as fit,
    fit_arms as fit_arms,
    frontier as frontier,
    isoflop as isoflop,
    optimum as optimum,
    predict as predict,
    two_step as two_step,
)
from .frames import (
    costs_frame as costs_frame,
    fits_frame as fits_frame,
    phases_frame as phases_frame,
    plan_frame as plan_frame,
    points_frame as points_frame,
    records_frame as records_frame,
    scores_frame as scores_frame,
    verdicts_frame as verdicts_frame,
)
from .intake import (
    as_scores as as_scores,
    read_harness as read_harness,
    read_table as read_table,
    read_tracker_csv as read_tracker_csv,
    read_trainer_state as read_trainer_state,
)
from .planner import (
    audit as audit,
    all_in as all_in,
    cached_teacher as cached_teacher,
    definition_notes as definition_notes,
    plan as plan,
    power as power,
    sensitivity as sensitivity,
    what_if as what_if,
)
from .profiler import profile as profile
from .reporting import conclude_study as conclude_study, report as report
from .reporting.figures import (
    cost_figure as cost_figure,
    decomposition_figure as decomposition_figure,
    frontier_figure as frontier_figure,
    isoflop_figure as isoflop_figure,
    loss_figure as loss_figure,
    map_figure as map_figure,
    plan_figure as plan_figure,
    score_figure as score_figure,
    spent_figure as spent_figure,
    verdict_figure as verdict_figure,
)
from .runner import run as run
from .store import Store as Store, read_profile as read_profile
from .strategies import Strategy as Strategy
from .studies import Study as Study, load_study as load_study
from .values import Needs as Needs
