"""The README names every verb, every verb and option has help, and docs/architecture.md names what there is."""

import re
from pathlib import Path

import typer.main

from budgetlab.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "budgetlab"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_verb_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"budgetlab {name}" not in README] == []


def test_every_verb_and_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        for option in command.params:
            assert getattr(option, "help", None), f"{name} {option.name}"


def test_the_command_line_grows_on_purpose() -> None:
    assert sorted(COMMANDS) == [
        "cache", "demo", "doctor", "evaluate", "fit", "init", "plan", "profile", "report", "retry", "run", "status",
        "study", "work",
    ]  # fmt: skip


def test_the_architecture_names_every_file() -> None:
    named = re.findall(r"^- `([^` ]+)` \S", ARCHITECTURE.partition("## Every file")[2], re.M)
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*") if path.is_file()}
    # A folder of weights is named as one.
    files = {re.sub(r"^(presets/\w+/).*", r"\1", name) for name in files if "__pycache__" not in name}
    assert sorted(named) == sorted(files)


def test_the_architecture_names_what_exists() -> None:
    for path, name in re.findall(r"`([\w/]+\.\w+)(?::([\w.]+))?`", ARCHITECTURE):
        source = ((ROOT if path.startswith("tests/") else PACKAGE) / path).read_text(encoding="utf-8")
        defined = rf"^ *(def|class) {name.split('.')[-1]}\b|^{name}\b.* ="
        assert not name or re.search(defined, source, re.M), f"{path}:{name}"
