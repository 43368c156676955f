"""Corpus `docs`: the English documentation that every machine with budgetlab already has.

Docstrings of the standard library and of installed dependencies are read from the source files with `ast`, and
Python's reference topics from `pydoc_data`; nothing is imported. Much of this text is boilerplate, so a line of
24 characters or more is kept only where it occurs first, before packages are divided into train and held-out: no
such line is in both.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError

STDLIB = "stdlib"
PACKAGES = (
    STDLIB, "torch", "transformers", "scipy", "sympy", "pandas", "numpy", "sklearn", "networkx", "matplotlib",
    "huggingface_hub", "datasets", "setuptools", "fontTools", "narwhals", "pydantic", "mpmath", "pygments", "rich",
    "PIL", "fsspec", "pyparsing", "click", "jinja2", "joblib", "pyarrow", "packaging", "fvcore", "filelock", "dill",
    "typer", "tqdm", "markdown_it", "multiprocess", "safetensors",
)  # fmt: skip
"""Top-level packages in the order of reading: budgetlab's dependencies and theirs."""
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "markdown_it": "markdown-it-py"}
"""Of the packages whose distribution has another name."""
HELDOUT = ("pandas", "numpy", "networkx")
"""Packages whose text is never trained on."""

_SKIPPED_FOLDERS = frozenset(
    ("__pycache__", "test", "tests", "testing", "_vendor", "site-packages", "dist-packages", "idlelib", "lib2to3",
     "turtledemo", "ensurepip", "pydoc_data")
)  # fmt: skip
_MIN_WORDS = 5  # what deduplication leaves of a docstring is dropped below this
_MIN_LINE = 24  # shorter lines ("Parameters", "axis : int") are the skeleton of documentation, not copied text


@dataclass
class DocsSource:
    """The built-in corpus as a source of documents, one for each docstring or topic."""

    packages: Sequence[str] = PACKAGES
    heldout: Sequence[str] = HELDOUT
    found: dict[str, Any] = field(default_factory=dict)
    """Filled while reading: documents and bytes before and after, files that could not be parsed."""
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._roots = {name: root for name in self.packages if (root := _root(name)) is not None}
        distributions = {name: _DISTRIBUTIONS.get(name, name) for name in self._roots}
        self._versions = {
            name: platform.python_version() if name == STDLIB else importlib.metadata.version(distribution)
            for name, distribution in distributions.items()
        }
        for split, names in (("train", set(self.packages) - set(self.heldout)), ("held-out", self.heldout)):
            if not self._roots.keys() & set(names):
                asked = 'corpus source = "docs"'
                wrong = f"no source files of a {split} package ({', '.join(sorted(names))}) are installed"
                raise CallerError(asked, wrong, "install budgetlab's dependencies, or use your own text files")

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text without reading it: versions, and the path and size of every source file."""
        files = {
            name: [[str(path.relative_to(root)), path.stat().st_size] for path in _sources(root)]
            for name, root in self._roots.items()
        }
        return {"source": "docs", "versions": self._versions, "heldout": list(self.heldout), "files": files}

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, int, str]]:
        """Yield (split, 0, text), where split is "train" or "heldout" and text has no long line seen before."""
        seen: set[str] = set()
        totals = {"text_bytes": 0, "repeated_line_bytes": 0, "unparsed_files": 0}
        for index, (name, root) in enumerate(self._roots.items()):
            progress(f"reading documentation: {name} ({index + 1} of {len(self._roots)})")
            split = "heldout" if name in self.heldout else "train"
            for raw in _texts(name, root, totals):
                kept = drop_repeated_lines(raw, seen)
                # Characters stand for bytes: the text is almost all ASCII, and encoding it twice costs a second.
                totals["text_bytes"] += len(raw)
                totals["repeated_line_bytes"] += len(raw) - len(kept)
                if len(kept.split(None, _MIN_WORDS)) >= _MIN_WORDS:
                    yield split, 0, kept
        self.found.update(
            totals,
            versions=self._versions,
            heldout_packages=list(self.heldout),
            packages_not_installed=[name for name in self.packages if name not in self._roots],
        )


def _texts(name: str, root: Path, totals: dict[str, int]) -> Iterator[str]:
    """Docstrings of a package; of the standard library the topics of `help` too."""
    for path in _sources(root):
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        try:
            yield from docstrings(source)
        except (SyntaxError, ValueError, RecursionError):
            totals["unparsed_files"] += 1
    topics = root / "pydoc_data" / "topics.py"
    if name == STDLIB and topics.is_file():
        for node in ast.parse(topics.read_bytes()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                yield from (str(text) for _, text in sorted(ast.literal_eval(node.value).items()))


def docstrings(source: bytes) -> list[str]:
    """Return the docstrings of a Python source file, in the order of the text."""
    # Millions of live nodes make the cyclic collector scan for nothing; it is a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_docstrings(ast.parse(source)))
    finally:
        if collecting:
            gc.enable()


def _docstrings(node: ast.AST) -> Iterator[str]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and (text := ast.get_docstring(node)):
        yield text
    for block in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, block, ())
        for child in children if isinstance(children, list) else ():
            if not isinstance(child, ast.expr):
                yield from _docstrings(child)


def drop_repeated_lines(text: str, seen: set[str]) -> str:
    """Drop the lines of `text` that are in `seen` (compared without their indent), and add the others to it.

    Lines under 24 characters stay. Over a series of texts with one `seen`, every longer line comes out exactly
    once, at its first place.
    """
    kept = []
    for line in text.splitlines():
        bare = line.strip()
        if len(bare) >= _MIN_LINE:
            if bare in seen:
                continue
            seen.add(bare)
        kept.append(line)
    return "\n".join(kept)


def _root(name: str) -> Path | None:
    if name == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)  # for a top-level name this looks, and does not import
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))
