"""Figures show exactly the numbers of the CSV beside them, with a unit on every axis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import reporting_values as values

import budgetlab
from budgetlab.errors import CallerError
from budgetlab.frames import scores_frame
from budgetlab.reporting.averages import MEAN, Outcomes, outcomes
from budgetlab.reporting.figures import render
from budgetlab.reporting.figures.figure import styled
from budgetlab.reporting.figures.outcomes import draw_losses, draw_scores
from budgetlab.reporting.figures.points import fit_note, fit_notes, points_table, spread_note
from budgetlab.reporting.figures.sizes import draw_frontier, frontier_table
from budgetlab.reporting.figures.spending import (
    costs_table,
    draw_costs,
    draw_plan,
    draw_spent,
    plan_table,
    spent_table,
)
from budgetlab.reporting.figures.style import arm_styles, legend_columns, si_scale
from budgetlab.reporting.figures.verdicts import (
    decomposition_table,
    draw_decomposition,
    draw_verdicts,
    verdict_table,
)
from budgetlab.units import parse_amount
from budgetlab.values import Budget, Verdict
from budgetlab.values.scoring import LOSSES

UNITS = ("points", "tokens", "FLOP", "s per token", "nats per target token", "multiplier", "spent / planned")


@pytest.fixture(scope="module")
def found():
    return outcomes(values.scores())


@pytest.fixture(scope="module")
def scores():
    return scores_frame(values.scores())


def usable_fits(use="interpolation"):
    """The first two arms have a curve that may be used; the band reaches further than their range."""
    x = np.geomspace(2.5e11, 1.6e13, 30)
    found = []
    for i, fit in enumerate(values.fits()):
        band = {"x": x, "prediction": 6.0 + i - 0.1 * np.log(x / 1e12), "low": 5.9 - 0.1 * np.log(x / 1e12),
                "high": 6.1 - 0.1 * np.log(x / 1e12)}  # fmt: skip
        change = {"usable_for": use, "status": "reduced", "band": {k: tuple(v) for k, v in band.items()}}
        found.append(fit.model_copy(update=change) if i < 2 else fit)
    return found


def losses(found, fits=()):
    return points_table(found, values.ARMS, ["readout_loss"], fits=fits)


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


def test_scores_are_drawn_as_tabled(found):
    table = points_table(found, values.ARMS)
    figure = draw_scores(table)
    for (_, _, _), rows in table[table["layer"].isin(["run", "mean"])].groupby(["task", "layer", "arm"]):
        assert_drawn(figure, rows["tokens"], rows["value"])
    for value in table.loc[table["layer"].isin(["teacher", "random", "majority"]), "value"]:
        assert any(np.array_equal(y, [value, value]) for _, y in drawn_lines(figure))


def test_mean_of_tasks_is_the_mean_over_tasks_of_each_run(found):
    runs = found.runs
    one = runs[(runs["subject"] == "run") & (runs["arm"] == "minilm") & (runs["rung"] == 2) & (runs["run_seed"] == 1)]
    by_task = one.set_index("task")["value"]
    assert by_task[MEAN] == pytest.approx((by_task["replaced"] + by_task["belongs"]) / 2)


def test_fine_tuning_seeds_are_averaged_before_run_seeds(found):
    cells = found.cells
    cell = cells[(cells["arm"] == "no_kd") & (cells["rung"] == 0) & (cells["task"] == "replaced")].iloc[0]
    own = [s for s in values.scores() if s.arm == "no_kd" and s.rung == 0 and s.task == "replaced"]
    by_run = [100 * np.mean([s.value for s in own if s.run_seed == seed]) for seed in values.SEEDS]
    assert cell["num_runs"] == 2
    assert cell["mean"] == pytest.approx(np.mean(by_run))
    assert cell["low"] < min(by_run) or cell["half_width"] > 0


def test_losses_are_drawn_as_tabled(found):
    table = losses(found, usable_fits())
    for x in ("tokens", "required_flops"):
        figure = draw_losses(table, "a note", x)
        for (_, _), rows in table[table["layer"].isin(["run", "mean", "curve"])].groupby(["layer", "arm"]):
            # Arms that spent the same are drawn a little aside of one another, and only then.
            drawn = [
                at for at, y in drawn_lines(figure)
                if y.shape == (len(rows),) and np.array_equal(y, rows["value"])
            ]  # fmt: skip
            aside = np.concatenate(drawn) / np.tile(rows[x].to_numpy(), len(drawn))
            assert np.ptp(aside) < 1e-12 and abs(aside[0] - 1) < (0.1 if x == "required_flops" else 1e-12)


def test_a_curve_is_drawn_only_where_the_fit_may_be_used_and_only_in_its_range(found):
    table = losses(found, usable_fits())
    curves = table[table["layer"] == "curve"]
    assert list(dict.fromkeys(curves["arm"])) == ["no_kd", "vanilla_kd"]
    assert curves["required_flops"].min() == values.BUDGETS[0]
    assert curves["required_flops"].max() == values.BUDGETS[-1]
    assert not (table["layer"] == "beyond").any()
    assert not losses(found, values.fits())["layer"].isin(["curve", "beyond"]).any()
    assert not points_table(found, values.ARMS, fits=usable_fits())["layer"].isin(["curve", "beyond"]).any()


def test_an_extrapolation_is_shaded_and_needs_a_fit_that_may_be_used_for_everything(found):
    table = losses(found, usable_fits("everything"))
    beyond = table[table["layer"] == "beyond"]
    assert beyond["required_flops"].max() == pytest.approx(1.6e13) and beyond["required_flops"].min() < 3e11
    inside = beyond["required_flops"].between(values.BUDGETS[0], values.BUDGETS[-1])
    assert not inside.any()
    axes = draw_losses(table).axes[0]
    assert len(axes.patches) == 2
    assert not draw_losses(losses(found, usable_fits())).axes[0].patches


def test_a_curve_moves_to_another_axis_only_where_the_two_go_in_step(found):
    table = losses(found, usable_fits())
    own = table[(table["arm"] == "no_kd") & (table["layer"] == "curve")]
    means = table[(table["arm"] == "no_kd") & (table["layer"] == "mean")]
    ratio = means["tokens"] / means["required_flops"]
    np.testing.assert_allclose(own["tokens"] / own["required_flops"], ratio.median(), rtol=1e-12)
    cells = found.cells.assign(device_seconds=lambda rows: rows["device_seconds"] * (1 + 0.2 * rows["rung"]))
    moved = losses(Outcomes(found.table, found.runs, cells), usable_fits())
    assert moved.loc[moved["layer"] == "curve", "device_hours"].isna().all()
    told = fit_note(usable_fits(), "readout_loss", moved, "device_hours")
    assert "its curve is over required_flops, which does not go in step with this axis" in told


def test_the_note_says_what_the_lines_are_and_which_arms_have_none(found):
    def note(fits):
        return fit_note(fits, "readout_loss", losses(found, fits), "required_flops")

    refused = "Points{}: three budgets cannot identify a floor."
    assert note(values.fits()) == refused.format("")
    lines = "Lines (no_kd, vanilla_kd): power, {}. three budgets cannot identify a floor."
    inside = f"{lines.format('inside the fitted range')} {refused.format(' (minilm, tinybert)')}"
    assert note(usable_fits()) == inside
    assert lines.format("dashed and shaded outside the fitted range") in note(usable_fits("everything"))
    assert note([]) == ""


def test_under_three_runs_a_band_is_the_range_and_says_so(scores, found):
    table = points_table(found, values.ARMS)
    means = table[table["layer"] == "mean"]
    assert set(means["spread"]) == {"range"}
    for row in means.to_dict("records"):
        own = table[(table["layer"] == "run") & (table["task"] == row["task"]) & (table["arm"] == row["arm"])
                    & (table["rung"] == row["rung"])]["value"]  # fmt: skip
        assert (row["low"], row["high"]) == (own.min(), own.max())
    assert "range of the runs" in spread_note(table, found) and "interval" not in spread_note(table, found)
    third = scores[scores["run_seed"] == 1].assign(run_seed=2, value=lambda rows: rows["value"] + 0.01)
    three = outcomes(pd.concat([scores, third], ignore_index=True))
    table = points_table(three, values.ARMS)
    means = table[table["layer"] == "mean"]
    assert set(means["spread"]) == {"interval"}
    np.testing.assert_allclose(means["high"] - means["value"], means["value"] - means["low"])
    assert "95 % t interval" in spread_note(table, three)
    alone = outcomes(scores[scores["run_seed"] == 0])
    table = points_table(alone, values.ARMS)
    assert table.loc[table["layer"] == "mean", ["low", "high"]].isna().all(axis=None)
    assert "no arm has two runs" in spread_note(table, alone)


def test_one_budget_keeps_all_arms_inside_and_an_arm_without_amounts_out_of_the_legend(scores):
    one = scores[scores["rung"] == 0]
    unknown = one.assign(tokens=one["tokens"].where(one["arm"] != "minilm"))
    for table, left_out in ((one, set()), (unknown, {"minilm"})):
        for figure in (budgetlab.loss_figure(table, arms=values.ARMS), budgetlab.score_figure(table, arms=values.ARMS)):
            axes = figure.axes[0]
            low, high = axes.get_xlim()
            assert all(low < x < high for line in axes.lines for x in line.get_xdata() if line.get_marker() != "None")
            assert len(axes.get_xticks()) > 1
        labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        labels |= {t.get_text() for a in figure.axes if a.get_legend() for t in a.get_legend().get_texts()}
        assert set(values.ARMS) - labels == left_out


def test_a_tick_says_its_amount_in_the_unit_of_the_label(found):
    """Also where the limits lie beyond a prefix that no amount reaches."""
    table = points_table(found, values.ARMS)
    table["required_flops"] *= 0.98e12 / table["required_flops"].max()
    figure = draw_scores(table, "required_flops")
    figure.canvas.draw()
    assert "(FLOP, log scale)" in figure.get_supxlabel()
    axis = figure.axes[0].xaxis
    for tick, text in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
        assert parse_amount(f"{text.get_text()}FLOP")[0] == pytest.approx(tick, rel=1e-3)


@pytest.mark.parametrize(("hours", "unit", "seconds"), [(0.006, "s", 1), (0.4, "min", 60), (7.0, "h", 3600)])
def test_time_is_written_in_a_unit_of_its_size(found, hours, unit, seconds):
    table = points_table(found, values.ARMS)
    table["device_hours"] *= hours / table["device_hours"].max()
    figure = draw_scores(table, "device_hours")
    figure.canvas.draw()
    assert f"({unit}, log scale)" in figure.get_supxlabel()
    axis = figure.axes[0].xaxis
    for tick, text in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
        assert float(text.get_text()) * seconds == pytest.approx(3600 * tick, rel=1e-3)


def test_fitted_scores_are_told_from_lines_that_join_means(found):
    fits = [f.model_copy(update={"columns": {"x": "required_flops", "y": MEAN}}) for f in usable_fits("everything")]
    table = points_table(found, values.ARMS, fits=fits)
    note = fit_notes(fits, table, "required_flops")
    assert note == (
        "Fitted curves (power): mean score; dashed and shaded outside the fitted range; other lines join means."
    )
    panel = draw_scores(table, "required_flops", note=note).axes[2]
    filled = [line for line in panel.lines if line.get_marker() in "os^D" and len(line.get_xdata()) == 3]
    assert filled and all(line.get_linestyle() == "None" for line in filled)
    assert fit_notes(fits[2:], points_table(found, values.ARMS, fits=fits[2:]), "tokens") == ""


def test_mid_decay_is_drawn_apart_and_neither_averaged_nor_fitted(scores):
    early = scores[(scores["subject"] == "run") & (scores["rung"] == 0)].assign(
        mid_decay=True, value=lambda rows: rows["value"] + 1.0, tokens=lambda rows: rows["tokens"] * 0.7
    )
    both = pd.concat([scores, early], ignore_index=True)
    found = outcomes(both)
    pd.testing.assert_frame_equal(found.runs, outcomes(scores).runs, check_dtype=False)
    table = points_table(found, values.ARMS, ["readout_loss"])
    assert (table["layer"] == "mid_decay").sum() == len(values.ARMS) * len(values.SEEDS)
    crosses = [line for line in draw_losses(table).axes[0].lines if line.get_marker() == "x"]
    drawn = sum(len(np.asarray(line.get_xdata())) for line in crosses)
    assert drawn == len(values.ARMS) * len(values.SEEDS)
    assert "mid-decay" in spread_note(table, found)
    from budgetlab.fitting.scores import run_values

    pd.testing.assert_frame_equal(
        run_values(both, "readout_loss"), run_values(scores, "readout_loss"), check_dtype=False
    )


def disagreement(table):
    whole = table[table["phase"] == "whole step"]
    flops, seconds = (rows["ratio"].to_numpy() for _, rows in whole.groupby("quantity", sort=False))
    return flops / seconds - 1


def test_costs_are_drawn_as_tabled():
    table = costs_table(values.profile())
    figure = draw_costs(table)
    assert [text.get_text() for text in figure.axes[2].texts] == [f"{100 * off:+.0f} %" for off in disagreement(table)]
    for axes, quantity in zip(figure.axes[:2], table["quantity"].unique(), strict=True):
        rows = table[(table["quantity"] == quantity) & (table["phase"] != "whole step") & (table["value"] > 0)]
        bars = sorted((bar.get_x(), bar.get_width()) for bar in axes.patches)
        np.testing.assert_allclose(bars, sorted(zip(rows["start"], rows["value"], strict=True)), rtol=1e-9)
        ratios = table.loc[(table["quantity"] == quantity) & (table["phase"] == "whole step"), "ratio"]
        assert [text.get_text() for text in axes.texts] == [f"{ratio:.2f}×" for ratio in ratios]


def test_untimed_costs_are_not_available_rather_than_zero():
    table = costs_table(values.profile(timed=False))
    seconds = table[table["quantity"] == "device_seconds_per_token"]
    assert seconds["value"].isna().all()
    assert [text.get_text() for text in draw_costs(table).axes[1].texts] == ["n/a (not timed)"]


def test_every_axis_has_a_unit(found):
    figures = [
        draw_scores(points_table(found, values.ARMS)),
        draw_losses(losses(found)),
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
    found = outcomes([score for score in values.scores() if kept(score)])
    table = points_table(found, values.ARMS)
    assert len(table) and np.isfinite(table["value"]).all()
    draw_scores(table).canvas.draw()
    own = losses(found)
    if len(own):
        draw_losses(own).canvas.draw()


def test_every_loss_has_its_name_on_the_axis():
    given = [s for s in values.scores() if s.task == "readout_loss"]
    for task, name in (("readout_loss", "read-out"), ("adapted_loss", "adapted"), ("mlm_loss", "own MLM")):
        table = scores_frame([s.model_copy(update={"task": task}) for s in given])
        drawn = budgetlab.loss_figure(table, task=task)
        assert drawn.axes[0].get_ylabel() == f"{name} loss (nats per target token)"


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
    assert si_scale(4e12) == ("T", 1e12)


def test_outcomes_have_the_names_that_fits_and_verdicts_use():
    from budgetlab.fitting import scores

    assert (MEAN, LOSSES) == (scores.AGGREGATE, scores.LOSSES)


def verdict(arm, budget, difference, **known):
    return Verdict(
        contrast=(arm, "no_kd"), at=Budget(amount=budget, unit="required_flops"), y="readout_loss", unit="nats",
        difference=difference, interval=(difference - 0.05, difference + 0.04), verdict="not_resolved", margin=0.02,
        num_pairs=3, primary=budget == values.BUDGETS[-1], sentence="no number here is measured", **known,
    )  # fmt: skip


PARTS = {"method": "runs at equal tokens", "tokens_a": 1e6, "tokens_b": 2e6,
         "difference": {"value": 0.1, "interval": [0.05, 0.14]}, "gain_per_token": {"value": 0.3, "interval": None},
         "effect_of_tokens": {"value": -0.2, "interval": [-0.25, -0.15]}}  # fmt: skip


def some_verdicts(arms=("vanilla_kd", "minilm")):
    crossed = {"value": 1.5e12, "interval": [1.2e12, 1.9e12], "unit": "required_flops", "range": [1e12, 4e12]}
    multiplied = {"value": 1.3, "interval": [1.1, 1.6]}
    return [
        verdict(arm, budget, 0.1 * (i + 1) * (j - 0.5), crossover=crossed, compute_multiplier=multiplied,
                decomposition=PARTS)
        for i, arm in enumerate(arms) for j, budget in enumerate(values.BUDGETS)
    ]  # fmt: skip


def test_verdicts_are_drawn_as_tabled():
    verdicts = some_verdicts()
    table = verdict_table(verdicts)
    assert len(table) == 6 and set(table["reference"]) == {"no_kd"}
    figure = draw_verdicts(table, values.ARMS)
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == ["read-out loss", "compute multiplier"]
    for _, rows in table.groupby("arm"):
        assert any(np.array_equal(y, rows["difference"]) for _, y in drawn_lines(figure))
        assert any(np.array_equal(y, rows["compute_multiplier"]) for _, y in drawn_lines(figure))
    assert any(np.array_equal(x, [1.5e12]) and np.array_equal(y, [0.0]) for x, y in drawn_lines(figure))
    beside = draw_verdicts(verdict_table({"all of the text": verdicts, "1M unique tokens": verdicts[:3]}))
    assert [axes.get_title(loc="left") for axes in beside.axes[:2]] == ["all of the text", "1M unique tokens"]
    with pytest.raises(CallerError, match="there are none"):
        budgetlab.verdict_figure([])


@pytest.mark.parametrize("found", [{"unit": "tokens"}, {"range": [0.4e12, 3.4e12]}])
def test_a_crossover_is_drawn_only_where_it_is_an_amount_of_the_budget(found):
    """Not of curves over another amount, nor over what was spent where the teacher's share is missing from that."""
    verdicts = [v.model_copy(update={"crossover": {**(v.crossover or {}), **found}}) for v in some_verdicts()]
    assert verdict_table(some_verdicts())["crossover_amount"].notna().all()
    assert verdict_table(verdicts)["crossover_amount"].isna().all()


def test_multipliers_are_named_by_what_the_curves_are_over_and_all_stay_inside():
    timed = {"value": 1.5e12, "interval": None, "unit": "device_seconds"}
    far = {"value": 0.2, "interval": [0.1, 0.3]}
    first = [v.model_copy(update={"crossover": timed, "compute_multiplier": far}) for v in some_verdicts()]
    second = [v.model_copy(update={"crossover": timed}) for v in some_verdicts()]
    figure = draw_verdicts(verdict_table({"little text": first, "all of the text": second}))
    below = figure.axes[2]
    assert below.get_ylabel().startswith("time multiplier")
    assert below.get_ylim()[0] < 0.1 and below.get_ylim()[1] > 1.6
    few = draw_verdicts(verdict_table({"little text": second[:1], "all of the text": second}))
    assert few.axes[0].get_xlim() == few.axes[1].get_xlim()


def test_an_arm_of_several_references_looks_as_in_other_figures():
    arms = ["no_kd@small", "minilm@small", "no_kd@large", "minilm@large"]
    verdicts = [
        verdict("minilm", values.BUDGETS[-1], 0.1).model_copy(update={"contrast": (f"minilm@{s}", f"no_kd@{s}")})
        for s in ("small", "large")
    ]
    figure = draw_verdicts(verdict_table(verdicts), arms)
    looks = arm_styles(arms)
    colours = {h.get_label(): h.get_color() for h in figure.legends[0].get_lines()}
    for size in ("small", "large"):
        assert colours[f"minilm@{size} - no_kd@{size}"] == looks[f"minilm@{size}"].colour
    assert "better than its reference by" in figure.axes[0].get_ylabel()


def test_a_decomposition_is_drawn_as_tabled_and_adds_up():
    table = decomposition_table(some_verdicts())
    for _, rows in table.groupby("arm"):
        parts = rows.set_index("part")["value"]
        assert parts["difference"] == pytest.approx(parts["gain_per_token"] + parts["effect_of_tokens"])
    bars = [bar.get_width() for bar in draw_decomposition(table).axes[0].patches]
    np.testing.assert_allclose(bars, table["value"])
    without = [v.model_copy(update={"decomposition": {"method": None, "reason": "no tokens"}}) for v in some_verdicts()]
    with pytest.raises(CallerError, match="no tokens"):
        budgetlab.decomposition_figure(without)


def test_spent_over_planned_is_drawn_as_tabled():
    table = spent_table(values.plan(), values.records())
    assert set(table["quantity"]) == {"required_flops", "device_seconds"}
    np.testing.assert_allclose(table["ratio"], table["spent"] / table["planned"])
    figure = draw_spent(table)
    drawn = np.concatenate([x for x, y in drawn_lines(figure) if not np.array_equal(x, [1.0, 1.0])])
    np.testing.assert_allclose(np.sort(drawn), np.sort(table["ratio"].dropna()))
    with pytest.raises(CallerError, match="no run is complete"):
        budgetlab.spent_figure(values.plan(), [])


def frontier(arms):
    rows = [
        {"student": f"student{i % 2}", "arm": arm, "students_per_teacher": share, "num_runs": 3, "y": "readout_loss",
         "higher_is_better": False, "all_in_flops": budget * (1 + 5 * (i > 0) / share),
         "outcome": 6 - 0.1 * i - 0.2 * j}
        for i, arm in enumerate(arms) for j, budget in enumerate(values.BUDGETS) for share in (1.0, np.inf)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_frontier_is_what_nothing_cheaper_beats():
    table = frontier_table(frontier(values.ARMS))
    for _, rows in table.groupby("students_per_teacher"):
        for row in rows.to_dict("records"):
            cheaper = rows[rows["all_in_flops"] <= row["all_in_flops"] * 1.01]
            assert row["on_frontier"] == (row["outcome"] <= cheaper["outcome"].min())
    assert 0 < table["on_frontier"].sum() < len(table)
    assert len(draw_frontier(table, values.ARMS).axes) == 2


def overlaps(figure):
    """Say which texts outside the axes, legends included, lie over one another or beyond the figure's edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = {}
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is not None:
            boxes[f"legend {id(legend)}"] = legend.get_window_extent(renderer)
    for axes in figure.axes:
        if axes.axison:
            for name, text in (("x", axes.xaxis.label), ("y", axes.yaxis.label), ("t", axes.title)):
                if text.get_text():
                    boxes[f"{name} {id(axes)}"] = text.get_window_extent(renderer)
    whole = figure.bbox
    out = [n for n, b in boxes.items() if b.x0 < -2 or b.y0 < -2 or b.x1 > whole.x1 + 2 or b.y1 > whole.y1 + 2]
    names = list(boxes)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if boxes[a].overlaps(boxes[b])]
    return [*out, *pairs]


def many(count):
    """A study of many arms: the synthetic one, over and over, a little apart."""
    arms = [f"distilled_{i:02d}_sqrt" for i in range(count)]
    scores = scores_frame(values.scores())
    runs = scores[scores["subject"] == "run"]
    parts = [scores[scores["subject"] != "run"]]
    for i, arm in enumerate(arms):
        own = runs[runs["arm"] == values.ARMS[i % len(values.ARMS)]]
        parts.append(own.assign(arm=arm, value=own["value"] + 0.002 * i))
    return arms, pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("count", [2, 5, 10, 50])
def test_nothing_overlaps_from_two_arms_to_fifty(count):
    arms, scores = many(count)
    found = outcomes(scores)
    one = values.profile()
    profile = one.model_copy(
        update={"arms": tuple(one.arms[i % 4].model_copy(update={"arm": a}) for i, a in enumerate(arms))}
    )
    sensitivity = pd.DataFrame(
        [{"match": match, "charge": "inference", "arm": arm, "tokens": 1e6 * (1 + i)}
         for match in ("required_flops", "device_seconds") for i, arm in enumerate(arms)]
    )  # fmt: skip
    points = points_table(found, arms)
    figures = [
        styled(draw_scores, points),
        styled(lambda table: draw_scores(table, "required_flops"), points),
        styled(draw_losses, points_table(found, arms, ["readout_loss"])),
        styled(draw_costs, costs_table(profile)),
        styled(draw_plan, plan_table(sensitivity)),
        styled(lambda table: draw_verdicts(table, ["no_kd", *arms]), verdict_table(some_verdicts(arms))),
        styled(draw_decomposition, decomposition_table(some_verdicts(arms))),
        styled(lambda table: draw_frontier(table, arms), frontier_table(frontier(arms))),
    ]
    for figure in figures:
        assert overlaps(figure) == []
        assert figure.get_size_inches()[1] < 4 + 0.4 * count
    if count == 50:
        labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
        assert "42 other arms" in labels and len(labels) < 15
