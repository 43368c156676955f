"""The page's planner against the planner: equal steps at every setting of a grid, and equal words."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from py_mini_racer import MiniRacer
from whatif_studies import COMMITTED, MADE_UP, study_of

from budgetlab.errors import CallerError
from budgetlab.planner import MATCHES, plan
from budgetlab.planner.prices import step_price
from budgetlab.reporting.whatif import planner_source, price_data
from budgetlab.studies import Study
from budgetlab.units import BUDGET_UNITS, format_amount, parse_amount, parse_count
from budgetlab.values import CostProfile, StrategySpec

CHARGES = ("none", "inference", "pretraining", "amortised:3", "amortised:40")
CACHED = ("planned", "possible", "none")
# Of the price of a hundred steps; the last buys more tokens than a double counts.
AMOUNTS = (0.017, 0.9, 1.0, 7.3, 411.0, 3e4, 1e17)

_BRIDGE = """
const plain = (made) => JSON.stringify(made, (_, value) => typeof value === "bigint" ? String(value) : value);
const attempt = (f) => {
  try { return plain({ made: f() }); } catch (error) { return plain({ error: error.message }); }
};
const answers = (data, all) => `[${all.map((settings) => attempt(() => replan(data, settings))).join(",")}]`;
"""


@pytest.fixture(scope="module")
def script():
    engine = MiniRacer()
    engine.eval(planner_source() + _BRIDGE)

    def call(expression: str) -> Any:
        # A script's numbers are doubles, whatever they look like when they are printed.
        return json.loads(engine.eval(expression), parse_int=float)

    return call


@pytest.fixture(scope="module", params=[*COMMITTED, *MADE_UP])
def case(request, tmp_path_factory):
    return study_of(request.param, tmp_path_factory.mktemp("whatif") / request.param)


def answers(script, data: dict[str, Any], settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return script(f"answers({json.dumps(data)}, {json.dumps(settings)})")


def budgets(study: Study, profile: CostProfile, match: str) -> list[str]:
    """Amounts around what steps cost in a currency: also some that whole steps cost exactly."""
    if match.startswith("tokens:") or match == "equal_tokens":
        batch = profile.arms[0].batch_tokens
        return [f"{math.ceil(100 * batch * a)} tokens" for a in AMOUNTS] + [f"{37 * batch} tokens"]
    unit, prices = MATCHES[match], []
    for cost in profile.arms[:2]:
        try:
            prices.append(step_price(study.execution, cost, unit, "inference"))
        except CallerError:
            return ["2"]  # not priced: the planner says so at any amount
    exact = [37 * price for price in prices] + [_just_too_little(price) for price in prices]
    amounts = [repr(amount) for amount in (*(100 * prices[0] * a for a in AMOUNTS), *exact)]
    return amounts + ([f"{29.3 * prices[0]!r} s"] if unit == "device_seconds" else [])


def _just_too_little(price: float) -> float:
    """Return the largest amount that does not pay for some steps, though its quotient is rounded up to them."""
    below = ((steps, math.nextafter(steps * price, 0)) for steps in range(20, 5000))
    return next((amount for steps, amount in below if amount / price >= steps), math.nextafter(53 * price, 0))


def grid(study: Study, profile: CostProfile) -> list[dict[str, Any]]:
    matches = [*MATCHES, f"tokens:{list(study.arms)[-1]}"]
    amounts = [(match, budget) for match in matches for budget in budgets(study, profile, match)]
    batch = profile.arms[0].batch_tokens
    unique = (None, "7", str(50 * batch + 3), str(10**6 * batch + 1), str(2**53 + 12345))
    settings = [
        {"match": match, "budget": budget, "charge": charge, "unique": text, "cached": cached}
        for (match, budget), charge, text, cached in itertools.product(amounts, CHARGES, unique, CACHED)
    ]
    return random.Random(0).sample(settings, 2000)  # every pair of settings is among them several times


def replanned(study: Study, profile: CostProfile, settings: dict[str, Any]):
    """Ask the planner: a study with these settings in it; no rest of a budget is too large."""
    unique = None if settings["unique"] is None else int(settings["unique"])
    known = study.plan.model_copy(update={"tolerance_fraction": 1 - 1e-12})
    update = {"corpus": study.corpus.model_copy(update={"unique_tokens": unique}), "plan": known}
    update["arms"] = {
        name: arm.model_copy(update={"strategy": _cached(arm.strategy, settings["cached"])})
        for name, arm in study.arms.items()
    }
    budget, unit = settings["budget"], MATCHES.get(settings["match"], "tokens")
    bare = budget.strip().replace(".", "").replace("e", "").replace("+", "").replace("-", "").isdigit()
    return plan(
        study.model_copy(update=update), profile, match=settings["match"],
        budgets=(f"{budget} {unit}" if bare else budget,),  # the page names the unit beside its field
        teacher_charge=settings["charge"],
    ).schedules  # fmt: skip


def _cached(strategy: StrategySpec, how: str) -> StrategySpec:
    if how == "planned" or strategy.name != "vanilla_kd":
        return strategy
    bare = {name: value for name, value in strategy.settings.items() if name != "cached"}
    return StrategySpec(name="vanilla_kd", **bare) if how == "none" else StrategySpec(
        name="vanilla_kd", **{"top_k": 16, **bare, "cached": True}
    )  # fmt: skip


# Python divides integers beyond 2^53 before it rounds; and expm1 is each language's own.
CLOSE = ("passes", "effective_tokens")
EQUAL = (
    "feasible", "steps", "reason", "teacher_charge", "tuning_charge", "unspent_fraction", "required_flops",
    "device_seconds",
)  # fmt: skip


def compare(found: dict[str, Any], study: Study, profile: CostProfile, settings: dict[str, Any]) -> str:
    """Hold one answer of the script against the planner's; return what kind of answer it was."""
    try:
        schedules = replanned(study, profile, settings)
    except CallerError as error:
        if "too small for one step of any arm" in str(error):
            made = found["made"]
            assert all(one["error"] is None and not one["feasible"] for one in made["arms"]), settings
            assert error.remedy == made["arms"][-1]["reason"], settings
            return "too small"
        wrong = found.get("error") or next(one["error"] for one in found["made"]["arms"] if one["error"] is not None)
        assert wrong == str(error), settings
        return "refused"
    made = found["made"]
    assert (made["amount"], made["unit"]) == (schedules[0].budget.amount, schedules[0].budget.unit)
    for schedule, one in zip(schedules, made["arms"], strict=True):
        where = (settings, schedule.arm)
        assert (one["arm"], one["error"]) == (schedule.arm, None), where
        for name in EQUAL:
            assert one[name] == getattr(schedule, name), (name, where)
        assert int(one["tokens"]) == schedule.tokens, where
        assert (one["warmup"], one["cooldown"]) == (schedule.warmup_steps, schedule.cooldown_steps), where
        interval = schedule.tokens_interval
        assert one["tokens_interval"] == (None if interval is None else list(interval)), where
        for name in CLOSE:
            pair = (one[name], getattr(schedule, name))
            assert pair == (None, None) or math.isclose(*pair, rel_tol=1e-12), (name, where)
    return "planned" if all(schedule.feasible for schedule in schedules) else "some infeasible"


def test_the_page_plans_as_the_planner_does(script, case) -> None:
    study, profile, made = case
    settings = grid(study, profile)
    kinds = [
        compare(found, study, profile, asked)
        for found, asked in zip(answers(script, price_data(made), settings), settings, strict=True)
    ]
    assert len(kinds) >= 2000
    assert {"planned", "some infeasible", "too small"} <= set(kinds)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_page_starts_from_what_was_planned(script, name: str, tmp_path: Path) -> None:
    _, _, made = study_of(name, tmp_path / name)
    data = price_data(made)
    unit = {"required_flops": "flops", "tokens": "tokens"}[data["budget"]["unit"]]
    start = {"match": made.match, "charge": made.charge, "cached": "planned", "unique": data["unique_tokens"],
             "budget": f"{data['budget']['amount']!r} {unit}"}  # fmt: skip
    found = {one["arm"]: one["steps"] for one in answers(script, data, [start])[0]["made"]["arms"]}
    top = max(schedule.rung for schedule in made.schedules)
    assert found == {schedule.arm: schedule.steps for schedule in made.schedules if schedule.rung == top}


def test_what_a_plan_would_refuse_is_said(script, tmp_path: Path) -> None:
    study, profile, made = study_of("wikipedia_small", tmp_path)
    settings = {"match": "required_flops", "charge": "inference", "unique": None, "cached": "none"}
    asked = [settings | {"budget": str(amount)} for amount in (4.1e10, 9.9e10, 1e12, 2e13)]
    refused = []
    for one, found in zip(asked, answers(script, price_data(made), asked), strict=True):
        beyond = [schedule["arm"] for schedule in found["made"]["arms"] if schedule["beyond_tolerance"]]
        try:
            plan(study, profile, budgets=(one["budget"],))
        except CallerError as error:
            assert beyond and str(error).startswith(f"{beyond[0]} at ")
            refused.append(one)
        else:
            assert beyond == []
    assert 0 < len(refused) < len(asked)


def test_so_many_passes_of_an_arm_are_its_tokens_over_them(script, tmp_path: Path) -> None:
    study, profile, made = study_of("wikipedia_small", tmp_path)
    settings = {"match": "required_flops", "charge": "inference", "cached": "possible", "budget": "16 TFLOP"}
    for passes in (0.5, 1, 4, 6.3):
        data = json.dumps(price_data(made))
        expression = f"attempt(() => uniqueForPasses({data}, {json.dumps(settings)}, {passes}))"
        unique = script(expression)["made"]
        found = replanned(study, profile, settings | {"unique": unique})
        alone = next(schedule for schedule in found if schedule.arm == "no_kd")
        assert alone.passes == pytest.approx(passes, rel=1e-5) and int(unique) == math.floor(alone.tokens / passes)


def test_amounts_are_read_and_printed_as_elsewhere(script) -> None:
    draw = random.Random(0)
    texts = ["4 h", "8 gpu-hours", "1e18 flops", "3 TFLOP", "2 kWh", "10 usd", "4.6B tokens", "1_000 s", ".5 min", "7",
             "2 executed flops", "1 P executed flops", "9 device_seconds", "3 days", "16tflop", "5 wh", "1.", "12 $",
             "", "x", "-3", "0", "1e999", "4 parsecs", "3 gpu-s", "2 tokenss", "1e3e3", "0x10", "3 h h"]  # fmt: skip
    found = script(f'"[" + {json.dumps(texts)}.map((t) => attempt(() => parseAmount(t, "joules"))).join() + "]"')
    for text, one in zip(texts, found, strict=True):
        try:
            amount, unit = parse_amount(text, "joules")
        except CallerError:
            assert "error" in one, text
        else:
            assert one.get("made") == {"amount": amount, "unit": unit}, text
    counts = ["8192", "0.3M", "2.6B tokens", "1_000 token", "1.5", "3 apples", "9007199254740993", "2.5k"]
    for text, one in zip(
        counts, script(f'"[" + {json.dumps(counts)}.map((t) => attempt(() => parseCount(t))).join() + "]"'), strict=True
    ):
        try:
            assert one.get("made") == str(parse_count(text)), text
        except CallerError:
            assert "error" in one, text
    # Exact halves are where two languages round apart: 1.125, 12.25, 0.5.
    values = [1.125e12, 1.375e12, 12.25, 12.75, 0.5, 2.5, 59.95, 3599.9, 172800.0, 999.4999, 999.5, 9.995e8, 1e-3, 0.0]
    values += [10 ** draw.uniform(-4, 27) for _ in range(400)] + [draw.randrange(10**6) / 64 for _ in range(400)]
    for unit in BUDGET_UNITS:
        expression = f'JSON.stringify({json.dumps(values)}.map((v) => formatAmount(v, "{unit}")))'
        assert script(expression) == [format_amount(value, unit) for value in values]
