"""The page in a real browser: at the width of a desk and of a phone, in light and in dark, used as a reader would."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import reporting_values as values
from whatif_studies import RESULTS

from budgetlab.planner import plan as make_plan
from budgetlab.reporting import report
from budgetlab.store import read_value
from budgetlab.studies import load_study
from budgetlab.units import format_quantity
from budgetlab.values import CostProfile, Plan

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=8000",
)  # fmt: skip
DARK, LIGHT = 0, 1

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")

# A frame as wide as the screen that is meant: a headless window has a least width of its own.
FRAME = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe src="{page}" style="width: {width}px; height: {height}px"></iframe><pre id="found"></pre>
<script>
onload = () => setTimeout(() => {{
  const page = document.querySelector("iframe").contentDocument, found = {{}};
  const get = (name) => page.getElementById("whatif-" + name);
  const cells = () => [...get("rows").rows].map((row) => [...row.cells].map((cell) => cell.textContent));
  const choose = (name, value, kind) => {{
    get(name).value = value;
    get(name).dispatchEvent(new page.defaultView.Event(kind, {{ bubbles: true }}));
  }};
  {steps}
  setTimeout(() => {{
    found.spoken = get("spoken").textContent;
    document.getElementById("found").textContent = JSON.stringify(found);
  }}, 2000);
}}, 500);
</script>"""
LOOK = """
  for (const one of page.querySelectorAll("details")) one.open = true;
  const root = page.documentElement, style = page.defaultView.getComputedStyle(page.body);
  found.overflow = root.scrollWidth - root.clientWidth;
  found.paper = style.backgroundColor;
  found.headings = [...page.querySelectorAll("h2")].map((one) => one.textContent);
  const reached = [...page.querySelectorAll("a[href], input, select, button, summary, .scroll")]
    .filter((one) => !one.disabled);
  const missed = reached.filter((one) => { one.focus(); return page.activeElement !== one; });
  found.unreachable = missed.map((one) => one.outerHTML);
  get("budget").focus();
  const controls = [...page.querySelectorAll("input, select, button")];
  found.small = controls.filter((one) => one.getClientRects()[0].height < 24).map((one) => one.id);
  found.start = cells();
  found.bars = page.querySelectorAll("#whatif-chart .bar").length;
"""
USE = """
  found.start = cells();
  found.priceless = [...get("match").options].filter((one) => one.disabled).map((one) => one.value);
  choose("match", "device_seconds", "change");
  found.budget = get("budget").value;
  found.timed = cells();
  choose("match", "required_flops", "change");
  choose("charge", "pretraining", "change");
  choose("students", "40", "input");
  found.shared = cells();
  choose("students", "2", "input");
  found.infeasible = cells();
  found.notes = get("notes").textContent;
  choose("students", "0", "input");
  found.problem = get("problem").textContent;
  found.hidden = get("output").hidden;
  get("reset").click();
  choose("slider", "-1", "input");
  found.tenth = get("budget").value;
"""


def browse(page: Path, steps: str, width: int, scheme: int, picture: Path | None = None, height: int = 1600):
    frame = page.parent / f"frame-{width}-{scheme}.html"
    frame.write_text(FRAME.format(page=page.name, width=width, height=height, steps=steps), encoding="utf-8")
    what = "--dump-dom" if picture is None else f"--screenshot={picture}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={page.parent / f'profile-{width}-{scheme}'}", what,
         f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={max(width, 500)},{height}",
         frame.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
        env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": "disabled:"},
    )  # fmt: skip
    # What the page's own script logs or fails with.
    assert "CONSOLE" not in done.stderr, done.stderr
    if picture is not None:
        return None
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None and found.group(1), done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a committed study's plan and prices, with runs that are made up."""
    folder = tmp_path_factory.mktemp("browser")
    planned = read_value(Plan, RESULTS / "wikipedia_small" / "plan.json")
    return report(
        study="synthetic", plan=planned, profile=read_value(CostProfile, RESULTS / "wikipedia_small" / "profile.json"),
        records=values.records(), scores=values.scores(), fits=values.fits(), verdicts=values.verdicts(), folder=folder,
    ).page  # fmt: skip


def tokens(charge: str) -> dict[str, str]:
    study = load_study(RESULTS / "wikipedia_small" / "study.toml")
    profile = read_value(CostProfile, RESULTS / "wikipedia_small" / "profile.json")
    made = make_plan(study, profile, budgets=(16e12,), teacher_charge=charge)
    return {s.arm: format_quantity(s.tokens) if s.feasible else "infeasible" for s in made.schedules}


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_the_page_opens_fits_and_answers(page: Path, width: int, scheme: int) -> None:
    found = browse(page, LOOK, width, scheme)
    assert found["overflow"] <= 0
    red = int(re.findall(r"\d+", found["paper"])[0])
    assert red > 200 if scheme == LIGHT else red < 60
    assert found["headings"][:3] == ["Sanity checks", "Outcomes", "Verdicts"] and "What if" in found["headings"]
    assert found["unreachable"] == [] and found["small"] == []
    assert {row[0]: row[1] for row in found["start"]} == tokens("inference")
    assert found["bars"] == len(found["start"]) == 4


def test_the_planner_on_the_page_is_used(page: Path) -> None:
    found = browse(page, USE, 1280, LIGHT)
    assert found["priceless"] == ["joules", "usd"]
    assert found["budget"].endswith("device-min")
    # The first arm keeps its tokens in another currency; with them comes the interval of the step's time.
    assert found["timed"][0][1].startswith(found["start"][0][1] + " [")
    assert {row[0]: row[1] for row in found["shared"]} == tokens("amortised:40")
    assert {row[0]: row[1] for row in found["infeasible"]} == tokens("amortised:2")
    assert "infeasible: minilm can take 0 of at least" in found["notes"]
    assert found["problem"].startswith("students per teacher '0'") and found["hidden"]
    assert found["tenth"] == "1.6 TFLOP"
    assert found["spoken"].startswith("Tokens at 1.60 TFLOP, predicted: no_kd")


def test_a_plan_in_an_arms_tokens_starts_from_itself(tmp_path: Path) -> None:
    study = load_study(RESULTS.parent / "experiments" / "paper_6l.toml")
    profile = read_value(CostProfile, RESULTS.parent / "experiments" / "paper_6l.profile.json")
    made = make_plan(study, profile)
    assert made.match == "tokens:no_kd"
    nothing = {"records": [], "scores": [], "fits": [], "verdicts": []}
    alone = report(study="paper", plan=made, profile=profile, folder=tmp_path, **nothing).page
    found = browse(alone, "found.budget = get('budget').value; found.start = cells();", 1280, LIGHT)
    assert found["budget"] == "4.6B tokens"
    assert [row[3].replace(",", "") for row in found["start"]] == [str(s.steps) for s in made.schedules]


def test_the_page_is_drawn(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "phone.png"
    browse(page, "", 390, LIGHT, picture)
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 40_000
