"""What is asked of every assumption: the primary contrasts of a study, and the words that answers are put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from budgetlab.decisions.evidence import Evidence
from budgetlab.fitting.arms import points_by_arm
from budgetlab.fitting.contrast import unit_of
from budgetlab.fitting.scores import OUTCOMES, run_values
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.values import Assumption, FitSpec, Verdict
from budgetlab.values.base import Interval


@dataclass(frozen=True)
class Question:
    """The contrasts whose assumptions are tested, and the records that may test them."""

    own: Evidence
    beside: tuple[Evidence, ...]
    spec: FitSpec
    verdicts: tuple[Verdict, ...]
    """All of the study's."""
    primary: tuple[Verdict, ...]
    """What is asked: the primary ones."""
    y: str
    simulations: int
    known: dict[str, pd.DataFrame] = field(default_factory=dict, compare=False, repr=False)
    """Runs that were reduced already, by outcome."""

    @property
    def level(self) -> float:
        """Of intervals; an assumption is rejected at one less this."""
        return self.spec.interval_level

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        return 1.0 - self.level

    def runs(self, y: str | None = None) -> pd.DataFrame:
        """One row a run, of the primary outcome or another."""
        outcome = y or self.y
        if outcome not in self.known:
            self.known[outcome] = run_values(self.own.scores, outcome)
        return self.known[outcome]

    def points(self, x: str | None = None) -> dict[str, Points]:
        """Each arm's points for the law of the study, of the arms that are compared."""
        law, column = get_law(self.spec.law), x or self.spec.x
        compared = {arm for verdict in self.primary for arm in verdict.contrast}
        return {arm: own for arm, own in points_by_arm(self.runs(), law, column).items() if arm in compared}


def question_of(
    own: Evidence, beside: tuple[Evidence, ...], spec: FitSpec, verdicts: Sequence[Verdict], simulations: int
) -> Question:
    """Take the primary contrasts, or all of the first outcome where none is primary."""
    primary = tuple(verdict for verdict in verdicts if verdict.primary)
    primary = primary or tuple(verdict for verdict in verdicts if verdict.y == verdicts[0].y)
    return Question(own, beside, spec, tuple(verdicts), primary, primary[0].y, simulations)


def outcome_words(y: str) -> str:
    """How an outcome is called in a sentence."""
    return OUTCOMES.get(y, y).removeprefix("the ")


def amount_words(value: float | None, y: str, interval: Interval | None = None, *, signed: bool = True) -> str:
    """Print a difference in its unit, with its interval; unknown is n/a."""
    if value is None:
        return "n/a"
    digits = 1 if unit_of(y) == "points" else 3
    sign = "+" if signed else ""
    ends = "" if interval is None else f" [{interval[0]:{sign}.{digits}f}, {interval[1]:{sign}.{digits}f}]"
    return f"{value:{sign}.{digits}f}{ends}"


def answer_words(difference: float | None, interval: Interval | None, a: str, b: str) -> str:
    """Return the answer that an interval gives: which arm is better, or that it is not resolved."""
    if difference is None or interval is None or interval[0] <= 0.0 <= interval[1]:
        return "not resolved"
    return f"{a} better" if difference > 0 else f"{b} better"


def tested_row(
    name: str, tested: str, violated: bool, evidence: str, *, effect: str = "", p_value: float | None = None,
    studies: Sequence[str] = (),
) -> Assumption:  # fmt: skip
    """Make the row of an assumption that was tested."""
    return Assumption(
        name=name, tested=tested, outcome="violated" if violated else "holds", evidence=evidence, effect=effect,
        p_value=p_value, studies=tuple(dict.fromkeys(studies)),
    )  # fmt: skip


def untested_row(name: str, tested: str, missing: str) -> Assumption:
    """Make the row of an assumption that these records do not test, with what is missing."""
    return Assumption(name=name, tested=tested, outcome="not_tested", missing=missing)
