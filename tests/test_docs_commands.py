"""Every command and every Python and TOML block of the documentation is run, or read by the program's own parser.

How a page says what is what:

- ```console: lines after "$ " are commands, the rest is what they print, exactly; a line of "..." stands for any lines.
- ```python is run, ```text after it is what it prints; ```toml is loaded; one that begins with "# NAME" is that file.
- `<!-- numbers vary: WHY -->` before a block: what it prints is compared word by word, but not in its numbers.
- ```bash is a script that is not run.
- `<!-- checked, not run: WHY -->` before a block: verbs, options, files and names in it must exist.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
import typer.main
from hurried import hurry

import budgetlab
from budgetlab.cli import app, run_command

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FIRST = ["README.md", "docs/index.md", "docs/tutorial.md"]
"""Pages in reading order: the how-to pages go on with the tutorial's files."""
PAGES = [*FIRST, *sorted({str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md")} - set(FIRST))]
FENCE = re.compile(r"(?:^<!-- (?P<mark>[a-z, ]+): [^>]+ -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.M | re.S)
KINDS = {"console", "bash", "python", "toml", "text", "", "{toctree}"}
MARKS = {None, "checked, not run", "numbers vary"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it is, how it is marked."""

    page: str
    line: int
    kind: str
    text: str
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """Name of the file that it is."""
        found = re.match(r"# (\S+\.(?:py|toml))\n", self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Commands of a console block, each with what it prints."""
        parts = re.split(r"^\$ ", self.text.replace(" \\\n", " "), flags=re.M)
        assert not parts[0].strip(), f"{self}: output without a command"
        pairs = (part.partition("\n") for part in parts[1:])
        return [(command, printed) for command, _, printed in pairs]


def blocks_of(page: str) -> list[Block]:
    source = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, source.count("\n", 0, found.start()) + 1, found["kind"], found["text"], found["mark"])
        for found in FENCE.finditer(source)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CHECKED = [block for block in BLOCKS if block.mark == "checked, not run"]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def same(printed: str, shown: str, *, numbers: bool) -> bool:
    """Whether what was printed is what the page shows; without `numbers` the other words alone are compared.

    A solver's optimum is known to some nine digits: sums of a process whose memory lies elsewhere round otherwise. So
    the seventh and last digit of a number is not compared.
    """
    seven = r"(?<![\d.])((?=[\d.]{8}(?![\d.]))[1-9]\d*\.\d*|0\.\d{6})\d(?!\d)"

    def plain(line: str) -> str:
        if numbers:
            return re.sub(seven, r"\1", line.rstrip())
        return " ".join(w for w in line.split() if not re.search(r"\d|^-+$|^n/a$", w))

    shown_lines = (r"(?:.*\n)*?" if line == "..." else re.escape(plain(line)) + r"\n" for line in shown.split("\n"))
    printed_lines = (plain(line) + "\n" for line in printed.strip("\n").split("\n"))
    return re.fullmatch("".join(shown_lines), "".join(printed_lines)) is not None


@pytest.mark.parametrize(
    ("printed", "shown", "numbers", "alike"),
    [
        ("a 1.5 s\nb\n", "a 1.5 s\nb", True, True),
        ("a 1.6 s\nb\n", "a 1.5 s\nb", True, False),
        ("B 863.3467\n", "B 863.3466", True, True),
        ("B 863.3476\n", "B 863.3466", True, False),
        ("a 0.8218152\n", "a 0.8218151", True, True),
        ("a 0.82181\n", "a 0.82182", True, False),
        ("a   16 s\nb\n", "a 1.5 s\nb", False, True),
        ("a 1.5 s n/a\n", "a 1.5 s", False, True),
        ("A is better by 1.5\n", "B is better by 1.5", False, False),
        ("a\nb\nc\nd\n", "a\n...\nd", True, True),
        ("a\nb\nc\nd\n", "a\n...\nc", True, False),
    ],
)
def test_what_counts_as_the_same(printed: str, shown: str, numbers: bool, alike: bool) -> None:
    assert same(printed, shown, numbers=numbers) is alike


def run(command: str) -> tuple[int, str]:
    """Run one command line in this process and return its status and what it printed."""
    words, printed = shlex.split(command, comments=True), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        if words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
            return 0, printed.getvalue()
        assert words[0] == "budgetlab", f"{command}: only budgetlab and python are run; mark it"
        return run_command(words[1:]), printed.getvalue()


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    fences = sum(len(re.findall(r"^```\S+$", (ROOT / page).read_text(encoding="utf-8"), re.M)) for page in PAGES)
    assert fences == sum(block.kind != "" for block in BLOCKS), "a fence that is not closed, or indented"
    for block in BLOCKS:
        assert block.kind in KINDS, f"{block}: {block.kind}"
        assert block.mark in MARKS, f"{block}: {block.mark}"
        if block.kind in ("text", ""):
            commands = re.findall(r"^(?:\$|budgetlab|make|pip|python|torchrun) .*", block.text, re.M)
            assert commands == [], f"{block}: a command in a block that is not looked at"


def test_every_block_runs_and_prints_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder, in reading order, as a reader would who does all of it in a checkout, but for shorter measurements.

    What a measurement is worth varies between machines, and none of it is compared.
    """
    hurry(monkeypatch.setattr)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("BUDGETLAB_DATA_ROOT", raising=False)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "results").mkdir()
    for recorded in (ROOT / "results").iterdir():
        (tmp_path / "results" / recorded.name).symlink_to(recorded)
    wrong, printed = [], ""
    with inside(tmp_path):
        for block in (block for block in BLOCKS if block.mark != "checked, not run"):
            if block.kind == "toml":
                load(block, tmp_path)
            elif block.file:
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.kind == "python":
                printed = execute(block)
            elif block.kind == "text" and not same(printed, block.text.strip(), numbers=block.mark is None):
                wrong.append(f"{block}: printed\n{printed}")
            elif block.kind == "console":
                for command, shown in block.commands:
                    status, said = run(command)
                    if status or (shown.strip() and not same(said, shown.strip("\n"), numbers=block.mark is None)):
                        wrong.append(f"{block}: {command} ended with {status} and printed\n{said}")
    assert wrong == [], "\n\n".join(wrong)


def execute(block: Block) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {})
    return printed.getvalue()


def load(block: Block, folder: Path) -> None:
    """Load a study file, or a part of one laid over the tutorial's."""
    if block.file:
        path = folder / block.file
        path.write_text(block.text, encoding="utf-8")
    else:
        path = folder / "part.toml"
        path.write_text(tomli_w.dumps({"extends": "tutorial.toml", **tomllib.loads(block.text)}), encoding="utf-8")
    study = budgetlab.load_study(path)
    assert study.arms


@pytest.mark.parametrize("block", CHECKED, ids=str)
def test_what_is_not_run_exists(block: Block) -> None:
    if block.kind == "python":
        names = set(re.findall(r"\bbudgetlab\.([A-Za-z_]+)", block.text))
        compile(block.text, str(block), "exec")
        assert names and names <= set(budgetlab.__all__), names - set(budgetlab.__all__)
        return
    if block.kind == "bash":  # a script: the commands of ours in it
        lines = block.text.replace("\\\n", " ").splitlines()
        commands = [line.split("||")[0] for line in lines if "budgetlab" in line]
        assert commands, f"{block}: nothing to check"
        for command in commands:
            check(shlex.split(command), command)
        return
    assert block.kind == "console", f"{block}: nothing to check"
    for command, shown in block.commands:
        assert not shown.strip(), f"{block}: output of a command that is not run"
        check(shlex.split(command, comments=True), command)


def check(words: list[str], command: str) -> None:
    """Read a command without running it."""
    if "&&" in words:
        here = words.index("&&")
        check(words[:here], command)
        check(words[here + 1 :], command)
    elif words[0] in ("srun", "torchrun"):
        check(["budgetlab", *words[words.index("budgetlab") + 1 :]], command)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), command
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {name for group in re.findall(r"\[([a-z,]+)\]", command) for name in group.split(",")}
        assert extras <= set(project["optional-dependencies"]), command
        assert "constraints.txt" not in words or (ROOT / "constraints.txt").is_file()
    elif words[0] == "budgetlab":
        verb = COMMANDS[words[1]]
        verb.make_context(command, list(words[2:]))
    else:
        assert words[0] in (".", "python"), f"{command}: nothing knows this command"


PROSE = sorted({*PAGES, *(str(page.relative_to(ROOT)) for page in ROOT.glob("[a-z]*/README.md"))})


@pytest.mark.parametrize("page", PROSE)
def test_commands_in_the_text_have_these_verbs_and_options(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for command in re.findall(r"`(budgetlab [a-z][^`]*)`", text):
        words = shlex.split(" ".join(command.split()).replace("[", "").replace("]", ""))
        verb = COMMANDS[words[1]]
        if words[2:] and "--help" not in words:
            verb.make_context(command, words[2:])
    for script in re.findall(r"`[^`\n]*\bpython ([a-z_/]+\.py)[^`]*`", text):
        assert (ROOT / script).is_file(), script
    for target in re.findall(r"`make ([a-z]+)`", text):
        check(["make", target], f"make {target}")


@pytest.mark.parametrize("page", PROSE)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_options_in_the_text_exist() -> None:
    known = {
        option
        for verb in COMMANDS.values()
        for parameter in verb.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    for page in PAGES:
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(re.findall(r"`(--[^`]+)`", text))))
        assert named - known == set(), page
