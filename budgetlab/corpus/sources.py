"""Where documents come from: files of text, JSON lines or parquet, or the hub; `docs` has a file of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetlab.corpus.docs import HELDOUT, PACKAGES, DocsSource
from budgetlab.errors import CallerError, unknown_name
from budgetlab.values import CorpusSpec

_HELDOUT_ONE_IN = 100
_LINE_LIMIT = 1 << 20  # a file without line breaks must not be read into memory whole
_RECORD_LIMIT = 64 << 20
_PACKED = (".gz", ".xz", ".zst")


def make_source(spec: CorpusSpec, roots: Sequence[Path]) -> Source:
    """Return the source that `spec` names, with its files found."""
    if spec.source == "docs":
        return _named_packages(spec)
    if spec.source == "hub":
        return HubSource(spec)
    parts = [find_files([pattern], roots, "corpus.train") for pattern in spec.train]
    return TextSource(parts, find_files(spec.heldout, roots, "corpus.heldout"), spec.column, spec.weights)


def _named_packages(spec: CorpusSpec) -> DocsSource:
    """The documentation of all packages, or of those that are named."""
    if not (spec.train or spec.heldout):
        return DocsSource()
    heldout = spec.heldout or HELDOUT
    train = spec.train or [name for name in PACKAGES if name not in heldout]
    for where, names in (("corpus.train", train), ("corpus.heldout", heldout)):
        for name in names:
            if name not in PACKAGES:
                raise unknown_name("package with documentation", name, PACKAGES, where)
    if both := sorted({*train} & {*heldout}):
        raise CallerError(f"corpus.train and corpus.heldout: {both[0]!r}", "it is in both", "name it once")
    return DocsSource([name for name in PACKAGES if name in {*train, *heldout}], heldout)


def find_files(patterns: Sequence[str], roots: Sequence[Path], asked: str) -> list[Path]:
    """Expand paths and globs, each relative to the first root in which it matches a file."""
    found: list[Path] = []
    for pattern in patterns:
        if Path(pattern).is_absolute():
            # Path.glob refuses absolute patterns, so the root of the file system plays the data root.
            places, name = [Path(Path(pattern).anchor)], str(Path(pattern).relative_to(Path(pattern).anchor))
        else:
            places, name = [Path(root) for root in roots] or [Path.cwd()], pattern
        for place in places:
            # A file whose own name holds brackets is a path before it is a glob.
            exact = place / name
            matches = [exact] if exact.is_file() else sorted(p for p in place.glob(name) if p.is_file())
            if matches:
                found.extend(path for path in matches if path not in found)
                break
        else:
            wrong = "is a folder" if any((place / name).is_dir() for place in places) else "no such file"
            do = "check the path, or set --data-root (or BUDGETLAB_DATA_ROOT) to the folder that has it"
            raise CallerError(f"{asked} = {pattern!r}", f"{wrong} in {', '.join(map(str, places))}", do)
    return found


@dataclass
class TextSource:
    """Files of text, JSON lines or parquet, plain or packed."""

    parts: Sequence[Sequence[Path]]
    """Of the train text, by pattern."""
    heldout: Sequence[Path]
    column: str = "text"
    weights: tuple[float, ...] = ()
    """What share of the train text each part is to have; empty where all of the text is taken."""
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.train = {path: part for part in reversed(range(len(self.parts))) for path in self.parts[part]}
        self._digests = {path: sha256(path) for path in (*self.train, *self.heldout)}
        trained_on = {self._digests[path]: path for path in self.train}
        for path in self.heldout:
            if (twin := trained_on.get(self._digests[path])) is not None:
                wrong = f"the same content as {str(twin)!r} in corpus.train"
                raise CallerError(f"corpus.heldout = {str(path)!r}", wrong, "hold out text that is not trained on")

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text by the SHA-256 of every file; names do not matter, and order does not either."""
        splits = {"train": self.train, "heldout": self.heldout}
        what: dict[str, Any] = {"source": "text"}
        what |= {split: sorted({self._digests[path] for path in paths}) for split, paths in splits.items()}
        if any(_format(path) in (".jsonl", ".json", ".parquet") for path in self._digests):
            what["column"] = self.column
        if self.weights:
            shares = zip(self.weights, self.parts, strict=True)
            what["weights"] = [[weight, sorted(self._digests[path] for path in paths)] for weight, paths in shares]
        return what

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, int, str]]:
        """Yield (split, part, text), where split is "train" or "heldout", and part counts the train patterns."""
        splits = {"train": self.train, "heldout": dict.fromkeys(self.heldout, 0)}
        for split, paths in splits.items():
            for index, (path, part) in enumerate(sorted(paths.items(), key=lambda item: item[1])):
                progress(f"reading {path.name} ({split}, {index + 1} of {len(paths)})")
                empty = True
                for text in read_documents(path, self.column, f"corpus.{split}"):
                    empty = False
                    yield split, part, text
                if empty:
                    asked = f"corpus.{split} = {str(path)!r}"
                    raise CallerError(asked, "the file has no text", "give a file with a document in each line")
        self.found["files"] = {
            split: [{"name": path.name, "sha256": self._digests[path]} for path in paths]
            for split, paths in splits.items()
        }


def sha256(path: Path) -> str:
    """Hash a file's bytes, as they lie on disk."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        wrong = error.strerror or str(error)
        raise CallerError(f"corpus file {str(path)!r}", wrong, "make it readable") from error


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def read_documents(path: Path, column: str, asked: str) -> Iterator[str]:
    """Yield the documents of a file, plain or packed as .gz, .xz or .zst, in bounded memory."""
    asked = f"{asked} = {str(path)!r}"
    read = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json_lines}.get(_format(path), _lines)
    try:
        yield from (text for text in read(path, column, asked) if text and not text.isspace())
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
        except (ValueError, RecursionError) as error:
            raise CallerError(asked, f"line {number} is not JSON ({error})", "give one object in each line") from None
        text = record.get(column) if isinstance(record, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise CallerError(asked, f"line {number} has no text in {column!r} (has {keys})", "set corpus.column")
        yield valid_unicode(text)


def valid_unicode(text: str) -> str:
    """Join the halves of characters that JSON writes apart, and replace those that lost the other half."""
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


_UNLOADABLE = (OSError, ValueError, RuntimeError)
"""What datasets raises for the hub, names and files."""


@dataclass
class HubSource:
    """A data set that `datasets` can load, a name on the hub or a folder: streamed, never stored whole.

    `spec.heldout` names its held-out splits; without one, every hundredth document by content hash is held out.
    """

    spec: CorpusSpec
    found: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._origins: list[Any] = []
        self._parts = [("train", self._load(name)) for name in self.spec.train or (self.spec.split,)]
        self._parts += [("heldout", self._load(name)) for name in self.spec.heldout]

    def _load(self, split: str) -> Any:
        import datasets

        spec = self.spec
        asked = f"corpus.dataset = {spec.dataset!r}, config {spec.dataset_config!r}, split {split!r}"
        try:
            files: Any = datasets.load_dataset_builder(str(spec.dataset), spec.dataset_config).config.data_files
            data = datasets.load_dataset(str(spec.dataset), spec.dataset_config, split=split, streaming=True)
            columns = list(data.column_names or next(iter(data), {}))
        except _UNLOADABLE as error:
            do = "check name, config and split, and the connection to the hub"
            raise CallerError(asked, f"cannot be loaded ({_first_line(error)})", do) from error
        # Of a file on the hub its repository and commit, of a local one its time.
        self._origins.append([split, [list(map(str, origin)) for origin in files[split].origin_metadata]])
        if spec.column not in columns:
            wrong = f"no column {spec.column!r}"
            raise CallerError(asked, wrong, f"set corpus.column to one of {', '.join(columns)}")
        return data.select_columns([spec.column])

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text by where the files of each split are from."""
        name = [self.spec.dataset, self.spec.dataset_config]
        return {"source": "hub", "name": name, "parts": self._origins, "column": self.spec.column}

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, int, str]]:
        """Yield (split, 0, text), one for each row."""
        for split, data in self._parts:
            progress(f"reading {self.spec.dataset} ({split})")
            rows, read = iter(data), 0
            while True:
                try:
                    row = next(rows, None)
                except _UNLOADABLE as error:
                    asked = f"corpus.dataset = {self.spec.dataset!r}, split {split!r}"
                    wrong = f"reading stopped after {read:,} rows ({_first_line(error)})"
                    raise CallerError(asked, wrong, "give the same command again") from error
                if row is None:
                    break
                text, read = row[self.spec.column], read + 1
                if not isinstance(text, str):
                    asked = f"corpus.column = {self.spec.column!r}"
                    raise CallerError(asked, f"holds {type(text).__name__}, not text", "name a column of text")
                digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
                drawn = not self.spec.heldout and int.from_bytes(digest) % _HELDOUT_ONE_IN == 0
                yield "heldout" if drawn else split, 0, text
        self.found["dataset"] = {"name": self.spec.dataset, "config": self.spec.dataset_config}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


Source = DocsSource | TextSource | HubSource
