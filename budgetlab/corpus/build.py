"""Building a corpus: shuffle by content, train the tokenizer, tokenise, and publish the folder in one step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetlab.corpus.folder import Corpus, DamagedCorpus, open_corpus, seal, token_counts, unigram_entropy_nats
from budgetlab.corpus.sources import Source, make_source
from budgetlab.corpus.tokenizing import LONGEST_WORD, SPECIAL_ROLES, TokenizerOrigin, encode
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.machine import file_lock
from budgetlab.values import CorpusSpec, SpecialIds, content_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_REVISION = 3  # raise it when the same input becomes other tokens
_BUCKETS = 64  # files on disk while shuffling, twice
_PLACES = 1024  # in a bucket: the finest pieces in which it can be read
_PIECE_BYTES = 2**26  # of text held in memory at once
_BATCH = 1024  # documents encoded at once
_SPLITS = ("train", "heldout")
_SIZED = 50_000  # held-out documents whose sizes are kept, for bits a byte
MOST_UNKNOWN = 0.1  # of a split's tokens


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
    Memory does not grow with the text: pieces of 64 MiB are held one at a time, a few hundred megabytes in all, and a
    sixty-fourth of the text larger than that is read once a piece. The disk under `cache` needs room for the text
    once. A build that was killed goes on from the last sixty-fourth that it tokenised; one that another process is at
    is waited for.
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
        When files are missing, empty, not text, or in both splits; or the tokenizer does not exist or does not fit; or
        more than a tenth of a split is [UNK].
    BudgetlabError
        When the disk is full or cannot be written.
    """
    say = progress or (lambda line: None)
    source, origin = make_source(spec, roots), TokenizerOrigin.of(spec, roots)
    key = content_hash(_REVISION, source.fingerprint(), origin.fingerprint())
    folder = Path(cache) / key
    working = folder.with_name(f".{key}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_name(f".{key}.held"), lambda: say("waiting for another process that builds it")):
            if folder.exists():
                try:
                    return open_corpus(folder)
                except DamagedCorpus as error:
                    if any(folder.iterdir()) and not (folder / "manifest.json").is_file():
                        wrong = "the folder holds other files, and no corpus"
                        raise CallerError(error.asked, wrong, "move or delete it") from error
                    say(f"{error.wrong}: building it again")
                    shutil.rmtree(folder)
            try:
                _build(source, origin, key, working, say)
            except BudgetlabError:  # what is wrong with the text stays wrong
                shutil.rmtree(working, ignore_errors=True)
                raise
            os.rename(working / "corpus", folder)
            shutil.rmtree(working, ignore_errors=True)
    except OSError as error:
        asked, wrong = f"corpus in {str(folder)!r}", error.strerror or str(error)
        raise BudgetlabError(asked, wrong, "free some space or choose another folder for the cache") from error
    return open_corpus(folder)


def _build(source: Source, origin: TokenizerOrigin, key: str, working: Path, say: Callable[[str], None]) -> None:
    """Make the corpus in a folder of the working one, going on from where an earlier process was killed."""
    folder, scratch = working / "corpus", working / "text"
    folder.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    done = _Done(working / "progress.json")
    shuffled = _Shuffled(scratch, source.weights)
    if "found" not in done.state:
        shuffled.scatter(source.documents(say))
        done.note(found=source.found, bytes=shuffled.bytes)
    shuffled.bytes = done.state["bytes"]
    if origin.sample_characters:
        say("training the tokenizer")
    tokenizer, names = origin.make(shuffled.sample(origin.sample_characters))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # on all cores; nothing here forks afterwards
    tokenizer.encode_special_tokens = True  # a literal "[MASK]" in the text is text
    vocabulary = tokenizer.get_vocab()
    if lacking := [names[role] for role in SPECIAL_ROLES if names[role] not in vocabulary]:
        raise CallerError("corpus.tokenizer", f"has no id for its own token {lacking[0]!r}", "use another one")
    special = SpecialIds(**{role: vocabulary[names[role]] for role in SPECIAL_ROLES})
    vocab_size = tokenizer.get_vocab_size()
    dtype = np.dtype("<u2" if vocab_size <= 65_536 else "<u4")
    description: dict[str, Any] = {"found": done.state["found"]}
    sizes: list[list[int]] = []
    counts: dict[str, np.ndarray] = {}
    for split in _SPLITS:
        file = folder / f"{split}.bin"
        description[split], sizes = _tokenise(shuffled, split, tokenizer, special.sep, file, dtype, done, say)
        counts[split] = token_counts(file, dtype, vocab_size)
    spells_all = special.unk == special.sep  # a vocabulary of bytes, which has the end-of-text token alone
    unknown = {s: 0.0 if spells_all else float(found[special.unk] / found.sum()) for s, found in counts.items()}
    for split, share in unknown.items():
        if share > MOST_UNKNOWN:
            wrong = f"{share:.1%} of its tokens are {names['unk']}: the tokenizer cannot spell the text"
            do = "train one on text of this kind (tokenizer = { train = SIZE }, with a larger SIZE), or change the text"
            raise CallerError(f"corpus.{split}", wrong, do)
    tokenizer.save(str(folder / "tokenizer.json"))
    seal(folder, key=key, dtype=dtype.str, vocab_size=vocab_size, special_ids=vars(special), special_names=names,
         unigram_entropy_nats=unigram_entropy_nats(counts["train"], counts["heldout"], special),
         unknown_fraction=unknown, description=description, heldout_documents=sizes)  # fmt: skip


class _Done:
    """What of a build is done, on disk after each piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def note(self, **done: Any) -> None:
        """Add to it."""
        self.state |= done
        beside = self._path.with_suffix(".new")
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path)


def _tokenise(
    shuffled: _Shuffled,
    split: str,
    tokenizer: Tokenizer,
    separator: int,
    path: Path,
    dtype: np.dtype,
    done: _Done,
    say: Callable[[str], None],
) -> tuple[dict[str, int], list[list[int]]]:
    """Write a split's tokens; return how much text became how many, and (tokens, bytes) of its first documents."""
    none = {"documents": 0, "text_bytes": 0, "tokens": 0, "copies_dropped": 0}
    first, counts, sizes = done.state.get(split, (0, none, []))
    with open(path, "ab") as file:
        file.truncate(counts["tokens"] * dtype.itemsize)  # what came after the last note may be torn
        for number in range(first, _BUCKETS):
            if number % 16 == 0:
                say(f"tokenising {split}: {number / _BUCKETS:.0%}, {counts['tokens'] / 1e6:.1f}M tokens")
            for texts, copies in shuffled.pieces(split, number):
                for start in range(0, len(texts), _BATCH):
                    batch = texts[start : start + _BATCH]
                    ids = encode(tokenizer, batch, separator, dtype)
                    file.write(ids.data)
                    counts["tokens"] += ids.size
                    if split == "heldout" and len(sizes) < _SIZED:
                        lengths = np.diff(np.flatnonzero(ids == separator), prepend=-1)
                        sizes += [[int(n), len(text.encode())] for n, text in zip(lengths, batch, strict=True)]
                counts["documents"] += len(texts)
                counts["text_bytes"] += sum(len(text.encode()) for text in texts)
                counts["copies_dropped"] += copies
            file.flush()
            os.fsync(file.fileno())
            done.note(**{split: (number + 1, counts, sizes)})
    if not counts["tokens"]:
        raise CallerError(f"corpus {split}", "no text is left in it", "give documents that the other split lacks")
    return counts, sizes


class _Shuffled:
    """Documents on disk in the order of a hash of their text, without copies, in memory one piece at a time."""

    def __init__(self, scratch: Path, weights: Sequence[float] = ()) -> None:
        self._scratch, self._weights = scratch, weights
        self.bytes = [0] * len(weights)
        """Of the train text, by part that has a weight."""

    def _path(self, split: str, bucket: int) -> Path:
        return self._scratch / f"{split}.{bucket}"

    def scatter(self, documents: Iterator[tuple[str, int, str]]) -> None:
        """Write each document as one line into the bucket that its hash names; white space becomes one blank.

        Where parts have weights, a line begins with the number of its part.
        """
        with ExitStack() as stack:
            places = [(split, bucket) for split in _SPLITS for bucket in range(_BUCKETS)]
            files = {place: stack.enter_context(open(self._path(*place), "wb")) for place in places}
            for split, part, text in documents:
                words = text.split()
                # A tokenizer is trained in the square of a word's length: what no tokenizer takes for one is cut.
                if max(map(len, words), default=0) > LONGEST_WORD:
                    words = [word[i : i + LONGEST_WORD] for word in words for i in range(0, len(word), LONGEST_WORD)]
                line = " ".join(words).encode()
                if line:
                    tag = b"%d\t" % part if self._weights and split == "train" else b""
                    files[split, _digest(line)[0] % _BUCKETS].write(tag + line + b"\n")
                    if tag:
                        self.bytes[part] += len(line)

    def pieces(self, split: str, number: int) -> Iterator[tuple[list[str], int]]:
        """Yield the documents of a split's bucket in order, in pieces, each with how many copies were left out.

        A bucket too large for the memory is read once for each piece, which is a range of the order.
        """
        count = -(-self._path(split, number).stat().st_size // _PIECE_BYTES)
        for piece in range(count):
            lines, unique = 0, {}
            for digest, line in self._lines(split, number):
                # What the order says beyond the bits that name the bucket.
                place = digest[0] // _BUCKETS * 256 + digest[1]
                if place * count // _PLACES == piece:
                    lines += 1
                    unique[digest] = line
            if split == "train":
                for digest, _ in self._lines("heldout", number):
                    unique.pop(digest, None)
            yield [unique[digest].decode() for digest in sorted(unique)], lines - len(unique)

    def _lines(self, split: str, bucket: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the digest and the text of each document, without what a part has more than its share of."""
        weighted = bool(self._weights) and split == "train"
        least = min((self.bytes[part] / weight for part, weight in enumerate(self._weights)), default=0.0)
        kept = [least * weight / self.bytes[part] for part, weight in enumerate(self._weights)] if weighted else []
        with open(self._path(split, bucket), "rb") as file:
            for row in file:
                part, line = row[:-1].split(b"\t", 1) if weighted else (b"", row[:-1])
                digest = _digest(line)
                # Drawn by the digest; the poorest part is kept whole.
                if not weighted or int.from_bytes(digest[8:]) < kept[int(part)] * 2.0**64:
                    yield digest, line

    def sample(self, characters: int) -> Iterator[str]:
        """Yield train documents from the start of the order, up to a number of characters."""
        texts = (text for number in range(_BUCKETS) for piece, _ in self.pieces("train", number) for text in piece)
        while characters > 0 and (text := next(texts, None)) is not None:
            characters -= len(text)
            yield text


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()
