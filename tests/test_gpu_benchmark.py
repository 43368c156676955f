"""`benchmarks/gpu.py` at toy size: every part leaves a record, and nothing is left out but for a stated reason."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
EXPECTED = ("on a GPU alone", "requires `accelerate", "at full size alone", "CUDA graph")


def test_every_part_runs_at_toy_size_and_the_records_merge(tmp_path: Path) -> None:
    for parts in ("device,probe,waits,trainer,causal,arms", "planned,time_model,resume,side_by_side,glue,paper"):
        command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--parts", parts, "--device", "cpu", "--tiny"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(records) == 12 and all(record["tiny"] for record in records.values())
    for name, record in records.items():
        assert record["rows"] or record["left_out"], name
        assert all(any(words in reason for words in EXPECTED) for reason in record["left_out"]), record["left_out"]
    assert [row["same_bits"] for row in records["resume"]["rows"]] == [True]
    assert {row["what"] for row in records["planned"]["rows"]} == {"no_kd", "vanilla_kd", "minilm", "tinybert"}
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in records) and (tmp_path / "figure.svg").exists()
