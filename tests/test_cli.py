"""The command line end to end on a small study; a mistake is one line, exit status 2, nothing half-written."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small import write_small_study

from budgetlab.cli import run_command
from budgetlab.studies import load_study

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def study(folder: Path) -> Path:
    return write_small_study(folder)


@pytest.fixture(scope="module")
def finished(hurried: None, study: Path, folder: Path) -> dict:
    """The whole study through the command."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        assert run_command(["study", str(study), "--results", str(folder / "results"), "--json"]) == 0
    assert "Traceback" not in errors.getvalue()
    return json.loads(out.getvalue())


def test_a_process_of_its_own_says_on_stdout_what_was_asked_and_all_else_on_stderr(
    finished: dict, study: Path, folder: Path
) -> None:
    arguments = ["status", str(study), "--results", str(folder / "results")]
    for further, status in (["--json"], 0), (["--nope"], 2):
        command = [sys.executable, "-m", "budgetlab", *arguments, *further]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == status and "Traceback" not in done.stderr
        if status:
            assert done.stdout == "" and done.stderr.startswith("budgetlab: ")
        else:
            assert {record["status"] for record in json.loads(done.stdout)} == {"complete"}


def test_study_answers_and_leaves_its_files(finished: dict, folder: Path) -> None:
    results = folder / "results" / "small"
    tables = ("study.toml", "profile.json", "profile.csv", "plan.json", "plan.csv")
    for name in (*tables, "scores.csv", "fits.json", "verdict.json", "report.html"):
        assert (results / name).stat().st_size > 0, name
    assert len(finished["figures"]) == 10
    assert len(finished["assumptions"]) == 15 and finished["next_run"].startswith("Next run (predicted")
    for name in ("assumptions.csv", "assumptions.md", "verdict_map.csv", "verdict_map.md", "next_run.md"):
        assert (results / name).stat().st_size > 0, name
    for figure in finished["figures"]:
        assert all(Path(figure[kind]).stat().st_size > 0 for kind in ("svg", "png", "csv"))
    assert finished["sentence"]
    scores = pd.read_csv(results / "scores.csv")
    runs = scores[scores.subject == "run"]
    assert len(runs[runs.task == "readout_loss"]) == 4 * 2 * 2
    assert set(runs[runs.task == "mlm_loss"].arm) == {"no_kd", "vanilla_kd"}
    assert len(runs[runs.task == "colour"]) == 4 * 2 * 2 * 2
    assert {"teacher", "random", "majority", "unigram"} < set(scores.subject)
    verdicts = json.loads((results / "verdict.json").read_text())
    primary = {tuple(v["contrast"]) for v in verdicts if v["primary"]}
    assert primary == {(arm, "no_kd") for arm in ("vanilla_kd", "minilm", "tinybert")}
    assert all(v["verdict"] in ("a_better", "b_better", "equivalent", "not_resolved") for v in verdicts)


def test_spent_flops_are_those_of_the_masks_really_drawn(finished: dict, folder: Path) -> None:
    results = folder / "results" / "small"
    costs = {cost["arm"]: cost for cost in json.loads((results / "profile.json").read_text())["arms"]}
    records = [json.loads(path.read_text()) for path in results.glob("runs/*/record.json")]
    rungs = [record for record in records if record["kind"] == "rung"]
    assert len(rungs) == 16
    for record in rungs:
        cost = costs[record["arm"]]
        expected = record["tokens"] * cost["required_flops_per_position"]
        expected += record["target_tokens"] * cost["required_flops_per_target_token"]
        assert record["required_flops"] == pytest.approx(expected)
        assert record["required_flops"] <= record["schedule"]["budget"]["amount"]
        assert record["device_seconds"] > 0


@pytest.mark.parametrize("verb", ["status", "plan", "fit", "report", "run", "evaluate", "study"])
def test_every_verb_on_a_finished_study(
    verb: str, finished: dict, study: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("record.json")}
    for as_json in (False, True):
        arguments = [verb, str(study), "--results", str(folder / "results"), *(["--json"] if as_json else [])]
        assert run_command(arguments) == 0
        out = capsys.readouterr().out
        assert out.strip()
        if as_json:
            json.loads(out)
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("record.json")} == before
    plan = json.loads((folder / "results" / "small" / "plan.json").read_text())
    assert all(schedule["passes"] for schedule in plan["schedules"])  # known, though the corpus was not read again


def test_a_plan_file_can_be_run(finished: dict, folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_command(["run", str(folder / "results" / "small" / "plan.json"), "--data-root", str(folder)]) == 0
    assert "no_kd" in capsys.readouterr().out


def test_sensitivity_and_other_budgets(
    finished: dict, study: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    results = ["--results", str(folder / "elsewhere")]
    profile = str(folder / "results" / "small" / "profile.json")
    arguments = ["plan", str(study), *results, "--profile", profile, "--sensitivity", "--match", "device_seconds"]
    assert run_command([*arguments, "--budget", "1 min", "--budget", "2 min"]) == 0
    out = capsys.readouterr().out
    assert "equal_tokens" in out and "1 min 00 s" in out and "interval" in out and " to " in out
    assert "vanilla_kd, all in:" in out and "no_kd would read" in out and 'set corpus.masking = "static"' in out


def test_what_else_a_plan_shows(finished: dict, study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    results = ["--results", str(folder / "results")]
    assert run_command(["plan", str(study), *results, "--figure", "--power", "0.05", "--paper"]) == 0
    out = capsys.readouterr().out
    assert "measured here on readout_loss" in out and "seeds," in out and "We compare" in out
    figures = folder / "results" / "small" / "figures"
    drawn = pd.read_csv(figures / "plan.csv")
    assert set(drawn["arm"]) == {"no_kd", "vanilla_kd", "minilm", "tinybert"} and len(pd.unique(drawn["line"])) >= 8
    assert all((figures / f"plan.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert run_command(["plan", str(study), *results, "--power", "0.4", "--spread", "0.3"]) == 0
    assert "0.3 (as stated)" in capsys.readouterr().out
    assert (
        run_command(["plan", str(study), *results, "--sensitivity", "--power", "0.4", "--spread", "1", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {"sensitivity", "all_in", "cached_teacher", "power", "schedules"} <= set(found)
    assert run_command(["plan", str(study), *results, "--export", "minilm", "--plain"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == found["steps"] * found["batch_tokens"] and found["strategy"]["name"] == "minilm"


def test_a_plan_edited_by_hand_is_run_as_edited(
    finished: dict, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = json.loads((folder / "results" / "small" / "plan.json").read_text())
    plan["schedules"] = [s for s in plan["schedules"] if s["arm"] == "no_kd" and s["rung"] == 0]
    schedule = plan["schedules"][0]
    schedule["steps"] = schedule["steps"] // 2
    own = tmp_path / "results" / "small"
    own.mkdir(parents=True)
    (own / "plan.json").write_text(json.dumps(plan))
    (own / "study.toml").write_text((folder / "results" / "small" / "study.toml").read_text())
    assert run_command(["run", str(own / "plan.json"), "--data-root", str(folder), "--json"]) == 0
    rungs = [record for record in json.loads(capsys.readouterr().out) if record["kind"] == "rung"]
    assert [record["steps"] for record in rungs] == [schedule["steps"]] * 2
    assert all(record["tokens"] == 128 * schedule["steps"] for record in rungs)
    schedule["steps"] = 10**9
    (own / "plan.json").write_text(json.dumps(plan))
    assert run_command(["run", str(own / "plan.json"), "--data-root", str(folder)]) == 2
    assert "more than the budget" in capsys.readouterr().err


def test_tuning_is_run_once_and_decides(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_small_study(tmp_path, "\n[tuning]\nlearning_rate = [1e-4, 4e-3]\n", arms=("no_kd", "minilm"))
    text = path.read_text()
    path.write_text(text.replace('tasks = ["colour"]', "tasks = []").replace("seeds = [0, 1]", "seeds = [0]"))
    arguments = ["run", str(path), "--results", str(tmp_path / "results"), "--json"]
    assert run_command(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    plan = json.loads((tmp_path / "results" / "small" / "plan.json").read_text())
    for arm in ("no_kd", "minilm"):
        losses = {t["learning_rate"]: t["loss"] for t in plan["trials"] if t["arm"] == arm}
        assert len(losses) == 2 and all(loss > 0 for loss in losses.values())
        assert plan["arms"][arm]["recipe"]["learning_rate"] == min(losses, key=losses.get)
    assert not any("~" in record["arm"] for record in first)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len([path for path in before if "~" in path.parent.name]) == 4
    assert run_command(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")} == before


def test_fit_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    x = [10.0 ** (k / 2) for k in range(12)]
    pd.DataFrame({"C": x, "L": [1.5 + 4.0 / v**0.4 for v in x]}).to_csv(tmp_path / "t.csv", index=False)
    arguments = ["fit", "--table", str(tmp_path / "t.csv"), "--map", "x=C", "--map", "y=L", "--resamples", "50"]
    assert run_command(arguments) == 0
    assert "power" in capsys.readouterr().out
    assert run_command([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"]["E"] == pytest.approx(1.5, rel=1e-5)
    assert {"objective", "objective_name", "delta", "intervals", "status", "certificate"} <= found.keys()
    out = tmp_path / "out"
    more = ["--pin", "E=1.5", "--define", "x=6 N D", "--out", str(out), "--json"]
    assert run_command([*arguments, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pinned"], found["definitions"]["x"]) == ({"E": 1.5}, "6 N D")
    assert json.loads((out / "fits.json").read_text())[0] == found
    assert set(pd.read_csv(out / "fits.csv")["parameter"]) == {"E", "A", "a"}
    drawn = pd.read_csv(out / "fit.csv")
    assert list(drawn.loc[drawn["layer"] == "point", "x"]) == pytest.approx(x)
    curve = drawn[drawn["layer"] == "curve"]
    assert (curve["extrapolated"] == ((curve["x"] < x[0]) | (curve["x"] > x[-1]))).all() and curve["extrapolated"].any()
    assert all((out / f"fit.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    for option, value in (("--pin", "E"), ("--pin", "E=low"), ("--map", "x"), ("--define", "=1")):
        assert run_command(["fit", "--table", str(tmp_path / "t.csv"), option, value]) == 2
        assert f"budgetlab: {option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.toml"], "no such file"),
        (["frob"], "frob"),
        (["plan"], "study"),
        (["plan", "presets/demo.toml", "--nope"], "--nope"),
        (["fit"], "exactly one of STUDY and --table"),
        (["fit", "--table", "nowhere.csv"], "no such file"),
        (["fit", "presets/demo.toml", "--results", "{tmp}"], "it has no scores"),
        (["status", "presets/demo.toml", "--results", "{tmp}"], "it has no plan yet"),
        (["plan", "presets/demo.toml", "--profile", "{tmp}/none.json"], "no such file"),
        (["run", "{tmp}/plan.json"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_command([part.format(tmp=tmp_path) for part in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.startswith("budgetlab: ") and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('train = ["train.txt"]', 'train = ["nowhere.txt"]', "nowhere.txt"),
        ('train = ["train.txt"]', 'train = ["empty.txt"]', "empty"),
        ('train = "colour.train.jsonl"', 'train = "none.jsonl"', "none.jsonl"),
        ('train = "colour.train.jsonl"', 'train = "empty.txt"', "empty"),
        ('budgets = ["1.5e9", "3e9"]', 'budgets = ["10 flops"]', "too small for one step"),
        ('device = "cpu"', 'device = "tpu"', "tpu"),
    ],
)
def test_bad_input_is_one_line(
    old: str,
    new: str,
    message: str,
    finished: dict,
    study: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (folder / "empty.txt").write_text("")
    bad = folder / "bad.toml"
    text = study.read_text()
    assert old in text
    bad.write_text(text.replace(old, new))
    verb = "evaluate" if "colour" in old else "study"
    results = folder / "results" if verb == "evaluate" else tmp_path / "results"
    (tmp_path / "results" / "small").mkdir(parents=True)
    shutil.copy(folder / "results" / "small" / "profile.json", tmp_path / "results" / "small")  # nothing is timed anew
    assert run_command([verb, str(bad), "--results", str(results)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("budgetlab: ") and message in last
    assert not list(tmp_path.glob("results/bad/runs/*/record.json"))


def test_doctor(capsys: pytest.CaptureFixture) -> None:
    assert run_command(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] in ("cpu", "cuda")


def test_an_unwritable_results_folder(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(["study", str(study), "--results", str(tmp_path / "file" / "below")]) == 2
    assert "choose another folder with --results" in capsys.readouterr().err


def test_a_task_that_cannot_be_read_is_left_out_and_the_others_are_scored(
    finished: dict, study: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    text = study.read_text()
    study.write_text(text.replace('tasks = ["colour"]', 'tasks = ["cola", "colour", "rte"]\nfolder = "nowhere"'))
    try:
        assert run_command(["evaluate", str(study), "--results", str(folder / "results")]) == 2
    finally:
        study.write_text(text)
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("budgetlab: not scored")]
    assert len(lines) == 1 and "path 'nowhere': not found" in lines[0]
    for word in ("colour accuracy", "read-out loss", "teacher", "random weights", "majority class", "1x2"):
        assert word in out
    assert "Traceback" not in error


def test_what_is_asked_on_the_command_line_is_kept_only_when_told_to(
    finished: dict, study: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = shutil.copytree(folder / "results", tmp_path / "results", ignore=shutil.ignore_patterns("checkpoints"))
    kept = {path: path.read_bytes() for path in (results / "small").glob("*.*")}
    where, other = ["--results", str(results)], ["--budget", "1e9", "--budget", "2e9", "--teacher-charge", "none"]
    assert run_command(["plan", str(study), *where, *other]) == 0
    assert {path: path.read_bytes() for path in (results / "small").glob("*.*")} == kept
    capsys.readouterr()
    assert run_command(["status", str(study), *where]) == 0
    assert "2/2" in capsys.readouterr().out
    assert run_command(["plan", str(study), *where, *other, "--save"]) == 0
    capsys.readouterr()
    assert run_command(["status", str(study), *where]) == 0
    said = capsys.readouterr().out
    assert "2/2" not in said and "0/2" in said  # what was run answers other budgets


def test_a_plan_on_given_throughput_and_a_report_time_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("this machine was timed")

    monkeypatch.setattr("budgetlab.profiler._time", never)
    rates = tmp_path / "rates.csv"
    rates.write_text("arm,tokens_per_second\n" + "".join(f"{arm},1000\n" for arm in ARMS))
    text = study.read_text().replace('device = "cpu"', 'device = "cuda"')
    other = study.with_name("elsewhere.toml")
    other.write_text(text)
    where = ["--results", str(tmp_path / "results")]
    given = ["--throughput", str(rates), "--match", "device_seconds", "--budget", "10 s"]
    assert run_command(["plan", str(other), *where, *given, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {s["tokens"] for s in made["schedules"]} == {128 * int(1000 * 10 / 128)}
    assert run_command(["report", str(study), *where]) == 0


ARMS = ("no_kd", "vanilla_kd", "minilm", "tinybert")


def test_a_shipped_teacher_is_trained_again_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from budgetlab.cli.demo import _train_again
    from budgetlab.cli.open_study import OpenStudy

    path = write_small_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = path.read_text().partition("[arms.vanilla_kd]")[0] + '[plan]\nbudgets = ["2e9", "4e9"]\n'
    path.write_text(text + "[evaluate]\nreadout_tokens = 2048\nreadout_steps = 4\nadapted_tokens = 0\n")
    opened, said = OpenStudy(str(path), Path("results"), None, quiet=True), list[str]()
    monkeypatch.setattr(opened.screen, "say", said.append)
    folder = _train_again(opened, {"heldout_nats": 99.0, "corpus": "other", "torch": "1.0", "python": "3.0"})
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
    assert any("the shipped one 99.000" in line and "beyond 0.05" in line for line in said)
    assert any("torch is" in line and "was 1.0 there" in line for line in said)
    taught = OpenStudy(str(write_small_study(tmp_path)), Path("results"), None, quiet=True)
    taught.use_teacher("teacher", folder)
    assert Path(taught.study.models["teacher"].weights or "").is_absolute()
    assert taught.corpus().vocab_size == opened.corpus().vocab_size


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_init_writes_a_study_that_loads(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    given = ["--family", family, "--student", "2x32", "--teacher", "4x64", "--budget", "1e12 flops"]
    assert run_command(["init", str(file), *given, "--dry-run"]) == 0 and not file.exists()
    shown = capsys.readouterr().out
    assert run_command(["init", str(file), *given]) == 0
    assert file.read_text() == shown and [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    study = load_study(file)
    assert study.models["student"].family == family and study.models["teacher"].num_layers == 4
    assert len(study.arms) == (4 if family == "bert" else 3)
    assert study.asked(teacher_charge="amortized:5").plan.teacher_charge == "amortised:5"
    capsys.readouterr()
    assert run_command(["init", str(file), *given]) == 2 and "there already" in capsys.readouterr().err
    assert run_command(["init", str(tmp_path / "b.toml"), "--text", "a.txt"]) == 2
    assert "no --heldout" in capsys.readouterr().err


def test_version_and_near_matches_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0 and capsys.readouterr().out.startswith("budgetlab 0.")
    assert run_command(["plan", "presets/demo.toml", "--bugdet", "4 h"]) == 2
    assert "Did you mean --budget" in capsys.readouterr().err
