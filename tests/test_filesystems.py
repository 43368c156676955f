"""A disk that fills up and a folder that cannot be written, on real mounts; needs root, and says so where it is not."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import write_small_study

from budgetlab.cli import run_command

OPTIONS = """
[evaluate]
readout_tokens = 2048
adapted_tokens = 2048
tasks = []
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that (re)mounts a small file system with the options given, and returns its folder."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")

    def remount(options: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        return folder

    yield remount
    subprocess.run(["umount", "-l", folder], check=True)


pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_small_study(tmp_path_factory.mktemp("study"), arms=("no_kd", "minilm"))
    text = path.read_text().replace("seeds = [0, 1]\n\n[corpus]", "seeds = [0]\n\n[corpus]")
    path.write_text(text[: text.index("[evaluate]")] + OPTIONS)
    return path


def weights(results: Path) -> dict[str, str]:
    """The hash of every run's last checkpoint."""
    records = [json.loads(path.read_text()) for path in results.glob("small/runs/*/record.json")]
    return {record["run_id"]: record["weights_hash"] for record in records if record["status"] == "complete"}


def test_a_full_disk_stops_a_run_in_one_line_and_loses_nothing(
    disk: Callable[[str], Path],
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(results: Path) -> int:
        return run_command(["run", str(study), "--results", str(results), "--json"])

    whole = tmp_path / "whole"
    assert run(whole) == 0
    capsys.readouterr()
    assert run(disk("size=1m")) == 2  # seen before anything is trained
    assert "are free; free some room" in capsys.readouterr().err
    # Somebody else fills the disk after that check.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, used=0, free=10**12))
    statuses = []
    for size in range(1000, 4000, 700):  # a little more room each time, as if somebody tidied up
        statuses.append(run(disk(f"size={size}k")))
        err = capsys.readouterr().err
        assert "Traceback" not in err
        if statuses[-1]:
            assert "No space left" in err.splitlines()[-1] and "; free some " in err.splitlines()[-1]
    assert statuses[0] == 1 and set(statuses) <= {0, 1}
    assert run(disk("size=64m")) == 0
    assert weights(disk("size=64m")) == weights(whole) != {}
    assert run_command(["evaluate", str(study), "--results", str(disk("size=64m")), "--json"]) == 0


def test_a_read_only_folder_is_named_in_one_line_and_can_still_be_read(
    disk: Callable[[str], Path], study: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = str(disk("size=64m"))
    assert run_command(["plan", str(study), "--results", folder, "--json"]) == 0
    disk("ro")
    capsys.readouterr()
    assert run_command(["run", str(study), "--results", folder]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "Read-only" in line and folder in line and "see that the folder can be written" in line
    assert run_command(["status", str(study), "--results", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) is not None
