"""FLOPs to the unit against closed forms and published figures; time with its interval."""

from pathlib import Path

import pytest
import torch
from loky import cpu_count
from small import write_small_study

from budgetlab.errors import BudgetlabError
from budgetlab.hardware.meters import StepTime
from budgetlab.profiler import profile, with_times
from budgetlab.profiler.arms import choices_of, jobs_of
from budgetlab.profiler.clock import Rounds, measure_packing
from budgetlab.profiler.count import agree, count_flops, count_head
from budgetlab.step import build_step
from budgetlab.strategies import build_strategy
from budgetlab.studies import load_study
from budgetlab.values import PHASES, ModelSpec, Recipe, StrategySpec


def spec(layers: int, width: int, heads: int) -> ModelSpec:
    return ModelSpec(
        num_layers=layers, hidden_size=width, num_heads=heads, intermediate_size=4 * width, vocab_size=30522
    )


PAIRS = {"6 x 768": (spec(6, 768, 12), spec(12, 768, 12)), "12 x 1024": (spec(12, 1024, 16), spec(24, 1024, 16))}


def prices(name: str, pair: str, **settings: object) -> dict[str, tuple[float, float]]:
    strategy = build_strategy(StrategySpec(name=name, **settings))  # type: ignore[arg-type]
    student, teacher = PAIRS[pair]
    recipe = Recipe(seq_len=128, batch_tokens=128, dtype="float32")
    step = build_step(
        name, strategy, student, teacher if strategy.uses_teacher else None, recipe, seed=0, device="meta"
    )
    return count_flops(step, 128, 19)


@pytest.mark.parametrize(
    ("name", "settings", "six", "twelve"),
    [
        ("no_kd", {}, 283.5, 953.9),
        ("vanilla_kd", {}, 465.3, 1580.2),
        ("tinybert", {"projection": "none"}, 436.5, 1541.4),
        ("tinybert", {}, 461.2, 1623.2),
        ("minilm", {}, 394.8, 1467.0),
    ],
)
def test_published_mflop_per_token_at_15_percent_masks(name: str, settings: dict, six: float, twelve: float) -> None:
    for pair, expected in (("6 x 768", six), ("12 x 1024", twelve)):
        found = prices(name, pair, **settings)
        total = sum(position + 0.15 * target for position, target in found.values())
        assert round(total / 1e6, 1) == expected


def test_no_kd_is_the_closed_form_to_the_unit() -> None:
    found = prices("no_kd", "6 x 768")
    width, length, vocab = 768, 128, 30522
    trunk, head = 6 * (24 * width**2 + 4 * length * width), 2 * width**2 + 2 * width * vocab
    assert found["student_forward"] == (trunk, head)
    assert found["backward"] == (2 * trunk, 2 * head)
    assert found["teacher_forward"] == found["loss"] == found["update"] == (0, 0)


def test_the_other_strategies_are_their_closed_forms_to_the_unit() -> None:
    width, length, vocab = 768, 128, 30522
    block, head = 24 * width**2 + 4 * length * width, 2 * width**2 + 2 * width * vocab
    # positions = "all": both heads everywhere, the teacher's forward only.
    every = prices("vanilla_kd", "6 x 768", positions="all")
    assert every == prices("distilbert", "6 x 768")
    assert every["student_forward"] == (6 * block + head, 0) and every["backward"] == (2 * (6 * block + head), 0)
    assert every["teacher_forward"] == (12 * block + head, 0)
    # minilm_v1: all blocks but the last, its Q, K, V, and the two relations; the teacher's once, the student's thrice.
    relations, projections = 4 * length * width, 6 * width**2
    cut = prices("minilm_v1", "6 x 768")
    assert cut["student_forward"] == (5 * block + projections, 0)
    assert cut["teacher_forward"] == (11 * block + projections, 0)
    assert cut["loss"] == (2 * relations, 0)
    assert cut["backward"] == (2 * (5 * block + projections + relations), 0)
    # tinybert: scores are those that the attention computes anyway.
    last = prices("tinybert", "6 x 768", variant="released_code")
    assert last["student_forward"] == (6 * block, 0) and last["teacher_forward"] == (12 * block, 0)
    assert last["loss"] == (0, 0) and last["backward"] == (12 * block, 0)


@pytest.mark.parametrize("family", ["roberta", "electra", "megatron-bert", "modernbert"])
def test_fvcore_agrees_for_every_family(family: str) -> None:
    def of(layers: int) -> ModelSpec:
        return spec(layers, 64, 4).model_copy(update={"family": family})

    recipe = Recipe(seq_len=32, batch_tokens=32, dtype="float32")
    for name in ("no_kd", "distilbert", *(("minilm", "tinybert") if of(2).taps_attention else ())):
        strategy = build_strategy(StrategySpec(name=name))
        step = build_step(
            name, strategy, of(2), of(4) if strategy.uses_teacher else None, recipe, seed=0, device="meta"
        )
        counted = count_flops(step, 32, 5)
        assert agree(step, counted, recipe) == {"closed form": "equal", "fvcore": "equal"}
        everywhere, at_targets = count_head(step.student, step.student_needs)
        assert (everywhere > 0, at_targets > 0) == tuple(step.student_needs.logits == n for n in ("all", "masked"))


def test_fvcore_agrees_and_a_wrong_count_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = spec(2, 64, 4), spec(4, 128, 4)
    recipe = Recipe(seq_len=32, batch_tokens=32, dtype="float32")
    for name in ("no_kd", "vanilla_kd", "minilm", "tinybert"):
        strategy = build_strategy(StrategySpec(name=name))
        step = build_step(
            name, strategy, student, teacher if strategy.uses_teacher else None, recipe, seed=0, device="meta"
        )
        required = count_flops(step, 32, 5)
        assert agree(step, required, recipe)["fvcore"] == "equal"
        position, target = required["student_forward"]
        wrong = {**required, "student_forward": (position * 1.001 + 1, target)}
        with pytest.raises(BudgetlabError, match="the closed form"):
            agree(step, wrong, recipe)
        with monkeypatch.context() as patch:  # fvcore alone sees it too
            patch.setattr("budgetlab.profiler.count.CLOSED_FORMS", {})
            with pytest.raises(BudgetlabError, match=r"torch counts .* FLOPs, fvcore"):
                agree(step, wrong, recipe)


@pytest.fixture(scope="module")
def small_profile(tmp_path_factory: pytest.TempPathFactory):
    return profile(load_study(write_small_study(tmp_path_factory.mktemp("study"))), steps=6)


def test_profile_of_a_small_study(small_profile) -> None:
    assert [cost.arm for cost in small_profile.arms] == ["no_kd", "vanilla_kd", "minilm", "tinybert"]
    assert [cost.arm for cost in small_profile.teachers] == ["teacher"]
    for cost in (*small_profile.arms, *small_profile.teachers):
        assert set(cost.phases) == set(PHASES)
        tokens, targets = 1280, round(1280 * cost.target_fraction)
        assert cost.required_flops(tokens, targets) == pytest.approx(1280 * cost.train_required_flops_per_token)
        assert cost.train_executed_flops_per_token >= cost.train_required_flops_per_token
        low, high = cost.seconds_per_step_interval
        assert 0 < low <= cost.seconds_per_step <= high
        assert cost.steps_timed == 6
        # Where the tests run, energy may be counted and memory may not: each has its source, or is unknown.
        assert (cost.joules_per_token is None) == (cost.joules_source is None)
        assert (cost.peak_memory_bytes is None) == (cost.memory_source is None)
        assert cost.agreement == {"closed form": "equal", "fvcore": "equal"}
        assert cost.cpu_seconds_per_step > 0 and cost.largest_micro_batch_sequences == 8


def test_everything_executes_more_than_is_required(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    path.write_text(path.read_text().replace("seq_len = 16", 'execute = "everything"\nseq_len = 16'))
    for cost in profile(load_study(path), count_only=True).arms:
        assert cost.train_executed_flops_per_token > 1.05 * cost.train_required_flops_per_token
        assert cost.seconds_per_step is None and cost.seconds_per_step_interval is None


def test_executed_counts_recomputed_attention_scores(small_profile) -> None:
    # The flash kernel recomputes QK' in its backward pass: 2 T D of each trained block, on top of the required work.
    no_kd = small_profile.arms[0]
    extra = no_kd.train_executed_flops_per_token - no_kd.train_required_flops_per_token
    assert extra == pytest.approx(2 * (2 * 16 * 32))


OWN = """
from torch.nn import functional
from budgetlab.strategies.base import Strategy
from budgetlab.strategies.losses import masked_lm
from budgetlab.values import Needs

class Own(Strategy):
    def student_needs(self, student, teacher):
        return Needs(logits="masked", hidden=(student.num_layers,))
    def teacher_needs(self, student, teacher):
        return Needs(hidden=(teacher.num_layers,))
    def projections(self, student, teacher):
        return {"up": (student.hidden_size, teacher.hidden_size)}
    def loss(self, batch, student, teacher, projections=None):
        (s,), (t,) = student.hidden.values(), teacher.hidden.values()
        s = projections["up"](s.float())
        return {"mlm": masked_lm(student.logits, batch.target_ids), "own": LOSS}
"""


def own_strategy(folder: Path, loss: str) -> Path:
    (folder / "own.py").write_text(OWN.replace("LOSS", loss))
    arm = f'[arms.own]\nstrategy = {{ name = "{folder / "own.py"}" }}\nstudent = "student"\nteacher = "teacher"\n'
    return write_small_study(folder, arm)


def test_a_users_loss_is_counted_even_where_no_form_is_stated(tmp_path: Path) -> None:
    path = own_strategy(tmp_path, "functional.mse_loss(s, t.float()) + functional.smooth_l1_loss(s, t.float())")
    cost = next(c for c in profile(load_study(path), count_only=True).arms if c.arm == "own")
    assert cost.phases["loss"].required_flops_per_token == 2 * 32 * 64
    assert cost.agreement["fvcore"] == "equal" and "torch's count alone" in cost.agreement["closed form"]


def test_a_loss_across_samples_is_refused_as_its_price_would_depend_on_the_batch(tmp_path: Path) -> None:
    path = own_strategy(tmp_path, "(s.flatten(0, 1) @ s.flatten(0, 1).T).square().mean()")
    with pytest.raises(BudgetlabError, match="its loss multiplies across samples"):
        profile(load_study(path), count_only=True)


def test_an_operator_that_may_be_heavy_is_named(tmp_path: Path) -> None:
    path = own_strategy(tmp_path, "__import__('torch').linalg.inv(s[0, :8, :8]).square().mean()")
    with pytest.raises(BudgetlabError, match=r"nobody counts .*aten\.linalg_inv_ex, which may be heavy"):
        profile(load_study(path), count_only=True)


def test_ratios_are_of_a_token_also_where_batches_differ(tmp_path: Path) -> None:
    larger = '\n[arms.larger]\nstrategy = "no_kd"\nstudent = "student"\nrecipe = { batch_tokens = 1024 }\n'
    found = profile(load_study(write_small_study(tmp_path, larger)), count_only=True)
    first, last = found.arms[0], found.arms[-1]
    assert (last.arm, last.batch_tokens) == ("larger", 8 * first.batch_tokens)
    # Rounds in which the larger batch takes four times as long, on a machine that slows down: half as long a token.
    times = {name: [StepTime({"backward": k * seconds}, {"backward": k * seconds}) for k in range(1, 8)]
             for name, seconds in (("no_kd", 1.0), ("larger", 4.0))}  # fmt: skip
    rounds = Rounds(times, {name: steps[0] for name, steps in times.items()})
    timed = with_times(last, rounds, first)
    assert timed.seconds_ratio.value == timed.cpu_seconds_ratio.value == 0.5
    assert timed.seconds_ratio.interval == (0.5, 0.5) and timed.seconds_per_step == 16.0
    assert with_times(first, rounds, first).seconds_ratio.value == 1.0


def test_an_arms_own_precision_stays(tmp_path: Path) -> None:
    other = '\n[arms.half]\nstrategy = "no_kd"\nstudent = "student"\nrecipe = { dtype = "bfloat16" }\n'
    found = profile(load_study(write_small_study(tmp_path, other)), count_only=True)
    assert {cost.arm: cost.dtype for cost in found.arms} == {
        "no_kd": "float32", "vanilla_kd": "float32", "minilm": "float32", "tinybert": "float32", "half": "bfloat16",
    }  # fmt: skip


def test_counting_leaves_nothing_behind_after_an_error(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    before = torch.nn.functional.linear
    with pytest.raises(BudgetlabError):
        profile(
            load_study(own_strategy(tmp_path, "__import__('torch').linalg.inv(s[0, :8, :8]).sum()")), count_only=True
        )
    assert torch.nn.functional.linear is before and _get_current_dispatch_mode() is None


def test_steps_of_several_processes_are_timed_side_by_side(tmp_path: Path) -> None:
    study = load_study(write_small_study(tmp_path))
    job = jobs_of(study)[0].settled(*choices_of(study, torch.device("cpu"))[0])
    said: list[str] = []
    found = measure_packing(job, study.execution, None, said.append, seconds=0.5)
    assert [packing.processes for packing in found[:1]] == [2] * (cpu_count() >= 2)
    assert all(packing.speed_ratio > 0 for packing in found)
    assert said == [f"timing {packing.processes} processes side by side" for packing in found]
    crowded = study.execution.model_copy(update={"threads": cpu_count()})
    assert measure_packing(job, crowded, None, said.append) == ()
