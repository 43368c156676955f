"""Checkpoints are whole or absent, verified, and safe to load."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from budgetlab.checkpoint import latest_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint, tensors_hash
from budgetlab.errors import BudgetlabError


class Payload:
    """Runs something where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step_00000001", TENSORS, {"step": 1, "seconds": 0.1})
    tensors, state = load_checkpoint(tmp_path / "step_00000001")
    assert tensors_hash(tensors) == tensors_hash(TENSORS)
    assert state == {"step": 1, "seconds": 0.1}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, f"step_{step:08d}", TENSORS, {"step": step})
    path = tmp_path / "step_00000002" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BudgetlabError, match="missing, torn or altered"):
        load_checkpoint(tmp_path / "step_00000002")
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001"


@pytest.mark.parametrize("what", ["tensors.safetensors", "state.json"])
def test_a_pickle_is_refused_and_passed_over(what: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, f"step_{step:08d}", TENSORS, {"step": step})
    newest = tmp_path / "step_00000002"
    torch.save(Payload(tmp_path / "ran"), newest / what)
    manifest = json.loads((newest / "manifest.json").read_text())
    content = (newest / what).read_bytes()
    manifest[what] = [len(content), hashlib.sha256(content).hexdigest()]  # as one who wants it loaded would
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BudgetlabError, match="missing, torn or altered"):
        load_checkpoint(newest)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000001" and not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(content), weights_only=False)  # the payload is one
    assert (tmp_path / "ran").exists()


def test_only_what_is_kept_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, f"step_{step:08d}", TENSORS, {})
    (tmp_path / ".step_00000004.1.partial").mkdir()
    remove_checkpoints(tmp_path, ["step_00000002"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_the_newest_that_verifies_is_gone_on_from(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, f"step_{step:08d}", TENSORS, {"step": step})
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000100"
    assert latest_checkpoint(tmp_path, last="step_00000099") == tmp_path / "step_00000010"


def test_hash_sees_every_bit() -> None:
    changed = {**TENSORS, "a": TENSORS["a"].clone()}
    changed["a"][1, 2] = torch.nextafter(changed["a"][1, 2], torch.tensor(9.0))
    assert tensors_hash(changed) != tensors_hash(TENSORS)
    assert tensors_hash({"c": TENSORS["a"], "b": TENSORS["b"]}) != tensors_hash(TENSORS)
    assert tensors_hash({**TENSORS, "a": TENSORS["a"].reshape(3, 2)}) != tensors_hash(TENSORS)


def test_a_killed_writer_never_leaves_a_torn_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom budgetlab.checkpoint import save_checkpoint\n"
        "print('ready', flush=True)\nstep = 0\n"
        "while True:\n    step += 1\n"
        "    tensors = {'a': torch.full((20000,), float(step))}\n"
        "    save_checkpoint(Path(sys.argv[1]), f'step_{step:08d}', tensors, {'step': step})\n"
    )
    for delay in (0.05, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in tmp_path.glob("step_*"):
            tensors, state = load_checkpoint(path)
            assert (tensors["a"] == state["step"]).all()
    assert latest_checkpoint(tmp_path) is not None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "step_00000001", TENSORS, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, "step_00000002", TENSORS, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
