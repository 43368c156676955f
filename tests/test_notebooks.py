"""Notebooks run from top to bottom on the public API alone, and their executed twins are made from the same cells."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import budgetlab

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
SHOWN_WITH = {"budgetlab", "pandas", "pathlib", "pydoc_data.topics", "tempfile"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def hidden(source: str) -> list[str]:
    """What a reader could not find in the documentation: helpers, other imports, names that are not public."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            found.append(f"line {node.lineno}: a helper")
        if isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name not in SHOWN_WITH]
        if isinstance(node, ast.ImportFrom) and node.module != "pathlib":
            found.append(f"imports from {node.module}")
        if isinstance(node, ast.Attribute):
            of_package = isinstance(node.value, ast.Name) and node.value.id == "budgetlab"
            if node.attr.startswith("_") or (of_package and node.attr not in budgetlab.__all__):
                found.append(f"line {node.lineno}: {node.attr} is not public")
    return found


@each_notebook
def test_it_uses_the_public_api_alone(path: Path) -> None:
    assert hidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["def f(): pass", "show = lambda x: x", "import numpy", "from budgetlab.units import x", "budgetlab.store", "a._b"],
)
def test_the_check_can_fail(source: str) -> None:
    assert hidden(source)


@each_notebook
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    script = "import runpy, sys; from hurried import hurry; hurry(); runpy.run_path(sys.argv[1], run_name='__main__')"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    # Those that measure nothing load no torch.
    measures = re.search(r"budgetlab\.(profile|evaluate)\(", path.read_text(encoding="utf-8"))
    command = [sys.executable, "-c", script, str(path)] if measures else [sys.executable, str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@each_notebook
def test_the_executed_twin_has_the_same_cells_and_no_error(path: Path) -> None:
    cells = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    source = path.read_text(encoding="utf-8")
    parts = [part.strip() for part in source.split("# %%")[1:] if not part.startswith(" [markdown]")]
    assert ["".join(cell["source"]).strip() for cell in code] == parts
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    # What went to stderr is a warning that the reader was meant to see, or a mess.
    assert not any(output.get("name") == "stderr" for output in outputs)
    text = json.dumps(outputs)
    assert str(ROOT) not in text and str(Path.home()) not in text
