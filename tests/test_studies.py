"""Study files: defaults, presets, expansion of arms, and one line for every mistake."""

import json
from pathlib import Path

import pytest
from small import write_small_study

from budgetlab import study_tables
from budgetlab.errors import CallerError
from budgetlab.planner import audit
from budgetlab.studies import dump_study, load_study
from budgetlab.study_tables import PRESETS


def test_a_dumped_study_is_the_same_study(tmp_path: Path) -> None:
    study = load_study("presets/demo.toml")
    (tmp_path / "again.toml").write_text(dump_study(study))
    again = load_study(tmp_path / "again.toml")
    assert again.model_copy(update={"data_roots": study.data_roots}) == study


@pytest.mark.parametrize(
    "path", sorted([*PRESETS.glob("*.toml"), *Path("experiments").glob("*.toml")]), ids=lambda p: p.name
)
def test_shipped_studies_load(path: Path) -> None:
    study = load_study(path.resolve())
    assert study.arms and audit(study)


def test_extends_merges_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "presets/demo.toml"\nname = "mine"\n[recipe]\nseq_len = 32\n')
    mine, demo = load_study(tmp_path / "mine.toml"), load_study("presets/demo.toml")
    assert mine.recipe.seq_len == 32 and mine.recipe.learning_rate == demo.recipe.learning_rate
    assert all(arm.recipe.seq_len == 32 for arm in mine.arms.values())


def test_a_list_of_students_expands(tmp_path: Path) -> None:
    path = write_small_study(tmp_path, '[arms.scratch]\nstrategy = "no_kd"\nstudent = ["student", "teacher"]\n')
    assert {"scratch@student", "scratch@teacher"} <= set(load_study(path).arms)


def test_the_audit_prints_what_differs(tmp_path: Path) -> None:
    path = write_small_study(tmp_path, "[arms.minilm.recipe]\nlearning_rate = 5e-4\n")
    lines = audit(load_study(path))
    assert "minilm: recipe.learning_rate 0.0005, no_kd has 0.002" in lines
    assert not any("differ in strategy alone" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seq_len = 16", "seqlen = 16", "'seqlen': no key in .recipe. of that name; did you mean seq_len"),
        ("learning_rate = 2e-3", 'learning_rate = "fast"', "recipe.learning_rate: .*valid number.*'fast'"),
        ("[plan]", "[pln]", "did you mean plan"),
        ('strategy = "minilm"', 'strategy = "minlm"', "arms.minilm.strategy 'minlm': .* did you mean minilm"),
        ('strategy = "minilm"', 'strategy = { name = "minilm", heads = 2 }', "no setting of minilm of that name"),
        ('strategy = "minilm"', 'strategy = { name = "minilm", relation_heads = 5 }', "5: does not divide"),
        ('strategy = "minilm"', 'strategy = { name = "minilm", teacher_layer = 9 }', "9: .*layers 1 to 4"),
        ("num_layers = 4", "num_layers = 3", "arms.tinybert: .*do not divide the teacher's 3"),
        ("num_heads = 2", "num_heads = 3", "num_heads 3 does not divide hidden_size 32"),
        ("pretrain = { tokens = 4096, seed = 0 }", "", "neither weights nor pretrain"),
        ("pretrain = { tokens = 4096, seed = 0 }", "pretrain = { tokens = 4096 }\nvocab_size = 77", "77 entries"),
        ("pretrain = { tokens = 4096", 'pretrain = { tokens = "4Q"', "count = '4Q'"),
        ('teacher = "teacher"', 'teacher = "teach"', "no model of that name; did you mean teacher"),
        ("[arms.no_kd]", '[arms.no_kd]\nteacher = "teacher"', "no_kd uses no teacher"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "must be distinct"),
        ("batch_tokens = 128", "batch_tokens = 100", "no multiple of seq_len"),
        ('name = "small"', 'name = "../up"', "name: .*pattern"),
        ('name = "small"', "name = small", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CallerError, match=message) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_presets() -> None:
    with pytest.raises(CallerError, match=r"presets/demo\.toml"):
        load_study("nowhere.toml")


def test_a_study_that_extends_itself(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(CallerError, match="extends itself"):
        load_study(tmp_path / "a.toml")


def test_a_users_own_strategy_file(tmp_path: Path) -> None:
    source = '"""Mine."""\nfrom budgetlab.strategies.no_kd import NoKD\n\n\nclass Mine(NoKD):\n    """As no_kd."""\n'
    (tmp_path / "mine.py").write_text(source)
    path = write_small_study(tmp_path, f'[arms.mine]\nstrategy = "{tmp_path}/mine.py"\nstudent = "student"\n')
    assert "mine" in load_study(path).arms
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(CallerError, match="defines 0 strategies"):
        load_study(path)


@pytest.mark.parametrize("family", ["modernbert", "megatron-bert"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_loss_that_reads_attention_refuses_a_family_that_hides_it(tmp_path: Path, family: str, role: str) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text().replace(f"[models.{role}]\n", f'[models.{role}]\nfamily = "{family}"\n')
    path.write_text(text)
    with pytest.raises(CallerError, match=rf"a {role} of family '{family}'.*only from bert, roberta, electra"):
        load_study(path)
    # Strategies that read logits work.
    whole = text.replace('strategy = "minilm"', 'strategy = "no_kd"').replace(
        'strategy = "tinybert"', 'strategy = "no_kd"'
    )
    for arm in ("minilm", "tinybert"):
        before, after = whole.split(f"[arms.{arm}]\n")
        whole = f"{before}[arms.{arm}]\n" + after.replace('teacher = "teacher"\n', "", 1)
    path.write_text(whole)
    assert load_study(path).models[role].family == family


@pytest.mark.parametrize(
    ("recipe", "teacher", "message"),
    [
        ("[0, 1]", "", "the arm has no teacher"),
        ("[0, 9]", 'teacher = "teacher"', "the student has 2 layers, the teacher's are 0 to 3"),
        ("[0, 1, 2]", 'teacher = "teacher"', "give one teacher layer for each student layer"),
        ("[0, 3]", 'teacher = "teacher"', "hidden_size differs: student 32, teacher 64"),
    ],
)
def test_a_start_from_the_teacher_must_fit(tmp_path: Path, recipe: str, teacher: str, message: str) -> None:
    extra = f"{teacher}\nrecipe = {{ initialisation = {{ teacher_layers = {recipe} }} }}\n"
    path = write_small_study(tmp_path)
    path.write_text(
        path.read_text().replace('[arms.no_kd]\nstrategy = "no_kd"\n', f'[arms.no_kd]\nstrategy = "no_kd"\n{extra}')
    )
    with pytest.raises(CallerError, match=message):
        load_study(path)


def test_lists_of_students_and_teachers_become_a_grid(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text().replace("pretrain = { tokens = 4096, seed = 0 }", 'pretrain = { tokens = ["4k", "8k"] }')
    text = text.replace(
        '[arms.no_kd]\nstrategy = "no_kd"\nstudent = "student"',
        '[arms.no_kd]\nstrategy = "no_kd"\nstudent = ["student", "tiny"]',
    )
    text += "\n[models.tiny]\nnum_layers = 1\nhidden_size = 32\nnum_heads = 2\nintermediate_size = 64\n"
    path.write_text(text)
    study = load_study(path)
    assert set(study.models) == {"student", "tiny", "teacher-4k", "teacher-8k"}
    assert [study.models[f"teacher-{n}"].pretraining_tokens for n in ("4k", "8k")] == [4000, 8000]
    assert set(study.arms) == {
        "no_kd@student", "no_kd@tiny", "vanilla_kd+teacher-4k", "vanilla_kd+teacher-8k", "minilm+teacher-4k",
        "minilm+teacher-8k", "tinybert+teacher-4k", "tinybert+teacher-8k",
    }  # fmt: skip
    assert study.arms["minilm+teacher-8k"].teacher == "teacher-8k"

    assert any("tokens" in line and "minilm+teacher-8k: teacher" in line for line in audit(study))
    path.write_text(text.replace('["4k", "8k"]', "[]"))
    with pytest.raises(CallerError, match="an empty list"):
        load_study(path)


def test_what_a_student_starts_from_is_said_and_its_pretraining_is_refused(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    student, text = "[models.student]\n", path.read_text()
    path.write_text(text.replace(student, f'{student}weights = "given"\npretrained_for = "3e9 tokens"\n'))
    line = next(line for line in audit(load_study(path)) if "continued pretraining" in line)
    assert "student starts from weights = 'given'" in line and "3e9 tokens" in line
    path.write_text(text.replace(student, f"{student}pretrain = {{ tokens = 4096 }}\n"))
    with pytest.raises(CallerError, match=r"no_kd.*pretrain, which is a teacher's"):
        load_study(path)


def test_the_papers_studies_can_be_extended_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('extends = "experiments/paper_6l.toml"\nname = "mine"\n')
    assert load_study("mine.toml").arms.keys() == load_study("experiments/paper_6l.toml").arms.keys()


def test_weights_of_the_hub_say_their_own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cache" / "models--some--teacher"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    fields = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    (kept / "snapshots" / "abc" / "config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = study_tables._with_given_shape("teacher", {"weights": "some/teacher"})
    assert (given["family"], given["num_layers"], given["hidden_size"]) == ("bert", 4, 64)
    with pytest.raises(CallerError, match="num_layers of 'some/teacher' is 4"):
        study_tables._with_given_shape("teacher", {"weights": "some/teacher", "num_layers": 5})
    with pytest.raises(CallerError, match="cannot be had from the hub"):
        study_tables._with_given_shape("teacher", {"weights": "some/other"})


def test_what_given_weights_cost_can_be_stated(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    for stated, tokens in (('"137B tokens"', 137_000_000_000), ('"4e20 flops"', None)):
        text = path.read_text().replace(
            "pretrain = { tokens = 4096, seed = 0 }", f'weights = "given"\npretrained_for = {stated}'
        )
        (tmp_path / "given.toml").write_text(text)
        assert load_study(tmp_path / "given.toml").models["teacher"].pretraining_tokens == tokens
    (tmp_path / "given.toml").write_text(text.replace('"4e20 flops"', '"4e20 flopps"'))
    with pytest.raises(CallerError, match="flopps"):
        load_study(tmp_path / "given.toml")


def test_a_preset_of_the_evaluation_is_filled_in_below_what_is_written(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text()
    start = text.index("[evaluate]")
    base = text[:start]

    def load(written: str):
        path.write_text(f"{base}[evaluate]\n{written}")
        return load_study(path).evaluate

    paper = load('preset = "paper"')
    assert len(paper.tasks) == 7 and not {"stsb", "wnli"} & set(paper.tasks)
    assert len(paper.recipes("rte")) == 4 * 2 and {recipe.epochs for recipe in paper.recipes("rte")} == {5}
    assert paper.selection == "maximum" and paper.folder_of("rte") is None
    default = load('preset = "default"\nfolder = "glue"\n[evaluate.by_task.mnli]\nfolder = "hub"\n'
                   "[evaluate.by_task.rte]\nepochs = 12")  # fmt: skip
    assert len(default.tasks) == 8 and "wnli" not in default.tasks
    assert default.seeds_of("rte") == (0, 1, 2, 3, 4) and default.recipes("rte")[0].epochs == 12
    assert default.seeds_of("mnli") == (0, 1, 2) and default.recipes("mnli")[0].epochs == 3
    assert (default.folder_of("mnli"), default.folder_of("rte")) == (None, "glue")
    quick = load('preset = "quick"\nseeds = [4, 5]\ntasks = ["rte"]\nlearning_rate = 1e-3')
    assert (quick.seeds, quick.tasks, quick.learning_rate, quick.epochs) == ((4, 5), ("rte",), 1e-3, 2)
    again = tmp_path / "again.toml"
    again.write_text(dump_study(load_study(path)))
    assert load_study(again).evaluate == quick


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('preset = "papr"', "preset"),
        ('tasks = ["rte"]\naverage = ["rte", "sts"]', r"average names \['sts'\], which are not among the tasks"),
        ('tasks = ["rte"]\nprimary = { rte = "acc" }', "primary"),
        ('tasks = ["rte"]\nby_task = { rt = { epochs = 2 } }', "by_task names"),
        ("seeds = [1, 1]", "must be distinct"),
        ("learning_rate = []", "learning_rate"),
        ("batch_size = [16, 0]", "batch_size"),
        ('own = { cola = { train = "a", validation = "b", text = ["c"] } }', "may not be called cola"),
    ],
)
def test_a_mistake_in_the_evaluation_is_one_line(tmp_path: Path, written: str, message: str) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text()
    path.write_text(f"{text[: text.index('[evaluate]')]}[evaluate]\n{written}\n")
    with pytest.raises(CallerError, match=message) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)
