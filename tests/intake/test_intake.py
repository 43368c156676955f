"""Others' files as tables: what their own writers write, and one clear line for whatever is wrong with a file."""

import json
from pathlib import Path

import pandas as pd
import pytest

from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.fitting import compare, fit
from budgetlab.intake import FORMS, as_scores, read_harness, read_table, read_tracker_csv, read_trainer_state

HARNESS = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.61, "acc_stderr,none": 0.01, "acc_norm,none": 0.55,
                     "acc_norm_stderr,none": 0.0101},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.3, "exact_match_stderr,strict-match": 0.016,
                  "exact_match,flexible-extract": 0.35, "exact_match_stderr,flexible-extract": 0.016},
        "wikitext": {"alias": "wikitext", "word_perplexity,none": 21.5, "word_perplexity_stderr,none": "N/A"},
        "both": {"alias": "both", "acc,none": 0.58, "acc_stderr,none": 0.01},
    },
    "group_subtasks": {"both": ["arc_easy", "arc_hard"], "arc_easy": []},
    "higher_is_better": {"arc_easy": {"acc": True, "acc_norm": True}, "wikitext": {"word_perplexity": False}},
    "n-samples": {"arc_easy": {"original": 2376, "effective": 2000}},
    "n-shot": {"gsm8k": 5},
    "model_name": "a/model",
}  # fmt: skip


def state_of(tokens: int = 0, loss: float = 3.2) -> dict:
    """The keys of a trainer state, as `TrainerState.save_to_json` writes them."""
    return {
        "best_metric": None, "epoch": 1.0, "eval_steps": 50, "global_step": 100, "is_hyper_param_search": False,
        "is_local_process_zero": True, "is_world_process_zero": True, "max_steps": 100, "num_input_tokens_seen": tokens,
        "total_flos": 1.5e15, "log_history": [
            {"epoch": 0.5, "grad_norm": 0.9, "learning_rate": 1e-4, "loss": 4.0, "step": 50},
            {"epoch": 0.5, "eval_loss": 3.7, "eval_runtime": 1.0, "eval_samples_per_second": 9.0, "step": 50},
            {"epoch": 1.0, "grad_norm": 0.8, "learning_rate": 0.0, "loss": 3.4, "step": 100},
            {"epoch": 1.0, "eval_loss": loss, "eval_mlm_accuracy": 0.4, "eval_runtime": 1.0, "step": 100},
            {"epoch": 1.0, "step": 100, "total_flos": 1.5e15, "train_loss": 3.9, "train_runtime": 12.5},
        ],
    }  # fmt: skip


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_trainer_state_is_a_row_a_step(tmp_path: Path) -> None:
    table = read_trainer_state(write(tmp_path / "trainer_state.json", state_of(tokens=409600)))
    assert list(table["step"]) == [50, 100] and list(table["final"]) == [False, True]
    assert list(table["loss"]) == [3.7, 3.2] and list(table["train_loss"]) == [4.0, 3.4]
    assert table["tokens"].iloc[-1] == 409600 and pd.isna(table["tokens"].iloc[0])
    assert table["estimated_flops"].iloc[-1] == 1.5e15 and table["train_seconds"].iloc[-1] == 12.5
    assert table["eval_mlm_accuracy"].iloc[-1] == 0.4 and "eval_runtime" not in table
    assert "estimate" in table.attrs["definitions"]["estimated_flops"]


def test_tokens_that_nobody_counted_are_missing_and_not_zero(tmp_path: Path) -> None:
    assert "tokens" not in read_trainer_state(write(tmp_path / "trainer_state.json", state_of()))


def test_what_transformers_itself_writes(tmp_path: Path) -> None:
    from transformers.trainer_callback import TrainerState

    state = TrainerState(global_step=100, num_input_tokens_seen=2048, log_history=state_of()["log_history"])
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    table = read_trainer_state(tmp_path)
    assert list(table["loss"]) == [3.7, 3.2] and table["tokens"].iloc[-1] == 2048


def test_a_folder_of_runs_gives_the_last_evaluation_of_each_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for k in range(1, 7):
        tokens, loss = 10**k * 1000, 2.0 + 3.0 * 10 ** (-0.3 * k)
        write(tmp_path / f"run{k}" / "checkpoint-100" / "trainer_state.json", state_of(tokens, loss))
        write(tmp_path / f"run{k}" / "checkpoint-50" / "trainer_state.json", state_of(tokens, 9.9) | {
            "global_step": 50, "log_history": state_of()["log_history"][:2]})  # fmt: skip
    table = read_table(tmp_path)
    assert list(table["run"]) == [f"run{k}" for k in range(1, 7)] and (table["step"] == 100).all()
    found = fit(table, law="power", columns={"x": "tokens", "y": "loss"}, resamples=0)
    assert found.params["a"] == pytest.approx(0.3, rel=1e-6)
    arguments = ["fit", "--table", str(tmp_path), "--map", "x=tokens", "--map", "y=loss", "--resamples", "0", "--json"]
    assert run_command(arguments) == 0
    assert "as the Trainer counts them" in json.loads(capsys.readouterr().out)["definitions"]["tokens"]


def test_a_chart_of_runs_side_by_side(tmp_path: Path) -> None:
    text = (
        '"Step","kd - eval/loss","kd - eval/loss__MIN","kd - eval/loss__MAX","big - x - eval/loss"\n'
        '"10","3.1","3.0","3.2",""\n"20","2.9","2.8","3.0","2.5"\n'
    )
    table = read_tracker_csv(write(tmp_path / "chart.csv", text), {"loss": "eval/loss"})
    assert table.to_dict("list") == {"run": ["kd", "kd", "big - x"], "step": [10, 20, 20], "loss": [3.1, 2.9, 2.5]}


def test_a_scalar_of_tensorboard_and_a_table_of_runs(tmp_path: Path) -> None:
    scalar = read_tracker_csv(write(tmp_path / "s.csv", "Wall time,Step,Value\n1.7e9,5,3.5\n"), value="eval_loss")
    assert scalar.to_dict("list") == {"wall_time_at": [1.7e9], "step": [5], "eval_loss": [3.5], "run": ["s"]}
    runs = write(tmp_path / "runs.csv", "\ufeffName,eval/loss,tokens\na,3.0,1e6\n")
    assert read_tracker_csv(runs, {"loss": "eval/loss"}).columns.tolist() == ["Name", "loss", "tokens"]


def test_harness_results_are_a_row_a_task_and_metric(tmp_path: Path) -> None:
    path = write(tmp_path / "results_2026.json", HARNESS)
    table = read_harness(path)
    assert list(table["task"].unique()) == ["arc_easy", "gsm8k", "wikitext"]  # the group would count twice
    assert "both" in set(read_harness(path, groups=True)["task"])
    primary = table[table["primary"]].set_index("task")
    assert list(primary["metric"]) == ["acc", "exact_match", "word_perplexity"]
    assert list(primary["higher_is_better"]) == [True, True, False]
    assert primary.loc["arc_easy", "num_examples"] == 2000 and primary.loc["arc_easy", "standard_error"] == 0.01
    assert pd.isna(primary.loc["wikitext", "standard_error"]) and primary.loc["gsm8k", "num_fewshot"] == 5


def test_old_results_without_filters_and_metrics_that_nobody_explains(tmp_path: Path) -> None:
    old = {"results": {"rte": {"acc": 0.6, "acc_stderr": 0.02, "vibes": 3.0}}}
    table = read_harness(write(tmp_path / "old.json", old))
    assert table[["metric", "filter", "value", "standard_error"]].values.tolist() == [["acc", "none", 0.6, 0.02]]
    assert table.attrs["left_out"] == 1


def test_scores_of_others_go_into_compare(tmp_path: Path) -> None:
    parts = []
    for arm, lift in (("no_kd", 0.0), ("kd", 0.05)):
        for seed in range(3):
            results = {"results": {"rte": {"acc,none": 0.6 + lift + 0.001 * seed * (1 if arm == "kd" else -1)}}}
            table = read_harness(write(tmp_path / f"{arm}{seed}.json", results))
            parts.append(as_scores(table, arm=arm, run_seed=seed, budget_amount=1e15))
    verdict = compare(pd.concat(parts, ignore_index=True), a="kd", b="no_kd", curves=False)
    assert verdict.verdict == "a_better" and verdict.y == "rte" and verdict.difference == pytest.approx(5.2)


def test_losses_of_others_go_into_compare(tmp_path: Path) -> None:
    parts = []
    for arm, loss in (("no_kd", 3.2), ("kd", 3.0)):
        for seed in range(3):
            path = write(tmp_path / f"{arm}{seed}" / "trainer_state.json", state_of(10**6, loss + 0.01 * seed))
            parts.append(as_scores(read_trainer_state(path), arm=arm, run_seed=seed, budget_amount=1e15))
    verdict = compare(pd.concat(parts, ignore_index=True), a="kd", b="no_kd", curves=False)
    assert verdict.unit == "nats" and verdict.difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "content", "form", "words"),
    [
        ("trainer_state.json", '{"log_history": [{"st', "auto", "cut or no JSON"),
        ("trainer_state.json", "", "auto", "empty"),
        ("trainer_state.json", b"\xff\xfe{\x00", "auto", "not UTF-8"),
        ("trainer_state.json", "[1, 2]", "auto", "a JSON list"),
        ("trainer_state.json", '{"results": {}}', "trainer_state", "no log_history"),
        ("trainer_state.json", '{"log_history": []}', "auto", "no step"),
        ("some.json", '{"a": 1}', "auto", "neither log_history nor results"),
        ("results.json", '{"results": [1]}', "auto", 'no "results" by task'),
        ("results.json", '{"results": {"rte": {"alias": "rte"}}}', "auto", "no task has a number"),
        ("t.csv", "", "auto", "empty"),
        ("t.csv", "a,b\n", "auto", "a header without a row"),
        ("t.csv", 'a,b\n1,2\n"3,4\n', "csv", "not a CSV table"),
        ("t.csv", "a,b\n1,2\n", "wandb", "no form of that name"),
        ("gone.csv", None, "auto", "no such file"),
    ],
)
def test_a_bad_file_is_one_line(
    name: str, content: str | bytes | None, form: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CallerError, match=words) as error:
        read_table(path, form)
    assert "\n" not in str(error.value)
    assert run_command(["fit", "--table", str(path), "--from", form, "--map", "x=a", "--map", "y=b"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said


def test_columns_that_are_asked_for_and_are_not_there(tmp_path: Path) -> None:
    state = write(tmp_path / "trainer_state.json", state_of())
    with pytest.raises(CallerError, match="no key eval_los"):
        read_trainer_state(state, {"loss": "eval_los"})
    chart = write(tmp_path / "c.csv", "Step,a - loss\n1,2.0\n")
    with pytest.raises(CallerError, match="no metric of that name"):
        read_tracker_csv(chart, {"loss": "eval/loss"})
    with pytest.raises(CallerError, match="no column of that name"):
        as_scores(read_trainer_state(state), arm="a", run_seed=0, budget_amount=1.0, outcome="accuracy")


def test_every_form_says_what_it_is() -> None:
    assert set(FORMS) == {"auto", "csv", "trainer_state", "tracker", "harness"} and all(FORMS.values())


def test_a_loss_of_another_unit_is_compared_in_its_own(tmp_path: Path) -> None:
    parts = [
        as_scores(pd.DataFrame({"ppl": [value + seed * turn]}), arm=arm, run_seed=seed, budget_amount=1e15,
                  outcome="ppl", task="perplexity")
        for arm, value, turn in (("mine", 20.0, 0.1), ("theirs", 23.0, 0.12)) for seed in range(3)
    ]  # fmt: skip
    table = pd.concat(parts, ignore_index=True)
    verdict = compare(table, a="mine", b="theirs", task="perplexity", curves=False)
    assert verdict.difference == pytest.approx(3.02) and verdict.unit == "units" and verdict.verdict == "a_better"
    assert "3.0200 units" in verdict.sentence and "margin" not in verdict.sentence
    wide = compare(table, a="mine", b="theirs", task="perplexity", margin=5.0, curves=False)
    assert "less than the margin of 5 units" in wide.sentence


def test_the_runs_of_a_chart_are_compared_by_arm(tmp_path: Path) -> None:
    losses = {f"{arm}-s{seed}": loss + 0.01 * seed for arm, loss in (("kd", 3.0), ("own", 3.2)) for seed in range(3)}
    header = ",".join(["Step", *(f"{run} - eval/loss" for run in losses)])
    rows = [",".join([str(step), *(f"{loss + extra}" for loss in losses.values())]) for step, extra in ((1, 1), (2, 0))]
    chart = read_tracker_csv(write(tmp_path / "chart.csv", "\n".join([header, *rows])), {"loss": "eval/loss"})
    runs = {run: (run.split("-s")[0], int(run.split("-s")[1])) for run in losses}
    verdict = compare(as_scores(chart, runs=runs, budget_amount=1e15), a="kd", b="own", curves=False)
    assert verdict.difference == pytest.approx(0.2) and verdict.num_pairs == 3
    with pytest.raises(CallerError, match="kd-s0"):
        as_scores(chart, runs={"kd-s9": ("kd", 0)}, budget_amount=1e15)
    with pytest.raises(CallerError, match="runs alone"):
        as_scores(chart, runs=runs, arm="kd", budget_amount=1e15)
    with pytest.raises(CallerError, match="no arm and run_seed"):
        as_scores(chart, arm="kd", budget_amount=1e15)
