"""Tokenizers: a WordPiece vocabulary trained on the corpus, a vocab.txt, or one from the hub."""

from __future__ import annotations

import importlib.metadata
import json
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


SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")
_BERT_NAMES = {role: f"[{role.upper()}]" for role in SPECIAL_ROLES}
_ROBERTA_NAMES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_COVERAGE = 0.9995  # of the characters of the text, by the alphabet, by words of a usual length, without vowel signs
_USUAL_WORD, LONGEST_WORD = 100, 1000  # characters; in scripts without spaces a phrase is a word
_ACCENTS = ("\u0300", "\u036f")
"""Combining marks of Latin, Greek and Cyrillic, first and last."""


@dataclass(frozen=True)
class TokenizerOrigin:
    """Which tokenizer a corpus uses: a size to train, a vocabulary file, or a name on the hub."""

    choice: TokenizerSpec | Path | str

    @classmethod
    def of(cls, spec: CorpusSpec, roots: Sequence[Path]) -> TokenizerOrigin:
        """Read `spec.tokenizer`; a string that ends in .txt or .json, or starts like a path, is a path.

        Of a folder it is the tokenizer.json in it, or the vocab.txt.
        """
        choice = spec.tokenizer
        if isinstance(choice, TokenizerSpec):
            return cls(choice)
        here = [Path(place) / Path(choice).expanduser() for place in roots or [Path.cwd()]]
        if folder := next((path for path in here if path.is_dir()), None):
            for name in ("tokenizer.json", "vocab.txt"):
                if (folder / name).is_file():
                    return cls(folder / name)
            wrong = f"{folder} has no tokenizer.json and no vocab.txt"
            raise CallerError(f"corpus.tokenizer = {choice!r}", wrong, "give a folder that has one")
        looks_like_path = choice.endswith((".txt", ".json")) or choice.startswith((".", "/", "~"))
        if looks_like_path or any(path.exists() for path in here):
            return cls(find_files([choice], roots, "corpus.tokenizer")[0])
        return cls(choice)

    @property
    def sample_characters(self) -> int:
        """Of text that `make` reads at most, to train on: more of it changes rare word pieces only."""
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
        """Return the tokenizer and the names of its special tokens by role; only training reads `sample`."""
        if isinstance(self.choice, TokenizerSpec):
            texts = list(sample)
            vocabulary, normalizer = train_wordpiece(texts, self.choice.train), _normalizer(texts)
            return _wordpiece(vocabulary, normalizer, _longest_word(texts, normalizer)), _BERT_NAMES
        if isinstance(self.choice, Path) and self.choice.suffix != ".json":
            return _from_file(self.choice), _BERT_NAMES
        tokenizer, names = _from_hub(self.choice) if isinstance(self.choice, str) else _from_json(self.choice)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer, names


def train_wordpiece(texts: Sequence[str], size: int) -> list[str]:
    """Train a lower-cased WordPiece vocabulary, the same for the same texts in every process."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    normalizer = _normalizer(texts)
    words: Counter[str] = Counter()
    for start in range(0, len(texts), 1024):
        words.update(normalizer.normalize_str("\n".join(texts[start : start + 1024])).split())
    initial, inner = _alphabet(words, size)
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


def _normalizer(texts: Sequence[str]) -> Any:
    """Lower case without accents; vowel signs stay, of scripts whose words are spelt with them."""
    from tokenizers import Regex, normalizers

    counts: Counter[str] = Counter()
    for text in texts:
        if not text.isascii():
            counts.update(unicodedata.normalize("NFD", text))
    first, last = _ACCENTS
    signs = sum(n for char, n in counts.items() if not first <= char <= last and unicodedata.category(char) == "Mn")
    if signs <= (1 - _COVERAGE) * sum(map(len, texts)):
        return normalizers.BertNormalizer(lowercase=True)
    # Without accents, BertNormalizer leaves out all nonspacing marks: Hindi's vowels, the dots of Japanese kana.
    accents = normalizers.Replace(Regex(f"[{first}-{last}]"), "")
    bare = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    return normalizers.Sequence([bare, normalizers.NFD(), accents, normalizers.NFC()])


def _longest_word(texts: Sequence[str], normalizer: Any) -> int:
    """Characters of the longest word that is spelt, not [UNK]: as in BERT, unless the text's own are longer."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    long = (word for text in texts if len(text) > _USUAL_WORD for word in text.split() if len(word) > _USUAL_WORD)
    parts = (len(part) for word in long for part, _ in split(normalizer.normalize_str(word)))
    unspelt = sum(length for length in parts if length > _USUAL_WORD)
    return _USUAL_WORD if unspelt <= (1 - _COVERAGE) * sum(map(len, texts)) else LONGEST_WORD


def _alphabet(words: Counter[str], size: int) -> tuple[list[str], list[str]]:
    """Return the most frequent characters, and those of them that occur inside a word; both sorted.

    They cover the text, in half the vocabulary at most; a few hundred there are in any case.
    """
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
    # A character takes two entries, at a word's start and inside it; both must fit even into a tiny vocabulary.
    limit = min(max(128, size // 32), 1000, (size - len(SPECIAL_ROLES)) // 2)
    order = sorted(sorted(counts), key=lambda char: -counts[char])
    covered = sum(counts[char] for char in order[:limit])
    entries = limit + len(inner.intersection(order[:limit]))
    for char in order[limit:]:
        entries += 1 + (char in inner)
        if covered >= _COVERAGE * counts.total() or entries > size // 2:
            break
        covered += counts[char]
        limit += 1
    chosen = order[:limit]
    return sorted(chosen), sorted(inner.intersection(chosen))


def _wordpiece(vocabulary: Sequence[str], normalizer: Any, longest_word: int = _USUAL_WORD) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=longest_word))
    tokenizer.normalizer = normalizer
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
    from tokenizers import normalizers

    asked = f"corpus.tokenizer = {str(path)!r}"
    do = "give a vocab.txt with one word piece in each line, or { train = 8192 }"
    try:
        vocabulary = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CallerError(asked, f"not a readable vocabulary ({error})", do) from error
    specials = _BERT_NAMES.values()
    if missing := [name for name in specials if name not in vocabulary]:
        raise CallerError(asked, f"the vocabulary lacks {', '.join(missing)}", do)
    if twice := [piece for piece, count in Counter(vocabulary).items() if count > 1]:
        raise CallerError(asked, f"the vocabulary has {twice[0]!r} twice", do)
    cased = any(piece != piece.lower() for piece in vocabulary if piece not in specials)
    return _wordpiece(vocabulary, normalizers.BertNormalizer(lowercase=not cased))


def _from_json(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    from tokenizers import Tokenizer

    asked = f"corpus.tokenizer = {str(path)!r}"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CallerError(asked, f"not a tokenizer.json ({error})", "give one that tokenizers can load") from error
    vocabulary = tokenizer.get_vocab()
    for names in (_BERT_NAMES, _ROBERTA_NAMES):
        if vocabulary.keys() >= set(names.values()):
            return tokenizer, names
    said = _end_of_text(path.with_name("tokenizer_config.json"))
    if end := next((name for name in (said, *_ENDS_OF_TEXT) if name in vocabulary), None):
        return tokenizer, dict.fromkeys(SPECIAL_ROLES, end)
    wrong = f"it lacks one of {', '.join(_BERT_NAMES.values())}, and has no end-of-text token"
    raise CallerError(asked, wrong, "use the tokenizer of a language model, with its tokenizer_config.json")


def _end_of_text(config: Path) -> str | None:
    """The end-of-text token that a tokenizer_config.json names."""
    try:
        named = json.loads(config.read_text(encoding="utf-8"))["eos_token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named["content"] if isinstance(named, dict) else named


def _from_hub(name: str) -> tuple[Tokenizer, dict[str, str]]:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    asked = f"corpus.tokenizer = {name!r}"
    try:
        loaded: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        wrong = "neither a vocabulary file here nor a tokenizer that can be loaded from the hub"
        do = "check the path or the name and the connection, or use { train = 8192 }"
        raise CallerError(asked, wrong, do) from error
    names = {role: getattr(loaded, f"{role}_token", None) for role in SPECIAL_ROLES}
    if names["mask"] is None and loaded.eos_token is not None:  # of a causal model
        names = dict.fromkeys(SPECIAL_ROLES, loaded.eos_token)
    missing = [role for role, token in names.items() if token is None]
    if missing or not getattr(loaded, "is_fast", False):
        wrong = f"has no {', '.join(missing)} token" if missing else "is not a fast tokenizer"
        raise CallerError(asked, wrong, "use the tokenizer of a language model")
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str()), {r: str(t) for r, t in names.items()}


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Return the word pieces of a folder's tokenizer and their ids; None where it has no file that says them."""
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    except Exception:  # the library raises nothing narrower; the network's own vocabulary is compared in any case
        return None
    return {piece: number for number, piece in enumerate(lines)}


def encode(tokenizer: Tokenizer, texts: Sequence[str], separator: int, dtype: Any) -> np.ndarray:
    """Turn documents into one run of word-piece ids, each document followed by `separator`."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return np.fromiter(chain.from_iterable([*encoding.ids, separator] for encoding in encodings), dtype=dtype)


def load_fast_tokenizer(path: Path, names: dict[str, str], *, causal: bool = False) -> Any:
    """Return a transformers `PreTrainedTokenizerFast` for a saved tokenizer and its special tokens by role.

    Of a causal model it adds nothing to a text, and the token after each document is its end of text.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if not causal:
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **{f"{r}_token": t for r, t in names.items()})
    roles = {"eos_token": names["sep"], "pad_token": names["pad"], "unk_token": names["unk"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), **roles)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer
