"""Draws of topics against their exact distribution, and counts against a recount."""

import numpy as np
import pytest

from sfb.kernels.stages import compiled

SEED = 7


@pytest.fixture(scope="module")
def gibbs():
    return compiled("gibbs")


class Corpus:
    """Tokens with random topics, and their tables."""

    def __init__(self, gibbs, documents, words, tokens, topics, rng):
        self.gibbs, self.documents, self.words, self.topics = gibbs, documents, words, topics
        self.word_of = np.sort(rng.integers(0, words, tokens))
        starts = np.searchsorted(self.word_of, np.arange(words + 1)).astype(np.int64)
        self.tokens = gibbs.Tokens(
            rng.integers(0, documents, tokens).astype(np.uint32),
            rng.integers(0, topics, tokens).astype(np.uint32),
            starts,
        )
        self.word_table = self.empty(np.diff(starts))
        self.document_table = self.empty(np.bincount(self.tokens.documents, minlength=documents))
        gibbs.tally(self.tokens, self.word_table, topics)
        gibbs.tally_documents(self.tokens, self.document_table)
        self.totals = np.bincount(self.tokens.topics, minlength=topics).astype(np.int64)

    def empty(self, counts):
        """Return a table with room for these counts and no more."""
        starts = np.concatenate([[0], np.cumsum(np.minimum(counts, self.topics))]).astype(np.int64)
        return self.gibbs.Table(starts, np.zeros(len(counts), np.uint32), np.zeros((starts[-1], 2), np.uint32))

    def dense(self, table):
        found = np.zeros((len(table.used), self.topics), np.int64)
        for row in range(len(table.used)):
            for topic, count in table.pairs[table.starts[row] : table.starts[row] + table.used[row]]:
                assert count > 0
                assert found[row, topic] == 0
                found[row, topic] = count
        return found

    def recount(self):
        """Return the counts of words and documents by topic, of the tokens."""
        of_words = np.zeros((self.words, self.topics), np.int64)
        of_documents = np.zeros((self.documents, self.topics), np.int64)
        np.add.at(of_words, (self.word_of, self.tokens.topics), 1)
        np.add.at(of_documents, (self.tokens.documents, self.tokens.topics), 1)
        return of_words, of_documents

    def check(self):
        of_words, of_documents = self.recount()
        np.testing.assert_array_equal(self.dense(self.word_table), of_words)
        np.testing.assert_array_equal(self.dense(self.document_table), of_documents)
        np.testing.assert_array_equal(self.totals, of_words.sum(axis=0))

    def sample(self, alpha, beta, state, first=0, last=None):
        return self.gibbs.sample(
            self.tokens, self.word_table, self.document_table, self.totals, alpha, beta, beta * self.words, first,
            self.words if last is None else last, state,
        )  # fmt: skip


@pytest.mark.parametrize(("documents", "words", "tokens", "topics"), [(5, 7, 90, 3), (40, 30, 400, 50), (3, 4, 60, 1)])
def test_counts_are_those_of_the_tokens(gibbs, documents, words, tokens, topics):
    rng = np.random.default_rng(SEED)
    corpus = Corpus(gibbs, documents, words, tokens, topics, rng)
    corpus.check()
    state, before = np.array([SEED], np.uint64), corpus.tokens.topics.copy()
    moved = corpus.sample(np.full(topics, 0.3), 0.1, state)
    assert moved == (before != corpus.tokens.topics).sum()
    assert (moved > 0) == (topics > 1)
    corpus.check()
    for _ in range(10):
        corpus.sample(rng.uniform(0.01, 2, topics), 0.01, state)
        corpus.check()


def test_some_words(gibbs):
    corpus = Corpus(gibbs, 10, 12, 200, 6, np.random.default_rng(SEED))
    before = corpus.tokens.topics.copy()
    corpus.sample(np.full(6, 0.3), 0.1, np.array([1], np.uint64), 3, 5)
    changed = np.flatnonzero(before != corpus.tokens.topics)
    assert len(changed)
    assert set(corpus.word_of[changed]) <= {3, 4}
    corpus.check()


@pytest.mark.parametrize("topics", [2, 5, 33])
def test_draws_have_the_distribution_given_all_other_tokens(gibbs, topics):
    """One token of a word of its own, drawn anew over and over, takes each topic as often as the formula says."""
    rng = np.random.default_rng(SEED)
    corpus = Corpus(gibbs, 3, 4, 60, topics, rng)
    token = corpus.tokens.starts[-1] - 1
    word, document = corpus.word_of[token], corpus.tokens.documents[token]
    # The other tokens of the word become those of a word before, so that a call draws this token only.
    corpus.word_of[corpus.word_of == word] = word - 1
    corpus.word_of[token] = word
    corpus.tokens.starts[word] = token
    corpus.word_table = corpus.empty(np.full(corpus.words, 60))
    gibbs.tally(corpus.tokens, corpus.word_table, topics)
    alpha, beta = rng.uniform(0.1, 2, topics), 0.5
    of_words, of_documents = corpus.recount()
    old = corpus.tokens.topics[token]
    for counts in (of_words[word], of_documents[document]):
        counts[old] -= 1
    totals = corpus.totals - (np.arange(topics) == old)
    chances = (of_documents[document] + alpha) * (of_words[word] + beta) / (totals + beta * corpus.words)
    chances /= chances.sum()
    state, draws = np.array([SEED], np.uint64), 20_000
    seen = np.zeros(topics)
    for _ in range(draws):
        corpus.sample(alpha, beta, state, word, word + 1)
        seen[corpus.tokens.topics[token]] += 1
    # Six standard deviations of a binomial variable.
    assert (abs(seen - draws * chances) <= 6 * np.sqrt(draws * chances * (1 - chances)) + 1).all()
    corpus.check()


def slow_infer(documents, phi, alpha, rounds):
    """Return CVB0's topics of documents, token by token."""
    found = []
    for words in documents:
        parts = phi[words] / phi[words].sum(axis=1, keepdims=True)
        for _ in range(rounds):
            for word in np.unique(words):  # tokens of a word change together
                same = np.flatnonzero(words == word)
                others = parts.sum(axis=0) - parts[same[0]] + alpha
                new = phi[word] * others
                parts[same] = new / new.sum()
        sums = parts.sum(axis=0) + alpha
        found.append(sums / sums.sum())
    return np.array(found)


def test_topics_of_documents(gibbs):
    rng = np.random.default_rng(SEED)
    words, topics = 9, 4
    phi = rng.dirichlet(np.full(topics, 0.5), words)
    alpha = rng.uniform(0.1, 1, topics)
    documents = [np.sort(rng.integers(0, words, length)) for length in (12, 1, 0, 30)]
    entries = [np.unique(each, return_counts=True) for each in documents]
    found = np.empty((4, topics))
    gibbs.infer(
        np.cumsum([0, *(len(each) for each, _ in entries)]),
        np.concatenate([each for each, _ in entries]).astype(np.uint32),
        np.concatenate([counts for _, counts in entries]).astype(np.float64),
        phi,
        alpha,
        40,
        0.0,
        found,
    )
    np.testing.assert_allclose(found, slow_infer(documents, phi, alpha, 40), rtol=1e-9)
    np.testing.assert_allclose(found[2], alpha / alpha.sum())
