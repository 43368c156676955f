"""One job has one worker; a lease ends with its owner, however that ends, and whatever the clocks say."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from budgetlab.engines import leases
from budgetlab.engines.leases import Leases, read_leases
from budgetlab.errors import BudgetlabError, CallerError


def elsewhere(folder: Path, job: str, **changed: object) -> Path:
    """A lease of a process on another machine."""
    with Leases(folder, {"corpus": "a"}) as own:
        own.take(job)
        found = json.loads((folder / job).read_text())
    folder.mkdir(exist_ok=True)
    (folder / job).write_text(json.dumps({**found, "host": "other", "machine": "another", **changed}))
    return folder / job


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [time.monotonic()]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    return now


def test_a_job_is_taken_once_and_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    with Leases(folder, {}) as first, Leases(folder, {}) as second:
        assert first.take("a") and not second.take("a") and second.take("b")
        assert [(lease["job"], lease["attempt"], lease["gone"]) for lease in read_leases(folder)] == [
            ("a", 1, False), ("b", 1, False),
        ]  # fmt: skip
        first.give_back("a")
        assert second.take("a")
    assert not folder.exists()


def test_a_lease_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from budgetlab.engines.leases import Leases\n"
    code += "Leases(Path(sys.argv[1]), {}).take('a'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "leases")], check=True)
    assert [lease["gone"] for lease in read_leases(tmp_path / "leases")] == [True]
    with Leases(tmp_path / "leases", {}) as own:
        assert own.take("a") and own.taken_over == 1
        assert read_leases(own.folder)[0]["attempt"] == 2


@pytest.mark.parametrize("off_seconds", [-600.0, 600.0])
def test_one_elsewhere_expires_once_it_was_seen_unchanged_for_long(
    off_seconds: float, tmp_path: Path, clock: list[float]
) -> None:
    path = elsewhere(tmp_path / "leases", "a")
    os.utime(path, (time.time() + off_seconds,) * 2)
    with Leases(path.parent, {}) as own:
        assert not own.take("a")
        clock[0] += leases.EXPIRE_SECONDS - 1
        assert not own.take("a")
        os.utime(path, (time.time() + off_seconds - 5,) * 2)  # its owner lives, though its clock went back
        clock[0] += leases.EXPIRE_SECONDS - 1
        assert not own.take("a")
        clock[0] += leases.EXPIRE_SECONDS - 1
        assert not own.take("a")
        clock[0] += 2
        assert own.take("a")


def test_one_worker_takes_over_what_many_want(tmp_path: Path, clock: list[float]) -> None:
    path = elsewhere(tmp_path / "leases", "a")
    many = [Leases(path.parent, {}) for _ in range(8)]
    assert not many[0].take("a")
    clock[0] += leases.EXPIRE_SECONDS
    start, taken = threading.Barrier(len(many)), []

    def take(own: Leases) -> None:
        start.wait()
        taken.append(own.take("a"))

    threads = [threading.Thread(target=take, args=(own,)) for own in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    assert [path.name for path in path.parent.iterdir()] == ["a"]


def test_whoever_died_taking_over_is_succeeded(tmp_path: Path, clock: list[float]) -> None:
    path = elsewhere(tmp_path / "leases", "a")
    with Leases(path.parent, {}) as own:
        assert not own.take("a")
        clock[0] += leases.EXPIRE_SECONDS
        digest = leases.hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        path.with_name(f".a.{digest}").touch()  # it was killed before it could write
        assert not own.take("a")
        clock[0] += leases.EXPIRE_SECONDS
        assert not own.take("a") and own.take("a")


def test_an_owner_renews_and_learns_that_it_was_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    with Leases(tmp_path / "leases", {}) as own:
        own.take("a")
        path = own.folder / "a"
        before, deadline = path.stat().st_mtime_ns, time.monotonic() + 10
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        path.write_text(path.read_text().replace('"attempt": 1', '"attempt": 2'))
        while "a" not in own.lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert path.exists()  # it is another's


def test_who_is_about_something_else_is_refused_with_both(tmp_path: Path) -> None:
    path = elsewhere(tmp_path / "leases", "a", pid=7)
    said = "corpus is b here, and a of process 7 on other, which is at work on a"
    with pytest.raises(CallerError, match=said), Leases(path.parent, {"corpus": "b"}):
        pass
    with Leases(path.parent, {"plan of tuning": "1"}) as own:  # of what only one has, nothing is said
        assert not own.take("a") and own.take("b")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("a file")
    with pytest.raises(BudgetlabError, match=r"leases in .*see that the folder can be written"):
        Leases(tmp_path / "leases", {}).take("a")
