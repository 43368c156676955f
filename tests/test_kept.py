"""What is kept of a teacher: written and read back, unbiased where it is drawn, the same loss as a live teacher's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import write_small_study

import budgetlab.step
from budgetlab.batches import Batches, MaskedBatch
from budgetlab.errors import CallerError
from budgetlab.step import TrainingStep, build_step, to_device
from budgetlab.strategies import build_strategy
from budgetlab.strategies.caching import keeps_all_positions
from budgetlab.studies import load_study
from budgetlab.values import Arm, Kept, ModelSpec, Recipe, Sampled, Signals, SpecialIds, StrategySpec, TopK, TopP

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
TAILS = ("renormalise", "zero", "uniform", "other")
KINDS: list[Kept] = [*(TopK(k=6, tail=tail) for tail in TAILS), TopK(k=6, values="bf16", tail="other"),
                     TopP(p=0.6), TopP(p=0.6, k=4, tail="other"), Sampled(draws=12)]  # fmt: skip


def draw(rows: int, words: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 3 * torch.randn(rows, words, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniforms(kind: Kept, rows: int, seed: int = 1) -> torch.Tensor | None:
    made = torch.rand(rows, kind.uniforms, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made if kind.uniforms else None


@pytest.mark.parametrize("words", [13, 8192, 65_536, 131_073, 262_144])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_written_is_what_is_read(kind: Kept, words: int) -> None:
    values, ids = (found.numpy() for found in kind.entries(draw(5, words), uniforms(kind, 5)))
    packed, sizes = kind.encode(values, ids, words)
    back, back_ids = kind.decode(packed, sizes)
    most = back.shape[1]
    np.testing.assert_allclose(back, values[:, :most], rtol=1e-6)
    np.testing.assert_array_equal(back_ids, ids[:, :most])
    assert np.isneginf(values[:, most:]).all() and ids.max() < words
    assert packed.size <= 5 * kind.bytes_per_token(words, 1.0)
    assert kind.entry_bytes(words) == {13: 3, 8192: 4, 65_536: 4, 131_073: 5, 262_144: 5}[words] or kind.uniforms


def test_draws_are_unbiased_in_distribution_and_gradient() -> None:
    kind, teacher = Sampled(draws=12), draw(3, 17)
    student = draw(3, 17, seed=5).requires_grad_()
    many = 4000
    rows = teacher.repeat_interleave(many, 0)
    entries = kind.entries(rows, uniforms(kind, len(rows)))
    chances = kind.logits(entries, rows).softmax(-1).reshape(3, many, 17)
    expected = teacher.softmax(-1)
    error = (expected * (1 - expected) / (kind.draws * many)).sqrt()
    assert ((chances.mean(1) - expected).abs() <= 4.5 * error + 1e-6).all()

    def gradient(theirs: torch.Tensor) -> torch.Tensor:
        wide = student if len(theirs) == 3 else student.repeat_interleave(many, 0)
        loss = build_strategy(StrategySpec(name="kd")).compare(theirs, wide)  # type: ignore[attr-defined]
        return torch.autograd.grad(loss, student)[0]

    difference = gradient(kind.logits(entries, rows)) - gradient(teacher)
    assert (difference.abs() <= (4.5 * error + 1e-6) / 3).all()  # a mean over three rows


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_tails_are_what_they_say(temperature: float) -> None:
    teacher, k = draw(4, 11), 3
    student = draw(4, 11, seed=5).requires_grad_()
    p, log_q = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    top, ids = p.topk(k, -1)
    mass, q = top.sum(-1), log_q.exp()
    ours = log_q.gather(-1, ids)
    kept_only = torch.zeros_like(p).scatter(-1, ids, top)
    rest_q = (1 - ours.exp().sum(-1)).log()
    expected = {
        "renormalise": (top / mass[:, None] * ((top / mass[:, None]).log() - ours)).sum(-1).mean(),
        "other": ((top * (top.log() - ours)).sum(-1) + (1 - mass) * ((1 - mass).log() - rest_q)).mean(),
    }
    spread = kept_only + torch.where(kept_only > 0, 0.0, ((1 - mass) / (11 - k))[:, None])
    expected["uniform"] = (spread * (spread.log() - log_q)).sum(-1).mean()
    for tail in TAILS:
        kind = TopK(k=k, tail=tail)
        theirs = kind.logits(kind.entries(teacher / kind.kept_at(temperature)), student.detach(), temperature)
        made = build_strategy(StrategySpec.model_validate({"name": "kd", "temperature": temperature}))
        loss = made.compare(theirs, student) / temperature**2  # type: ignore[attr-defined]
        found = torch.autograd.grad(loss, student)[0]
        if tail == "zero":
            torch.testing.assert_close(found, (mass[:, None] * q - kept_only) / 4 / temperature, rtol=2e-3, atol=2e-4)
            continue
        torch.testing.assert_close(loss, expected[tail], rtol=2e-3, atol=2e-3)
        theirs_gradient = torch.autograd.grad(expected[tail], student, retain_graph=True)[0]
        torch.testing.assert_close(found, theirs_gradient, rtol=5e-3, atol=3e-4)


STRATEGIES: list[dict[str, Any]] = [
    {"name": "kd", "alpha": 0.5, "temperature": 2.0},
    {"name": "kd", "divergence": "reverse"},
    {"name": "kd", "divergence": "jeffreys"},
    {"name": "jsd", "beta": 0.3},
    {"name": "skew"},
    {"name": "skew", "direction": "reverse"},
    {"name": "vanilla_kd"},
    {"name": "vanilla_kd", "positions": "all", "divergence": "kl"},
    {"name": "distilbert", "cosine_weight": 0},
]


def made_step(strategy: dict[str, Any], causal: bool, kept: Kept) -> tuple[TrainingStep, MaskedBatch]:
    family = {"family": "llama"} if causal else {}
    shape = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "vocab_size": 101}
    student, teacher = (ModelSpec.model_validate({**family, **shape, "num_layers": n}) for n in (1, 2))
    recipe = Recipe(seq_len=16, batch_tokens=64, dtype="float32", attention="sdpa",
                    mask_fraction=1 if causal else 0.15)  # fmt: skip
    built = build_strategy(StrategySpec.model_validate(strategy))
    step = build_step("arm", built, student, teacher, recipe, seed=0, device="cpu", kept=kept)
    stream = np.random.default_rng(0).integers(5, 101, size=2000).astype(np.uint16)
    how = {"seq_len": 16, "masked_per_sequence": recipe.masked_per_sequence, "run_seed": 0, "causal": causal}
    return step, Batches(stream, SPECIAL, 101, **how).step(0, 4)


def loss_and_gradients(step: TrainingStep, batch: MaskedBatch, split: int | None = None) -> dict[str, torch.Tensor]:
    found = {}
    for part, share in batch.split(split):
        terms = step.forward_backward(to_device(part, step.device), share)
        found = {name: found.get(name, 0) + share * term for name, term in terms.items()}
    found |= {name: p.grad.clone() for name, p in step.trained.items() if p.grad is not None}
    for parameter in step.trained.values():
        parameter.grad = None
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True], ids=["masked", "causal"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_cached_batch_is_a_live_teacher_reduced_alike(
    strategy: dict[str, Any], causal: bool, kind: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_strategy(StrategySpec.model_validate(strategy))
    if (kind.uniforms and built.in_teacher != "linear") or (kind.leaves_none and built.in_teacher == "unbounded"):
        return  # refused
    step, batch = made_step(strategy, causal, kind)
    live = to_device(batch, step.device)
    bare = build_step("arm", built, step.student.spec, step.teacher, step.recipe, seed=0, device="cpu")
    logits = bare.teacher_forward(live)
    assert logits is not None and logits.logits is not None
    drawn = uniforms(kind, len(logits.logits))
    values, ids = kind.entries(logits.logits / kind.kept_at(step.temperature), drawn)
    read = kind.decode(*kind.encode(values.numpy(), ids.numpy(), 101))
    cached = replace(batch, kept=read)
    found = loss_and_gradients(step, cached)
    if not kind.uniforms:
        same(found, loss_and_gradients(step, batch))
    ours = bare.student_forward(live)
    assert ours.logits is not None
    reduced = Signals(logits=kind.logits((values, ids), ours.logits.detach(), step.temperature))
    expected = bare.loss(live, ours, reduced)
    same({name: found[name] for name in expected}, {name: term.detach() for name, term in expected.items()})
    same(found, loss_and_gradients(step, cached, split=2))  # micro-batches
    monkeypatch.setattr(budgetlab.step, "LOGITS_AT_ONCE", 101 * 3)  # the head a few rows at a time
    same(found, loss_and_gradients(step, cached))


def test_all_positions_are_kept_where_masks_do_not_matter() -> None:
    masked, causal = (Recipe(seq_len=16, batch_tokens=64, mask_fraction=share) for share in (0.15, 1))
    spec = ModelSpec(num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8)
    for recipe, strategy, reads, expected in (
        (masked, {"name": "kd"}, "masked", False),
        (masked, {"name": "kd"}, "unmasked", True),
        (masked, {"name": "vanilla_kd", "positions": "all"}, "masked", True),
        (causal, {"name": "kd"}, "masked", False),  # whose targets are all positions
    ):
        given = StrategySpec.model_validate(strategy)
        arm = Arm.model_validate({"name": "a", "strategy": given, "student": "s", "recipe": recipe,
                                  "teacher_reads": reads})  # fmt: skip
        assert keeps_all_positions(arm, build_strategy(given), spec, spec) == expected


ARM = '\n[arms.kd]\nstrategy = {strategy}\nstudent = "student"\nteacher = "teacher"\n{more}\n'


@pytest.mark.parametrize(
    ("strategy", "more", "masking", "message"),
    [
        ('"kd"', 'cache = { kind = "top_k", k = 201 }', "static", "k = 201: the vocabulary has 200 entries"),
        ('"kd"', 'cache = { kind = "top_k", k = 8 }', "dynamic", "masks are drawn anew in every pass.*teacher_reads"),
        ('"kd"', 'cache = { kind = "top_q" }', "static", "no kind 'top_q' of cache; known: top_k, top_p, sampled"),
        ('"kd"', 'cache = { kind = "top_k", n = 8 }', "static", "top_k: n: Extra inputs.*it takes tail, values, k"),
        ('"kd"', 'cache = { kind = "sampled", tail = "zero" }', "static", "what was not drawn has no probability"),
        ('"kd"', 'cache = "always"', "static", "cache"),
        ('{ name = "jsd" }', 'cache = { kind = "sampled" }', "static", "draws are unbiased only where"),
        ('{ name = "kd", divergence = "reverse" }', 'cache = { kind = "top_k", k = 8 }', "static", "loss is infinite"),
        ('"hidden"', 'cache = { kind = "top_k", k = 8 }', "static", "hidden reads more of the teacher than its logits"),
        ('"minilm"', 'cache = "auto"', "static", "minilm reads no logits of the teacher"),
        ('{ name = "vanilla_kd", top_k = 8 }', 'cache = { kind = "top_k" }', "static", "a top_k of its own"),
        (
            '"kd"',
            'cache = { kind = "top_k", k = 8 }\nrecipe = { execute = "everything" }',
            "static",
            "asks the teacher",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, strategy: str, more: str, masking: str, message: str) -> None:
    path = write_small_study(tmp_path, ARM.format(strategy=strategy, more=more), arms=("no_kd",))
    path.write_text(path.read_text().replace("[corpus]\n", f'[corpus]\nmasking = "{masking}"\nunique_tokens = 1000\n'))
    with pytest.raises(CallerError, match=message):
        load_study(path)


def test_an_arm_without_a_cache_is_written_as_before(tmp_path: Path) -> None:
    study = load_study(write_small_study(tmp_path, arms=("no_kd", "vanilla_kd")))
    assert "cache" not in study.arms["vanilla_kd"].model_dump() and study.arms["vanilla_kd"].kept is None
