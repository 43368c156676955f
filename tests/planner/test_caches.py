"""Caches in a plan: who reads them, what each reader pays, and when one is made."""

import math
from pathlib import Path
from typing import Any

import pytest
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import checked, plan
from budgetlab.planner.prices import step_price
from budgetlab.profiler import profile
from budgetlab.studies import Study, load_study
from budgetlab.values import CostProfile, Plan, TopK

ARM = """
[arms.{name}]
strategy = {{ name = "kd", temperature = {t} }}
student = "student"
teacher = "teacher"
{more}
"""
KEPT = 'cache = { kind = "top_k", k = 8 }'


def write(folder: Path, arms: dict[str, str], corpus: str = 'masking = "static"') -> Path:
    extra = "".join(
        ARM.format(name=name, t=1 if "auto" in more else 1 + number, more=more)
        for number, (name, more) in enumerate(arms.items())
    )
    path = write_small_study(folder, extra, arms=("no_kd",))
    path.write_text(path.read_text().replace("[corpus]\n", f"[corpus]\n{corpus}\n"))
    return path


def planned(folder: Path, arms: dict[str, str], corpus: str = 'masking = "static"', **how: Any) -> Plan:
    study, prices = priced(folder, arms, corpus)
    return plan(study, prices, teacher_charge="cache", **how)


def priced(folder: Path, arms: dict[str, str], corpus: str = 'masking = "static"') -> tuple[Study, CostProfile]:
    study = load_study(write(folder, arms, corpus))
    return study, profile(study, count_only=True)


def test_readers_share_the_cost_of_what_they_read_together(tmp_path: Path) -> None:
    study, prices = priced(tmp_path, {"one": KEPT, "two": KEPT, "live": ""})
    made = plan(study, prices, teacher_charge="cache")
    (cache,) = made.caches
    assert cache.arms == ("one", "two") and cache.kept == TopK(k=8) and cache.made and cache.copies == 2
    assert cache.readers == 2  # at one budget, and masks are a seed's own
    assert cache.bytes_per_token == 8 * 3 * 2 / 16  # two masks of sixteen
    assert cache.bytes == cache.bytes_per_token * cache.tokens
    forward = made.costs["one"].phases["teacher_forward"].required_flops_per_token
    assert cache.required_flops == pytest.approx(forward * cache.tokens)
    top = max((s for s in made.schedules if s.arm == "one"), key=lambda s: s.rung)
    assert cache.tokens / cache.copies == top.tokens  # less than a pass: what it reads
    for schedule in made.schedules:
        cost = made.costs[schedule.arm]
        if schedule.arm in cache.arms:
            # What is billed to all of them is what it costs.
            assert schedule.taught_tokens == math.ceil(schedule.tokens / cache.readers)
            own = cost.train_required_flops_per_token - forward
            assert schedule.required_flops == pytest.approx(own * schedule.tokens + forward * schedule.taught_tokens)
        elif schedule.arm == "live":
            assert schedule.taught_tokens is None
    assert top.tokens == cache.tokens_cached["one"] > cache.tokens_live["one"]
    live = max((s for s in made.schedules if s.arm == "live"), key=lambda s: s.rung)
    assert cache.tokens_live["one"] == live.tokens
    assert cache.break_even_readers == pytest.approx(cache.tokens / cache.copies / live.tokens)
    assert checked(made) == made
    assert step_price(study.execution, made.costs["one"], "required_flops", "cache") == step_price(
        study.execution, made.costs["one"], "required_flops"
    )
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made and again.units() == made.units()
    for unit in made.units():
        if unit.schedule is not None and unit.kind != "trial":
            assert unit._flops(unit.last_step) == pytest.approx(unit.schedule.required_flops)


@pytest.mark.parametrize(
    ("corpus", "more", "copies", "readers"),
    [
        ('masking = "static"\nunique_tokens = 1000', KEPT, 2, 4),
        ('masking = "dynamic"\nunique_tokens = 1000', f'{KEPT}\nteacher_reads = "unmasked"', 1, 8),
        ('masking = "dynamic"', f'{KEPT}\nteacher_reads = "unmasked"', 2, 2),  # each seed reads other text
    ],
)
def test_seeds_share_what_has_no_masks_and_is_read_whole(
    tmp_path: Path, corpus: str, more: str, copies: int, readers: int
) -> None:
    made = planned(tmp_path, {"one": more, "two": more}, corpus)
    (cache,) = made.caches
    assert (cache.copies, cache.readers) == (copies, readers)
    if "1000" in corpus:
        assert cache.sequences == 62 and cache.tokens == 992 * copies
        assert {s.taught_tokens for s in made.schedules if s.arm != "no_kd"} == {math.ceil(992 / readers)}
    if "unmasked" in more:
        assert cache.bytes_per_token == 8 * 3 and any("reads the words to be guessed" in line for line in made.audit)


@pytest.mark.parametrize(
    ("corpus", "arms", "pays", "reason"),
    [
        ('masking = "static"\nunique_tokens = 1000', 1, True, "2 runs read each copy"),
        ('masking = "static"', 2, True, "2 runs read each copy"),
        ('masking = "dynamic"', 2, False, "masks are drawn anew in every pass"),
    ],
)
def test_auto_is_decided_by_what_pays(tmp_path: Path, corpus: str, arms: int, pays: bool, reason: str) -> None:
    made = planned(tmp_path, {f"arm{i}": 'cache = "auto"' for i in range(arms)}, corpus)
    assert {cache.made for cache in made.caches} == {pays} and {cache.reason for cache in made.caches} == {reason}
    assert all((s.taught_tokens is not None) == (pays and s.arm != "no_kd") for s in made.schedules)


def test_one_run_that_reads_once_makes_none(tmp_path: Path) -> None:
    (cache,) = planned(tmp_path, {"arm": 'cache = "auto"'}, budgets=("3e9",)).caches
    assert not cache.made and cache.reason == "one run reads it, and once" and cache.break_even_readers >= 1


def test_other_charges_bill_the_first_pass(tmp_path: Path) -> None:
    study, prices = priced(tmp_path, {"one": KEPT}, 'masking = "static"\nunique_tokens = 1000')
    alone = plan(study, prices)
    assert {s.taught_tokens for s in alone.schedules if s.arm == "one"} == {992}
    unknown = study.model_copy(update={"corpus": study.corpus.model_copy(update={"unique_tokens": None})})
    with pytest.raises(CallerError, match="how much text there is"):
        plan(unknown, prices)


def test_an_arm_that_is_added_changes_nobodys_tokens(tmp_path: Path) -> None:
    before = planned(tmp_path, {"one": KEPT, "two": KEPT})
    more = {"one": KEPT, "two": KEPT, "three": KEPT}
    after, fresh = planned(tmp_path, more, before=before), planned(tmp_path, more)
    assert after.caches[0].readers == 2 and fresh.caches[0].readers == 3
    assert [s for s in after.schedules if s.arm != "three"] == list(before.schedules)
    fewer = planned(tmp_path, more, before=before, budgets=("3e9",))
    assert fewer.caches[0].readers == 3
