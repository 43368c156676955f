"""Values to files and back; readers survive a crash of the writer."""

from pathlib import Path

import pytest
from small import ENVIRONMENT

from budgetlab.errors import CallerError
from budgetlab.store import Store, read_value, scores_frame, write_whole
from budgetlab.values import Budget, Plan, Point, RunRecord, Score


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


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with Store(tmp_path, "small").held("run"):
        assert (tmp_path / "small").is_dir()
