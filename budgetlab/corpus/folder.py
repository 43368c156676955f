"""A corpus on disk: tokens, tokenizer, and a manifest that says what they are and proves that they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgetlab.corpus.tokenizing import load_fast_tokenizer
from budgetlab.errors import BudgetlabError
from budgetlab.values import SpecialIds

FORMAT = "budgetlab corpus 1"
_MUCH_UNKNOWN = 0.01
_MANIFEST, _TOKENIZER = "manifest.json", "tokenizer.json"


class DamagedCorpus(BudgetlabError):
    """A folder that is no finished corpus, or no longer one."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as word-piece ids, in two splits that share no document.

    Documents lie in the order of a hash of their text, so that every prefix of a split is a fair sample of it;
    each is followed by [SEP], and there is no [CLS].
    """

    folder: Path
    content_hash: str
    """16 hex digits over the tokens and the tokenizer, equal on every machine that has the same."""
    vocab_size: int
    special: SpecialIds
    train: np.ndarray
    """Word-piece ids, a read-only 1-D memory map of uint16 or uint32."""
    heldout: np.ndarray
    """The same, of text that is never trained on."""
    unigram_entropy_nats: float
    """Cross-entropy of the held-out tokens under the train unigrams; see the function of that name."""
    description: dict[str, Any]
    """Source, versions or files; by split, documents, bytes of text and tokens; what was removed as repeated."""
    special_names: dict[str, str]
    unknown_fraction: dict[str, float]
    """Of the tokens of each split, how many are [UNK]."""
    heldout_documents: tuple[tuple[int, int], ...] = ()
    """(tokens, UTF-8 bytes of text) of the first held-out documents, in order."""

    def warnings(self, asked_vocab_size: int | None = None) -> tuple[str, ...]:
        """Say what of the text is [UNK], where that is more than one in a hundred, and of a vocabulary that is small.

        Parameters
        ----------
        asked_vocab_size
            Entries that a vocabulary trained here was to have.
        """
        said = [
            f"corpus: {share:.1%} of the {split} tokens are {self.special_names['unk']}: no loss and no arm sees them"
            for split, share in self.unknown_fraction.items()
            if share > _MUCH_UNKNOWN
        ]
        if asked_vocab_size is not None and self.vocab_size < asked_vocab_size / 2:
            few = f"the vocabulary has {self.vocab_size:,} entries, {asked_vocab_size:,} were asked for"
            said.append(f"corpus: {few}: the text has no more word pieces")
        return tuple(said)

    def tokenizer(self, *, causal: bool = False) -> Any:
        """Return the tokenizer as a transformers `PreTrainedTokenizerFast`, as masked or causal models want it."""
        return load_fast_tokenizer(self.folder / _TOKENIZER, self.special_names, causal=causal)

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map pickles as a copy of its data; another process should map the file itself.
        return open_corpus, (self.folder,)


def unigram_entropy_nats(train: np.ndarray, heldout: np.ndarray, special: SpecialIds) -> float:
    r"""Return what held-out text costs a model that knows word frequencies only, in nats per token.

    With :math:`c_t` the count of word piece *t* in `train`, *N* the sum of these counts and *V* the number of
    word pieces, all without the special tokens ([UNK] is one), it is the mean of
    :math:`-\log\frac{c_t + 1}{N + V}` over the tokens of `heldout` that are not special; nan without any.
    """
    ordinary = np.setdiff1d(np.arange(len(train)), special.all())
    counts, wanted = train[ordinary], heldout[ordinary]
    if not wanted.sum():
        return float("nan")
    log_probability = np.log((counts + 1) / (counts.sum() + counts.size))
    return float(-(wanted @ log_probability) / wanted.sum())


def token_counts(path: Path, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    """Count each word piece of a file of ids, in bounded memory; shape (vocab_size,)."""
    total = np.zeros(vocab_size, dtype=np.int64)
    with open(path, "rb") as file:  # read, not mapped: what was mapped would stay resident
        while (ids := np.fromfile(file, dtype, 1 << 22)).size:
            total += np.bincount(ids, minlength=vocab_size)
    return total


def seal(folder: Path, **manifest: Any) -> None:
    """Write the manifest of a folder whose other files are complete, and force all of them to disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
    digest = hashlib.sha256("".join(files[name]["sha256"] for name in sorted(files)).encode()).hexdigest()
    with open(folder / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "content_hash": digest[:16], **manifest, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_corpus(folder: Path) -> Corpus:
    """Open a finished corpus.

    Sizes and SHA-256 digests are compared with the manifest, at a gigabyte a second or so.

    Raises
    ------
    DamagedCorpus
        When the folder is no corpus, or a file is missing or differs.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r} is not {FORMAT!r}")
        for name, expected in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                raise ValueError(f"{name} has {size} bytes, not {expected['bytes']}")
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise ValueError(f"{name} is not what was written")
        train, heldout = (np.memmap(folder / f"{split}.bin", dtype=np.dtype(manifest["dtype"]), mode="r")
                          for split in ("train", "heldout"))  # fmt: skip
        as_written = ("content_hash", "vocab_size", "unigram_entropy_nats", "description", "special_names")
        return Corpus(
            folder=folder,
            special=SpecialIds(**manifest["special_ids"]),
            train=train,
            heldout=heldout,
            unknown_fraction=manifest.get("unknown_fraction", {}),
            heldout_documents=tuple((int(a), int(b)) for a, b in manifest.get("heldout_documents", ())),
            **{name: manifest[name] for name in as_written},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        do = "delete the folder; it is built again when it is needed"
        raise DamagedCorpus(f"corpus in {str(folder)!r}", f"not a finished corpus ({error})", do) from error
