"""A teacher whose answers are kept: the same loss, the teacher charged once, and nothing that is damaged is read."""

import dataclasses
import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from small import write_small_study

from budgetlab.batches import Batches
from budgetlab.cli import run_command
from budgetlab.corpus import Corpus, build_corpus
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.ranks import Ranks
from budgetlab.runner import run
from budgetlab.runner.cache_files import export_cache, import_cache
from budgetlab.runner.teacher_cache import TeacherCache, shard_path
from budgetlab.step import TrainingStep, build_step, to_device
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study, load_study
from budgetlab.values import Kept, Plan, Recipe, RunRecord, Sampled, Schedule, StrategySpec, TopK, TopP

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


def a_cache(
    made: Plan,
    corpus: Corpus,
    parent: Path,
    *,
    teacher_seed: int = 0,
    kept: Kept | None = None,
    strategy: str = "kd",
    unmasked: bool = False,
) -> TeacherCache:
    recipe, teacher = made.arms["cached"].recipe, made.models["teacher"].untrained()
    built = build_strategy(StrategySpec(name=strategy))
    step = build_step(
        "cached", built, made.models["student"], teacher, recipe, seed=teacher_seed, device="cpu",
        kept=kept or TopK(k=8), teacher_unmasked=unmasked,
    )  # fmt: skip
    about = {"teacher": step.teacher_hash(), "corpus": corpus.content_hash}
    return TeacherCache(parent, step, samples(corpus, recipe), about, Ranks(), all_positions=unmasked)


def samples(corpus: Corpus, recipe: Recipe, run_seed: int = 0, static_masks: bool = True) -> Batches:
    return Batches(
        corpus.train,
        corpus.special,
        corpus.vocab_size,
        seq_len=recipe.seq_len,
        masked_per_sequence=recipe.masked_per_sequence,
        run_seed=run_seed,
        static_masks=static_masks,
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
    values, ids = cache.read(batch)
    live = cache.step.teacher_forward(to_device(batch, torch.device("cpu")))
    assert live is not None and live.logits is not None
    expected = cache.kept.entries(live.logits)
    np.testing.assert_array_equal(ids, expected[1].numpy())
    np.testing.assert_allclose(values, expected[0].numpy(), atol=5e-3)


@pytest.mark.parametrize("kept", [TopK(k=8), TopP(p=0.5), Sampled(draws=6)], ids=str)
def test_it_is_made_once_and_what_is_damaged_is_asked_again(
    made: Plan, corpus: Corpus, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetlab.runner.teacher_cache.SHARD_TOKENS", 16 * 16)
    cache = a_cache(made, corpus, tmp_path, kept=kept)
    stops = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        cache.make(10_000, None, lambda: next(stops), silent)
    assert len(list(cache.folder.glob("*.shard"))) == 3  # whole shards stay
    assert not list(cache.folder.glob("*.claim"))
    cache.make(10_000, None, lambda: False, silent)
    shards = sorted(cache.folder.glob("*.shard"))
    before = {path: path.read_bytes() for path in shards}
    assert len(shards) == 4 and cache.tokens == 992 and cache.bytes > 0
    batch = cache.batches.step(0, 62)
    expected = cache.read(batch)

    damaged, cut = shards[1], shards[2]
    damaged.write_bytes(before[damaged][:-1] + bytes([before[damaged][-1] ^ 1]))
    cut.write_bytes(before[cut][:-5])
    times = {path: path.stat().st_mtime_ns for path in shards}
    said: list[str] = []
    again = a_cache(made, corpus, tmp_path, kept=kept)
    again.make(10_000, None, lambda: False, said.append)
    assert [line.split()[0] for line in said if "damaged" in line] == [str(cut)]  # before anything is read
    for mine, other in zip(again.read(batch), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
    assert [line.split()[0] for line in said if "damaged" in line] == [str(cut), str(damaged)]
    body = {path: path.read_bytes()[-64:] for path in shards}
    assert body == {path: content[-64:] for path, content in before.items()}
    assert [path for path in shards if path.stat().st_mtime_ns == times[path]] == [shards[0], shards[3]]


def test_shards_of_another_teacher_text_or_setting_are_never_read(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cache, other = a_cache(made, corpus, tmp_path), a_cache(made, corpus, tmp_path, teacher_seed=1)
    folders = {a_cache(made, corpus, tmp_path, kept=kept).folder for kept in (TopK(k=7), TopP(k=8), Sampled(draws=8))}
    folders |= {a_cache(made, corpus, tmp_path, unmasked=True).folder, cache.folder, other.folder}
    assert len(folders) == 6
    changed = dataclasses.replace(corpus, content_hash="0123456789abcdef")  # such as by another tokenizer
    assert a_cache(made, changed, tmp_path).folder not in folders
    cache.make(10_000, None, lambda: False, silent)
    for path in cache.folder.glob("*.shard"):
        (other.folder / path.name).write_bytes(path.read_bytes())
    said: list[str] = []
    other.make(10_000, None, lambda: False, said.append)
    assert "is damaged (it is of another cache" in said[0]
    (cache.folder / "about.json").write_text(json.dumps(cache.about | {"rows": 1}))
    with pytest.raises(CallerError, match="they are of another rows; delete the folder"):
        a_cache(made, corpus, tmp_path)


def test_a_longer_budget_adds_what_is_missing(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = a_cache(made, corpus, tmp_path)
    cache.make(13, None, lambda: False, silent)
    assert cache.tokens == 13 * 16
    with pytest.raises(BudgetlabError, match="2 of 8 sequences are not kept"):
        cache.read(cache.batches.shuffled(7, 8))
    asked: list[int] = []
    ask = TeacherCache.ask
    monkeypatch.setattr(TeacherCache, "ask", lambda self, ids: (asked.append(len(ids)), ask(self, ids))[1])
    cache.make(30, None, lambda: False, silent)
    assert sum(asked) == 17 and len(list(cache.folder.glob("*.shard"))) == 2
    cache.make(20, None, lambda: False, silent)  # a shorter one reads the same
    assert sum(asked) == 17 and cache.tokens == 20 * 16


def test_one_cache_of_the_unmasked_text_serves_all_seeds_and_masks(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cache = a_cache(made, corpus, tmp_path, unmasked=True)
    cache.make(62, None, lambda: False, silent)
    other = samples(corpus, made.arms["cached"].recipe, run_seed=1, static_masks=False)
    batch = other.step(9, 8)  # of the second pass, with masks of its own
    values, ids = cache.read(batch)
    live = cache.step.teacher_forward(to_device(batch, torch.device("cpu")))
    assert live is not None and live.logits is not None and len(values) == len(batch.target_ids)
    expected = cache.kept.entries(live.logits)
    np.testing.assert_array_equal(ids, expected[1].numpy())
    np.testing.assert_allclose(values, expected[0].numpy(), atol=5e-3)
    masked = build_step("kd", cache.step.strategy, cache.step.student.spec, cache.step.teacher, cache.step.recipe,
                        seed=0, device="cpu")  # fmt: skip
    reads = masked.teacher_forward(to_device(batch, torch.device("cpu")))
    assert reads is not None and reads.logits is not None and not torch.allclose(reads.logits, live.logits, atol=1e-3)


def test_several_processes_write_one_cache(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    first, second = a_cache(made, corpus, tmp_path), a_cache(made, corpus, tmp_path)
    part = first.batches.first_samples(62)
    with first._claimed(part) as mine, second._claimed(part) as theirs:
        assert mine and not theirs
    claim = shard_path(first.folder, part).with_suffix(".claim")
    claim.write_text(f"999999999 {platform.node()}")  # of a process that was killed
    second.make(62, None, lambda: False, silent)
    assert not claim.exists() and second.tokens == 62 * 16

    claim.write_text("1 another.machine")
    (shard,) = second.folder.glob("*.shard")
    content = shard.read_bytes()
    shard.unlink()
    said: list[str] = []

    def stop_asked() -> bool:
        if said:  # it waits; meanwhile the other one is done
            shard.write_bytes(content)
            claim.unlink(missing_ok=True)
        return False

    first.make(62, None, stop_asked, said.append)
    assert "waiting for another process" in said[0] and first.tokens == 62 * 16


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


SHARED = """
[arms.one]
strategy = "kd"
student = "student"
teacher = "teacher"
cache = { kind = "top_k", k = 8, tail = "other" }

[arms.two]
strategy = { name = "jsd", alpha = 0.5 }
student = "student"
teacher = "teacher"
cache = { kind = "top_k", k = 8, tail = "other" }

[arms.auto]
strategy = "kd"
student = "student"
teacher = "teacher"
cache = "auto"
"""


def test_arms_share_one_cache_and_its_cost(tmp_path: Path) -> None:
    path = with_static_masks(write_small_study(tmp_path, SHARED, arms=("no_kd",)))
    study = load_study(path)
    study = study.model_copy(update={"seeds": (0,)})
    made = plan(study, profile(study, count_only=True), teacher_charge="cache", budgets=("0.5e9",))
    read = build_corpus(study.corpus, roots=study.data_roots, cache=tmp_path / "cache")
    store, said = Store(tmp_path / "results", "small"), list[str]()
    records = run(made, read, store, say=said.append)
    assert any("teacher teacher of one, two is kept" in line and "study says so" in line for line in said)
    shards = list(store.cache.glob("teacher-*/*.shard"))
    assert len({shard.parent for shard in shards}) == 2  # of one and two together, and of auto
    for arm in ("one", "two", "auto"):
        (record,) = [found for found in records if found.kind == "rung" and found.arm == arm]
        schedule, cache = record.schedule, made.cache_of(arm)
        assert record.status == "complete" and schedule is not None and cache is not None
        assert record.required_flops == pytest.approx(schedule.required_flops)
        paid = record.phases["cache"]
        assert record.phases["teacher_forward"].required_flops == 0
        assert paid.required_flops == pytest.approx(cache.required_flops / cache.readers, rel=1e-3)
        assert paid.bytes == pytest.approx((cache.bytes + 8 * 62) / cache.readers) and paid.device_seconds > 0
        assert sum(phase.required_flops for phase in record.phases.values()) == pytest.approx(record.required_flops)
    assert "bytes" not in records[0].phases["update"].model_dump()
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    other = study.model_copy(update={"name": "another"})  # of the same results folder
    again = plan(other, profile(other, count_only=True), teacher_charge="cache", budgets=("0.6e9",))
    run(again, read, Store(tmp_path / "results", "another"))
    assert {shard: shard.stat().st_mtime_ns for shard in store.cache.glob("teacher-*/*.shard")} == before


def test_room_is_looked_for_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(with_static_masks(write_small_study(tmp_path, SHARED, arms=("no_kd",))))
    made = plan(study, profile(study, count_only=True), teacher_charge="cache")
    read = build_corpus(study.corpus, roots=study.data_roots, cache=tmp_path / "cache")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("budgetlab.runner.preflight.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        CallerError, match=r"checkpoints and teachers' answers \(.*kB\) take about .*B more, 1.00 kB are"
    ):
        run(made, read, Store(tmp_path / "results", "small"))


@pytest.mark.parametrize("kept", [TopK(k=8, tail="zero"), TopP(p=0.5, tail="other"), Sampled(draws=6)], ids=str)
def test_a_cache_goes_to_parquet_and_back(made: Plan, corpus: Corpus, tmp_path: Path, kept: Kept) -> None:
    cache = a_cache(made, corpus, tmp_path / "cache", kept=kept)
    cache.make(30, None, lambda: False, silent)
    batch = cache.batches.shuffled(0, 30)
    expected = cache.read(batch)
    file = tmp_path / "kept.parquet"
    assert export_cache(cache.folder, "parquet", file) == 30
    assert run_command(["cache", "export", str(cache.folder), "--out", str(tmp_path / "again.parquet")]) == 0
    assert parquet.read_table(tmp_path / "again.parquet") == parquet.read_table(file)
    assert run_command(["cache", "import", str(file), "--results", str(tmp_path / "third")]) == 0
    assert list((tmp_path / "third" / "cache" / cache.folder.name).glob("*.shard"))
    assert run_command(["cache", "export", str(cache.folder), "--out", str(file)]) == 2
    rows = parquet.read_table(file).to_pylist()  # by its own reader
    places = np.searchsorted(np.arange(2), rows[0]["row"]) + 2 * batch.samples.tolist().index(rows[0]["sample"])
    assert rows[0]["ids"] == expected[1][places][np.isfinite(expected[0][places])].tolist()
    assert import_cache(file, tmp_path / "other").name == cache.folder.name
    again = a_cache(made, corpus, tmp_path / "other", kept=kept)
    again.make(30, None, lambda: pytest.fail("the teacher is asked"), silent)
    for mine, other in zip(again.read(batch), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_what_cannot_be_exported_or_imported(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cache = a_cache(made, corpus, tmp_path, kept=TopP(p=0.5))
    cache.make(10, None, lambda: False, silent)
    file = tmp_path / "kept.parquet"
    export_cache(cache.folder, "parquet", file)
    with pytest.raises(CallerError, match="is there already"):
        export_cache(cache.folder, "parquet", file)
    with pytest.raises(CallerError, match="this format is not written; choose parquet"):
        export_cache(cache.folder, "distillkit", tmp_path / "c")
    with pytest.raises(CallerError, match="no cache of a teacher"):
        export_cache(tmp_path, "parquet", tmp_path / "c")
    with pytest.raises(CallerError, match="no cache can be read from it"):
        import_cache(cache.folder / "about.json", tmp_path)
    table = parquet.read_table(file)
    parquet.write_table(table.take([1, 0, *range(2, len(table))]), file)
    with pytest.raises(CallerError, match="not those of whole sequences"):
        import_cache(file, tmp_path)
    about = cache.about | {"vocab_size": 3}
    parquet.write_table(table.replace_schema_metadata({"budgetlab": json.dumps(about)}), file)
    with pytest.raises(CallerError, match="an id is beyond the vocabulary of 3"):
        import_cache(file, tmp_path)
    (shard,) = cache.folder.glob("*.shard")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CallerError, match="it is damaged"):
        export_cache(cache.folder, "parquet", tmp_path / "c")
