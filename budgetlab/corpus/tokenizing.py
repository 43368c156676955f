"""Tokenizers: a WordPiece vocabulary trained on the corpus, a vocab.txt, or one from the hub."""

from __future__ import annotations

import importlib.metadata
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetlab.corpus.sources import find_files, sha256
from budgetlab.errors import CallerError
from budgetlab.values import CorpusSpec
from budgetlab.values.specs import TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SPECIAL_ROLES", "TokenizerOrigin", "encode", "load_fast_tokenizer", "train_wordpiece"]

SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")
_BERT_NAMES = {role: f"[{role.upper()}]" for role in SPECIAL_ROLES}


@dataclass(frozen=True)
class TokenizerOrigin:
    """Which tokenizer a corpus uses: a size to train, a vocabulary file, or a name on the hub."""

    choice: TokenizerSpec | Path | str

    @classmethod
    def of(cls, spec: CorpusSpec, roots: Sequence[Path]) -> TokenizerOrigin:
        """Read `spec.tokenizer`; a string that ends in .txt or .json, or starts like a path, is a path."""
        choice = spec.tokenizer
        if isinstance(choice, TokenizerSpec):
            return cls(choice)
        looks_like_path = choice.endswith((".txt", ".json")) or choice.startswith((".", "/", "~"))
        places = roots or [Path.cwd()]
        if looks_like_path or any((Path(place) / choice).exists() for place in places):
            (path,) = find_files([choice], roots, "corpus.tokenizer")[:1]
            return cls(path)
        return cls(choice)

    @property
    def trained(self) -> bool:
        """Whether `make` needs text."""
        return isinstance(self.choice, TokenizerSpec)

    @property
    def sample_bytes(self) -> int:
        """Text that training reads at most: more of it changes rare word pieces only."""
        return max(16 << 20, 2048 * self.choice.train) if isinstance(self.choice, TokenizerSpec) else 0

    def fingerprint(self) -> dict[str, Any]:
        """Identify the tokenizer; the library's version is in it, because it decides what training finds."""
        if isinstance(self.choice, TokenizerSpec):
            what: dict[str, Any] = {"train": self.choice.train}
        elif isinstance(self.choice, Path):
            what = {"vocabulary": sha256(self.choice)}
        else:
            what = {"hub": self.choice}
        return what | {"tokenizers": importlib.metadata.version("tokenizers")}

    def make(self, sample: Iterable[str]) -> tuple[Tokenizer, dict[str, str]]:
        """Return the tokenizer and the names of its special tokens by role; only training reads `sample`.

        Raises
        ------
        CallerError
            When the vocabulary cannot be read or lacks a special token.
        """
        if isinstance(self.choice, TokenizerSpec):
            vocabulary = train_wordpiece(list(sample), self.choice.train)
            return _wordpiece(vocabulary, lowercase=True), _BERT_NAMES
        if isinstance(self.choice, Path):
            return _from_file(self.choice), _BERT_NAMES
        return _from_hub(self.choice)


def train_wordpiece(texts: Sequence[str], size: int) -> list[str]:
    """Train a lower-cased WordPiece vocabulary, the same for the same texts in every process.

    Parameters
    ----------
    texts
        Documents.
    size
        Entries of the vocabulary at most, with the five special tokens, which come first.

    Returns
    -------
    vocabulary : list of str
        Word pieces by id.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    words: Counter[str] = Counter()
    for start in range(0, len(texts), 1024):
        words.update(normalizer.normalize_str("\n".join(texts[start : start + 1024])).split())
    # A character takes two entries, at a word's start and inside it; both must fit even into a tiny vocabulary.
    initial, inner = _alphabet(words, limit=min(max(128, size // 32), 1000, (size - len(SPECIAL_ROLES)) // 2))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" pieces in the random order of a hash map and breaks ties between merges by these
    # numbers. Declared as special tokens, they have fixed numbers; then training is reproducible.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        initial_alphabet=initial,
        limit_alphabet=len(initial),
        special_tokens=[*_BERT_NAMES.values(), *(f"##{char}" for char in inner)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)[:size]


def _alphabet(words: Counter[str], limit: int) -> tuple[list[str], list[str]]:
    """Return the `limit` most frequent characters, and those of them that occur inside a word; both sorted."""
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for word, count in words.items():
        inside = False
        for char in word:
            counts[char] += count
            # BertPreTokenizer makes every punctuation mark a word of its own.
            alone = (char.isascii() and not char.isalnum()) or unicodedata.category(char).startswith("P")
            if inside and not alone:
                inner.add(char)
            inside = not alone
    chosen = sorted(sorted(counts), key=lambda char: -counts[char])[:limit]
    return sorted(chosen), sorted(inner.intersection(chosen))


def _wordpiece(vocabulary: Sequence[str], *, lowercase: bool) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_BERT_NAMES.values()))
    return tokenizer


def _from_file(path: Path) -> Tokenizer:
    asked = f"corpus.tokenizer = {str(path)!r}"
    do = "give a vocab.txt with one word piece in each line, or { train = 8192 }"
    try:
        vocabulary = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CallerError(asked, f"not a readable vocabulary ({error})", do) from error
    missing = [name for name in _BERT_NAMES.values() if name not in vocabulary]
    if missing:
        raise CallerError(asked, f"the vocabulary lacks {', '.join(missing)}", do)
    twice = [piece for piece, count in Counter(vocabulary).items() if count > 1]
    if twice:
        raise CallerError(asked, f"the vocabulary has {twice[0]!r} twice", do)
    specials = set(_BERT_NAMES.values())
    cased = any(piece != piece.lower() for piece in vocabulary if piece not in specials)
    return _wordpiece(vocabulary, lowercase=not cased)


def _from_hub(name: str) -> tuple[Tokenizer, dict[str, str]]:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    asked = f"corpus.tokenizer = {name!r}"
    try:
        loaded: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        wrong = "neither a vocabulary file here nor a tokenizer that can be loaded from the hub"
        do = "check the path or the name and the connection, or use { train = 8192 }"
        raise CallerError(asked, wrong, do) from error
    names = {role: getattr(loaded, f"{role}_token", None) for role in SPECIAL_ROLES}
    missing = [role for role, token in names.items() if token is None]
    if missing or not getattr(loaded, "is_fast", False):
        wrong = f"has no {', '.join(missing)} token" if missing else "is not a fast tokenizer"
        raise CallerError(asked, wrong, "use the tokenizer of a masked language model")
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str()), {r: str(t) for r, t in names.items()}


def encode(tokenizer: Tokenizer, texts: Sequence[str], separator: int, dtype: Any) -> np.ndarray:
    """Turn documents into one run of word-piece ids, each document followed by `separator`.

    Returns
    -------
    ids : array of `dtype`, 1-D
    """
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.fromiter(chain.from_iterable([*encoding.ids, separator] for encoding in encodings), dtype=dtype)


def load_fast_tokenizer(path: Path, names: dict[str, str]) -> Any:
    """Return a transformers `PreTrainedTokenizerFast` for a saved tokenizer and its special tokens by role."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path), **{f"{r}_token": t for r, t in names.items()})
