"""A module imports only from lower floors, and the paper side never loads torch."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "budgetlab"
FLOORS = [
    ({"errors"}, set()),
    ({"units"}, set()),
    ({"values"}, set()),
    ({"machine"}, set()),
    (
        {"strategies", "laws", "study_tables", "frames", "modelcard", "resampling", "engines"},
        {"hardware", "models", "corpus", "batches", "checkpoint", "ranks", "in_parts"},
    ),
    ({"studies", "store", "intake"}, {"transfer"}),
    ({"planner", "fitting"}, {"step"}),
    ({"decisions"}, set()),
    ({"reporting"}, {"profiler", "runner", "evaluation"}),
    (set(), {"cli"}),
]
"""(paper side, torch side), lowest first; `__main__` and the lazy `__init__` are exempt."""
PAPER = set().union(*(paper for paper, _ in FLOORS))
FLOOR_OF = {room: floor for floor, sides in enumerate(FLOORS) for side in sides for room in side}
EXEMPT = {"__main__", "__init__"}
DOORS = {
    "fvcore": {"profiler"},
    "scipy": {"fitting", "resampling", "evaluation", "profiler"},
    "matplotlib": {"reporting"},
    "datasets": {"corpus", "evaluation"},
    "transformers": {"models", "corpus", "evaluation"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """Every imported module, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                f"{node.module}.{alias.name}" if node.module == "budgetlab" else node.module or ""
                for alias in node.names
            }
    return found


def violations(room: str, source: str) -> list[str]:
    wrong = []
    for name in imports(source):
        top, _, rest = name.partition(".")
        if top == "budgetlab" and rest:
            other = rest.split(".")[0]
            if other != room and (other not in FLOOR_OF or FLOOR_OF[other] >= FLOOR_OF[room]):
                wrong.append(f"{room} imports {other}, which is not below it")
            if other in FLOOR_OF and room in PAPER and other not in PAPER:
                wrong.append(f"{room} is on the paper side and imports {other}")
        if top in DOORS and room not in DOORS[top]:
            wrong.append(f"{room} imports {top}, whose door is {sorted(DOORS[top])}")
    return wrong


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in EXEMPT]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_only_from_lower_floors(path: Path) -> None:
    assert violations(room_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("units", "from budgetlab.values import Plan"),
        ("planner", "from budgetlab.step import TrainingStep"),
        ("profiler", "import budgetlab.runner"),
        ("studies", "def f():\n    from budgetlab.store import Store"),
        ("laws", "if TYPE_CHECKING:\n    from budgetlab import models"),
        ("planner", "import scipy.stats"),
    ],
)
def test_the_check_can_fail(room: str, line: str) -> None:
    assert violations(room, line)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - EXEMPT
    assert rooms == set(FLOOR_OF)


def loaded(code: str, folder: Path | None = None) -> set[str]:
    """Modules that are loaded after running some code in a fresh process, in a folder."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    return set(done.stdout.split("\n")[-2].split())


def test_paper_side_never_loads_torch() -> None:
    rooms = "\n".join(f"import budgetlab.{room}" for room in sorted(PAPER))
    use = (
        "from budgetlab.strategies import build_strategy, strategy_names\n"
        "from budgetlab.values import StrategySpec\n"
        "[build_strategy(StrategySpec(name=name)) for name in strategy_names()]\n"
        "from budgetlab.studies import load_study; load_study('presets/demo.toml')\n"
    )
    assert loaded(f"{rooms}\n{use}").isdisjoint({"torch", "transformers", "matplotlib", "datasets", "fvcore"})


HEAVY = {"torch", "transformers", "scipy", "matplotlib", "pandas", "pydantic", "datasets", "sklearn", "fvcore"}
STUDY = str(PACKAGE.parent / "experiments" / "wikipedia_small.toml")


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], set()),
        (["plan", "--help"], {"pydantic"}),
        (["plan", STUDY], {"pandas", "pydantic"}),
        (["status", STUDY], {"pandas", "pydantic"}),
        (["fit", "--table", "table.csv", "--map", "y=loss", "--resamples", "20"], {"pandas", "pydantic", "scipy"}),
        (["fit", STUDY], {"pandas", "pydantic", "scipy"}),
        (["report", STUDY], {"pandas", "pydantic", "scipy", "matplotlib"}),
    ],
    ids=lambda words: "-".join(words[:2]).rpartition("/")[2] if isinstance(words, list) else "",
)
def test_a_verb_loads_no_more_than_it_needs(arguments: list[str], needed: set[str], tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "x,loss\n" + "".join(f"{10.0**k},{2.0 + 3.0 * 10.0 ** (-0.3 * k)}\n" for k in range(6))
    )
    # The smallest of what a study with results has: its plan and the scores of the losses.
    results, own = PACKAGE.parent / "results" / "wikipedia_small", tmp_path / "results" / "wikipedia_small"
    own.mkdir(parents=True)
    for name in ("plan.json", "profile.json", "study.toml"):
        shutil.copy(results / name, own)
    code = f"from budgetlab.cli import run_command\nassert run_command({arguments!r}) == STATUS"
    # Without scores fit refuses, once it has loaded what reads them.
    code = code.replace("STATUS", "2" if arguments[:2] == ["fit", STUDY] else "0")
    assert loaded(code, tmp_path) & HEAVY <= needed


def test_planning_and_status_load_no_optimizer(tmp_path: Path) -> None:
    code = "import budgetlab.planner, budgetlab.fitting, budgetlab.decisions, budgetlab.reporting"
    assert "scipy" not in loaded(code, tmp_path)


def test_the_torch_check_can_fail() -> None:
    assert "torch" in loaded("import budgetlab.ranks")
