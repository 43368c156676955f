"""Whatever is done to a study file, `plan` and `status` end with 0, or with 2 and one line; sizes are bounded."""

import contextlib
import copy
import io
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from planner.prices import profile_of
from small import write_small_study

from budgetlab.cli import run_command
from budgetlab.studies import Study, load_study
from budgetlab.values import Arm, ModelSpec

FURTHER = """
[tuning]
learning_rate = [1e-3, 2e-3]
charge = false

[fit]
law = "power"
x = "required_flops"
y = "colour"
"""
DEFAULTS = {
    "[plan]": 'match = "required_flops"\nladder = "branched"\nteacher_charge = "inference"',
    "[execution]": "devices = 1\nscaling_efficiency = 1.0\nusd_per_device_hour = 2.5",
    "[recipe]": 'schedule = "wsd"\nwarmup_fraction = 0.06\ncooldown_fraction = 0.2',
    "[models.student]": 'family = "bert"',
}
"""Written out, so that they can be mutated."""
NAMES = [
    "student",
    "teacher",
    "no_kd",
    "colour",
    "power",
    "minilm",
    "required_flops",
    "docs",
    "auto",
    "cpu",
    "bert",
    "tokens:no_kd",
    "amortised:3",
    "pretraining",
    "mine.py",
    "looks.py",
    "given",
    "small.toml",
    "presets/demo.toml",
]
VALUES: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    100,
    10**6,
    2**31,
    2**63 - 1,
    0.0,
    -0.0,
    0.5,
    1.0,
    1e-300,
    1e300,
    -2.5,
    1e18,
    True,
    False,
    "",
    " ",
    "0",
    "1e9",
    "5 bananas",
    "1e300 Zflops",
    "1e30 flops",
    "4 h",
    "8 gpu-hours",
    "10 usd",
    "2 kWh",
    "9k tokens",
    "1e-9 flops",
    "inf",
    "nan",
    "a" * 5000,
    "../up",
    "/etc/passwd",
    "a\nb",
    "a\x00b",
    "$x$",
    "_x",
    "é",
    "漢字",
    "\U0001f600",
    [],
    [0],
    [1, 2],
    ["student", "student"],
    ["student", "teacher"],
    [[]],
    [{}],
    {},
    {"name": "no_kd"},
    {"a": {"b": 1}},
    {"train": 100},
    {"train": 10**30},
    {"tokens": 0},
    {"tokens": ["4k", "4k"]},
    {"teacher_layers": [0, 1]},
    {"num_hidden_layers": 3},
    {"hidden_act": 3},
    list(range(2000)),
    ["x"] * 2000,
    *NAMES,
]
KEYS = sorted(
    {
        name
        for model in (Study, ModelSpec, Arm)
        for name in model.model_fields
    }
    | {name for field in Study.model_fields.values() for name in getattr(field.annotation, "model_fields", {})}
    | {"extends", "x", "", "a.b", "é", "config", "name", "loss", "_a", "a$", "tokens", "train"}
)  # fmt: skip
OWN = """from budgetlab.strategies.no_kd import NoKD


class Mine(NoKD):
    def check(self, student, teacher):
        {body}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, prices for it, and files that a study may name: good, broken and of another kind."""
    folder = tmp_path_factory.mktemp("mutated")
    path = write_small_study(folder, FURTHER)
    for table, lines in DEFAULTS.items():
        path.write_text(path.read_text().replace(f"{table}\n", f"{table}\n{lines}\n"))
    (folder / "prices.json").write_text(profile_of(load_study(path)).model_dump_json())
    (folder / "mine.py").write_text(OWN.format(body="return None"))
    (folder / "looks.py").write_text(OWN.format(body="return [][0]"))
    (folder / "given").mkdir()
    (folder / "given" / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide", "vocab_size": -1}')
    return folder


def tables_in(tables: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [table for value in tables.values() if isinstance(value, dict) for table in tables_in(value)]
    return [tables, *inner]


def nudged(value: Any, draw: random.Random) -> Any:
    """A value of the same kind, near or far, that may well be allowed."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        scaled = value * draw.choice([0, 0.5, 2, 3, 10, 1e-3, 1e3, 1e6, -1])
        return int(scaled) if isinstance(value, int) else scaled
    if isinstance(value, list):
        return draw.choice([value[:1], value * 2, value[::-1], [nudged(item, draw) for item in value]])
    same = next((kind for kind in KINDS if value in kind), None)
    if same is not None:
        return draw.choice(same)
    number, _, unit = str(value).partition(" ")
    try:
        return f"{float(number) * draw.choice([1e-12, 0.1, 0.5, 3, 1e4, 1e9, 1e17])!r} {unit}".strip()
    except ValueError:
        return value


KINDS = [
    ["no_kd", "vanilla_kd", "minilm", "minilm_v1", "tinybert", "distilbert"],
    ["student", "teacher"],
    ["bert", "roberta", "electra", "modernbert", "megatron-bert"],
    ["cpu", "cuda", "auto"],
    ["power", "bnsl", "chinchilla", "exponential", "sigmoid"],
    ["required_flops", "executed_flops", "device_seconds", "joules", "usd", "equal_tokens", "tokens:minilm"],
    ["none", "inference", "pretraining", "amortised:3", "amortised:999999999"],
    ["linear", "cosine", "wsd", "wsd_sqrt", "inverse_sqrt"],
    ["branched", "separate"],
    ["readout_loss", "mlm_loss", "colour", "score"],
]


def mutate(tables: dict[str, Any], draw: random.Random) -> None:
    table = draw.choice(tables_in(tables))
    key = draw.choice([*table, draw.choice(KEYS)])
    deed = draw.choice([*["nudge"] * 12, "value", "value", "add", "drop", "rename", "copy"])
    if deed == "nudge":
        if key in table and not isinstance(table[key], dict):
            table[key] = nudged(table[key], draw)
        return
    if deed == "drop":
        table.pop(key, None)
    elif deed == "rename" and key in table:
        table[str(draw.choice(KEYS + [v for v in VALUES if isinstance(v, str)]))] = table.pop(key)
    elif deed == "copy":
        table[draw.choice(KEYS)] = copy.deepcopy(draw.choice(list(draw.choice(tables_in(tables)).values()) or [0]))
    else:
        table[draw.choice(KEYS) if deed == "add" else key] = copy.deepcopy(draw.choice(VALUES))


def garble(text: str, draw: random.Random) -> str:
    at, length = draw.randrange(len(text)), draw.randrange(1, 30)
    inserted = draw.choice(
        ["", "[", "]]", '"', "'''", "\n", "=", "\x00", "\ud800", "a." * 300, "[" * 3000, "9" * 5000, "#"]
    )
    return text[:at] + inserted + text[at + draw.choice([0, length]) :]


def mutated(folder: Path, seed: int) -> bytes:
    draw = random.Random(seed)
    text = (folder / "small.toml").read_text()
    if draw.random() < 0.25:
        for _ in range(draw.randrange(1, 4)):
            text = garble(text, draw)
        return text.encode("utf-8", "surrogatepass")
    tables = tomllib.loads(text)
    for _ in range(draw.randrange(1, 4)):
        mutate(tables, draw)
    return tomli_w.dumps(tables).encode()


def run(arguments: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = run_command(arguments)
    return status, said.getvalue()


def outcomes(folder: Path, seeds: range) -> list[int]:
    found = []
    for seed in seeds:
        path, results = folder / f"study-{seed}.toml", folder / f"results-{seed}"
        path.write_bytes(mutated(folder, seed))
        for verb in (["plan", str(path), "--profile", str(folder / "prices.json")], ["status", str(path)]):
            status, said = run([*verb, "--results", str(results)])
            assert status in (0, 2), f"seed {seed}, {verb[0]}: {status}, {said[-2000:]}"
            assert "Traceback" not in said and "unexpected failure" not in said, f"seed {seed}: {said[-2000:]}"
            if status == 2:
                assert said.startswith("budgetlab: ") and said.count("\n") == 1, f"seed {seed}: {said[-2000:]}"
                assert len(said) < 2500, f"seed {seed}: {len(said)} characters"
            found.append(status)
        path.unlink()
    return found


def test_sixty_mutated_studies(folder: Path) -> None:
    assert set(outcomes(folder, range(60))) == {0, 2}


@pytest.mark.stress
def test_a_thousand_mutated_studies(folder: Path) -> None:
    found = outcomes(folder, range(60, 1560))
    print({status: found.count(status) for status in (0, 2)})
    assert found.count(0) > 300
