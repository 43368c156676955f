"""The teacher's budget: the map follows from the arithmetic of shares, and says where it knows nothing."""

import math

import decision_values as values
import numpy as np
import pytest

from budgetlab.decisions import (
    Evidence,
    all_in_frontier,
    capacity_gap,
    verdict_map,
)
from budgetlab.errors import CallerError
from budgetlab.fitting import fit_arms
from budgetlab.reporting.figures.figure import styled
from budgetlab.reporting.figures.sizes import draw_map, map_table
from budgetlab.reporting.tables import map_sheet

BUDGETS = (1e13, 2e13, 4e13, 8e13, 16e13)


@pytest.fixture(scope="module")
def own() -> Evidence:
    return values.evidence(values.plan(budgets=BUDGETS), noise=0.001)


@pytest.fixture(scope="module")
def charted(own: Evidence):
    return verdict_map(own, values.spec(), totals=(2e13, 6e13, 12e13, 40e13))


def test_every_cell_pays_for_its_share(charted) -> None:
    assert len(charted) == 2 * 4 * 9  # arms, amounts, numbers of students
    bill = charted["students_per_teacher"].map(lambda k: 0.0 if math.isinf(k) else 5e13 / k)
    assert np.allclose(charted["teacher_flops"].astype(float), bill)
    paid = charted[charted["answer"] != "infeasible"]
    assert np.allclose(paid["student_flops"].astype(float) + paid["teacher_flops"].astype(float), paid["total_flops"])
    over = charted[bill >= charted["total_flops"]]
    assert len(over) and (over["answer"] == "infeasible").all()


def test_inside_the_budgets_it_is_the_curves_that_were_measured(charted) -> None:
    free = charted[
        np.isinf(charted["students_per_teacher"]) & (charted["total_flops"] == 6e13) & (charted["arm"] == "minilm")
    ]
    row = free.iloc[0]
    truth = [floor + size * 6**-a for floor, size, a in (values.CURVES["no_kd"], values.CURVES["minilm"])]
    assert row["basis"] == "measured range" and row["answer"] == "arm"
    assert row["difference"] == pytest.approx(truth[0] - truth[1], abs=0.01)
    assert row["low"] < row["difference"] < row["high"]


def test_more_students_never_make_distilling_worse(charted) -> None:
    known = charted[charted["difference"].notna()].sort_values("students_per_teacher")
    for _, rows in known.groupby(["arm", "total_flops"]):
        assert (np.diff(rows["difference"].astype(float)) >= -1e-9).all()


def test_beyond_the_budgets_only_a_fit_that_may_be_used_predicts(own: Evidence) -> None:
    beyond = {"totals": (40e13,), "shares": (math.inf,)}
    without = verdict_map(own, values.spec(), **beyond)
    assert (without["answer"] == "n/a").all() and without["reason"].str.contains("may be extrapolated").all()
    fits = fit_arms(own.scores, values.spec())
    usable = {fit.arm for fit in fits if fit.usable_for == "everything"}
    found = verdict_map(own, values.spec(), fits=fits, **beyond)
    for row in found.to_dict("records"):
        if {row["arm"], row["reference"]} <= usable:
            assert row["basis"] == "predicted" and row["low"] <= row["difference"] <= row["high"]
        else:
            assert row["answer"] == "n/a"


def test_what_was_not_varied_is_said(charted) -> None:
    notes = " ".join(charted.attrs["notes"])
    assert "student size was not varied" in notes and "one teacher" in notes
    sheet = map_sheet(charted)
    assert set(sheet.notes) >= set(charted.attrs["notes"])
    assert len(sheet.rows) == int(charted["difference"].notna().sum())


def test_the_frontier_has_nothing_better_for_less(own: Evidence) -> None:
    found = all_in_frontier(own, values.spec())
    for _, rows in found.groupby("students_per_teacher"):
        for row in rows.to_dict("records"):
            rivals = rows[rows["all_in_flops"] <= row["all_in_flops"] * 1.01]  # budgets are spent in whole steps
            assert row["on_frontier"] == (row["outcome"] <= rivals["outcome"].min())
    alone = found[(found["students_per_teacher"] == 1) & (found["arm"] == "minilm")]
    assert (alone["all_in_flops"] > 5e13).all()


def test_a_gap_needs_two_teachers(own: Evidence) -> None:
    found = capacity_gap(own, values.spec())
    assert set(found["strategy"]) == {"vanilla_kd", "minilm"} and "not varied" in found.attrs["note"]
    assert found["teacher_outcome"].isna().all()  # nobody scored it


def test_a_study_that_charges_otherwise_or_has_no_teacher_is_refused() -> None:
    charged = values.evidence(values.plan(charge="pretraining"))
    with pytest.raises(CallerError, match="charged pretraining"):
        verdict_map(charged, values.spec())
    alone = values.evidence(values.plan(arms=("no_kd",)))
    with pytest.raises(CallerError, match="no distilled arm"):
        verdict_map(alone, values.spec())


def test_the_figure_draws_every_cell(charted) -> None:
    table = map_table(charted)
    figure = styled(draw_map, table)
    panels = figure.axes
    assert len(panels) == 2
    assert sum(len(axes.patches) for axes in panels) == len(table)
