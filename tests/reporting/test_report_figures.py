"""Figures show exactly the numbers of the CSV beside them, with a unit on every axis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import reporting_values as values

from budgetlab.reporting.figures import (
    costs_table,
    curves_table,
    draw_costs,
    draw_losses,
    draw_scores,
    fit_note,
    losses_table,
    render,
    scores_table,
)
from budgetlab.reporting.figures.style import legend_columns, prefix_for
from budgetlab.reporting.frames import LOSSES, MEAN, per_run, scores_frame, summarise

UNITS = ("points", "tokens", "FLOP", "s per token", "nats per target token")


@pytest.fixture(scope="module")
def runs():
    return per_run(scores_frame(values.scores()))


@pytest.fixture(scope="module")
def cells(runs):
    return summarise(runs)


def usable_fits():
    """The first two arms have a curve that may be used inside its range; the band reaches further."""
    x = np.geomspace(2.5e11, 1.6e13, 30)
    found = []
    for i, fit in enumerate(values.fits()):
        band = {"x": x, "prediction": 6.0 - 0.1 * np.log(x / 1e12), "low": 5.9 - 0.1 * np.log(x / 1e12),
                "high": 6.1 - 0.1 * np.log(x / 1e12)}  # fmt: skip
        change = {"usable_for": "interpolation", "status": "reduced", "band": {k: tuple(v) for k, v in band.items()}}
        found.append(fit.model_copy(update=change) if i < 2 else fit)
    return found


def drawn_lines(figure):
    return [
        (np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float))
        for axes in figure.axes
        for line in axes.lines
    ]


def assert_drawn(figure, x, y):
    wanted = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    assert any(
        a.shape == (len(wanted),) and np.array_equal(np.column_stack([a, b]), wanted) for a, b in drawn_lines(figure)
    )


def test_scores_are_drawn_as_tabled(runs, cells):
    table = scores_table(runs, cells, values.ARMS)
    figure = draw_scores(table)
    for (_, _, _), rows in table[table["layer"].isin(["run", "mean"])].groupby(["task", "layer", "arm"]):
        assert_drawn(figure, rows["tokens"], rows["score_points"])
    for value in table.loc[table["layer"].isin(["teacher", "random", "majority"]), "score_points"]:
        assert any(np.array_equal(y, [value, value]) for _, y in drawn_lines(figure))


def test_mean_of_tasks_is_the_mean_over_tasks_of_each_run(runs):
    one = runs[(runs["subject"] == "run") & (runs["arm"] == "minilm") & (runs["rung"] == 2) & (runs["run_seed"] == 1)]
    by_task = one.set_index("task")["value"]
    assert by_task[MEAN] == pytest.approx((by_task["replaced"] + by_task["belongs"]) / 2)


def test_fine_tuning_seeds_are_averaged_before_run_seeds(cells):
    cell = cells[(cells["arm"] == "no_kd") & (cells["rung"] == 0) & (cells["task"] == "replaced")].iloc[0]
    own = [s for s in values.scores() if s.arm == "no_kd" and s.rung == 0 and s.task == "replaced"]
    by_run = [100 * np.mean([s.value for s in own if s.run_seed == seed]) for seed in values.SEEDS]
    assert cell["num_runs"] == 2
    assert cell["mean"] == pytest.approx(np.mean(by_run))
    assert cell["low"] < min(by_run) or cell["half_width"] > 0


def test_losses_are_drawn_as_tabled(runs, cells):
    fits = usable_fits()
    table = losses_table(runs, cells, values.ARMS, curves_table(fits))
    figure = draw_losses(table, "a note")
    for (_, _), rows in table[table["layer"].isin(["run", "mean", "curve"])].groupby(["layer", "arm"]):
        assert_drawn(figure, rows["drawn_at_required_flops"], rows["readout_loss_nats"])
    aside = table["drawn_at_required_flops"] / table["required_flops"]
    assert aside.dropna().between(0.9, 1.1).all()


def test_a_curve_is_drawn_only_where_the_fit_may_be_used_and_only_in_its_range():
    curves = curves_table(usable_fits())
    assert list(dict.fromkeys(curves["arm"])) == ["no_kd", "vanilla_kd"]
    assert curves["required_flops"].min() == values.BUDGETS[0]
    assert curves["required_flops"].max() == values.BUDGETS[-1]
    assert curves_table(values.fits()).empty


def test_the_note_says_what_the_lines_are_and_which_arms_have_none():
    refused = "Points{}: three budgets cannot identify a floor."
    assert fit_note(values.fits()) == refused.format("")
    lines = "Lines (no_kd, vanilla_kd): power, inside the fitted range. three budgets cannot identify a floor."
    assert fit_note(usable_fits()) == f"{lines} {refused.format(' (minilm, tinybert)')}"
    assert fit_note([]) == ""


def test_costs_are_drawn_as_tabled():
    table = costs_table(values.profile())
    figure = draw_costs(table)
    for axes, quantity, scale in zip(figure.axes, table["quantity"].unique(), (1e6, 1e-6), strict=True):
        rows = table[(table["quantity"] == quantity) & (table["phase"] != "whole step") & (table["value"] > 0)]
        bars = sorted((bar.get_x() * scale, bar.get_width() * scale) for bar in axes.patches)
        np.testing.assert_allclose(bars, sorted(zip(rows["start"], rows["value"], strict=True)), rtol=1e-9)
        ratios = table.loc[(table["quantity"] == quantity) & (table["phase"] == "whole step"), "ratio"]
        assert [text.get_text() for text in axes.texts] == [f"{ratio:.2f}×" for ratio in ratios]


def test_untimed_costs_are_not_available_rather_than_zero():
    table = costs_table(values.profile(timed=False))
    seconds = table[table["quantity"] == "device_seconds_per_token"]
    assert seconds["value"].isna().all()
    assert [text.get_text() for text in draw_costs(table).axes[1].texts] == ["n/a (not timed)"]


def test_every_axis_has_a_unit(runs, cells):
    figures = [
        draw_scores(scores_table(runs, cells, values.ARMS)),
        draw_losses(losses_table(runs, cells, values.ARMS)),
        draw_costs(costs_table(values.profile())),
        draw_costs(costs_table(values.profile(timed=False))),
    ]
    for figure in figures:
        shared = figure.get_supxlabel()
        for axes in (a for a in figure.axes if a.axison):
            assert any(unit in (axes.get_xlabel() or shared) for unit in UNITS)
            arms_down_the_side = any(t.get_text() in values.ARMS for t in figure.axes[0].get_yticklabels())
            assert arms_down_the_side or any(unit in axes.get_ylabel() for unit in UNITS)


@pytest.mark.parametrize("few", ["one task", "one run", "one arm", "no yardsticks"])
def test_what_is_missing_is_left_out(few):
    kept = {
        "one task": lambda s: s.task == "belongs",
        "one run": lambda s: s.run_seed == 0 and s.rung == 1 and s.arm == "no_kd",
        "one arm": lambda s: s.arm == "tinybert",
        "no yardsticks": lambda s: s.subject == "run",
    }[few]
    runs = per_run(scores_frame([score for score in values.scores() if kept(score)]))
    cells = summarise(runs)
    table = scores_table(runs, cells, values.ARMS)
    assert len(table) and np.isfinite(table["score_points"]).all()
    draw_scores(table).canvas.draw()
    losses = losses_table(runs, cells, values.ARMS)
    if len(losses):
        draw_losses(losses).canvas.draw()


def test_a_figure_leaves_three_files_that_are_the_same_every_time(tmp_path):
    table = costs_table(values.profile())
    first = render("cost", draw_costs, table, tmp_path / "a", "what it is")
    again = render("cost", draw_costs, table, tmp_path / "b", "what it is")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cost.csv", "cost.png", "cost.svg"]
    for one, other in ((first.svg, again.svg), (first.png, again.png), (first.csv, again.csv)):
        assert one.read_bytes() == other.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(first.csv), table, check_dtype=False)


def test_legends_fit_their_width():
    assert legend_columns(["no_kd", "vanilla_kd", "minilm", "tinybert", "teacher", "random weights"], 3.3) == 3
    assert legend_columns(["an arm with a very long name indeed", "and another one of that kind"], 3.3) == 1
    assert prefix_for(4e12) == ("T", 1e12)


def test_outcomes_have_the_names_that_fits_and_verdicts_use():
    from budgetlab.fitting import scores

    assert (MEAN, LOSSES) == (scores.AGGREGATE, scores.LOSSES)
