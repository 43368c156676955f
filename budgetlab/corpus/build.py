"""Building a corpus: shuffle by content, train the tokenizer, tokenise, and publish the folder in one step."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from budgetlab.corpus.folder import Corpus, DamagedCorpus, open_corpus, seal, unigram_entropy_nats
from budgetlab.corpus.sources import Source, make_source
from budgetlab.corpus.tokenizing import SPECIAL_ROLES, TokenizerOrigin, encode
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.values import CorpusSpec, SpecialIds, content_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["build_corpus"]

_REVISION = 2  # raise it when the same input becomes other tokens
_BUCKETS = 64  # a bucket is held in memory: 6 MB of the 401 MB of Wikipedia
_BATCH = 1024  # documents encoded at once
_SPLITS = ("train", "heldout")
_STALE_SECONDS = 86_400.0


def build_corpus(
    spec: CorpusSpec,
    *,
    roots: Sequence[Path] = (),
    cache: Path,
    progress: Callable[[str], None] | None = None,
) -> Corpus:
    """Return the corpus that `spec` asks for, from the cache if it is there.

    The folder is named by a hash of all that decides its content: the text (for files their SHA-256, for `docs`
    the versions and the paths and sizes of the source files, for the hub its fingerprints) and the tokenizer.
    Memory is bounded by a sixty-fourth of the text; the disk under `cache` needs room for the text once.
    Documents are ordered by a hash of their text, exact copies are dropped, and so is train text that is held out.

    Parameters
    ----------
    spec
        The `[corpus]` table; `unique_tokens` and `masking` do not change the tokens.
    roots
        Folders in which relative paths are looked up, in order; the working folder if there are none.
    cache
        Folder of all corpora.
    progress
        Called with a line of text now and then.

    Raises
    ------
    CallerError
        When files are missing, empty, not text, or in both splits; or the tokenizer does not exist or does not fit.
    BudgetlabError
        When the disk is full or cannot be written.
    """
    say = progress or (lambda line: None)
    source, origin = make_source(spec, roots), TokenizerOrigin.of(spec, roots)
    key = content_hash(_REVISION, source.fingerprint(), origin.fingerprint())
    folder = Path(cache) / key
    if folder.exists():
        try:
            return open_corpus(folder)
        except DamagedCorpus as error:
            _clear(folder, error)
            say(f"{error.wrong}: building it again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder.parent))
        try:
            _build(source, origin, key, temporary, say)
            _publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        asked, wrong = f"corpus in {str(folder)!r}", error.strerror or str(error)
        raise BudgetlabError(asked, wrong, "free some space or choose another folder for the cache") from error
    return open_corpus(folder)


def _clear(folder: Path, error: DamagedCorpus) -> None:
    """Delete a damaged corpus; refuse to delete what is none."""
    if any(folder.iterdir()) and not (folder / "manifest.json").is_file():
        wrong = "the folder holds other files, and no corpus"
        raise CallerError(error.asked, wrong, "move or delete it") from error
    shutil.rmtree(folder)


def _remove_stale(folder: Path) -> None:
    """Delete what a killed process left, once nobody can still be writing it."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise  # otherwise another process was faster, with the same content


def _build(source: Source, origin: TokenizerOrigin, key: str, folder: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="text.", dir=folder) as scratch:
        shuffled = _Shuffled(Path(scratch), source.weights)
        shuffled.scatter(source.documents(say))
        if origin.trained:
            say("training the tokenizer")
        tokenizer, names = origin.make(shuffled.sample(origin.sample_bytes))
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # on all cores; nothing here forks afterwards
        tokenizer.encode_special_tokens = True  # a literal "[MASK]" in the text is text
        special = SpecialIds(**{role: _id(tokenizer, names[role]) for role in SPECIAL_ROLES})
        vocab_size = tokenizer.get_vocab_size()
        dtype = np.dtype("<u2" if vocab_size <= 65_536 else "<u4")
        description = {"found": source.found}
        for split in _SPLITS:
            description[split] = _tokenise(shuffled, split, tokenizer, special.sep, folder, dtype, say)
    train, heldout = (np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r") for split in _SPLITS)
    entropy = unigram_entropy_nats(train, heldout, vocab_size, special)
    tokenizer.save(str(folder / "tokenizer.json"))
    seal(folder, key=key, dtype=dtype.str, names=names, vocab_size=vocab_size, special=special, entropy=entropy,
         description=description)  # fmt: skip


def _id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise CallerError("corpus.tokenizer", f"has no id for its own token {name!r}", "use another one")
    return found


def _tokenise(
    shuffled: _Shuffled,
    split: str,
    tokenizer: Tokenizer,
    separator: int,
    folder: Path,
    dtype: np.dtype,
    say: Callable[[str], None],
) -> dict[str, int]:
    counts = {"documents": 0, "text_bytes": 0, "tokens": 0}
    with open(folder / f"{split}.bin", "wb") as file:
        for index, texts in enumerate(shuffled.buckets(split)):
            if index % 16 == 0:
                say(f"tokenising {split}: {index / _BUCKETS:.0%}, {counts['tokens'] / 1e6:.1f}M tokens")
            for start in range(0, len(texts), _BATCH):
                ids = encode(tokenizer, texts[start : start + _BATCH], separator, dtype)
                file.write(ids.data)
                counts["tokens"] += ids.size
            counts["documents"] += len(texts)
            counts["text_bytes"] += sum(map(len, texts))
    if not counts["tokens"]:
        raise CallerError(f"corpus {split}", "no text is left in it", "give documents that the other split lacks")
    return counts | {"copies_dropped": shuffled.copies[split]}


class _Shuffled:
    """Documents on disk in the order of a hash of their text, without copies, in memory one bucket at a time."""

    def __init__(self, scratch: Path, weights: Sequence[float] = ()) -> None:
        self._scratch, self._weights = scratch, weights
        self._bytes: Counter[int] = Counter()
        """Of the train text, by part."""
        self.copies: dict[str, int] = dict.fromkeys(_SPLITS, 0)

    def scatter(self, documents: Iterator[tuple[str, int, str]]) -> None:
        """Write each document as one line into the bucket that its hash names; white space becomes one blank.

        Where parts have weights, a line begins with the number of its part.
        """
        with ExitStack() as stack:
            files: dict[str, list[IO[bytes]]] = {
                split: [stack.enter_context(open(self._path(split, n), "wb")) for n in range(_BUCKETS)]
                for split in _SPLITS
            }
            for split, part, text in documents:
                line = " ".join(text.split()).encode()
                if line:
                    tag = b"%d\t" % part if self._weights and split == "train" else b""
                    files[split][_digest(line)[0] % _BUCKETS].write(tag + line + b"\n")
                    if split == "train":
                        self._bytes[part] += len(line)

    def _path(self, split: str, bucket: int) -> Path:
        return self._scratch / f"{split}.{bucket}"

    def _lines(self, split: str, bucket: int) -> list[bytes]:
        return self._path(split, bucket).read_bytes().split(b"\n")[:-1]

    def buckets(self, split: str) -> Iterator[list[str]]:
        """Yield the documents of a split, bucket by bucket."""
        self.copies[split] = 0
        for number in range(_BUCKETS):
            lines = self._lines(split, number)
            if self._weights and split == "train":
                lines = self._drawn(lines)
            unique = {_digest(line): line for line in lines}
            if split == "train":
                for line in self._lines("heldout", number):
                    unique.pop(_digest(line), None)
            self.copies[split] += len(lines) - len(unique)
            yield [unique[digest].decode() for digest in sorted(unique)]

    def _drawn(self, lines: list[bytes]) -> list[bytes]:
        """Leave out what a part has more than its share of, drawn by the digest; the poorest part is kept whole."""
        least = min(self._bytes[part] / weight for part, weight in enumerate(self._weights))
        kept = [least * weight / self._bytes[part] for part, weight in enumerate(self._weights)]
        found = []
        for tagged in lines:
            part, _, line = tagged.partition(b"\t")
            if int.from_bytes(_digest(line)[8:]) < kept[int(part)] * 2.0**64:
                found.append(line)
        return found

    def sample(self, limit_bytes: int) -> Iterator[str]:
        """Yield train documents from the start of the order, up to a number of bytes."""
        for texts in self.buckets("train"):
            for text in texts:
                if limit_bytes <= 0:
                    return
                limit_bytes -= len(text)
                yield text


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()
