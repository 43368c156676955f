"""SIGKILL at random moments, many of them inside a save: everything loads, and nothing that was saved is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import write_small_study


def killed(folder: Path, kills: int, budget: float) -> dict:
    write_small_study(folder)
    script = Path(__file__).with_name("kills.py")
    environment = {**os.environ, "BUDGETLAB_DATA_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills), str(budget)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict) -> None:
    assert found["wrong"] == []
    assert found["reached_the_end"] == 0 and found["saves"] >= found["kills"]  # of a slow disk one each
    assert None not in found["hashes"].values() and found["hashes"] == found["expected"]


def test_twenty_kills(tmp_path: Path) -> None:
    found = killed(tmp_path, 20, 1e10)
    check(found)
    assert found["inside_a_save"] >= 3


@pytest.mark.stress
def test_two_hundred_kills(tmp_path: Path) -> None:
    found = killed(tmp_path, 200, 6e10)
    print({name: value for name, value in found.items() if name not in ("hashes", "expected")})
    check(found)
    assert found["inside_a_save"] >= 30
