"""Studies as people have them: nothing yet, one seed, unequal ladders, holes, and far too many arms."""

from __future__ import annotations

import re
import warnings

import pandas as pd
import pytest
import reporting_values as values

import budgetlab
from budgetlab.decisions import Decisions
from budgetlab.errors import CallerError
from budgetlab.frames import scores_frame
from budgetlab.reporting import report
from budgetlab.values import FitSpec

SPEC = FitSpec(y="readout_loss", x="required_flops", resamples=30, margin_nats=0.02)


def study(scores, *, arms=values.ARMS, compared=None):
    """Fit, compare and report, as the command line does; or report what is `compared` already."""
    plan, profile = values.plan(), values.profile()
    if tuple(arms) != values.ARMS:
        twin = {arm: values.ARMS[i % len(values.ARMS)] for i, arm in enumerate(arms)}
        schedules = [s.model_copy(update={"arm": arm}) for arm in arms for s in plan.schedules if s.arm == twin[arm]]
        plan = plan.model_copy(update={
            "arms": {arm: plan.arms[twin[arm]].model_copy(update={"name": arm}) for arm in arms},
            "costs": {arm: plan.costs[twin[arm]].model_copy(update={"arm": arm}) for arm in arms},
            "schedules": tuple(schedules),
        })  # fmt: skip
        profile = profile.model_copy(update={"arms": tuple(plan.costs[arm] for arm in arms)})
    fits = () if compared else budgetlab.fit_arms(scores, SPEC)
    verdicts = compared or budgetlab.compare_arms(scores, SPEC)
    records = [values.teacher_record()] if compared else values.records()
    return lambda folder: report(
        study="synthetic", plan=plan, profile=profile, records=records,
        scores=scores, fits=fits, verdicts=verdicts, folder=folder,
    )  # fmt: skip


def text_of(page):
    return re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))


def test_one_seed_has_no_band_and_no_answer(tmp_path):
    scores = scores_frame(values.scores())
    made = study(scores[scores["run_seed"].isin([0]) | (scores["subject"] != "run")])(tmp_path)
    assert "one run seed; no bands" in made.figures[0].caption
    assert all(
        verdict == "not_resolved" for verdict in pd.read_csv(tmp_path / "figures/verdict_vs_budget.csv")["verdict"]
    )
    assert "one run per arm cannot resolve" in made.sentence


def test_unequal_ladders_are_drawn_each_in_its_own_range(tmp_path):
    scores = scores_frame(values.scores())
    short = scores[~((scores["arm"] == "minilm") & (scores["rung"] == 2))]
    made = study(short)(tmp_path)
    drawn = pd.read_csv(next(f.csv for f in made.figures if f.name == "readout_loss_vs_flops"))
    means = drawn[drawn["layer"] == "mean"].groupby("arm")["rung"].max()
    assert means["minilm"] == 1 and means["no_kd"] == 2
    compared = pd.read_csv(tmp_path / "figures/verdict_vs_budget.csv").groupby("arm")["budget_amount"].max()
    assert compared["minilm"] == values.BUDGETS[1] and compared["tinybert"] == values.BUDGETS[2]


def test_a_task_that_an_arm_lacks_is_left_out_of_its_mean(tmp_path):
    scores = scores_frame(values.scores())
    holes = scores[~((scores["arm"] == "tinybert") & (scores["task"] == "belongs"))]
    made = study(holes)(tmp_path)
    drawn = pd.read_csv(made.figures[0].csv)
    means = drawn[drawn["layer"] == "mean"].groupby("task")["arm"].unique()
    assert "tinybert" not in means["score"] and "tinybert" not in means["belongs"] and "tinybert" in means["replaced"]
    assert "n/a" in text_of(made.page)


def test_fifty_arms_make_a_page_that_can_be_read(tmp_path):
    arms = ["no_kd", *(f"arm_{i:02d}" for i in range(1, 50))]
    one = scores_frame(values.scores())
    parts = [one[one["subject"] != "run"]]
    for i, arm in enumerate(arms):
        own = one[(one["arm"] == values.ARMS[i % 4]) & (one["subject"] == "run") & (one["rung"] == 2)]
        parts.append(own.assign(arm=arm, value=own["value"] + 0.001 * i, run_id=own["run_id"] + f"-{i}"))
    # Comparing and fitting fifty arms takes minutes; what is shown of them does not.
    kinds = ("a_better", "b_better", "not_resolved")
    some = values.verdicts()[0]
    compared = [
        some.model_copy(update={"contrast": (a, b), "primary": b == "no_kd", "verdict": kinds[i % 3],
                                "difference": 0.001 * i, "interval": (0.001 * i - 0.05, 0.001 * i + 0.05)})
        for j, b in enumerate(arms) for i, a in enumerate(arms[j + 1:], start=j + 1)
    ]  # fmt: skip
    made = study(pd.concat(parts, ignore_index=True), arms=arms, compared=compared)(tmp_path)
    page = made.page.read_text(encoding="utf-8")
    assert len(page) < 6e6
    assert f"{len(compared) - 200:,} further contrasts are in verdict.json" in page
    assert "of 49 arms against no_kd, 16 better, 17 worse, 16 not resolved; the highest difference: " in made.sentence
    assert len(made.sentence) < 400


@pytest.mark.parametrize(
    ("draw", "given", "told"),
    [
        (budgetlab.score_figure, {"x": "token"}, "did you mean tokens"),
        (budgetlab.score_figure, {"tasks": ["belongs", "replacd"]}, "did you mean replaced"),
        (budgetlab.score_figure, {"arms": "minlm"}, "did you mean minilm"),
        (budgetlab.score_figure, {"level": 95}, "write 95 % as 0.95"),
        (
            budgetlab.loss_figure,
            {"task": "replaced"},
            "known: adapted_loss, bits_per_byte, lm_loss, mlm_loss, readout_loss",
        ),
    ],
)
def test_names_that_a_figure_does_not_know_are_told(draw, given, told):
    with pytest.raises(CallerError, match=told):
        draw(scores_frame(values.scores()), **given)


def test_tables_that_a_figure_does_not_read_are_told():
    scores = scores_frame(values.scores())
    for draw in (budgetlab.map_figure, budgetlab.frontier_figure, budgetlab.plan_figure):
        for table, told in ((scores, "no column "), (pd.DataFrame(), "no rows")):
            with pytest.raises(CallerError, match=told):
                draw(table)
    nothing = pd.DataFrame({"match": ["tokens"], "charge": ["none"], "arm": ["a"], "tokens": [None]})
    with pytest.raises(CallerError, match="no arm has tokens"):
        budgetlab.plan_figure(nothing)
    with pytest.raises(CallerError, match="did you mean score"):
        budgetlab.verdict_figure(values.verdicts(), "scoer")


def test_a_figure_takes_one_name_scores_as_they_are_and_one_verdict():
    figure = budgetlab.score_figure(values.scores(), tasks="belongs", arms="no_kd")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["belongs"]
    assert budgetlab.verdict_figure(values.verdicts()[0]).axes
    unmetered = scores_frame(values.scores()).assign(tokens=lambda t: t["tokens"].where(t["rung"] > 0, 0))
    assert budgetlab.score_figure(unmetered).axes[0].get_xlim()[0] > 0


def test_figures_of_nothing_say_so(tmp_path):
    empty = scores_frame([])
    for draw in (budgetlab.score_figure, budgetlab.loss_figure):
        with pytest.raises(CallerError, match="no complete run has any"):
            draw(empty)
    scores = scores_frame(values.scores())
    with pytest.raises(CallerError, match="device_hours of the runs is unknown"):
        budgetlab.score_figure(scores.assign(device_seconds=float("nan")), x="device_hours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        budgetlab.score_figure(scores[scores["arm"] == "no_kd"]).canvas.draw()


def test_students_of_several_sizes_have_a_frontier_and_isoflop_curves(tmp_path):
    """Losses of a made law, in which the best size grows with the budget."""
    widths = {"small": 1e5, "middle": 4e5, "large": 1.6e6, "huge": 6.4e6}
    scores, plan, profile = scores_frame(values.scores()), values.plan(), values.profile()
    parts, costs, arms = [], {}, {}
    for width, params in widths.items():
        arm = f"no_kd@{width}"
        own = scores[(scores["arm"] == "no_kd") & (scores["subject"] == "run") & (scores["task"] == "readout_loss")]
        loss = 2.0 + (params / 1e5) ** -0.3 + 0.4 * (own["budget_amount"] / (6 * params) / 1e5) ** -0.3
        parts.append(own.assign(arm=arm, value=loss + 0.001 * own["run_seed"], run_id=own["run_id"] + width))
        sizes = {"num_params_total": int(params), "num_params_non_embedding": int(params)}
        costs[arm] = plan.costs["no_kd"].model_copy(update={"arm": arm, **sizes})
        arms[arm] = plan.arms["no_kd"].model_copy(update={"name": arm, "student": width})
    students = {width: plan.models["student"] for width in widths}
    schedules = [s.model_copy(update={"arm": arm}) for arm in arms for s in plan.schedules if s.arm == "no_kd"]
    plan = plan.model_copy(update={"arms": arms, "costs": costs, "schedules": tuple(schedules),
                                   "models": plan.models | students})  # fmt: skip
    table = pd.concat(parts, ignore_index=True)
    decisions = Decisions(frontier=budgetlab.all_in_frontier(budgetlab.Evidence("synthetic", plan, table), SPEC))
    made = report(
        study="synthetic", plan=plan, profile=profile, records=[], scores=table, fits=(), verdicts=(), folder=tmp_path,
        decisions=decisions,
    )  # fmt: skip
    assert {"frontier", "isoflop"} <= {figure.name for figure in made.figures}
    drawn = pd.read_csv(tmp_path / "figures/isoflop.csv")
    best = drawn[drawn["layer"] == "optimum"].sort_values("flops")["num_params"]
    assert len(best) == 3 and best.is_monotonic_increasing
    front = pd.read_csv(tmp_path / "figures/frontier.csv")
    assert (
        front[front["on_frontier"]]
        .groupby("students_per_teacher")["outcome"]
        .apply(lambda rows: rows.is_monotonic_decreasing)
        .all()
    )
