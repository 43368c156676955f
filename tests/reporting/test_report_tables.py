"""Tables: every cell from its own source, n/a for what is unknown, and a width that fits."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import reporting_values as values
from rich.console import Console

from budgetlab.fitting import compare
from budgetlab.frames import scores_frame
from budgetlab.reporting.averages import outcomes
from budgetlab.reporting.figures.outcomes import draw_scores
from budgetlab.reporting.figures.points import points_table
from budgetlab.reporting.tables import (
    average_sheet,
    closing_frame,
    closing_sheet,
    fit_sheet,
    full_sheet,
    plain_lines,
    plan_sheet,
    print_sheets,
    profile_sheet,
    score_files_sheet,
    score_sheet,
    stack,
    status_sheet,
    verdict_sheet,
)
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed, scaled


@pytest.fixture(scope="module")
def frame():
    return closing_frame(values.plan(), values.records(), values.scores())


def printed(sheets, *, width, terminal):
    out = io.StringIO()
    print_sheets(sheets, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue().splitlines()


def test_closing_rows_are_arms_by_budget_then_the_yardsticks(frame):
    assert list(frame["arm"][:4]) == list(values.ARMS)
    assert list(frame["subject"][-4:]) == ["teacher", "random", "majority", "unigram"]
    assert len(frame) == 4 * 3 + 4


def test_planned_comes_from_the_plan_and_spent_from_the_records(frame):
    doubled = [r.model_copy(update={"required_flops": 2 * r.required_flops}) for r in values.records()]
    other = closing_frame(values.plan(), doubled, values.scores())
    changed = [name for name in frame.columns if not frame[name].equals(other[name])]
    assert changed == ["spent_required_flops"]
    slower = values.plan()
    slower = slower.model_copy(
        update={"schedules": tuple(s.model_copy(update={"device_seconds": 1.0}) for s in slower.schedules)}
    )
    other = closing_frame(slower, values.records(), values.scores())
    assert [n for n in frame.columns if not frame[n].equals(other[n])] == ["planned_device_seconds"]


def test_spent_is_the_mean_over_complete_runs():
    records = values.records()
    half = [r.model_copy(update={"status": "running"}) if r.run_seed == 1 else r for r in records]
    frame = closing_frame(values.plan(), half, values.scores())
    row = frame[(frame["arm"] == "minilm") & (frame["rung"] == 2)].iloc[0]
    only = next(r for r in records if r.run_id == "minilm-b2-s0")
    assert row["runs"] == 1
    assert row["spent_device_seconds"] == only.device_seconds


def test_unknown_is_missing_in_the_frame_and_not_available_in_print(frame):
    row = frame[(frame["arm"] == "tinybert") & (frame["rung"] == 2)].iloc[0]
    assert pd.isna(row["mlm_loss_nats"])
    empty = closing_frame(values.plan(), [], [])
    assert empty["spent_required_flops"].isna().all()
    assert empty["readout_loss_nats"].isna().all()
    cells = closing_sheet(empty).rows[0]
    headings = [c.heading for c in closing_sheet(empty).columns]
    assert cells[headings.index("spent\nTFLOP")] == "n/a"
    assert cells[headings.index("read-out\nnats")] == "n/a"


def test_an_infeasible_arm_has_no_plan_and_says_why():
    plan = values.plan(infeasible="tinybert")
    frame = closing_frame(plan, [], [])
    row = frame[(frame["arm"] == "tinybert") & (frame["rung"] == 0)].iloc[0]
    assert pd.isna(row["planned_required_flops"]) and pd.isna(row["unspent_fraction"])
    sheet = plan_sheet(plan)
    assert sheet.rows[3][-1] == "no"
    assert "smallest feasible budget is 1.3 TFLOP" in sheet.notes[0]


def test_spread_is_printed_beside_the_mean(frame):
    sheet = closing_sheet(frame)
    column = [c.heading for c in sheet.columns].index("replaced\npoints")
    assert "±" in sheet.rows[0][column]
    assert "±" not in sheet.rows[4][column]
    assert sheet.notes == (
        "each arm: mean of 2 complete runs; ± is the 95 % t interval of each arm's 2 run seeds by themselves",
    )


def test_the_adapted_loss_has_a_column_where_any_was_measured(frame):
    assert all(
        "adapted\nnats" not in [c.heading for c in sheet(frame).columns] for sheet in (closing_sheet, full_sheet)
    )
    adapted = [
        s.model_copy(update={"task": "adapted_loss", "value": s.value - 0.4})
        for s in values.scores()
        if s.task == "readout_loss" and s.rung == 2 and s.arm != "tinybert"
    ]
    found = closing_frame(values.plan(), values.records(), [*values.scores(), *adapted])
    for sheet in (closing_sheet(found), full_sheet(found)):
        column = [c.heading for c in sheet.columns].index("adapted\nnats")
        cells = {row[0]: row[column] for row in sheet.rows}
        assert cells["tinybert"] == cells["teacher"] == "n/a"
        assert cells["no_kd"].startswith(f"{found.set_index('arm')['adapted_loss_nats']['no_kd'].iloc[-1]:.2f}±")
    names = {row[0] for row in score_sheet([*values.scores(), *adapted]).rows}
    assert {"read-out loss", "adapted loss", "own MLM loss", "mean of 2 tasks"} <= names


def test_a_read_out_above_the_own_head_is_named_with_its_arms_and_budgets(frame):
    name = "read-out\nminus own\nnats"
    assert not any("read-out alone" in note for note in full_sheet(frame).notes)
    raised = [
        s.model_copy(update={"value": s.value + 0.3}) if s.task == "readout_loss" and s.arm == "no_kd" and s.rung else s
        for s in values.scores()
    ]
    found = closing_frame(values.plan(), values.records(), raised)
    sheet = full_sheet(found)
    column = [c.heading for c in sheet.columns].index(name)
    for cells, row in zip(sheet.rows, found.to_dict("records"), strict=True):
        gap = row["readout_loss_nats"] - row["mlm_loss_nats"]
        assert cells[column] == ("n/a" if np.isnan(gap) else f"{gap:+.3f}")
    (said,) = (note for note in sheet.notes if "read-out alone" in note)
    assert said.startswith(
        "the read-out is more than 0.02 nats above the own head: no_kd at 2.00 TFLOP, 4.00 TFLOP; no "
    )
    assert name not in [c.heading for c in closing_sheet(found).columns]
    headless = closing_frame(values.plan(), values.records(), [s for s in raised if s.task != "mlm_loss"])
    assert name not in [c.heading for c in full_sheet(headless).columns]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_fit_a_terminal(frame, width):
    sheets = [
        closing_sheet(frame),
        full_sheet(frame),
        plan_sheet(values.plan()),
        profile_sheet(values.profile()),
        status_sheet(values.plan(), values.records()),
        verdict_sheet(values.verdicts()),
        fit_sheet(values.fits()),
    ]
    lines = printed(sheets, width=width, terminal=True)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert not any("…" in line for line in lines)


def test_the_closing_table_is_one_table_at_100_columns_and_stacked_at_80(frame):
    sheet = closing_sheet(frame)
    assert len(stack(sheet, 100)) == 1
    parts = stack(sheet, 80)
    assert [len(part.rows) for part in parts] == [7, 7]
    assert all(part.columns[0].heading == "arm" for part in parts)
    assert sum(len(part.columns) - 1 for part in parts) == len(sheet.columns) - 1


def test_without_a_terminal_a_row_is_one_plain_line(frame):
    lines = printed([closing_sheet(frame)], width=80, terminal=False)
    assert lines == plain_lines(closing_sheet(frame))
    assert sum(line.startswith("vanilla_kd ") for line in lines) == 1
    assert any(line.startswith("random weights") for line in lines)


def test_profile_says_not_available_where_nothing_was_measured():
    sheet = profile_sheet(values.profile(timed=False))
    columns = [c.heading for c in sheet.columns]
    assert sheet.rows[0][columns.index("step\nms")] == "n/a"
    assert sheet.rows[0][columns.index("energy\nmJ a token")] == "n/a"
    assert sheet.rows[1][columns.index("ratio")] == "3.06"


def test_status_counts_runs_by_state():
    records = values.records()[1:8]
    records = [*records[:-1], records[-1].model_copy(update={"status": "failed", "message": "disk full"})]
    sheet = status_sheet(values.plan(), records)
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["no_kd"] == ("2/2", "0/2", "0/2", "2", "0", "0", "4")
    assert rows["tinybert"] == ("0/2", "0/2", "0/2", "0", "0", "1", "5")
    assert rows["teacher"][-1] == "1"
    assert "% done; " in sheet.notes[0]
    assert sheet.notes[1:] == ("failed: tinybert-b0-s0: disk full",)


def test_a_note_never_speaks_of_an_interval_that_is_not_there():
    one = [s for s in values.scores() if s.run_seed in (0, None)]
    assert "no interval" in closing_frame(values.plan(), values.records(), one).attrs["note"]
    assert outcomes(one).cells["half_width"].isna().all()


def test_verdicts_show_interval_and_detectable_difference():
    sheet = verdict_sheet(values.verdicts())
    assert sheet.rows[2] == (
        "tinybert - no_kd *", "4.00 TFLOP", "read-out loss (nats)", "-0.203", "[-0.265, -0.141]", "0.087", "2", "0.01",
        "n/a", "no_kd is better",
    )  # fmt: skip
    assert sheet.rows[3][2:5] == ("mean score (points)", "-2.3", "[-5.4, +0.8]")
    assert sheet.rows[3][7] == "0.03"
    assert "MDD: minimum detectable difference" in sheet.notes[0]


def test_numbers_are_printed_at_one_prefix():
    assert scaled([1e12, None, 2.5e13], "FLOP") == ("TFLOP", ["1.000", "n/a", "25.000"])
    assert scaled([None], "FLOP") == ("FLOP", ["n/a"])
    assert fixed(1.234, 1, 0.56) == "1.2±0.6"
    assert fixed(None, 2) == "n/a"


def test_a_group_that_is_too_wide_is_split_and_keeps_its_keys():
    columns = (Column("key", left=True), *(Column(f"column{i:02d}", group="group") for i in range(12)))
    sheet = Sheet("title", columns, (("a", *("1" for _ in range(12))),), ("a note",))
    parts = stack(sheet, 40)
    assert all(part.width() <= 40 for part in parts)
    assert [part.notes for part in parts[:-1]] == [()] * (len(parts) - 1)
    assert parts[-1].notes == ("a note",)


def mean_of(sheet, row_name, column):
    names = [c.heading for c in sheet.columns]
    row = next(row for row in sheet.rows if row[0] == row_name)
    return row[names.index(column)]


def test_scores_have_median_spread_error_and_yardsticks():
    given = [
        s.model_copy(
            update={"standard_errors": {s.metric: 0.012}, "degenerate": s.arm == "tinybert" and not s.run_seed}
        )
        for s in values.scores()
    ]
    sheet = score_sheet(given, arms=values.ARMS)
    rows = [row for row in sheet.rows if row[0].startswith("belongs")]
    assert [row[1] for row in rows] == [*values.ARMS, "teacher", "random weights", "majority class"]
    own = [s.value for s in given if s.task == "belongs" and s.arm == "no_kd" and s.rung == 2]
    first = rows[0]
    assert first[2].startswith(f"{100 * np.mean(own):.1f}±") and first[3] == f"{100 * np.mean(own):.1f}"
    assert first[4] == f"{100 * np.std([np.mean(own[:2]), np.mean(own[2:])], ddof=1):.1f}"
    assert first[6:] == ("1.2", "2x2", "0", "") and rows[-1][6:] == ("1.2", "n/a", "n/a", "")
    kept = [s.value for s in given if s.task == "belongs" and s.arm == "tinybert" and s.rung == 2 and s.run_seed == 1]
    assert rows[3][8:] == ("2", f"{100 * np.mean(kept):.1f}")
    assert [row[0] for row in sheet.rows][:5] == ["read-out loss"] * 5
    assert any("mean score: belongs accuracy, replaced matthews, with equal weights" in note for note in sheet.notes)


def test_the_average_without_a_task_is_the_other_one():
    sheet = average_sheet(values.scores(), arms=values.ARMS)
    assert [row[0] for row in sheet.rows] == ["all 2", "without belongs", "without replaced", "read-out loss, nats"]
    scores = score_sheet(values.scores(), arms=values.ARMS)
    for task, other in (("replaced", "belongs accuracy"), ("belongs", "replaced matthews")):
        for arm in values.ARMS:
            alone = next(row[2] for row in scores.rows if row[0] == other and row[1] == arm)
            assert mean_of(sheet, f"without {task}", arm) == alone
    found = compare(scores_frame(values.scores()), a="minilm", b="no_kd", task="score", curves=False)
    assert mean_of(sheet, "all 2", "minilm\n- no_kd").startswith(f"{found.difference:+.1f} [{found.interval[0]:+.1f}")
    loss = compare(scores_frame(values.scores()), a="minilm", b="no_kd", task="readout_loss", curves=False)
    assert mean_of(sheet, "read-out loss, nats", "minilm\n- no_kd").startswith(f"{loss.difference:+.2f} [")
    own = [s.value for s in values.scores() if s.task == "readout_loss" and s.arm == "no_kd" and s.rung == 2]
    assert mean_of(sheet, "read-out loss, nats", "no_kd").startswith(f"{np.mean(own):.2f}±")
    one_task = [s for s in values.scores() if s.task != "belongs"]
    assert average_sheet(one_task).rows == ()


def test_a_subset_is_named_in_every_table_that_shows_it(tmp_path):
    names = {"replaced": "qnli", "belongs": "rte"}
    given = [
        s.model_copy(update={"task": names[s.task], "train_examples": 2490, "num_examples": 277})
        if s.task in names
        else s
        for s in values.scores()
    ]
    words = "qnli 2,490 of 104,743 train, 277 of 5,463 validation"
    frame = closing_frame(values.plan(), values.records(), given)
    for sheet in (closing_sheet(frame), full_sheet(frame)):
        assert "qnli\nsubset\npoints" in [c.heading for c in sheet.columns]
        assert "rte\npoints" in [c.heading for c in sheet.columns]
        assert any(words in note for note in sheet.notes)
    for sheet in (score_sheet(given), average_sheet(given)):
        assert any(words in note for note in sheet.notes)
    drawn = draw_scores(points_table(outcomes(given), values.ARMS))
    texts = [text.get_text().replace("\n", " ") for axes in drawn.axes for text in axes.texts]
    assert words.removeprefix("qnli ") in texts and "qnli, rte" in texts
    verdict = compare(scores_frame(given), a="minilm", b="no_kd", task="qnli", curves=False)
    average = compare(scores_frame(given), a="minilm", b="no_kd", task="score", curves=False)
    notes = verdict_sheet([verdict, average]).notes
    assert "subsets: qnli 2,490 of 104,743 train, 277 of 5,463 validation" in notes
    assert any(note.startswith("mean score: qnli matthews (2,490 of 104,743 train") for note in notes)


def test_the_noise_of_one_budget_is_not_that_of_another():
    noisy = [
        s.model_copy(update={"value": s.value + (0.2 if s.run_seed else -0.2)})
        if s.rung == 0 and s.arm == "no_kd"
        else s
        for s in values.scores()
    ]
    before, after = (outcomes(found).cells for found in (values.scores(), noisy))
    for rung, alike in ((0, False), (1, True), (2, True)):
        halves = [c.loc[(c["rung"] == rung) & (c["task"] == "belongs"), "half_width"] for c in (before, after)]
        assert (halves[0].tolist() == halves[1].tolist()) is alike


def test_every_score_is_a_row_with_its_seed():
    sheet, _ = score_files_sheet(scores_frame(values.scores()))
    seeds = {(row[1], row[2]) for row in sheet.rows}
    assert {("belongs", "0"), ("belongs", "1"), ("belongs", "n/a"), ("readout_loss", "n/a")} <= seeds
    assert len(sheet.rows) == len(values.scores())
