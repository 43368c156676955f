"""Documents of one file: lines of text, JSON lines or parquet; plain, or packed as .gz, .xz or .zst."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError

_LINE_LIMIT = 1 << 20  # a file without line breaks must not be read into memory whole
_RECORD_LIMIT = 64 << 20
_PACKED = (".gz", ".xz", ".zst")


def has_columns(path: Path) -> bool:
    """Whether a file's documents have names for their parts, of which one is the text."""
    return _format(path) in (".jsonl", ".json", ".parquet")


def read_documents(path: Path, column: str, asked: str) -> Iterator[str]:
    """Yield the documents of a file, in bounded memory."""
    asked = f"{asked} = {str(path)!r}"
    found = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json_lines}.get(_format(path), _lines)
    with _readable(asked):
        for text in found(path, column, asked):
            if text and not text.isspace():
                yield text


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


@contextmanager
def _readable(asked: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        do = "give UTF-8 text, plain or with its ending .gz, .xz or .zst"
        raise CallerError(asked, "a binary file, or text that is not UTF-8", do) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        wrong = f"cannot be unpacked or read ({' '.join(str(error).split())[:120]})"
        raise CallerError(asked, wrong, "check that the file is complete and readable") from error


def _opened(path: Path) -> Any:
    if path.suffix == ".zst":
        import pyarrow

        return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="zstd"), encoding="utf-8")
    return {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)(path, "rt", encoding="utf-8")


def _lines(path: Path, column: str, asked: str, limit: int = _LINE_LIMIT) -> Iterator[str]:
    with _opened(path) as file:
        while line := file.readline(limit):
            if "\0" in line:
                raise CallerError(asked, "a binary file, not text", "give UTF-8 text, plain, .gz, .xz or .zst")
            yield line


def _json_lines(path: Path, column: str, asked: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, column, asked, _RECORD_LIMIT), start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CallerError(asked, f"line {number} is not JSON ({error})", "give one object in each line") from None
        text = record.get(column) if isinstance(record, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise CallerError(asked, f"line {number} has no text in {column!r} (has {keys})", "set corpus.column")
        yield _whole_characters(text)


def _whole_characters(text: str) -> str:
    """Join the halves of characters that JSON writes apart, and replace those that have lost the other half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet(path: Path, column: str, asked: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise CallerError(asked, f"no column {column!r}", f"set corpus.column to one of {names}")
            for batch in file.iter_batches(1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise CallerError(asked, f"column {column!r} holds no text", "set corpus.column to one of text")
                    yield text or ""
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
