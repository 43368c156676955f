"""Text (built in, files, hub) becomes tokens on disk."""

from budgetlab.corpus.build import build_corpus
from budgetlab.corpus.folder import Corpus, open_corpus
from budgetlab.corpus.tokenizing import vocabulary_of

__all__ = ["Corpus", "build_corpus", "open_corpus", "vocabulary_of"]
