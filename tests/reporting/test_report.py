"""The report as a whole: honest about what is missing, self-contained, and without torch."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import reporting_values as values
from rich.console import Console

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.reporting import report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, and gathers ids, references and headings."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.headings, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.note(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)

    def note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name == "href":
                self.references.append(value)
            assert name != "src"
            self.references += re.findall(r"url\(([^)]+)\)", value or "")


def make(folder, **changes):
    given = {
        "study": "synthetic", "plan": values.plan(), "profile": values.profile(), "records": values.records(),
        "scores": values.scores(), "fits": values.fits(), "verdicts": values.verdicts(), "folder": folder,
    }  # fmt: skip
    return report(**(given | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"))


def test_everything_is_written(whole):
    folder = whole.page.parent
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    drawn = ("cost_per_arm", "planned_vs_spent", "readout_loss_vs_flops", "readout_loss_vs_tokens", "score_vs_flops",
             "score_vs_hours", "score_vs_tokens", "verdict_vs_budget")  # fmt: skip
    figures = [f"figures/{name}.{kind}" for name in drawn for kind in ("csv", "png", "svg")]
    assert names == [*figures, "report.html", "scores.csv"]
    assert len(pd.read_csv(whole.scores)) == len(values.scores())


def test_the_page_is_self_contained_and_well_formed(whole):
    text = whole.page.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    inside = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert inside <= set(page.ids)
    # What is loaded is all here; what is linked to lies beside the page.
    outside = {reference for reference in page.references if not reference.startswith("#")}
    assert outside and all((whole.page.parent / reference).is_file() for reference in outside)
    assert "http" not in text and "@import" not in text and " src=" not in text
    assert text.count("<svg") == 9
    assert page.headings[:3] == ["Sanity checks", "Outcomes", "Verdicts"]


def test_the_page_can_be_read_by_ear_and_without_a_mouse(whole):
    page = Page(whole.page.read_text(encoding="utf-8"))
    names = [tag for tag, _ in page.tags]
    assert [names.count(tag) for tag in ("h1", "header", "main", "footer", "nav")] == [1] * 5
    assert {tag for tag in names if re.fullmatch(r"h[1-6]", tag)} == {"h1", "h2"}
    assert names.index("h1") < names.index("h2")
    assert names.count("section") == names.count("h2") == len(page.headings)
    tables = names.count("table")
    assert names.count("caption") == tables > 8
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    scrolled = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
    assert len(scrolled) == tables
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"] for attrs in scrolled)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")
    labelled = {attrs["for"] for tag, attrs in page.tags if tag == "label"}
    controls = {attrs["id"] for tag, attrs in page.tags if tag in ("input", "select", "button")}
    assert controls == labelled and len(controls) == 9
    assert [attrs["aria-live"] for _, attrs in page.tags if "aria-live" in attrs] == ["polite"]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_and_controls_stand_out_in_light_and_in_dark(whole):
    text = whole.page.read_text(encoding="utf-8")
    light, dark = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{[^}]*\}", text)
    ]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in (light, light | dark):
        for ground in ("paper", "card"):
            # WCAG 2.2, level AA: 4.5 for words, 3 for the edges of controls and for bars.
            ratios = {ink: contrast(theme[ink], theme[ground]) for ink in ("ink", "soft", "good", "bad", "accent")}
            assert min(ratios.values()) >= 4.5, (ground, ratios)
        assert contrast(theme["accent"], theme["line"]) >= 3


def test_every_number_leads_to_its_record(tmp_path):
    record = next(r for r in values.records() if r.kind == "rung")
    keyed = [score.model_copy(update={"key": f"k{i}"}) for i, score in enumerate(values.scores())]
    for path in (f"runs/{record.run_id}/record.json", f"runs/{record.run_id}/scores/k0.json", "plan.json", "fits.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    assert keyed[0].run_id == record.run_id
    page = Page(make(tmp_path, scores=keyed).page.read_text(encoding="utf-8"))
    found = {reference for reference in page.references if not reference.startswith("#")}
    assert {f"runs/{record.run_id}/record.json", f"runs/{record.run_id}/scores/k0.json", "plan.json", "fits.csv",
            "scores.csv", "figures/cost_per_arm.csv"} <= found  # fmt: skip
    assert all((tmp_path / reference).is_file() for reference in found)


def test_the_page_says_what_the_report_says(whole):
    text = re.sub(r"<[^>]+>", "", whole.page.read_text(encoding="utf-8")).replace("&nbsp;", " ")
    assert whole.sentence[1:] in text
    assert all(check.sentence[1:] in text for check in whole.checks)
    assert all(line in text for line in values.plan().audit)
    assert "three budgets cannot identify a floor" in text
    assert "n/a" in text and "nan" not in text.lower().replace("nanot", "")


def test_captions_name_seeds_interval_hardware_and_dtype(whole):
    for figure in whole.figures:
        assert "synthetic processor" in figure.caption and "float32" in figure.caption
        assert "\n" not in figure.caption
    assert "2 run seeds" in whole.figures[0].caption
    assert "bands are the range of the runs where an arm has two" in whole.figures[0].caption


def test_without_runs_the_report_is_the_plan_and_says_so(tmp_path):
    empty = make(tmp_path, records=[], scores=[], fits=[], verdicts=[])
    assert empty.sentence.startswith("no verdict yet: 0 of 24 planned runs are complete")
    assert empty.checks == ()
    assert [figure.name for figure in empty.figures] == ["cost_per_arm"]
    assert empty.sheet.title.startswith("Plan")
    page = Page(empty.page.read_text(encoding="utf-8"))
    assert "Plan" in page.headings and "Sanity checks" not in page.headings
    assert list(pd.read_csv(empty.scores).columns)[:2] == ["run_id", "subject"]


def test_with_some_scores_it_draws_what_there_is(tmp_path):
    some = [s for s in values.scores() if s.subject == "run" and s.run_seed == 0 and s.arm != "tinybert"]
    partial = make(tmp_path, scores=some, verdicts=[])
    assert partial.sentence.startswith("no verdict: numbers are missing")
    assert [figure.name for figure in partial.figures] == [
        "score_vs_tokens", "score_vs_flops", "score_vs_hours", "readout_loss_vs_tokens", "readout_loss_vs_flops",
        "cost_per_arm", "planned_vs_spent",
    ]  # fmt: skip
    drawn = pd.read_csv(partial.figures[0].csv)
    assert set(drawn["arm"]) == {"no_kd", "vanilla_kd", "minilm"}
    assert "one run seed; no bands, since no arm has two runs at one budget" in partial.figures[0].caption


def test_given_checks_are_not_judged_again(tmp_path, whole):
    failed = whole.checks[0].model_copy(update={"passed": False})
    assert make(tmp_path, checks=[failed], scores=values.yardsticks()).sentence.startswith(
        "below the learning threshold"
    )


def test_the_same_values_give_the_same_files(tmp_path, whole):
    again = make(tmp_path)
    assert again.page.read_bytes() == whole.page.read_bytes()
    for one, other in zip(again.figures, whole.figures, strict=True):
        assert one.svg.read_bytes() == other.svg.read_bytes()


def test_a_report_prints_table_checks_sentence_and_paths(whole):
    out = io.StringIO()
    whole.print(Console(file=out, width=100, color_system=None))
    lines = out.getvalue().splitlines()
    assert lines[0] == "At 4.00 TFLOP"
    assert sum(line.startswith("passed  ") for line in lines) == 3
    assert whole.sentence in lines
    assert lines[-1] == f"page    {whole.page}"


def test_a_report_is_json(whole):
    data = json.loads(json.dumps(whole.as_json(), allow_nan=False))
    row = next(r for r in data["closing_table"] if r["arm"] == "minilm" and r["rung"] == 2)
    assert row["mlm_loss_nats"] is None
    assert row["spent_required_flops"] > 0
    assert [check["passed"] for check in data["gates"]] == [True, True, True]


def test_names_from_a_study_cannot_break_the_page(tmp_path):
    plan = values.plan().model_copy(update={"audit": ("<b>&amp;\"'",)})
    text = make(tmp_path, study="<i>x</i>", plan=plan, scores=[]).page.read_text(encoding="utf-8")
    Page(text)
    assert "<i>x" not in text and "&lt;b&gt;&amp;amp;" in text


def test_reporting_loads_no_torch_and_importing_it_no_matplotlib(tmp_path):
    code = (
        "import sys, pathlib; import budgetlab.reporting as r; import budgetlab.reporting.tables\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"sys.path.insert(0, {str(__file__).rsplit('/', 1)[0]!r})\n"
        "import reporting_values as v\n"
        "known = dict(plan=v.plan(), profile=v.profile(), records=v.records(), fits=v.fits(), verdicts=v.verdicts())\n"
        f"r.report(study='s', scores=v.scores()[:9], folder=pathlib.Path({str(tmp_path)!r}), **known)\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert not {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_table_that_is_no_table_of_scores_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CallerError, match="a table of 1 scores: no column subject, arm"):
        make(tmp_path, scores=pd.DataFrame({"loss": [1.0]}))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BudgetlabError, match=r"writing .*\w+\.svg"):
        make(tmp_path / "file", scores=[])


def test_decisions_are_files_sections_and_lines(tmp_path, whole):
    import math

    from budgetlab.decisions import Decisions
    from budgetlab.values import Assumption

    rows = (
        Assumption(name="schedule", tested="another one", outcome="violated", evidence="p = 0.01", effect="stays"),
        Assumption(name="learning rate", tested="trials", outcome="not_tested", missing="trials of every arm"),
    )
    cell = {
        "student": "student", "num_params_non_embedding": 397_000, "total_flops": 4e12,
        "students_per_teacher": math.inf, "arm": "minilm", "reference": "no_kd", "teacher": "teacher",
        "teacher_flops": 0.0, "student_flops": 4e12, "teacher_share": 0.0, "outcome": 5.1,
        "reference_outcome": 5.2, "difference": 0.1, "unit": "nats", "low": 0.05, "high": 0.15,
        "answer": "arm", "basis": "measured range", "reason": "",
    }  # fmt: skip
    ahead = pd.DataFrame([{
        "adds": "one more run seed of minilm and no_kd at 4.00 TFLOP", "cost_flops": 8e12, "cost_seconds": math.nan,
        "half_width_now": 0.1, "half_width_after": 0.08, "narrowing": 0.02, "narrowing_per_exaflop": 2500.0,
    }])  # fmt: skip
    ahead.attrs["sentence"] = "Next run (predicted): one more."
    found = make(tmp_path, decisions=Decisions(assumptions=rows, next_runs=ahead, verdict_map=pd.DataFrame([cell])))
    for name in ("assumptions.csv", "assumptions.md", "verdict_map.csv", "verdict_map.md", "next_run.md"):
        assert (tmp_path / name).is_file()
    page = Page(found.page.read_text(encoding="utf-8"))
    assert {"Assumptions", "The teacher's budget", "Next run, predicted"} <= set(page.headings)
    assert found.figures[-1].name == "verdict_map" and found.figures[-1].png.is_file()
    assert [row["name"] for row in found.as_json()["assumptions"]] == ["schedule", "learning rate"]
    console = Console(file=io.StringIO(), width=400)
    found.print(console)
    assert "assumptions: 0 hold, 1 violated (schedule), 1 not tested" in console.file.getvalue()
    assert "Next run (predicted): one more." in console.file.getvalue()
    assert not (whole.page.parent / "assumptions.csv").exists()  # where nothing was decided, nothing is written
