"""A teacher whose answers are kept: the same loss, the teacher charged once, and nothing that is damaged is read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import write_small_study

from budgetlab.batches import Batches
from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.ranks import Ranks
from budgetlab.runner import run
from budgetlab.runner.teacher_cache import TeacherCache
from budgetlab.step import TrainingStep, build_step, to_device
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study, load_study
from budgetlab.values import Plan, Recipe, RunRecord, Schedule

CACHED = """
[arms.live]
strategy = { name = "vanilla_kd", top_k = 8 }
student = "student"
teacher = "teacher"

[arms.cached]
strategy = { name = "vanilla_kd", top_k = 8, cached = true }
student = "student"
teacher = "teacher"
"""


def with_static_masks(path: Path) -> Path:
    text = path.read_text().replace("[corpus]\n", '[corpus]\nmasking = "static"\nunique_tokens = 1000\n')
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    found = load_study(with_static_masks(write_small_study(folder, CACHED)))
    arms = {name: found.arms[name] for name in ("live", "cached")}
    equal = found.plan.model_copy(update={"match": "equal_tokens", "budgets": ("2560 tokens", "5120 tokens")})
    return found.model_copy(update={"arms": arms, "plan": equal, "seeds": (0,)})


def rungs(records: list[RunRecord], arm: str) -> list[tuple[RunRecord, Schedule]]:
    found = [(r, r.schedule) for r in records if r.kind == "rung" and r.arm == arm and r.schedule is not None]
    assert len(found) == 2
    return found


def a_cache(made: Plan, corpus: Corpus, parent: Path, *, teacher_seed: int = 0) -> TeacherCache:
    arm = made.arms["cached"]
    teacher = made.models["teacher"].untrained()
    strategy = build_strategy(arm.strategy)
    step = build_step("cached", strategy, made.models["student"], teacher, arm.recipe, seed=teacher_seed, device="cpu")
    return TeacherCache(parent, step, samples(corpus, arm.recipe), {"teacher": step.teacher_hash()}, Ranks())


def samples(corpus: Corpus, recipe: Recipe) -> Batches:
    return Batches(
        corpus.train,
        corpus.special,
        corpus.vocab_size,
        seq_len=recipe.seq_len,
        masked_per_sequence=recipe.masked_per_sequence,
        run_seed=0,
        static_masks=True,
        unique_tokens=1000,
    )


def silent(line: str) -> None: ...


def test_the_loss_is_that_of_the_live_teacher_cut_off_alike(finished) -> None:
    _, records = finished
    live, cached = ([record for record in records if record.arm == arm] for arm in ("live", "cached"))
    assert [record.samples_digest for record in live] == [record.samples_digest for record in cached]
    for one, two in zip(live, cached, strict=True):
        assert one.status == two.status == "complete" and len(one.points) > 2
        for mine, other in zip(one.points, two.points, strict=True):
            assert mine.losses == pytest.approx(other.losses, rel=1e-4)


def test_the_teacher_is_charged_once_for_each_sample_as_planned(finished) -> None:
    _, records = finished
    for (live, _), (cached, schedule) in zip(rungs(records, "live"), rungs(records, "cached"), strict=True):
        teacher = cached.phases["teacher_forward"]
        price = live.phases["teacher_forward"].required_flops / live.tokens
        assert schedule.taught_tokens == 992 < cached.tokens  # 62 whole samples of 16
        assert teacher.required_flops == pytest.approx(992 * price)
        assert cached.required_flops == pytest.approx(schedule.required_flops) != live.required_flops
        assert sum(phase.required_flops for phase in cached.phases.values()) == pytest.approx(cached.required_flops)
        assert sum(phase.device_seconds for phase in cached.phases.values()) == pytest.approx(cached.device_seconds)


def test_what_is_read_is_what_the_teacher_says(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cache = a_cache(made, corpus, tmp_path)
    cache.make(10_000, None, lambda: False, silent)
    batch = cache.batches.step(9, 8)  # of the second pass, in another order
    assert batch.samples is not None
    values, ids = cache.read(batch.samples)
    live = cache.step.teacher_forward(to_device(batch, torch.device("cpu")))
    assert live is not None and live.largest is not None
    np.testing.assert_array_equal(ids, live.largest[1].numpy())
    np.testing.assert_allclose(values, live.largest[0].numpy(), atol=2e-3)
    assert values.dtype == np.float16 and values.max() == 0.0


def test_it_is_made_once_and_what_is_damaged_is_asked_again(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetlab.runner.teacher_cache.SHARD_BYTES", 1024)
    cache = a_cache(made, corpus, tmp_path)
    stops = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        cache.make(10_000, None, lambda: next(stops), silent)
    assert len(list(cache.folder.glob("*.npy"))) == 3  # whole shards stay
    cache.make(10_000, None, lambda: False, silent)
    shards = sorted(cache.folder.glob("*.npy"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    assert len(shards) == 4 and cache.tokens == 992

    flipped = bytearray(before[shards[1]][0])
    flipped[-1] ^= 1
    shards[1].write_bytes(flipped)
    (cache.folder / "000002.json").write_text("half of a fi")
    said: list[str] = []
    again = a_cache(made, corpus, tmp_path)
    again.make(10_000, None, lambda: False, said.append)
    assert [line.split()[0] for line in said[:2]] == [str(path) for path in shards[1:3]]
    assert "is damaged: the teacher is asked again" in said[0]
    assert {path: path.read_bytes() for path in shards} == {path: content for path, (content, _) in before.items()}
    assert shards[0].stat().st_mtime_ns == before[shards[0]][1] and shards[1].stat().st_mtime_ns != before[shards[1]][1]


def test_answers_of_another_teacher_or_to_other_masks_are_refused(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cache, other = a_cache(made, corpus, tmp_path), a_cache(made, corpus, tmp_path, teacher_seed=1)
    assert cache.folder != other.folder
    cache.make(10_000, None, lambda: False, silent)
    for path in cache.folder.iterdir():
        (other.folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CallerError, match="they are of another teacher; delete the folder"):
        a_cache(made, corpus, tmp_path, teacher_seed=1)
    about = json.loads((cache.folder / "about.json").read_text())
    (cache.folder / "about.json").write_text(json.dumps(about | {"masked_per_sequence": 1}))
    with pytest.raises(CallerError, match="they are of another masked_per_sequence"):
        a_cache(made, corpus, tmp_path)


def test_a_run_goes_on_where_its_answers_were_deleted(
    made: Plan, corpus: Corpus, tmp_path: Path, finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_SHARE", float("inf"))
    store = Store(tmp_path, "small")
    cached = made.model_copy(update={"arms": {"cached": made.arms["cached"]}})
    take, left = TrainingStep.run, [0]

    def one_step(self: TrainingStep, *args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return take(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingStep, "run", one_step)
    stops = 0
    while True:
        left[0] = 30
        try:
            run(cached, corpus, store)
            break
        except KeyboardInterrupt:
            stops += 1
            for path in store.cache.glob("teacher-*/*"):
                path.unlink()
    assert stops == 2  # 32 + 32 + 4 + 8 steps
    ended = {record.run_id: record.state_hash for record in store.records() if record.kind == "rung"}
    whole = {record.run_id: record.state_hash for record, _ in rungs(finished[1], "cached")}
    assert ended == whole and None not in ended.values()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('masking = "static"', 'masking = "dynamic"'), "masks are drawn anew in every pass"),
        (("top_k = 8, cached", "cached"), "cached needs top_k"),
        (("top_k = 8, cached", "top_k = 201, cached"), "the vocabulary has 200 entries"),
        (('cached = true }', 'cached = true }\nrecipe = { execute = "everything" }'), "asks the teacher at every step"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = with_static_masks(write_small_study(tmp_path, CACHED))
    text = path.read_text()
    assert text.count(change[0]) == 1
    path.write_text(text.replace(*change))
    with pytest.raises(CallerError, match=message):
        load_study(path)


def test_how_much_text_there_is_must_be_known(tmp_path: Path) -> None:
    path = with_static_masks(write_small_study(tmp_path, CACHED))
    path.write_text(path.read_text().replace("unique_tokens = 1000\n", ""))
    study = load_study(path)
    prices = profile(study, count_only=True)
    with pytest.raises(CallerError, match="how much text there is"):
        plan(study, prices)
    assert plan(study, prices, corpus_tokens=1000).schedules
