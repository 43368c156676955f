"""What a study's verdicts rest on, from its own records and those of the studies beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from budgetlab.errors import CallerError
from budgetlab.frames import scores_frame
from budgetlab.store import Store
from budgetlab.values import CurveFit, Plan, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from budgetlab.cli.workbench import Workbench
    from budgetlab.decisions import Decisions, Evidence


def decided(
    bench: Workbench, plan: Plan, scores: pd.DataFrame, fits: Sequence[CurveFit], verdicts: Sequence[Verdict]
) -> Decisions:
    """Test the assumptions of a study; other studies of one results folder serve where they differ in one thing."""
    from budgetlab.decisions import Decisions, Evidence, decide

    if not verdicts:
        return Decisions()
    with bench.screen.stage("decide") as stage:
        beside = list(_beside(bench.store, plan))
        found = decide(Evidence(plan.study, plan, scores), bench.study.fit, verdicts, fits=fits, beside=beside)
        others = f", beside {', '.join(evidence.study for evidence in beside)}" if beside else ""
        stage.note = f"{len(found.assumptions)} assumptions{others}"
    return found


def _beside(store: Store, plan: Plan) -> Iterator[Evidence]:
    """Other studies of the results folder that read the same text; what is half-written is no evidence."""
    from budgetlab.decisions import Evidence, may_test

    for folder in sorted(store.folder.parent.iterdir()):
        if folder.resolve() == store.folder.resolve() or not (folder / "plan.json").is_file():
            continue
        other = Store(folder.parent, folder.name)
        try:
            found = other.read_plan()
            if found is None or not may_test(plan, found):
                continue
            scores = scores_frame(other.scores())
        except (CallerError, ValueError):
            continue
        if len(scores):
            yield Evidence(found.study, found, scores)
