"""What every strategy must hold; one that is added to the folder is picked up on arrival."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from budgetlab.batches import Batches
from budgetlab.errors import CallerError
from budgetlab.step import TrainingStep, build_step, to_device
from budgetlab.strategies import Strategy, build_strategy, strategy_names
from budgetlab.values import Batch, ModelSpec, Recipe, SpecialIds, StrategySpec

STUDENT = ModelSpec(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=120)
TEACHER = ModelSpec(num_layers=4, hidden_size=64, num_heads=2, intermediate_size=128, vocab_size=120)
RECIPE = Recipe(seq_len=16, batch_tokens=128, dtype="float32", attention="sdpa")
NAMES = strategy_names()


def make(name: str, student: ModelSpec = STUDENT, recipe: Recipe = RECIPE, **settings: Any) -> TrainingStep:
    strategy = build_strategy(StrategySpec(name=name, **settings))
    return build_step(name, strategy, student, teacher_for(strategy, student), recipe, seed=0, device="cpu")


def teacher_for(strategy: Strategy, student: ModelSpec) -> ModelSpec | None:
    """A wider teacher, or one of the student's width for a strategy that cannot work with it."""
    if not strategy.uses_teacher:
        return None
    try:
        strategy.check(student, TEACHER)
        return TEACHER
    except CallerError:
        narrow = TEACHER.model_copy(update={"hidden_size": student.hidden_size})
        strategy.check(student, narrow)
        return narrow


def batches(seed: int = 0) -> Batches:
    # A second-order pattern, so that there is something to learn.
    draw = np.random.default_rng(0).integers(5, 30, size=4000)
    stream = np.stack([draw, draw + 30, draw + 60], axis=1).ravel().astype(np.uint16)
    special = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
    return Batches(stream, special, 120, seq_len=16, masked_per_sequence=2, run_seed=seed)


def gradients(step: TrainingStep, batch: Batch) -> dict[str, torch.Tensor]:
    step.forward_backward(batch)
    found = {name: parameter.grad.clone() for name, parameter in step.trained.items() if parameter.grad is not None}
    for parameter in step.trained.values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_float32_scalars_under_autocast(name: str) -> None:
    step = make(name, recipe=RECIPE.model_copy(update={"dtype": "bfloat16"}))
    batch = to_device(batches().step(0, 8), torch.device("cpu"))
    terms = step.loss(batch, step.student_forward(batch), step.teacher_forward(batch))
    assert terms and all(term.dtype == torch.float32 and term.ndim == 0 for term in terms.values())
    assert all(torch.isfinite(term) for term in terms.values())


class Waits(TorchDispatchMode):
    """Fails where the processor would wait for a GPU: for a number, for a shape, for a copy to or from it."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        given_shape = name == "repeat_interleave" and func._overloadname != "self_int"
        devices = {each.device for each in args if isinstance(each, torch.Tensor) and each.ndim}
        copied = name in ("_to_copy", "copy_") and len(devices | {kwargs.get("device") or next(iter(devices))}) > 1
        assert name not in self.NAMES and not (by_mask or given_shape or copied), f"{func} waits for the device"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(name: str) -> None:
    step = make(name, recipe=RECIPE.model_copy(update={"dtype": "bfloat16", "dropout": 0.1}))
    staged = [to_device(batches().step(number, 2), torch.device("cpu")) for number in range(50)]
    with Waits():
        for batch in staged:
            step.forward_backward(batch)
            step.update(1e-3)
        with pytest.raises(AssertionError, match="waits for the device"):
            staged[0].input_ids.sum().item()
    # Where there are shapes only, nothing can be read, and what is made elsewhere is seen to be copied.
    networks = step.strategy, STUDENT, teacher_for(step.strategy, STUDENT), step.recipe
    there = build_step(name, *networks, seed=0, device="meta", trained=step.trained)
    batch = to_device(batches().step(0, 2), torch.device("meta"))
    with Waits():
        there.forward_backward(batch)


@pytest.mark.parametrize("name", NAMES)
def test_everything_gives_the_loss_and_gradient_of_lean(name: str) -> None:
    batch = to_device(batches().step(0, 8), torch.device("cpu"))
    lean, full = make(name), make(name, recipe=RECIPE.model_copy(update={"execute": "everything"}))
    one, other = (step.forward_backward(batch) for step in (lean, full))
    assert one.keys() == other.keys()
    for term in one:
        torch.testing.assert_close(one[term], other[term], rtol=1e-5, atol=1e-7)
    assert lean.idle_parameters == full.idle_parameters
    for name_, gradient in lean.trained.items():
        torch.testing.assert_close(gradient.grad, full.trained[name_].grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_lean_attention_is_the_same_by_kernel_and_by_formula(name: str) -> None:
    batch = to_device(batches().step(0, 8), torch.device("cpu"))
    found = [
        make(name, recipe=RECIPE.model_copy(update={"attention": a})).forward_backward(batch) for a in ("sdpa", "eager")
    ]
    for term in found[0]:
        torch.testing.assert_close(found[0][term], found[1][term], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hidden"])  # whose terms are balanced in each
def test_micro_batches_add_up_to_one_large_batch(name: str) -> None:
    batch = batches().step(0, 8)
    weights = []
    for micro in (None, 3, 1):
        step = make(name)
        step.run(batch, 1e-2, micro_batch_sequences=micro)
        weights.append(
            {key: value.clone() for key, value in step.tensors().items() if not key.startswith("optimizer.step")}
        )
    for other in weights[1:]:
        for key, value in weights[0].items():
            torch.testing.assert_close(value, other[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_appended_padding_changes_nothing(name: str) -> None:
    step = make(name)
    batch = to_device(batches().step(0, 4), torch.device("cpu"))
    length = batch.input_ids.shape[1]
    padded = Batch(
        input_ids=torch.cat([batch.input_ids, torch.full((4, 5), 7)], dim=1),
        target_positions=batch.target_positions // length * (length + 5) + batch.target_positions % length,
        target_ids=batch.target_ids,
        attention_mask=torch.arange(length + 5).expand(4, -1) < length,
    )
    plain, with_pads = step.forward_backward(batch), step.forward_backward(padded)
    for term in plain:
        torch.testing.assert_close(plain[term], with_pads[term], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_it_lowers_its_own_loss(name: str) -> None:
    step, data = make(name), batches()
    means = []
    for start in (0, 60):
        losses = []
        for i in range(start, start + 20):
            terms = step.run(data.step(i, 8), 3e-3)
            losses.append(sum(float(value) for key, value in terms.items() if key != "gradient_norm"))
        means.append(np.mean(losses))
        for i in range(20, 60):
            step.run(data.step(i, 8), 3e-3)
    assert means[1] < 0.995 * means[0]  # of vanilla_kd most is the entropy of the untrained teacher


@pytest.mark.parametrize("name", NAMES)
def test_idle_parameters_stay_as_they_were_and_the_teacher_too(name: str) -> None:
    step = make(name)
    before = {key: value.clone() for key, value in step.student.named_parameters()}
    teacher = step.teacher_hash()
    for i in range(3):
        step.run(batches().step(i, 8), 1e-2)
    after = dict(step.student.named_parameters())
    idle = set(step.idle_parameters)
    assert {key for key in before if torch.equal(before[key], after[key])} == idle
    assert not any(key.startswith("optimizer.") and key.split(".", 2)[2] in idle for key in step.tensors())
    assert step.teacher_hash() == teacher
    if step.teacher is not None:
        assert not step.teacher.training and not any(p.requires_grad for p in step.teacher.parameters())


def test_which_parameters_are_idle() -> None:
    assert make("no_kd").idle_parameters == make("vanilla_kd").idle_parameters == ()
    last = "model.bert.encoder.layer.1."
    minilm = make("minilm").idle_parameters
    assert all(name.startswith((last, "model.cls.")) for name in minilm)
    kept = [f"{last}attention.self.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")]
    everything = [name for name, _ in make("minilm").student.named_parameters() if name.startswith(last)]
    assert set(everything) - set(minilm) == set(kept)
    names = [name for name, _ in make("tinybert").student.named_parameters()]
    head = [name for name in names if name.startswith("model.cls.")]
    assert head and list(make("tinybert").idle_parameters) == head
    assert make("tinybert", mlm_weight=0.5).idle_parameters == ()
    assert make("minilm_v1").idle_parameters == minilm
    assert make("distilbert").idle_parameters == ()
    assert set(minilm) < set(make("minilm", mlm_weight=1.0).trained)
    wide = STUDENT.model_copy(update={"hidden_size": 64})
    assert list(make("tinybert", student=wide, variant="released_code").idle_parameters) == head


def test_signs_are_the_terms_gradients_and_change_nothing() -> None:
    step, data = make("vanilla_kd"), batches().step(0, 4)
    step.run(data, 1e-3)
    before = {name: value.clone() for name, value in step.tensors().items()}
    found = step.signs(data)
    assert all(torch.equal(before[name], value) for name, value in step.tensors().items())
    assert all(parameter.grad is None for parameter in step.trained.values())
    batch = to_device(data, torch.device("cpu"))
    norms = {}
    for term in ("mlm", "soft"):
        terms = step.loss(batch, step.student_forward(batch), step.teacher_forward(batch))
        grads = torch.autograd.grad(terms[term], list(step.trained.values()), allow_unused=True)
        norms[term] = float(torch.cat([g.flatten() for g in grads if g is not None]).norm())
    for term, norm in norms.items():
        assert found[f"gradient_share.{term}"] == pytest.approx(norm / sum(norms.values()), rel=1e-4)
    # The reduction of the released code leaves next to nothing of the soft term (here V = 120).
    odds = [
        found["gradient_share.soft"] / found["gradient_share.mlm"]
        for found in (
            make("vanilla_kd", reduction=reduction).signs(data) for reduction in ("per_token", "released_code")
        )
    ]
    assert odds[1] == pytest.approx(odds[0] / 120, rel=1e-3)
    # With an eps above every gradient, all steps are eps's.
    assert make("no_kd", recipe=RECIPE.model_copy(update={"eps": 1e-20})).signs(data).get("below_eps_fraction") is None
    small = make("no_kd", recipe=RECIPE.model_copy(update={"eps": 1e3}))
    small.run(data, 1e-3)
    assert small.signs(data)["below_eps_fraction"] == 1.0


def test_a_teacher_with_other_words_is_refused() -> None:
    with pytest.raises(CallerError, match="vocabulary has 120 entries, the student's 121"):
        make("vanilla_kd", student=STUDENT.model_copy(update={"vocab_size": 121}))
    make("vanilla_kd", student=STUDENT.model_copy(update={"vocab_size": 128}))  # padded to a multiple of 64


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vanilla_kd", {"positions": "all"}),
    ("vanilla_kd", {"reduction": "released_code"}),
    ("distilbert", {"positions": "masked"}),
    ("distilbert", {"cosine_weight": 0.0}),
    ("minilm", {"relation_heads": 8, "mlm_weight": 1.0}),
    ("minilm_v1", {"mlm_weight": 1.0}),
    ("tinybert", {"layer_map": "last"}),
    ("tinybert", {"layer_map": (1, 4), "projection": "per_layer"}),
    ("tinybert", {"variant": "released_code"}),
    ("tinybert", {"inputs": "unmasked"}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_variant_is_lean_and_lowers_its_loss(name: str, settings: dict[str, Any]) -> None:
    batch = to_device(batches().step(0, 8), torch.device("cpu"))
    lean, full = (
        make(name, recipe=RECIPE.model_copy(update={"execute": how}), **settings) for how in ("lean", "everything")
    )
    one, other = (gradients(step, batch) for step in (lean, full))
    assert one.keys() == other.keys()
    for key, gradient in one.items():
        torch.testing.assert_close(gradient, other[key], rtol=1e-4, atol=1e-7)
    losses = []
    for i in range(40):
        terms = lean.run(batches().step(i, 8), 3e-3)
        losses.append(sum(float(value) for key, value in terms.items() if key != "gradient_norm"))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("name", ["minilm", "minilm_v1", "tinybert"])
def test_unmasked_inputs_are_the_words_themselves(name: str) -> None:
    data = batches().step(0, 8)
    batch = to_device(data, torch.device("cpu"))
    whole = batch.input_ids.flatten().clone()
    whole[batch.target_positions] = batch.target_ids
    words = Batch(input_ids=whole.view_as(batch.input_ids), target_positions=batch.target_positions,
                  target_ids=batch.target_ids)  # fmt: skip
    unmasked = make(name, inputs="unmasked").forward_backward(batch)
    assert unmasked == make(name).forward_backward(words)
    assert unmasked != make(name).forward_backward(batch)
    with pytest.raises(CallerError, match="would be read"):
        build_strategy(StrategySpec(name=name, inputs="unmasked", mlm_weight=1.0))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tinybert", {"layer_map": (1, 2, 3)}, "3 entries for a student of 2 layers"),
        ("tinybert", {"layer_map": (1, 5)}, "layers 1 to 4"),
        ("tinybert", {"projection": "none"}, "the widths differ: student 32, teacher 64"),
        ("tinybert", {"variant": "released_code"}, "the widths differ"),
        ("minilm", {"relation_heads": 5}, "does not divide the student's hidden_size 32"),
        ("minilm", {"teacher_layer": 5}, "layers 1 to 4"),
        ("minilm_v1", {"teacher_layer": -5}, "layers 1 to 4"),
        ("distilbert", {}, "the widths differ"),
    ],
)
def test_what_cannot_work_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        build_strategy(StrategySpec(name=name, **settings)).check(STUDENT, TEACHER)


@pytest.mark.parametrize("name", ["tinybert", "minilm_v1"])
def test_heads_that_differ_are_refused(name: str) -> None:
    four_heads = TEACHER.model_copy(update={"num_heads": 4})
    with pytest.raises(CallerError, match="head by head"):
        build_strategy(StrategySpec(name=name)).check(STUDENT, four_heads)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "megatron-bert", "modernbert"])
@pytest.mark.parametrize("name", ["no_kd", "vanilla_kd", "distilbert"])
def test_every_family_trains(family: str, name: str) -> None:
    student = STUDENT.model_copy(update={"family": family, "hidden_size": 64})
    strategy = build_strategy(StrategySpec(name=name))
    teacher = None if not strategy.uses_teacher else TEACHER.model_copy(update={"family": family})
    step = build_step(name, strategy, student, teacher, RECIPE, seed=0, device="cpu")
    losses = []
    for i in range(30):
        terms = step.run(batches().step(i, 8), 1e-3)
        losses.append(sum(float(value) for key, value in terms.items() if key != "gradient_norm"))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert step.idle_parameters == ()


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("name", ["minilm", "minilm_v1", "tinybert"])
def test_feature_strategies_train_every_tapped_family_in_half_precision(family: str, name: str) -> None:
    half = RECIPE.model_copy(update={"dtype": "bfloat16"})
    strategy = build_strategy(StrategySpec(name=name))
    pair = [spec.model_copy(update={"family": family}) for spec in (STUDENT, TEACHER)]
    step = build_step(name, strategy, pair[0], pair[1], half, seed=0, device="cpu")
    losses = []
    for i in range(30):
        terms = step.run(batches().step(i, 8), 3e-3)
        losses.append(sum(float(value) for key, value in terms.items() if key != "gradient_norm"))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_weight_of_zero_costs_nothing() -> None:
    narrow = TEACHER.model_copy(update={"hidden_size": 32})
    cosine = build_strategy(StrategySpec(name="distilbert", soft_weight=0, mlm_weight=0))
    assert cosine.student_needs(STUDENT, narrow).logits == cosine.teacher_needs(STUDENT, narrow).logits == "none"
    assert not cosine.trains_head
    words = build_strategy(StrategySpec(name="distilbert", soft_weight=0))
    assert words.student_needs(STUDENT, narrow).logits == "masked"
    assert make("distilbert", soft_weight=0, mlm_weight=0).idle_parameters
    with pytest.raises(CallerError, match="all weights are 0"):
        build_strategy(StrategySpec(name="distilbert", soft_weight=0, mlm_weight=0, cosine_weight=0))
    with pytest.raises(CallerError, match="greater than 0"):
        build_strategy(StrategySpec(name="vanilla_kd", soft_weight=0))
