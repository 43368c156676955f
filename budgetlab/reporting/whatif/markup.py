"""The what-if planner's form as HTML, with the script that answers it and the prices that it answers from."""

from __future__ import annotations

import json
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import Any

from budgetlab.planner import MATCHES
from budgetlab.planner.prices import charge_share
from budgetlab.reporting.whatif.prices import price_data
from budgetlab.units import format_quantity
from budgetlab.values import Plan

SCRIPTS = ("units.js", "arithmetic.js", "form.js")
"""In the order in which the page runs them; all but the last know of no document."""
_HERE = Path(__file__).parent
_CURRENCIES = {
    "required_flops": "required FLOPs",
    "executed_flops": "executed FLOPs",
    "device_seconds": "time",
    "joules": "energy",
    "usd": "US dollars",
    "equal_tokens": "equal tokens",
}
_HEADS = (
    "arm", "tokens", "ratio", "steps", "passes", "worth in\nfresh tokens", "teacher's bill\n% of budget",
    "unspent\n%", "required\nFLOPs", "device time,\npredicted",
)  # fmt: skip


def planner_source() -> str:
    """Return the script without the form: units and arithmetic."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS[:-1])


def whatif_html(plan: Plan) -> str:
    """Return the what-if planner of a plan; without JavaScript it is a sentence that says where else to ask."""
    data = price_data(plan)
    source = planner_source() + "\n" + (_HERE / SCRIPTS[-1]).read_text(encoding="utf-8")
    style = (_HERE / "form.css").read_text(encoding="utf-8")
    # Inside a script element only a "<" could end it early.
    prices = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    head = "".join(_head(name) for name in _HEADS)
    command = f"budgetlab plan {plan.study}.toml --budget AMOUNT --match CURRENCY --teacher-charge CHARGE"
    return (
        f'<div id="whatif">\n<style>{style}</style>\n'
        "<p>The planner's own arithmetic at other settings, from this page's prices. What it says is predicted: "
        "no run was made for it.</p>\n"
        '<noscript><p class="note">The form needs JavaScript. The command line answers the same: '
        f"<code>{escape(command)}</code>"
        ", and <code>--sensitivity</code> for all currencies.</p></noscript>\n"
        f'<form id="whatif-form" aria-label="What-if settings" hidden>\n{_controls(data)}</form>\n'
        '<p class="problem" id="whatif-problem" hidden></p>\n'
        '<p class="unseen" id="whatif-spoken" role="status" aria-live="polite"></p>\n'
        '<div id="whatif-output" hidden>\n'
        '<p class="title" id="whatif-caption"></p>\n'
        '<div class="chart"><svg id="whatif-chart" role="img" aria-label="Tokens per arm"></svg></div>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Tokens per arm, predicted"><table>\n'
        '<caption class="unseen">Tokens per arm, predicted</caption>\n'
        f'<thead><tr>{head}</tr></thead>\n<tbody id="whatif-rows"></tbody></table></div>\n'
        '<ul class="plain note" id="whatif-notes"></ul>\n</div>\n'
        f'<script type="application/json" id="whatif-prices">{prices}</script>\n'
        f"<script>\n(() => {{\n{source}}})();\n</script>\n</div>"
    )


def _head(heading: str) -> str:
    name, _, unit = heading.partition("\n")
    small = f"<small>{escape(unit)}</small>" if unit else ""
    return f'<th scope="col"{" class=left" if name == "arm" else ""}>{escape(name)}{small}</th>'


def _controls(data: dict[str, Any]) -> str:
    share = charge_share(data["charge"])
    charge = data["charge"] if share == 0 else "pretraining"
    students = data["charge"].partition(":")[2] or "1"
    charges = {
        "none": "not charged",
        "inference": "its forward pass",
        "pretraining": "forward pass and pretraining",
    }
    planned = "as planned" if data["unique_tokens"] is None else f"as planned: {_count(data)}"
    texts = {"planned": planned, "tokens": "so many tokens", "passes": f"so many passes of {_reader(data)}"}
    matches = _CURRENCIES | {f"tokens:{arm['name']}": f"FLOPs of the tokens of {arm['name']}" for arm in data["arms"]}
    cached = {"planned": "as planned", "possible": "wherever it can be", "none": "nowhere"}
    return "".join([
        _field("budget", "Budget", '<input id="whatif-budget" type="text" autocomplete="off" spellcheck="false" '
               'aria-describedby="whatif-unit whatif-problem">', '<p class="hint" id="whatif-unit"></p>'),
        _field("slider", "Budget, ÷ 100 to × 100",
               '<input id="whatif-slider" type="range" min="-2" max="2" step="0.02" value="0">'),
        _field("match", "Matched in", _select("match", matches, data["match"], _unpriced(data))),
        _field("charge", "Of the teacher, charged", _select("charge", charges, charge)),
        _field("students", "Students per teacher",
               f'<input id="whatif-students" type="number" min="1" step="1" value="{students}">'),
        _field("text", "Unique text", _select("text", texts, "planned")),
        _field("amount", "Unique tokens",
               '<input id="whatif-amount" type="text" inputmode="decimal" autocomplete="off" value="1M">'),
        _field("cached", "Teacher cached", _select("cached", cached, "planned")),
        '<div><label for="whatif-reset">Everything as planned</label>'
        '<button id="whatif-reset" type="button">Reset</button></div>\n',
    ])  # fmt: skip


def _field(name: str, label: str, control: str, hint: str = "") -> str:
    return f'<div><label for="whatif-{name}" id="whatif-{name}-label">{escape(label)}</label>{control}{hint}</div>\n'


def _select(name: str, options: dict[str, str], chosen: str, disabled: Collection[str] = ()) -> str:
    made = []
    for value, words in options.items():
        state = " selected" if value == chosen else " disabled" if value in disabled else ""
        shown = f"{words}: n/a, no price" if value in disabled else words
        made.append(f'<option value="{escape(value)}"{state}>{escape(shown)}</option>')
    return f'<select id="whatif-{name}">{"".join(made)}</select>'


def _unpriced(data: dict[str, Any]) -> list[str]:
    """Return the currencies in which no arm has a price."""
    return [
        match
        for match, unit in MATCHES.items()
        if all(isinstance(arm["prices"][unit]["inference"], dict) for arm in data["arms"])
    ]


def _reader(data: dict[str, Any]) -> str:
    """Name the arm whose passes are counted: the first that no teacher's price falls on."""
    return next((arm["name"] for arm in data["arms"] if arm["teacher"] is None), data["arms"][0]["name"])


def _count(data: dict[str, Any]) -> str:
    return format_quantity(float(data["unique_tokens"]))
