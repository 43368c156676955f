"""Values to files and back; readers survive a crash of the writer."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small import ENVIRONMENT

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.frames import scores_frame
from budgetlab.machine import file_lock
from budgetlab.store import Store, read_value, write_whole
from budgetlab.values import Budget, CostProfile, CurveFit, Plan, Point, RunRecord, Score, Value, Verdict


def point(step: int) -> Point:
    return Point(
        step=step, tokens=step * 8, target_tokens=step, required_flops=1.0, executed_flops=1.0, device_seconds=0.5,
        learning_rate=1e-3, losses={"loss": 2.5},
    )  # fmt: skip


def score(**changes: object) -> Score:
    fields = {"run_id": "r", "arm": "a", "task": "t", "metric": "accuracy", "value": 0.5, "higher_is_better": True}
    return Score(**{**fields, "num_examples": 9, "recipe_hash": "h", **changes})  # type: ignore[arg-type]


def test_record_and_points_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path, "s")
    record = RunRecord(run_id="r", key="k", kind="rung", arm="a", student="m", run_seed=0, environment=ENVIRONMENT)
    store.write_record(record)
    for step in (1, 2):
        store.append_point("r", point(step))
    assert store.records() == []
    store.write_index(runs=["r", "not begun yet"])
    assert store.records() == [record.model_copy(update={"points": (point(1), point(2))})]


def test_a_torn_last_point_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path, "s")
    store.run_folder("r").mkdir(parents=True)
    store.append_point("r", point(1))
    with (store.run_folder("r") / "points.jsonl").open("a") as file:
        file.write('{"step": 2, "tok')
    assert store.read_points("r") == (point(1),)


def test_scores_are_one_tidy_table(tmp_path: Path) -> None:
    store = Store(tmp_path, "s")
    store.write_score("k1", score(budget=Budget(amount=2.0, unit="required_flops"), rung=0))
    store.write_score("k2", score(subject="random", arm="random"))
    store.write_score("old", score(value=0.1))
    store.write_index(runs=["r"])
    store.write_index(scores=["r/k1", "r/k2"])
    frame = scores_frame(store.scores())
    assert list(frame["budget_amount"].dropna()) == [2.0]
    assert "budget" not in frame and len(frame) == 2
    assert list(scores_frame([]).columns) == list(frame.columns)


def test_writing_replaces_whole_files(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "old")
    write_whole(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a.txt", "old")
    with path.open() as reader:
        write_whole(path, "new and longer")
        assert reader.read() == "old" and path.read_text() == "new and longer"


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"study": 1}'])
def test_a_file_that_is_no_plan(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(CallerError, match="not one") as caught:
        read_value(Plan, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="no such file"):
        read_value(Plan, tmp_path / "plan.json")


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fails(number: int) -> Callable[..., None]:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    with file_lock(tmp_path / ".held") as locked:
        assert locked
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    with file_lock(tmp_path / ".held") as locked:
        assert not locked
    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), file_lock(tmp_path / ".held"):
        pass


def test_what_killed_writers_left_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    store = Store(tmp_path, "small")
    old, new = (store.folder / f"runs/a/scores/.{name}.json.{2**30}.partial" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (0, 0))
    store.tidy()
    assert not old.exists() and new.exists()


def test_a_clock_that_went_back_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, "small")
    being_written = store.folder / "runs/a/.record.json.1.partial"
    being_written.parent.mkdir(parents=True)
    being_written.write_text("{")
    monkeypatch.setattr(time, "time", lambda: being_written.stat().st_mtime - 86_400)
    store.tidy()
    assert being_written.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_clock_that_jumps_ahead_deletes_nothing_that_a_live_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, "small")
    being_written, left = (store.folder / f".record.json.{pid}.partial" for pid in (os.getppid(), 2**30))
    store.folder.mkdir(parents=True)
    for path in (being_written, left):
        path.write_text("{")
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    store.tidy()
    assert being_written.exists() and not left.exists()


def filled(folder: Path) -> Store:
    """Two runs with points, a score each, and the rates of trials."""
    store = Store(folder, "small")
    for run_id in ("one", "two"):
        store.write_record(
            RunRecord(run_id=run_id, key="k", kind="rung", arm="a", student="m", run_seed=0, environment=ENVIRONMENT)
        )
        store.append_point(run_id, point(1))
        store.write_score("k", score(run_id=run_id))
    store.write_index(runs=["one", "two"], scores=["one/k", "two/k"])
    store.write_rates("key", {"no_kd~0.1": 1.0})
    return store


@pytest.mark.parametrize("bad", [b"\xff", b"\0", b"{"])
@pytest.mark.parametrize("name", ["points.jsonl", "record.json", "scores/k.json"])
def test_a_bad_byte_names_its_file_and_spares_the_others(name: str, bad: bytes, tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.run_folder("one") / name
    path.write_bytes(bad + path.read_bytes())
    read = store.scores if "score" in name else store.records
    with pytest.raises(CallerError, match=re.escape(str(path))) as caught:
        read()
    assert "\n" not in str(caught.value)
    told: list[str] = []
    store.say = told.append
    assert [found.run_id for found in read()] == ["two"]
    assert len(told) == 1 and str(path) in told[0]
    if name == "points.jsonl":  # the remedy, to the letter
        assert f"delete {path.parent} and run again" in told[0]
        shutil.rmtree(path.parent)
    else:
        assert "delete the file" in told[0]
        path.unlink()
    assert [found.run_id for found in read()] == ["two"] and len(told) == 1


def test_a_bad_byte_in_the_index_or_the_rates_is_named_and_mended_by_the_verbs(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for name in ("index.json", "rates.json"):
        (store.folder / name).write_bytes(b"\xff" + (store.folder / name).read_bytes())
    with pytest.raises(CallerError, match=r"index\.json: not JSON .*; give budgetlab run and then evaluate again"):
        store.records()
    with pytest.raises(CallerError, match=r"rates\.json: not JSON .*; delete the file"):
        store.read_rates("key")
    store.write_index(runs=["one", "two"])
    store.write_index(scores=["one/k"])
    assert len(store.records()) == 2 and len(store.scores()) == 1
    store.say = [].append
    assert store.read_rates("key") is None


def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BudgetlabError, match="see that the folder can be written") as told:
        write_whole(tmp_path / "taken" / "plan.json", "{}")
    assert "room" not in str(told.value)


def test_results_behind_a_link_are_written_and_read(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    Store(tmp_path / "results", "study").write_rates("key", {"no_kd~0.1": 1.0})
    for results in ("results", "elsewhere"):
        assert Store(tmp_path / results, "study").read_rates("key") == {"no_kd~0.1": 1.0}


RESULTS = sorted((Path(__file__).parent.parent / "results").glob("*/plan.json"))
KINDS: dict[str, type[Value]] = {
    "plan.json": Plan, "profile.json": CostProfile, "runs/*/record.json": RunRecord, "runs/*/scores/*.json": Score,
}  # fmt: skip


@pytest.mark.parametrize("folder", [path.parent for path in RESULTS], ids=[path.parent.name for path in RESULTS])
def test_what_was_recorded_before_files_had_a_schema_version_is_read(folder: Path) -> None:
    files = [(kind, path) for pattern, kind in KINDS.items() for path in sorted(folder.glob(pattern))[:20]]
    assert {kind for kind, _ in files} == set(KINDS.values())
    for kind, path in files:
        found = read_value(kind, path)
        written = json.loads(found.model_dump_json())
        assert written["schema_version"] == 2 and kind.model_validate(written) == found
    fits, verdicts = Store(folder.parent, folder.name).read_fits()
    assert all(isinstance(value, CurveFit | Verdict) and value.schema_version == 2 for value in (*fits, *verdicts))


def test_what_a_newer_program_wrote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text(score().model_copy(update={"schema_version": 99}).model_dump_json())
    with pytest.raises(CallerError, match="schema_version 99 is newer than this program's 2; update budgetlab"):
        read_value(Score, path)
