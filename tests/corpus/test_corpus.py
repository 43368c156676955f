"""Text becomes the same tokens on every machine, whole or not at all; bad text is one line."""

import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.corpus import Corpus, build, build_corpus, open_corpus
from budgetlab.corpus.docs import HELDOUT, PACKAGES, DocsSource, docstrings, drop_repeated_lines
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.values import CorpusSpec

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "seven", "wizards", "mix", "potion", "herbs"]


def write_text(folder: Path, lines: int = 300) -> CorpusSpec:
    draw = np.random.default_rng(0)
    for name, count in (("train.txt", lines), ("heldout.txt", 40)):
        text = [" ".join(draw.choice(WORDS, size=12)) + "." for _ in range(count)]
        (folder / name).write_text("\n".join(text) + "\n")
    return CorpusSpec(source="text", train=("train.txt",), heldout=("heldout.txt",), tokenizer={"train": 150})  # type: ignore[arg-type]


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    spec = write_text(tmp_path)
    one, other = (build_corpus(spec, roots=[tmp_path], cache=tmp_path / name) for name in ("a", "b"))
    assert one.content_hash == other.content_hash and one.folder != other.folder
    assert (np.asarray(one.train) == np.asarray(other.train)).all()
    assert (one.folder / "tokenizer.json").read_bytes() == (other.folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_text_beyond_the_memory_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[float, ...]
) -> None:
    """In pieces of 200 bytes each bucket is read several times over; copies and held-out text stay out of each."""
    spec = write_text(tmp_path, lines=2000)
    heldout, train = (tmp_path / "heldout.txt").read_text(), (tmp_path / "train.txt").read_text()
    (tmp_path / "more.txt").write_text("\n".join([*heldout.splitlines()[:20], *train.splitlines()[:90]]) + "\n")
    spec = spec.model_copy(update={"train": ("train.txt", "more.txt"), "weights": weights})
    whole = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "whole")
    monkeypatch.setattr("budgetlab.corpus.build._PIECE_BYTES", 200)
    largest = 0
    real = build._Shuffled.pieces

    def watched(self: build._Shuffled, split: str, number: int) -> Iterator[tuple[list[str], int]]:
        nonlocal largest
        for texts, copies in real(self, split, number):
            largest = max(largest, sum(map(len, texts)))
            yield texts, copies

    monkeypatch.setattr(build._Shuffled, "pieces", watched)
    pieces = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "pieces")
    assert pieces.content_hash == whole.content_hash
    assert (np.asarray(pieces.train) == np.asarray(whole.train)).all()
    counts = [json.loads((corpus.folder / "manifest.json").read_text()) for corpus in (whole, pieces)]
    assert counts[0] == counts[1]
    assert 0 < largest < 1000


def test_tokens_decode_to_the_documents(tmp_path: Path) -> None:
    corpus = build_corpus(write_text(tmp_path), roots=[tmp_path], cache=tmp_path / "cache")
    ids = np.asarray(corpus.train)
    ends = np.flatnonzero(ids == corpus.special.sep)
    assert len(ends) == 300 and ids[-1] == corpus.special.sep
    assert not np.isin(ids, [corpus.special.cls, corpus.special.mask, corpus.special.pad]).any()
    decode = corpus.tokenizer().decode
    found = {decode(part).replace(" ", "") for part in np.split(ids[:-1], ends[:-1] + 1)}
    found = {text.removesuffix("[SEP]") for text in found}
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert found == {line.replace(" ", "") for line in lines}
    assert corpus.train.dtype == np.uint16 and corpus.vocab_size <= 150
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1


def test_a_finished_corpus_is_opened_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_text(tmp_path)
    first = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    assert again.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "flip", "manifest"])
def test_a_damaged_corpus_is_never_read(tmp_path: Path, damage: str) -> None:
    spec = write_text(tmp_path)
    corpus = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    content = bytes(np.asarray(corpus.train).tobytes())
    path = corpus.folder / ("manifest.json" if damage == "manifest" else "train.bin")
    path.write_bytes(b"{}" if damage == "manifest" else content[:-2] if damage == "cut" else b"\x09" + content[1:])
    with pytest.raises(BudgetlabError):
        open_corpus(corpus.folder)
    rebuilt = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    assert np.asarray(rebuilt.train).tobytes() == content


@pytest.mark.parametrize("name", ["heldout.bin", "tokenizer.json"])
def test_one_bad_byte_is_named_and_deleting_the_folder_mends_it(tmp_path: Path, name: str) -> None:
    spec = write_text(tmp_path)
    corpus = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    path, whole = corpus.folder / name, (corpus.folder / name).read_bytes()
    path.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(BudgetlabError, match=f"{name} is not what was written.*delete the folder"):
        open_corpus(corpus.folder)
    shutil.rmtree(corpus.folder)
    assert (build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache").folder / name).read_bytes() == whole


def test_unigram_entropy_is_the_cross_entropy_of_word_counts(tmp_path: Path) -> None:
    corpus = build_corpus(write_text(tmp_path), roots=[tmp_path], cache=tmp_path / "cache")
    counts = np.bincount(np.asarray(corpus.train), minlength=corpus.vocab_size).astype(float)
    words = np.setdiff1d(np.arange(corpus.vocab_size), corpus.special.all())
    log_p = np.log((counts[words] + 1) / (counts[words].sum() + len(words)))
    index = {word: i for i, word in enumerate(words)}
    heldout = [index[i] for i in np.asarray(corpus.heldout).tolist() if i in index]
    assert corpus.unigram_entropy_nats == pytest.approx(-log_p[heldout].mean())


def test_compressed_files_and_globs(tmp_path: Path) -> None:
    spec = write_text(tmp_path)
    plain = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    lines = (tmp_path / "train.txt").read_text().splitlines(keepends=True)
    for shard, part in enumerate((lines[:100], lines[100:])):
        (tmp_path / f"part-{shard}.txt.xz").write_bytes(lzma.compress("".join(part).encode()))
    packed = build_corpus(
        spec.model_copy(update={"train": ("part-*.txt.xz",)}), roots=[tmp_path], cache=tmp_path / "cache"
    )
    assert (np.asarray(packed.train) == np.asarray(plain.train)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("nowhere-*.txt",)}, "nowhere-"),
        ({"train": ("empty.txt",)}, "empty"),
        ({"train": ("binary.txt",)}, "binary.txt"),
        ({"train": ("torn.txt.xz",)}, "torn.txt.xz"),
        ({"heldout": ("train.txt",)}, "train.txt"),
        ({"tokenizer": "nowhere/vocab.txt"}, "nowhere"),
        ({"tokenizer": "bad.txt"}, "bad.txt"),
    ],
)
def test_bad_text_is_one_line_and_leaves_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    spec = write_text(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "torn.txt.xz").write_bytes(lzma.compress(b"one line\n" * 99)[:-9])
    (tmp_path / "bad.txt").write_text("no\nspecial\ntokens\n")
    with pytest.raises(CallerError, match=message) as caught:
        build_corpus(spec.model_copy(update=changes), roots=[tmp_path], cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").glob("*") if (path / "manifest.json").exists()]


def test_docs_of_a_few_packages(tmp_path: Path) -> None:
    source = DocsSource(packages=("packaging", "typer", "joblib"), heldout=("joblib",))
    documents = list(source.documents(lambda text: None))
    assert {split for split, _, _ in documents} == {"train", "heldout"} and len(documents) > 100
    # No long line stands twice anywhere, so none is on both sides.
    lines = [line.strip() for _, _, text in documents for line in text.splitlines() if len(line.strip()) >= 24]
    assert len(lines) == len(set(lines))
    assert set(source.found["versions"]) == {"packaging", "typer", "joblib"}
    assert set(HELDOUT) < set(PACKAGES)


def test_docstrings_are_read_without_importing() -> None:
    source = b'"""Of the module."""\nraise SystemExit\nclass A:\n  """Of a class."""\n  def f(self):\n    """Of f."""'
    assert docstrings(source) == ["Of the module.", "Of a class.", "Of f."]


@given(st.lists(st.sampled_from(["a long line of twenty-four", "another long line of them", "short", "short too"])))
def test_repeated_lines_stay_once_and_short_ones_always(lines: list[str]) -> None:
    seen: set[str] = set()
    kept = drop_repeated_lines("\n".join(lines), seen).splitlines() if lines else []
    long = [line for line in lines if len(line) >= 24]
    assert [line for line in kept if len(line) >= 24] == list(dict.fromkeys(long))
    assert [line for line in kept if 0 < len(line) < 24] == [line for line in lines if len(line) < 24]


def test_real_wikipedia_with_the_bert_vocabulary(tmp_path: Path, data_root: Path) -> None:
    spec = CorpusSpec(
        source="text",
        train=("corpus/wikitext103.validation.tokens.txt.xz",),
        heldout=("corpus/wikitext103.test.tokens.txt.xz",),
        tokenizer="vocab/bert-base-uncased-vocab.txt",
    )
    corpus = build_corpus(spec, roots=[data_root], cache=tmp_path)
    assert corpus.vocab_size == 30522 and (corpus.special.cls, corpus.special.mask) == (101, 103)
    assert 200_000 < len(corpus.train) < 400_000 and 6 < corpus.unigram_entropy_nats < 8
    assert json.loads((corpus.folder / "manifest.json").read_text())["vocab_size"] == 30522


@pytest.mark.parametrize("stop_at", [1, 20, 60])
def test_a_build_that_was_killed_goes_on_where_it_was(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budgetlab.corpus import build
    from budgetlab.corpus.sources import TextSource

    spec, cache = write_text(tmp_path), tmp_path / "cache"
    whole = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "whole")
    encode, calls = build.encode, 0

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return encode(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build, "encode", counted)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(spec, roots=[tmp_path], cache=cache)
        assert not (cache / whole.folder.name).exists()
        (torn,) = cache.glob(".*.partial/corpus/train.bin")
        with torn.open("ab") as file:
            file.write(b"half a bucket")  # as a power cut leaves it
        patch.setattr(TextSource, "documents", None)  # the text is not read again
        before = calls
        again = build_corpus(spec, roots=[tmp_path], cache=cache)
    assert np.asarray(again.train).tobytes() == np.asarray(whole.train).tobytes()
    assert (again.content_hash, again.description) == (whole.content_hash, whole.description)
    assert calls > before == stop_at and not list(cache.glob(".*.partial"))


def test_a_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    spec, cache = write_text(tmp_path), tmp_path / "cache"
    whole = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "whole")
    cache.mkdir()
    hold = "import sys, pathlib; from budgetlab.machine import file_lock\n"
    hold += "with file_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", hold, str(cache / f".{whole.folder.name}.held")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdin is not None and first.stdout.readline() == "held\n"
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if "waiting" in line:  # the first one ends
                first.stdin.write("\n")
                first.stdin.flush()

        built = build_corpus(spec, roots=[tmp_path], cache=cache, progress=say)
    assert said[0] == "waiting for another process that builds it" and built.content_hash == whole.content_hash


def built(folder: Path, texts: list[str], kept: list[str], **fields: object) -> Corpus:
    for name, lines in (("train.txt", texts), ("heldout.txt", kept)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = {"source": "text", "train": ("train.txt",), "heldout": ("heldout.txt",), "tokenizer": {"train": 8192}}
    return build_corpus(CorpusSpec(**asked | fields), roots=[folder], cache=folder / "cache")  # type: ignore[arg-type]


def chinese(count: int, seed: int) -> list[str]:
    """Lines of 3,000 characters, as frequent as Zipf has them."""
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 3001)
    return ["".join(map(chr, 0x4E00 + draw.choice(3000, size=60, p=shares / shares.sum()))) for _ in range(count)]


def test_a_script_of_many_characters_is_spelt(tmp_path: Path) -> None:
    corpus = built(tmp_path, chinese(1500, 0), chinese(100, 1))
    assert max(corpus.unknown_fraction.values()) < 0.01 and corpus.vocab_size > 2000
    ids = np.asarray(corpus.heldout)
    assert corpus.unknown_fraction["heldout"] == pytest.approx((ids == corpus.special.unk).mean())
    assert corpus.description["heldout"]["text_bytes"] == 3 * 60 * 100  # bytes, not characters
    (line,) = corpus.warnings(8192)
    assert f"{corpus.vocab_size:,} entries, 8,192 were asked for" in line


def test_text_that_the_tokenizer_cannot_spell_is_said_and_then_refused(tmp_path: Path) -> None:
    plain = [" ".join(np.random.default_rng(n).choice(WORDS, size=10)) for n in range(300)]
    some = built(
        tmp_path, plain, [*plain[:1], *(f"{line} 漢" for line in plain[100:150]), *("a dog" for _ in range(9))]
    )
    assert 0.01 < some.unknown_fraction["heldout"] < 0.1 and some.unknown_fraction["train"] == 0
    (line,) = some.warnings()
    assert "heldout tokens are [UNK]" in line
    with pytest.raises(CallerError, match=r"corpus.heldout: 9\d\.\d% of its tokens are \[UNK\]"):
        built(tmp_path, plain, ["漢" * 80])


@pytest.mark.parametrize("word", ["हिन्दी", "がぎぐげご", "กี่ปี่"])
def test_vowel_signs_are_kept_and_accents_are_not(tmp_path: Path, word: str) -> None:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice([word, "Élan", "naïve", "rock", "Ünder"], size=8)) for _ in range(200)]
    corpus = built(tmp_path, lines, [f"{line} {word}" for line in lines[:20]], tokenizer={"train": 150})
    tokenizer = corpus.tokenizer()
    assert tokenizer.decode(tokenizer.encode(f"{word} Élan", add_special_tokens=False)) == f"{word} elan"


def test_english_keeps_the_tokenizer_that_it_had(tmp_path: Path) -> None:
    """A foreign word here and there changes neither the alphabet nor what is left out of it."""
    lines = [" ".join(np.random.default_rng(n).choice(WORDS, size=12)) for n in range(3000)]
    corpus = built(tmp_path, [*lines, "हिन्दी"], [*lines[:10], "seven foxes"], tokenizer={"train": 150})
    kept = json.loads((corpus.folder / "tokenizer.json").read_text())
    assert kept["normalizer"] == {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    assert kept["model"]["max_input_chars_per_word"] == 100


def test_a_word_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    # Random letters are slow to spell, so that few of them begin it.
    blob = "".join(draw.choice(list("abcdefgh"), size=1 << 14)) + "abcdefgh" * (1 << 17)
    lines = [" ".join(draw.choice(WORDS, size=12)) for _ in range(300)]
    corpus = built(tmp_path, [*lines, blob], [*lines[:1], "seven wizards mix"], tokenizer={"train": 150})
    assert corpus.description["train"]["documents"] >= 300 and corpus.unknown_fraction["train"] < 0.1


def test_half_a_character_in_json_is_replaced(tmp_path: Path) -> None:
    lines = [f"the {word} jumps over {other}" for word in WORDS for other in WORDS]
    (tmp_path / "train.jsonl").write_text("\n".join(f'{{"text": "{line} \\ud83d \\ud83d\\ude00"}}' for line in lines))
    corpus = built(tmp_path, [], [*lines[:1], "a lazy dog"], train=("train.jsonl",), tokenizer={"train": 150})
    assert corpus.description["train"]["documents"] == len(lines)


@pytest.mark.parametrize("give", ["folder", "tokenizer.json"])
def test_a_tokenizer_is_given_as_a_folder_or_its_file(tmp_path: Path, give: str) -> None:
    first = build_corpus(write_text(tmp_path), roots=[tmp_path], cache=tmp_path / "cache")
    (tmp_path / "given").mkdir()
    tokenizer = json.loads((first.folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "given" / "tokenizer.json").write_text(json.dumps(tokenizer))
    spec = write_text(tmp_path).model_copy(
        update={"tokenizer": "given" if give == "folder" else "given/tokenizer.json"}
    )
    again = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    assert np.asarray(again.train).tobytes() == np.asarray(first.train).tobytes()
    (tmp_path / "given" / "tokenizer.json").write_text("{}")
    with pytest.raises(CallerError, match=r"not a tokenizer\.json"):
        build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    (tmp_path / "given" / "tokenizer.json").unlink()
    with pytest.raises(CallerError, match=r"no tokenizer\.json|no such file"):
        build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")


def test_phrases_of_a_script_without_spaces_are_spelt(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    phrases = ["".join(map(chr, draw.integers(0x0E01, 0x0E2E, size=300))) for _ in range(120)]
    corpus = built(tmp_path, phrases, [phrase[::-1] for phrase in phrases[:9]], tokenizer={"train": 400})
    assert corpus.unknown_fraction == {"train": 0.0, "heldout": 0.0}
