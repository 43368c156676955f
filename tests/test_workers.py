"""Jobs run once, in the order of what they need, on one process or several; nothing outlives the first process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from budgetlab.engines.local import work
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.machine import visible_gpus


def note(folder: Path) -> Any:
    """A worker that notes what it did where, and fails where it is told to."""

    def do(job: str, tell: Any, stop_asked: Any) -> str:
        kind, _, name = job.partition(":")
        (folder / name).write_text(str(os.getpid()))
        tell(name)
        if kind == "wrong":
            raise CallerError(name, "is wrong", "mend it")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "needs":
            assert all((folder / other).exists() for other in "ab")
        while kind in ("long", "unsaved"):
            time.sleep(0.01)
            if stop_asked() and kind == "unsaved":
                raise CallerError(name, "cannot be saved", "free some room")
            if stop_asked():
                (folder / f"{name} saved").touch()
                raise KeyboardInterrupt
        return name

    return do


def sees() -> Any:
    """A worker that says which GPUs it sees, once another process says so too."""

    def do(folder: Path, tell: Any, stop_asked: Any) -> str:
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.01)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    return do


def test_each_worker_sees_one_of_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpus = visible_gpus("auto")
    assert gpus == ("3", "5") and visible_gpus("cpu") == visible_gpus("cuda:1") == ()
    assert sorted(seen for _, seen in work(sees, (), [tmp_path] * 2, workers=2, gpus=gpus)) == ["3", "5"]
    assert [seen for _, seen in work(sees, (), [tmp_path] * 1, gpus=gpus)] == ["3,5"]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_after_what_it_needs(workers: int, tmp_path: Path) -> None:
    jobs, told = ["ok:a", "ok:b", "needs:c", "ok:d"], []
    done = dict(work(note, (tmp_path,), jobs, needs=[[], [], [0, 1], []], workers=workers, tell=told.append))
    assert done == dict(enumerate("abcd"))
    assert sorted(told) == list("abcd")
    processes = {(tmp_path / name).read_text() for name in "abcd"}
    assert (str(os.getpid()) in processes) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_jobs_error_arrives_whole_and_begins_no_further_job(workers: int, tmp_path: Path) -> None:
    # With two workers the second is busy until it is asked to stop, so that only the dispatch keeps the last one back.
    jobs = ["wrong:a", "long:b", "ok:c"] if workers == 2 else ["wrong:a", "ok:c"]
    with pytest.raises(CallerError, match="a: is wrong; mend it") as caught:
        list(work(note, (tmp_path,), jobs, workers=workers))
    assert (caught.value.asked, caught.value.exit_status) == ("a", 2)
    assert not (tmp_path / "c").exists()
    assert workers == 1 or (tmp_path / "b saved").exists()


def test_an_error_while_stopping_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="b: cannot be saved"):
        list(work(note, (tmp_path,), ["long:a", "unsaved:b"], workers=2, stop_asked=lambda: (tmp_path / "b").exists()))


def test_a_stop_between_jobs_begins_no_further_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(work(note, (tmp_path,), ["ok:a", "ok:b"], stop_asked=lambda: (tmp_path / "a").exists()))
    assert not (tmp_path / "b").exists()


def test_a_stop_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    jobs = ["long:a", "long:b", "ok:c"]
    with pytest.raises(KeyboardInterrupt):
        list(work(note, (tmp_path,), jobs, workers=2, stop_asked=lambda: len(list(tmp_path.iterdir())) >= 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a saved", "b", "b saved"]


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BudgetlabError, match=r"2 workers: one was killed.*nothing is lost"):
        list(work(note, (tmp_path,), ["killed:a", "ok:b"], workers=2))


def test_workers_end_with_a_killed_first_process(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_workers import note, work\n"
        f"list(work(note, (Path({str(tmp_path)!r}),), ['long:a', 'long:b'], workers=2))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
