"""The README names every verb, and every verb and option has help."""

from pathlib import Path

import typer.main

from budgetlab.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
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
        "demo", "doctor", "evaluate", "fit", "plan", "profile", "report", "run", "status", "study",
    ]  # fmt: skip


def test_the_readme_maps_every_file() -> None:
    root = Path(__file__).parent.parent / "budgetlab"
    rooms = {path.name for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rooms = {name if name.endswith(".py") else f"{name}/" for name in rooms}
    assert [name for name in sorted(rooms) if name not in README] == []
