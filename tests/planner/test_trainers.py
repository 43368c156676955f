"""What a plan says to other trainers: what they take, what they lack, and TRL itself where it is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.planner import plan, trainer_arguments
from budgetlab.profiler import profile
from budgetlab.strategies import build_strategy
from budgetlab.studies import load_study
from budgetlab.values import Plan, StrategySpec


@pytest.fixture(scope="module")
def made() -> Plan:
    study = load_study("presets/causal_demo.toml")
    return plan(study, profile(study, count_only=True))


def with_strategy(made: Plan, **settings: Any) -> Plan:
    arm = made.arms["kd"].model_copy(update={"strategy": StrategySpec.model_validate(settings)})
    return made.model_copy(update={"arms": {**made.arms, "kd": arm}})


REFUSED = [
    ("trl", {"name": "kd", "alpha": 0.5}, "no alpha = 0.5; it has no_kd, kd"),
    ("trl", {"name": "jsd", "temperature": 2.0}, "no temperature = 2.0"),
    ("trl", {"name": "kd", "divergence": "jeffreys"}, "no divergence = 'jeffreys'"),
    ("trl", {"name": "skew"}, "it has no skew; it has no_kd, kd"),
    ("distillkit", {"name": "jsd"}, "it has no jsd; it has kd"),
    ("megatron", {"name": "kd", "temperature": 2.0}, "no temperature = 2.0"),
    ("megatron", {"name": "tinybert"}, "it has no tinybert"),
    ("tlr", {"name": "kd"}, "did you mean trl"),
]


@pytest.mark.parametrize(("trainer", "strategy", "told"), REFUSED)
def test_what_a_trainer_lacks_is_refused_in_one_line(made: Plan, trainer: str, strategy: Any, told: str) -> None:
    with pytest.raises(CallerError) as caught:
        trainer_arguments(with_strategy(made, **strategy), "kd", trainer)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_masked_models_are_for_transformers_alone(capsys: pytest.CaptureFixture) -> None:
    study = load_study("presets/demo.toml")
    masked = plan(study, profile(study, count_only=True))
    for trainer in ("trl", "distillkit", "megatron"):
        with pytest.raises(CallerError, match="causal models alone"):
            trainer_arguments(masked, "no_kd", trainer)


def test_each_trainer_gets_the_steps_and_the_loss(made: Plan) -> None:
    top = max((s for s in made.schedules if s.arm == "kd"), key=lambda s: s.rung)
    megatron = trainer_arguments(made, "kd", "megatron")
    told = megatron["arguments"]
    assert (told["train-iters"], told["lr-wsd-decay-iters"]) == (top.steps, top.cooldown_steps)
    assert told["global-batch-size"] * told["seq-length"] * told["train-iters"] == top.tokens
    assert (told["num-query-groups"], told["kv-channels"], told["ffn-hidden-size"]) == (2, 16, 172)
    assert "untie-embeddings-and-output-weights" not in told
    assert megatron["distillation"]["kd_loss_alpha"] == 0.5
    alone = trainer_arguments(made, "no_kd", "megatron")
    assert set(alone) == {"arguments"} and "export-kd-teacher-load" not in alone["arguments"]
    hidden = made.model_copy(update={"models": {**made.models, "teacher": made.models["student"]}})
    (pair,) = trainer_arguments(hidden, "hidden", "megatron")["distillation"]["intermediate_layer_pairs"]
    assert pair[2] == "cosine"
    kit = trainer_arguments(made, "kd", "distillkit")
    assert [(loss["function"], loss["weight"]) for loss in kit["loss_functions"]] == [
        ("cross_entropy", 0.5),
        ("kl", 0.5),
    ]
    assert kit["training_args"]["max_steps"] == top.steps and kit["sequence_length"] == 64
    assert "causal_demo_teacher" in kit["teacher"]["path"]
    trl = trainer_arguments(with_strategy(made, name="kd", divergence="reverse"), "kd", "trl")
    assert (trl["beta"], trl["lmbda"], trl["max_steps"]) == (1.0, 0.0, top.steps)
    assert "beta" not in trainer_arguments(made, "no_kd", "trl")


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    order = ["plan", "presets/causal_demo.toml", "--results", str(tmp_path), "--budget", "0.2e12"]
    assert run_command([*order, "--export", "jsd", "--to", "trl"]) == 0
    assert json.loads(capsys.readouterr().out)["beta"] == 0.5
    assert run_command([*order, "--export", "kd", "--to", "trl"]) == 2
    assert "budgetlab: kd for TRL: it has no alpha = 0.5" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (pip install trl)")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "strategy",
    [{"name": "kd"}, {"name": "kd", "divergence": "reverse"}, {"name": "jsd", "beta": 0.3}, {"name": "no_kd"}],
    ids=["kd", "reverse", "jsd", "no_kd"],
)
def test_trl_takes_it_and_has_the_same_loss(made: Plan, strategy: dict[str, Any], tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    taught = strategy["name"] != "no_kd"
    found = trainer_arguments(with_strategy(made, **strategy), "kd", "trl")
    (tmp_path / "trl.json").write_text(json.dumps(found))
    config = GKDConfig if taught else trl.SFTConfig
    order = ["--config", str(tmp_path / "trl.json"), "--output_dir", str(tmp_path), "--max_steps", "10"]
    (arguments,) = trl.TrlParser((config,)).parse_args_and_config([*order, "--report_to", "none"])  # type: ignore[arg-type]
    assert arguments.per_device_train_batch_size * arguments.max_length == made.recipe.batch_tokens
    folder = made.models["teacher"].weights or ""
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    teacher.config.num_hidden_layers = 2
    student = AutoModelForCausalLM.from_config(teacher.config)
    ids = torch.randint(5, student.config.vocab_size, (32, 64), generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict({"input_ids": ids.tolist()})

    def collate(batch: Any) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}

    shared = {"args": arguments, "train_dataset": rows, "processing_class": AutoTokenizer.from_pretrained(folder)}
    if not taught:
        trainer = trl.SFTTrainer(student, **shared)
        assert trainer.train().global_step == 10
        return
    trainer = GKDTrainer(student, teacher, data_collator=collate, **shared)
    batch = collate([{"input_ids": row} for row in ids[:4].tolist()])
    theirs = trainer.compute_loss(student.eval(), batch)
    with torch.no_grad():
        logits = [model(ids[:4]).logits[:, :-1].flatten(0, 1) for model in (teacher, student)]
    ours = build_strategy(StrategySpec.model_validate(strategy)).compare(*logits)
    torch.testing.assert_close(theirs.detach(), ours)
    assert trainer.train().global_step == 10
