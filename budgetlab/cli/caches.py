"""The verb that brings caches of teachers to other programs, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer
from typer import Option

from budgetlab.cli.options import Options


def cache(
    action: Literal["export", "import"] = typer.Argument(help="export a folder to a path, or import a path."),
    source: Path = typer.Argument(help="results/cache/teacher-..., or the file to be imported.", metavar="SOURCE"),
    to: str = Option("parquet", help="What is exported to: parquet.", metavar="FORMAT"),
    out: Path | None = Option(None, help="Where what is exported goes; else beside it.", metavar="PATH"),
    *,
    options: Options,
) -> None:
    """Bring what is kept of a teacher to other programs, or from their files into results/cache."""
    from budgetlab.runner.cache_files import export_cache, import_cache

    if action == "import":
        folder = import_cache(source, options.results / "cache")
        options.print(lambda: {"folder": str(folder)}, list, f"imported into {folder}")
        return
    path = out or source.with_name(f"{source.name}.{to}")
    sequences = export_cache(source, to, path)
    found = {"path": str(path), "sequences": sequences}
    options.print(lambda: found, list, f"{sequences:,} sequences in {path}")
