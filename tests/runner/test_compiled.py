"""Compiled steps: the same training, resumed to the bit, compiling metered apart."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.models import Network, build_network
from budgetlab.profiler import profile
from budgetlab.profiler.arms import Job
from budgetlab.profiler.clock import QUICK, time_compiled
from budgetlab.runner import run
from budgetlab.step import TrainingStep, build_step
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study
from budgetlab.values import ModelSpec, Needs, Plan, Recipe, StrategySpec


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Trace for real, and leave out the minutes in which a C++ compiler makes kernels."""
    compile_it, seen = Network.compile, []

    def traced(self: Network, **how: object) -> None:
        seen.append(self)
        compile_it(self, backend="aot_eager", fullgraph=True, **how)

    monkeypatch.setattr(Network, "compile", traced)
    yield seen
    torch._dynamo.reset()


def test_a_compiled_run_is_the_same_training_resumed_to_the_bit(
    made: Plan, corpus: Corpus, tmp_path: Path, traced_only: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its teacher is compiled as well; that every other arm is too has a test of its own. Each unit is traced anew.
    longest = tuple(s for s in made.schedules if s.arm == "tinybert")[-1:]
    alone = made.model_copy(update={"arms": {"tinybert": made.arms["tinybert"]}, "seeds": (0,)})
    alone = alone.model_copy(update={"ladder": "separate", "schedules": longest})
    compiled = alone.model_copy(update={"compiled": True})
    said: list[str] = []
    records = run(compiled, corpus, Store(tmp_path / "whole", "small"), say=said.append)
    whole = {record.run_id: record for record in records}
    assert any(line.startswith("torch.compile is used:") for line in said)
    plain = {record.run_id: record for record in run(alone, corpus, Store(tmp_path / "plain", "small"))}
    assert traced_only and all(record.overhead_seconds["compile"] > 0 for record in whole.values())
    for run_id, record in whole.items():
        other = plain[run_id]
        assert (record.status, record.required_flops) == ("complete", other.required_flops)
        assert record.samples_digest == other.samples_digest
        for mine, its in zip(record.points, other.points, strict=True):
            assert mine.losses == pytest.approx(its.losses, rel=1e-3)

    take, left = TrainingStep.run, iter(range(50))

    def one_step(self: TrainingStep, *args: object, **kwargs: object) -> object:
        if next(left, None) == 49:
            raise KeyboardInterrupt
        return take(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingStep, "run", one_step)
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_EVERY_SECONDS", 0.0)
    store = Store(tmp_path / "stopped", "small")
    with pytest.raises(KeyboardInterrupt):
        run(compiled, corpus, store)
    run(compiled, corpus, store)
    ended = {record.run_id: record.state_hash for record in store.records()}
    assert ended == {run_id: record.state_hash for run_id, record in whole.items()}


def test_compiling_is_measured_only_where_asked(study: Study) -> None:
    arms = {"no_kd": study.arms["no_kd"]}
    always = study.execution.model_copy(update={"compile": "always"})
    found = profile(study.model_copy(update={"arms": arms, "execution": always}), depth="quick")
    cost = found.arms[0].compiled
    assert cost is not None and cost.seconds_ratio.value > 0 and cost.seconds_ratio.interval is not None
    assert cost.compile_seconds > 0
    left_alone = profile(study.model_copy(update={"arms": arms}), depth="quick")
    assert left_alone.arms[0].compiled is None


def test_what_cannot_be_compiled_is_one_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Network, **how: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no C++ compiler\nwas found")

        self._compiled_call_impl = fail

    monkeypatch.setattr(Network, "compile", broken)
    arm = study.arms["no_kd"]
    job = Job("no_kd", arm.strategy, study.models["student"], None, study.recipe)
    with pytest.raises(
        CallerError, match=r"torch.compile of no_kd: no C\+\+ compiler was found; set execution.compile"
    ):
        time_compiled(job, torch.device("cpu"), QUICK, None)


TINY = ModelSpec(num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8, vocab_size=50)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What was traced, and is run as it was traced."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        found.append(graph)
        return graph.forward

    compile_it = torch.compile

    def traced(model: object, *, dynamic: bool | None = None, **_: object) -> object:
        return compile_it(model, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", traced)
    with torch._dynamo.config.patch(recompile_limit=2):
        yield found


def test_every_arm_is_compiled_however_many_there_are(graphs: list[torch.fx.GraphModule]) -> None:
    recipe = Recipe(seq_len=8, batch_tokens=32, dtype="float32", attention="sdpa")
    teacher = build_network(TINY, seed=0, seq_len=8, attention="sdpa", device="cpu")
    batch = Job("kd", StrategySpec(name="vanilla_kd"), TINY, TINY, recipe).batch()
    arms = torch._dynamo.config.recompile_limit + 2
    for number in range(arms):
        strategy = build_strategy(StrategySpec(name="vanilla_kd"), "kd")
        step = build_step("kd", strategy, TINY, teacher, recipe, seed=number, device="cpu", compiled=True)
        step.warm_up(batch, None)
        step.run(batch, 1e-4)
        assert len(graphs) == 2 * (number + 1)  # student and teacher; what finds the gradients is not compiled


def test_a_network_that_torch_would_run_uncompiled_is_an_error(graphs: list[torch.fx.GraphModule]) -> None:
    network = build_network(TINY, seed=0, seq_len=8, attention="sdpa", device="cpu")
    network.compile(dynamic=False)
    limit = torch._dynamo.config.recompile_limit

    def call(sequences: int) -> None:
        network(torch.zeros((sequences, 8), dtype=torch.long), Needs(logits="masked"), torch.tensor([1]))

    for sequences in range(1, limit + 1):
        call(sequences)
    assert len(graphs) == limit
    with pytest.raises(BudgetlabError, match=f"more than {limit} graphs, and would run uncompiled"):
        call(limit + 1)


def test_once_warm_no_step_compiles_again(graphs: list[torch.fx.GraphModule]) -> None:
    recipe = Recipe(seq_len=8, batch_tokens=40, dtype="float32", attention="sdpa")
    job = Job("no_kd", StrategySpec(name="no_kd"), TINY, None, recipe)
    step, batch = job.build("cpu", compiled=True), job.batch()
    step.warm_up(batch, 2)  # of two sequences, and of the one that is left
    assert len(graphs) == 2
    step.run(batch, 1e-4, micro_batch_sequences=2)
    with pytest.raises(BudgetlabError, match="a step would compile it again"):
        step.run(batch, 1e-4, micro_batch_sequences=3)
