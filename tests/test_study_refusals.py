"""What could only fail later is refused when the study is loaded, in one line, before anything is built."""

import json
import re
from pathlib import Path

import pytest
from planner.prices import profile_of
from small import write_small_study

from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.studies import load_study

LONG = "a" * 5000
MINE = "class Mine(NoKD):\n"


def refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_small_study(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CallerError, match=message) as caught:
        load_study(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name", ["a$b", "_a", ".a", "-a", "a/b", "../a", "/tmp/a", "a\\nb", "a\\u0000b", "a b", "", LONG]
)
@pytest.mark.parametrize("where", ["study", "arm", "model", "task", "own"])
def test_one_pattern_holds_for_every_name(tmp_path: Path, name: str, where: str) -> None:
    old, new = {
        "study": ('name = "small"', f'name = "{name}"'),
        "arm": ("[arms.no_kd]", f'[arms."{name}"]'),
        "model": ("[models.student]", f'[models."{name}"]\nnum_layers = 1\nhidden_size = 8\nnum_heads = 1\n'
                  "intermediate_size = 8\n[models.student]"),
        "task": ('tasks = ["colour"]', f'tasks = ["{name}"]'),
        "own": ("[evaluate.own.colour]", f'[evaluate.own."{name}"]\ntrain = "a"\nvalidation = "b"\ntext = ["c"]\n'
                "[evaluate.own.colour]"),
    }[where]  # fmt: skip
    refused(tmp_path, old, new, "pattern|at least 1|at most 100")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('budgets = ["1.5e9", "3e9"]', 'budgets = ["5 bananas"]', "no unit of that name"),
        ('budgets = ["1.5e9", "3e9"]', 'budgets = ["1e300 Zflops"]', "more than"),
        ('budgets = ["1.5e9", "3e9"]', 'budgets = ["4 h"]', "device_seconds, the match 'required_flops'"),
        ('budgets = ["1.5e9", "3e9"]', 'match = "equal_tokens"\nbudgets = ["1e18"]', 'such as "1e18 tokens"'),
        ('budgets = ["1.5e9", "3e9"]', 'match = "device_seconds"\nbudgets = [3600]', 'such as "3600 gpu-hours"'),
        ('budgets = ["1.5e9", "3e9"]', 'match = "tokens:no_kb"\nbudgets = ["1M tokens"]', "did you mean no_kd"),
        ('budgets = ["1.5e9", "3e9"]', 'match = "joule"\nbudgets = ["1 J"]', "did you mean joules"),
        ("[plan]", '[plan]\nteacher_charge = "pretrained"', "did you mean pretraining"),
        ("[plan]", f'[plan]\nteacher_charge = "amortised:{"9" * 400}"', "amortised:K"),
        ("[evaluate]", '[fit]\nlaw = "pwr"\n[evaluate]', "did you mean power"),
        ("[evaluate]", '[fit]\nlaw = "chinchilla"\n[evaluate]', "its inputs are"),
        ("[evaluate]", '[fit]\nx = "required_flop"\n[evaluate]', "did you mean required_flops"),
        ("[evaluate]", '[fit]\ny = "colours"\n[evaluate]', "did you mean colour"),
        ("[evaluate]", "[fit]\npinned = { e = 1.0 }\n[evaluate]", "no parameter of power"),
        ("[evaluate]", '[fit]\nshared = ["b"]\n[evaluate]', "no parameter of power"),
        ('tasks = ["colour"]', 'tasks = ["colur"]', "did you mean colour"),
        ('tasks = ["colour"]', "preset = []", "preset"),
        ("batch_tokens = 128", 'batch_tokens = "1e300B"', "more than"),
        ("batch_tokens = 128", 'batch_tokens = "1e17"', "batch_tokens"),
        ("seeds = [0, 1]\n\n", "seeds = [18446744073709551616]\n\n", "seeds"),
        ("seeds = [0, 1]\n\n", f"seeds = {list(range(100_000))}\n\n", "seeds"),
        ("threads = 1", f"threads = {10**30}", "threads"),
        ("num_layers = 2", "num_layers = 1000000", "num_layers"),
        ("hidden_size = 32", f"hidden_size = {2**62}", "hidden_size"),
        ("[plan]", f"[tuning]\nlearning_rate = {[0.1] * 300}\n[plan]", "tuning.learning_rate"),
        ("epochs = 1", f"epochs = 1\nlearning_rate = {[0.1] * 300}\nbatch_size = {[8] * 300}", "evaluate"),
        ("seeds = [0, 1]\n\n", f"seeds = [{'9' * 5000}]\n\n", "not valid TOML"),
        ("seeds = [0, 1]\n\n", f"seeds = {'[' * 5000}{']' * 5000}\n\n", "nested more than"),
        ("seeds = [0, 1]\n\n", f"{'.'.join('a' * 20_000)} = 1\n\n", "nested more than"),
        ("seeds = [0, 1]\n\n", f"x = {{{'.'.join('a' * 20_000)} = 1}}\n\n", "nested more than"),
        ('name = "small"', f"# {'x' * 2_000_000}", "larger than"),
        ('name = "small"', f'extends = "{LONG}.toml"', "no such file"),
        ('name = "small"', 'extends = "a\\u0000b"', "no such file"),
        ('name = "small"', "extends = 3", "not the path"),
        ('strategy = "minilm"', f'strategy = "{LONG}.py"', "name too long"),
        ("[models.teacher]", "[models.teacher]\nconfig = { num_hidden_layers = 3 }", "contradicts num_layers = 4"),
        ("[models.teacher]", "[models.teacher]\nconfig = { vocab_size = 3 }", "say it once, as vocab_size"),
        ("[models.teacher]", "[models.teacher]\nconfig = { max_position_embeddings = 8 }", "positions for 8 tokens"),
        ('student = "student"', 'student = ["student", "student"]', "two arms have this name"),
        ('[arms.no_kd]\nstrategy = "no_kd"\nstudent = "student"', '[arms."a@student"]\nstrategy = "no_kd"\n'
         'student = "student"\n[arms.a]\nstrategy = "no_kd"\nstudent = ["student", "teacher"]', "two arms have"),
        ("tokens = 4096", "tokens = [4096, 4096]", "two models have this name"),
        ('student = "student"', f"student = {['student'] * 300}".replace("'", '"'), "two arms|500 arms"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_it_is_refused_before_anything_is_built(tmp_path: Path, old: str, new: str, message: str) -> None:
    refused(tmp_path, old, new, message)


def test_circles_and_long_chains_of_extends_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.toml").write_text('extends = "sub/../a.toml"\n')
    with pytest.raises(CallerError, match="extends itself"):
        load_study(tmp_path / "a.toml")
    for number in range(2000):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    with pytest.raises(CallerError, match="more than 20 files in a row"):
        load_study(tmp_path / "0.toml")


def test_a_budget_on_the_command_line_is_refused_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_small_study(tmp_path)
    path.write_text(
        path.read_text().replace('budgets = ["1.5e9", "3e9"]', 'match = "equal_tokens"\nbudgets = ["9k tokens"]')
    )
    assert run_command(["plan", str(path), "--budget", "1e18", "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'such as "1e18 tokens"' in error
    assert not (tmp_path / "results").exists()


def given(tmp_path: Path, **config: object) -> Path:
    """Write a study whose teacher is a folder of weights beside it, and no more is said of it."""
    (tmp_path / "given").mkdir()
    fields = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 2,
              "intermediate_size": 128, "vocab_size": 200, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "given" / "config.json").write_text(json.dumps(fields | config))
    path = write_small_study(tmp_path)
    text = path.read_text()
    start, end = text.index("[models.teacher]"), text.index("[arms.no_kd]")
    path.write_text(f'{text[:start]}[models.teacher]\nweights = "given"\n{text[end:]}')
    return path


def test_given_weights_say_their_own_shape(tmp_path: Path) -> None:
    spec = load_study(given(tmp_path, hidden_size=96, vocab_size=200)).models["teacher"]
    assert (spec.family, spec.num_layers, spec.hidden_size, spec.vocab_size) == ("bert", 4, 96, 200)
    assert Path(spec.weights or "").is_dir()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_position_embeddings": 12}, "teacher has positions for 12 tokens"),
        ({"vocab_size": 300}, "its vocabulary has 300 entries, the student's 200"),
        ({"hidden_size": "wide"}, "models.teacher.hidden_size"),
        ({"model_type": "gpt9"}, "no family 'gpt9'"),
    ],
)
def test_given_weights_that_cannot_serve_are_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        load_study(given(tmp_path, **config))


@pytest.mark.parametrize(
    ("field", "said", "true"), [("num_layers", 6, 4), ("family", "gpt2", "bert"), ("vocab_size", 300, 200)]
)
def test_a_field_that_contradicts_the_weights_is_refused_with_both_values(
    tmp_path: Path, field: str, said: object, true: object
) -> None:
    path = given(tmp_path)
    contrary = f'weights = "given"\n{field} = {json.dumps(said)}'
    path.write_text(path.read_text().replace('weights = "given"', contrary))
    with pytest.raises(CallerError, match=rf"models\.teacher\.{field} = {said!r}.*{field} of '.*given' is {true!r}"):
        load_study(path)
    (tmp_path / "given" / "config.json").write_text("{")
    with pytest.raises(CallerError, match=r"no config\.json that can be read"):
        load_study(path)


def test_a_strategy_lies_beside_its_study(tmp_path: Path) -> None:
    source = "from budgetlab.strategies.no_kd import NoKD\n\n\nclass Mine(NoKD):\n    pass\n"
    (tmp_path / "mine.py").write_text(source)
    path = write_small_study(tmp_path, '[arms.mine]\nstrategy = "mine.py"\nstudent = "student"\n')
    assert load_study(path).arms["mine"].strategy.name == str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(:\n", r"mine\.py, line 5: SyntaxError"),
        ("import no_such_package\n", r"mine\.py, line 5: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"mine\.py, line 5: SystemExit"),
        ("1 / 0\n", r"mine\.py, line 5: ZeroDivisionError"),
        (f"{MINE}    def check(self, student, teacher):\n        return 1 / 0\n", r"mine\.py, line 7: Zero"),
        (f"{MINE}    def student_needs(self, student, teacher):\n        return 1 / 0\n", r"line 7: Zero"),
        (f"{MINE}    def loss(self, batch, student, teacher, projections=None):\n        return 1 / 0\n",
         r"mine\.py, line 7: Zero"),
    ],
)  # fmt: skip
def test_an_error_in_a_users_strategy_is_said_with_its_line(
    tmp_path: Path, body: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(f"from budgetlab.strategies.no_kd import NoKD\n\n\n\n{body}")
    path = write_small_study(tmp_path, '[arms.mine]\nstrategy = "mine.py"\nstudent = "student"\n')
    assert run_command(["profile", str(path), "--count-only", "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error) and "report it" not in error


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = given(tmp_path)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(195))]
    (tmp_path / "given" / "vocab.txt").write_text("\n".join(pieces))
    assert run_command(["run", str(path), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "of the corpus, and absent there" in error and "set corpus.tokenizer" in error
    path.write_text(path.read_text().replace("tokenizer = { train = 200 }", 'tokenizer = "given"'))
    assert load_study(path).models["student"].vocab_size == 200


@pytest.mark.parametrize("option", ["--budget", "--match", "--teacher-charge", "--profile", "--throughput", "--export"])
@pytest.mark.parametrize(
    "value", ["", "x", "1e300 Zflops", "nan", "tokens:", "amortised:0", LONG, "a\nb", "\x00", "\ud800"]
)
def test_an_option_of_plan_that_makes_no_sense_is_one_line(
    folder: Path, option: str, value: str, capsys: pytest.CaptureFixture
) -> None:
    recorded = [] if option == "--profile" else ["--profile", str(folder / "prices.json")]
    arguments = ["plan", str(folder / "small.toml"), "--results", str(folder / "results"), *recorded, option, value]
    assert run_command(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("budgetlab: ") and error.count("\n") == 1 and "unexpected" not in error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "prices.json").write_text(profile_of(load_study(write_small_study(folder))).model_dump_json())
    return folder
