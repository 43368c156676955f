"""Text (built in, files, hub) becomes tokens on disk; and the probe tasks made from the built-in text."""

from budgetlab.corpus.build import build_corpus
from budgetlab.corpus.folder import Corpus, SpecialIds, open_corpus
from budgetlab.corpus.probes import build_probes

__all__ = ["Corpus", "SpecialIds", "build_corpus", "build_probes", "open_corpus"]
