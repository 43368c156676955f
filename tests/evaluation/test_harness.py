"""lm-evaluation-harness on the checkpoints of a causal study, where it is installed; what it needs, where it is not."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from small import STUDY, write_small_study

from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.evaluation import harness
from budgetlab.evaluation.harness import bits_per_answer_byte
from budgetlab.store import Store
from budgetlab.studies import load_study
from budgetlab.values.scoring import EvaluateSpec

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["red", "green"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


def causal_study(folder: Path, tasks: str) -> Path:
    write_small_study(folder)
    llama = 'family = "llama"\ntie_embeddings = true\n'
    text = STUDY.replace("hidden_size = 32", f"{llama}hidden_size = 32").replace("seeds = [0, 1]", "seeds = [0]", 1)
    text = text.replace("hidden_size = 64", f"{llama}hidden_size = 64").replace('folder = "tasks"\n', "tasks = []\n")
    text = text.replace('source = "glue"', f'source = "glue"\nlm_eval = {tasks}')
    head, tail = text.split("[arms.minilm]")
    path = folder / "causal.toml"
    path.write_text(head + "[plan]" + tail.split("[plan]")[1].replace('"1.5e9", "3e9"', '"3e9"'))
    return path


def test_bits_a_byte_of_the_right_answers() -> None:
    rated = {"arguments": [("it is", " red"), ("it is", " green")], "resps": [[(-2.0, False)], [(-3.0, False)]]}
    both = [{**rated, "target": 1}, {**rated, "target": "red"}]
    assert bits_per_answer_byte(both) == pytest.approx((3.0 + 2.0) / math.log(2) / (6 + 4))
    alone = {"arguments": [("the end", " of it")], "resps": [[(-4.0, True)]], "target": " of it"}
    assert bits_per_answer_byte([alone]) == pytest.approx(4.0 / math.log(2) / 6)
    assert bits_per_answer_byte([{"arguments": [("write", {"until": ["."]})], "resps": [["x"]], "target": "y"}]) is None
    assert bits_per_answer_byte([]) is None


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = write_small_study(tmp_path)
    masked.write_text(masked.read_text().replace('source = "glue"', 'source = "glue"\nlm_eval = ["sciq"]'))
    with pytest.raises(CallerError, match="asks causal models alone"):
        load_study(masked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CallerError, match=r'not installed; pip install "budgetlab\[lm-eval\]"'):
        harness.decided_by("sciq")
    with pytest.raises(ValueError, match="may not be called lm_loss"):
        EvaluateSpec(lm_eval=("tasks/lm_loss.yaml",))
    assert EvaluateSpec(lm_eval=("a/colours.yaml",)).outcomes()[-2:] == ("colours", "colours_bits_per_byte")
    assert "lm_eval" not in EvaluateSpec().model_dump()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_is_asked_of_every_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    rows = [
        {"text": f"the {word} house stands near the", "label": number % 2} for number, word in enumerate("abcdefgh")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    path = causal_study(tmp_path, '["tasks/colours.yaml"]')
    order = [str(path), "--results", str(tmp_path / "results")]
    assert run_command(["profile", *order, "--count-only"]) == 0
    assert run_command(["run", *order]) == 0
    assert run_command(["evaluate", *order, "--json"]) == 0
    scores = [score for score in Store(tmp_path / "results", "small").scores() if score.task.startswith("colours")]
    assert {score.subject for score in scores} == {"run", "teacher", "random"}
    by_task = {(score.run_id, score.task): score for score in scores}
    run_id = next(score.run_id for score in scores if score.arm == "no_kd")
    found, bits = by_task[run_id, "colours"], by_task[run_id, "colours_bits_per_byte"]
    assert found.metric == "acc_norm" and set(found.metrics) == {"acc", "acc_norm"} and found.num_examples == 8
    assert found.recipe.startswith("lm-evaluation-harness 0.") and 0 <= found.value <= 1
    assert bits.value > 0 and not bits.higher_is_better
    # The same by hand, from the exported checkpoint.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Store(tmp_path / "results", "small").model_folder(run_id)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    nats, num_bytes = 0.0, 0
    for row in rows:
        answer = (" red", " green")[row["label"]]
        context = tokenizer(row["text"], add_special_tokens=False).input_ids
        ids = torch.tensor([tokenizer(row["text"] + answer, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        told = range(len(context) - 1, ids.shape[1] - 1)
        nats -= sum(float(logs[at, ids[0, at + 1]]) for at in told)
        num_bytes += len(answer.encode())
    assert bits.value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)
    capfd.readouterr()
    # What the harness does not know is said, and the others go on; nothing is scored twice.
    causal_study(tmp_path, '["tasks/colours.yaml", "colors_of_nothing"]')
    assert run_command(["evaluate", *order]) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert "the harness has no task 'colors_of_nothing'" in told
