"""Compiled steps: the same training, resumed to the bit, compiling metered apart."""

from pathlib import Path

import pytest
import torch
from torch import nn

from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.profiler import profile
from budgetlab.profiler.clock import QUICK, time_compiled
from budgetlab.runner import run
from budgetlab.runner.feed import Feed
from budgetlab.runner.training import Training
from budgetlab.store import Store
from budgetlab.studies import Study
from budgetlab.values import Plan


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Trace for real, and leave out the minutes in which a C++ compiler makes kernels."""
    compile_it, seen = nn.Module.compile, []

    def traced(self: nn.Module, **how: object) -> None:
        seen.append(self)
        compile_it(self, backend="aot_eager", fullgraph=True, **how)

    monkeypatch.setattr(nn.Module, "compile", traced)
    yield seen
    torch._dynamo.reset()


def test_a_compiled_run_is_the_same_training_resumed_to_the_bit(
    made: Plan, corpus: Corpus, tmp_path: Path, finished, traced_only: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {name: made.arms[name] for name in ("no_kd", "tinybert")}
    compiled = made.model_copy(update={"arms": arms, "seeds": (0,), "compiled": True})
    said: list[str] = []
    records = run(compiled, corpus, Store(tmp_path / "whole", "small"), say=said.append)
    whole = {record.run_id: record for record in records}
    assert any(line.startswith("torch.compile is used:") for line in said)
    plain = {record.run_id: record for record in finished[1]}
    assert traced_only and all(record.overhead_seconds["compile"] > 0 for record in whole.values())
    for run_id, record in whole.items():
        other = plain[run_id]
        assert (record.status, record.required_flops) == ("complete", other.required_flops)
        assert record.samples_digest == other.samples_digest
        for mine, its in zip(record.points, other.points, strict=True):
            assert mine.losses == pytest.approx(its.losses, rel=1e-3)

    take, left = Training._one_step, iter(range(50))

    def one_step(self: Training, feed: Feed) -> object:
        if next(left, None) == 49:
            raise KeyboardInterrupt
        return take(self, feed)

    monkeypatch.setattr(Training, "_one_step", one_step)
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
    left_alone = profile(study.model_copy(update={"arms": arms}), depth="quick")
    assert left_alone.arms[0].compiled is None


def test_what_cannot_be_compiled_is_one_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, **how: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no C++ compiler\nwas found")

        self._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", broken)
    arm = study.arms["no_kd"]
    job = ("no_kd", arm.strategy, study.models["student"], None, study.recipe)
    with pytest.raises(
        CallerError, match=r"torch.compile of no_kd: no C\+\+ compiler was found; set execution.compile"
    ):
        time_compiled(job, torch.device("cpu"), QUICK, None)
