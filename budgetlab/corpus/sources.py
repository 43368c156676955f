"""Where documents come from: text files, or a data set on the hub (`docs` has a file of its own)."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from budgetlab.corpus.docs import DocsSource
from budgetlab.errors import CallerError
from budgetlab.values import CorpusSpec

__all__ = ["HubSource", "Source", "TextSource", "find_files", "make_source", "sha256"]

_LINE_LIMIT = 1 << 20  # a file without line breaks must not be read into memory whole
_HELDOUT_ONE_IN = 100


class Source(Protocol):
    """Documents with their split, and what identifies them."""

    found: dict[str, Any]

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text by content."""
        ...

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Yield (split, text), where split is "train" or "heldout"."""
        ...


def make_source(spec: CorpusSpec, roots: Sequence[Path]) -> Source:
    """Return the source that `spec` names, with its files found."""
    if spec.source == "docs":
        return DocsSource()
    if spec.source == "hub":
        return HubSource(spec)
    return TextSource(find_files(spec.train, roots, "corpus.train"), find_files(spec.heldout, roots, "corpus.heldout"))


def find_files(patterns: Sequence[str], roots: Sequence[Path], asked: str) -> list[Path]:
    """Expand paths and globs, each relative to the first root in which it matches a file.

    Raises
    ------
    CallerError
        When a path does not exist or a glob matches nothing.
    """
    found: list[Path] = []
    places = [Path(root) for root in roots] or [Path.cwd()]
    for pattern in patterns:
        if Path(pattern).is_absolute():
            # Path.glob refuses absolute patterns, so the root of the file system plays the data root.
            anchor = Path(Path(pattern).anchor)
            candidates: list[tuple[Path, str]] = [(anchor, str(Path(pattern).relative_to(anchor)))]
        else:
            candidates = [(place, pattern) for place in places]
        for place, name in candidates:
            # A file whose own name holds brackets is a path before it is a glob.
            exact = place / name
            matches = [exact] if exact.is_file() else sorted(p for p in place.glob(name) if p.is_file())
            if matches:
                found.extend(path for path in matches if path not in found)
                break
        else:
            looked = ", ".join(str(place) for place, _ in candidates)
            wrong = "is a folder" if any((p / n).is_dir() for p, n in candidates) else "no such file"
            do = "check the path, or set --data-root (or BUDGETLAB_DATA_ROOT) to the folder that has it"
            raise CallerError(f"{asked} = {pattern!r}", f"{wrong} in {looked}", do)
    return found


@dataclass
class TextSource:
    """UTF-8 text files (plain, .gz or .xz), one document in each line that is not blank.

    Raises
    ------
    CallerError
        When one file is in both splits, cannot be read, is not text, or is empty.
    """

    train: Sequence[Path]
    heldout: Sequence[Path]
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._digests = {path: sha256(path) for path in (*self.train, *self.heldout)}
        trained_on = {self._digests[path]: path for path in self.train}
        for path in self.heldout:
            twin = trained_on.get(self._digests[path])
            if twin is not None:
                wrong = f"the same content as {str(twin)!r} in corpus.train"
                raise CallerError(f"corpus.heldout = {str(path)!r}", wrong, "hold out text that is not trained on")

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text by the SHA-256 of every file; names do not matter, and order does not either."""
        splits = {"train": self.train, "heldout": self.heldout}
        return {"source": "text"} | {
            split: sorted({self._digests[path] for path in paths}) for split, paths in splits.items()
        }

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Yield (split, line)."""
        for split, paths in (("train", self.train), ("heldout", self.heldout)):
            for index, path in enumerate(paths):
                progress(f"reading {path.name} ({split}, {index + 1} of {len(paths)})")
                empty = True
                for line in _lines(path, f"corpus.{split}"):
                    empty = False
                    yield split, line
                if empty:
                    asked = f"corpus.{split} = {str(path)!r}"
                    raise CallerError(asked, "the file has no text", "give a file with a document in each line")
        self.found["files"] = {
            split: [{"name": path.name, "sha256": self._digests[path]} for path in paths]
            for split, paths in (("train", self.train), ("heldout", self.heldout))
        }


def sha256(path: Path) -> str:
    """Hash a file's bytes, as they lie on disk.

    Raises
    ------
    CallerError
        When it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        wrong = error.strerror or str(error)
        raise CallerError(f"corpus file {str(path)!r}", wrong, "make it readable") from error


def _lines(path: Path, asked: str) -> Iterator[str]:
    openers: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}
    asked = f"{asked} = {str(path)!r}"
    try:
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            while line := file.readline(_LINE_LIMIT):
                if "\0" in line:
                    raise CallerError(asked, "a binary file, not text", "give UTF-8 text, plain, .gz or .xz")
                if not line.isspace():
                    yield line
    except UnicodeDecodeError as error:
        do = "give UTF-8 text, plain or with its ending .gz or .xz"
        raise CallerError(asked, "a binary file, or text that is not UTF-8", do) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        wrong = f"cannot be unpacked or read ({error})"
        raise CallerError(asked, wrong, "check that the file is complete and readable") from error


@dataclass
class HubSource:
    """A data set that `datasets` can load: a name on the hub, or a folder.

    `spec.heldout` names its held-out splits; without one, every hundredth document by content hash is held out.

    Raises
    ------
    CallerError
        When the data set, the split or the column cannot be loaded.
    """

    spec: CorpusSpec
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parts = [("train", self._load(name)) for name in self.spec.train or (self.spec.split,)]
        self._parts += [("heldout", self._load(name)) for name in self.spec.heldout]

    def _load(self, split: str) -> Any:
        import datasets

        spec = self.spec
        asked = f"corpus.dataset = {spec.dataset!r}, config {spec.dataset_config!r}, split {split!r}"
        try:
            data = datasets.load_dataset(str(spec.dataset), spec.dataset_config, split=split)
        except (OSError, ValueError, RuntimeError) as error:  # what datasets raises for hub, names and files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            do = "check name, config and split, and the connection to the hub"
            raise CallerError(asked, f"cannot be loaded ({reason})", do) from error
        columns = list(data.column_names or ())
        if spec.column not in columns:
            wrong = f"no column {spec.column!r}"
            raise CallerError(asked, wrong, f"set corpus.column to one of {', '.join(columns)}")
        return data.select_columns([spec.column])

    def fingerprint(self) -> dict[str, Any]:
        """Identify the text by the fingerprints that `datasets` gives the loaded splits."""
        parts = [[split, data._fingerprint] for split, data in self._parts]
        return {"source": "hub", "parts": parts, "column": self.spec.column}

    def documents(self, progress: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Yield (split, text), one for each row."""
        by_hash = not self.spec.heldout
        for split, data in self._parts:
            progress(f"reading {self.spec.dataset} ({split}, {len(data)} rows)")
            for row in data:
                text = row[self.spec.column]
                if not isinstance(text, str):
                    asked = f"corpus.column = {self.spec.column!r}"
                    raise CallerError(asked, f"holds {type(text).__name__}, not text", "name a column of text")
                yield ("heldout" if by_hash and _drawn(text) else split), text
        self.found["dataset"] = {"name": self.spec.dataset, "config": self.spec.dataset_config}


def _drawn(text: str) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % _HELDOUT_ONE_IN == 0
