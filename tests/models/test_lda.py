"""Topics of documents on several ranks, against a plain Gibbs sampler and direct formulas."""

from __future__ import annotations

import gc
from functools import cache

import numpy as np
import pytest
from oracle import assert_same_bits
from scipy import sparse
from scipy.special import digamma, gammaln

pytest.importorskip("sklearn")

from sfb import MismatchError
from sfb.models import LatentDirichletAllocation
from sfb.models.ranks import Ranks
from sfb.models.topics.gibbs import Options, Prior, Sampler

pytestmark = pytest.mark.mpi

TOPICS, WORDS, DOCUMENTS, LENGTH = 4, 30, 36, 40
OPTIONS = [
    Options(check=True),
    Options(blocks=2, sync="sweep", check=True),
    Options(blocks=3, sync="step", check=True),
    Options(passes=2, check=True),
]


@cache
def corpus():
    """Return counts that a model with few words a topic draws; some documents are empty."""
    rng = np.random.default_rng(5)
    topics = rng.dirichlet(np.full(WORDS, 0.05), TOPICS)
    counts = np.zeros((DOCUMENTS, WORDS), np.int64)
    for document in range(DOCUMENTS):
        if document % 9 != 4:
            counts[document] = rng.multinomial(LENGTH, rng.dirichlet(np.full(TOPICS, 0.1)) @ topics)
    return counts


def shard(world, x, among=None):
    """Return every P-th document of this rank; none if it is not ``among`` the ranks that have any."""
    among = list(range(world.size)) if among is None else among
    return x[among.index(world.rank) :: len(among)] if world.rank in among else x[:0]


def lda(**options):
    settings = {"doc_topic_prior": 0.1, "topic_word_prior": 0.05, "max_iter": 10, "random_state": 3, "debug": True}
    return LatentDirichletAllocation(TOPICS, **{**settings, **options})


def joint(of_words, of_documents, alpha, beta):
    """Return log p(words, topics) of dense counts, V×K and N×K."""

    def part(counts, prior):
        prior = np.broadcast_to(prior, counts.shape[1:])
        ends = gammaln(prior.sum()) - gammaln(counts.sum(axis=1) + prior.sum())
        return ends.sum() + (gammaln(counts + prior) - gammaln(prior)).sum()

    return part(of_words.T, beta) + part(of_documents, alpha)


def slow_gibbs(counts, sweeps, alpha, beta, seed):
    """Return the log-likelihood of a token after each sweep of a plain collapsed Gibbs sampler."""
    rng = np.random.default_rng(seed)
    documents, words = np.nonzero(counts)
    times = counts[documents, words]
    documents, words = np.repeat(documents, times), np.repeat(words, times)
    topics = rng.integers(0, TOPICS, len(words))
    of_words, of_documents = np.zeros((WORDS, TOPICS)), np.zeros((DOCUMENTS, TOPICS))
    np.add.at(of_words, (words, topics), 1)
    np.add.at(of_documents, (documents, topics), 1)
    totals, found = of_words.sum(axis=0), []
    for _ in range(sweeps):
        for token, (d, w) in enumerate(zip(documents, words, strict=True)):
            old = topics[token]
            for array in (of_words[w], of_documents[d], totals):
                array[old] -= 1
            chances = np.cumsum((of_documents[d] + alpha) * (of_words[w] + beta) / (totals + WORDS * beta))
            topics[token] = new = np.searchsorted(chances, rng.random() * chances[-1], side="right")
            for array in (of_words[w], of_documents[d], totals):
                array[new] += 1
        found.append(joint(of_words, of_documents, alpha, beta) / len(words))
    return np.array(found)


def tables(world, sampler):
    """Return the counts of words and of all ranks' documents by topic, dense."""
    table = sampler.documents()
    return sampler.table().T, np.vstack(world.allgather(table))


@pytest.mark.parametrize("options", OPTIONS, ids=["step", "sweep", "three blocks", "passes"])
def test_no_token_is_lost(world, options):
    """With ``check`` the sampler looks at every sync point itself; here the tables are counted once more."""
    counts = sparse.csr_matrix(shard(world, corpus()))
    with Ranks(world) as ranks, Sampler(ranks, counts, Prior(np.full(TOPICS, 0.1), 0.05), 1, options) as sampler:
        for _ in range(4):
            sampler.sweep()
            of_words, of_documents = tables(world, sampler)
            np.testing.assert_array_equal(of_words.sum(axis=1), corpus().sum(axis=0))
            expected = np.concatenate([corpus()[rank :: world.size].sum(axis=1) for rank in range(world.size)])
            np.testing.assert_array_equal(of_documents.sum(axis=1), expected)
            np.testing.assert_array_equal(of_words.sum(axis=0), sampler.totals)
            np.testing.assert_array_equal(of_documents.sum(axis=0), sampler.totals)
            found = sampler.log_likelihood()
            np.testing.assert_allclose(found, joint(of_words, of_documents, 0.1, 0.05), rtol=1e-10)
            assert_same_bits(world, np.array([found]))
            assert_same_bits(world, sampler.table())
        assert sampler.extra <= options.passes * 4 * world.size * options.blocks


def test_a_lost_token_is_an_error_on_every_rank(world):
    counts = sparse.csr_matrix(shard(world, corpus()))
    prior = Prior(np.full(TOPICS, 0.1), 0.05)
    with Ranks(world) as ranks, Sampler(ranks, counts, prior, 1, Options(check=True)) as sampler:
        sampler.sweep()
        if world.rank == world.size - 1:
            sampler.totals[0] += 1
        with pytest.raises(RuntimeError, match="tokens are lost"):
            sampler.sweep()


@pytest.mark.parametrize(
    ("options", "of_seeds"),
    [({}, np.median), ({"blocks_per_rank": 2}, np.median), ({"sync": "sweep"}, np.max)],
    ids=["step", "two blocks", "sweep"],
)
def test_the_likelihood_of_a_plain_sampler(world, options, of_seeds):
    """Means over the last sweeps, of several seeds: sweeps of one seed depend on each other.

    With totals as old as a sweep, chains of so few tokens stay in local optima more often; the best one does not.
    """
    sweeps, seeds = 24, range(3)
    plain, found = [], []
    for seed in seeds:
        if world.rank == 0:
            plain.append(slow_gibbs(corpus(), sweeps, 0.1, 0.05, seed)[sweeps // 2 :].mean())
        model = lda(max_iter=sweeps, evaluate_every=1, random_state=seed, debug=False, **options)
        model.fit(shard(world, corpus()))
        assert model.log_likelihood_ == model.log_likelihoods_[-1]
        found.append(np.mean(model.log_likelihoods_[sweeps // 2 :]))
    assert of_seeds(found) > 1.02 * world.bcast(of_seeds(plain) if plain else 0)  # both are below 0


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")  # of lda
def test_the_likelihood_of_the_package_lda_on_reuters(world):
    package = pytest.importorskip("lda")
    counts = package.datasets.load_reuters()
    gc.collect()  # closes the file that lda has left open, in this test
    sweeps = 40
    expected = 0.0
    if world.rank == 0:
        other = package.LDA(20, n_iter=sweeps, alpha=0.1, eta=0.01, random_state=1, refresh=1000).fit(counts)
        expected = other.loglikelihood() / counts.sum()
    model = LatentDirichletAllocation(
        20, doc_topic_prior=0.1, topic_word_prior=0.01, max_iter=sweeps, random_state=0
    ).fit(shard(world, counts), vocabulary=package.datasets.load_reuters_vocab())
    assert model.log_likelihood_ > 1.01 * world.bcast(expected)  # both are below 0
    assert model.n_tokens_ == counts.sum() == 84010
    assert all(isinstance(word, str) for words in model.top_words(3) for word in words)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.coo_array])
def test_what_is_learnt(world, form):
    model = lda().fit(form(shard(world, corpus())))
    assert model.components_.shape == (TOPICS, WORDS)
    assert_same_bits(world, model.components_)
    counts = model.components_ - model.topic_word_prior_
    np.testing.assert_allclose(counts.sum(axis=0), corpus().sum(axis=0), atol=1e-9)
    np.testing.assert_array_equal(model.doc_topic_prior_, np.full(TOPICS, 0.1))
    assert model.n_tokens_ == corpus().sum()
    assert model.n_iter_ == 10
    assert list(model.get_feature_names_out())[:1] == ["latentdirichletallocation0"]
    again = lda().fit(form(shard(world, corpus())))
    np.testing.assert_array_equal(model.components_, again.components_)
    other = lda(random_state=4).fit(form(shard(world, corpus())))
    assert (model.components_ != other.components_).any()


@pytest.mark.parametrize("among", [[0], [1]])
def test_ranks_without_documents(world, among):
    if world.size <= among[0]:
        among = [0]
    x = shard(world, corpus(), among)
    model = lda(max_iter=20).fit(x)
    assert_same_bits(world, model.components_)
    assert model.n_tokens_ == corpus().sum()


def test_more_ranks_than_words(world):
    x = np.array([[3, 1], [0, 2]])
    model = lda(blocks_per_rank=2).fit(x if world.rank == 0 else x[:0])
    np.testing.assert_allclose((model.components_ - 0.05).sum(axis=0), [3, 3])


def test_empty_documents_have_the_topics_of_the_prior(world):
    model = lda(optimize_interval=5).fit(shard(world, corpus()))
    expected = model.doc_topic_prior_ / model.doc_topic_prior_.sum()
    np.testing.assert_allclose(model.transform(np.zeros((2, WORDS))), [expected, expected])


def test_the_fixed_point_of_minka(world):
    counts = sparse.csr_matrix(shard(world, corpus()))
    with Ranks(world) as ranks, Sampler(ranks, counts, Prior(np.full(TOPICS, 0.5), 0.2), 1) as sampler:
        sampler.sweep()
        of_words, of_documents = tables(world, sampler)
        before = joint(of_words, of_documents, 0.5, 0.2)
        sampler.optimise()
        alpha, beta = np.full(TOPICS, 0.5), 0.2
        of_documents = of_documents[of_documents.sum(axis=1) > 0]
        for _ in range(5):
            above = (digamma(of_documents + alpha) - digamma(alpha)).sum(axis=0)
            below = (digamma(of_documents.sum(axis=1) + alpha.sum()) - digamma(alpha.sum())).sum()
            alpha = alpha * above / below
            above = (digamma(of_words + beta) - digamma(beta)).sum()
            below = WORDS * (digamma(of_words.sum(axis=0) + WORDS * beta) - digamma(WORDS * beta)).sum()
            beta *= above / below
        np.testing.assert_allclose(sampler.prior.alpha, alpha)
        np.testing.assert_allclose(sampler.prior.beta, beta)
        assert_same_bits(world, sampler.prior.alpha)
        assert sampler.log_likelihood() > before
    model = lda(optimize_interval=2).fit(shard(world, corpus()))
    assert (model.doc_topic_prior_ != 0.1).all()
    assert model.topic_word_prior_ != 0.05


def test_further_documents(world):
    x, split = shard(world, corpus()), 2
    model = lda(max_iter=15).partial_fit(x[split:])
    first = model.components_.copy()
    model.partial_fit(x[:split])
    assert_same_bits(world, model.components_)
    assert (np.rint(model.components_ - first) >= 0).all()  # earlier tokens keep their topics
    np.testing.assert_allclose((model.components_ - 0.05).sum(axis=0), corpus().sum(axis=0))
    assert model.n_iter_ == 30
    with pytest.raises(ValueError, match="n_components was 4 in the first call, got 5"):
        model.set_params(n_components=5).partial_fit(x)


def test_perplexity_is_that_of_the_other_half(world):
    model = lda(max_iter=20).fit(shard(world, corpus()))
    x = corpus()[:7]
    phi = model.components_ / model.components_.sum(axis=1, keepdims=True)
    total, seen = 0.0, np.zeros_like(x)
    for row, counts in enumerate(x):
        tokens = np.repeat(np.arange(WORDS), counts)
        seen[row] = np.bincount(tokens[::2], minlength=WORDS)
    topics = model.transform(seen)
    total = ((x - seen) * np.log(topics @ phi)).sum()
    np.testing.assert_allclose(model.score(x), total / (x - seen).sum())
    np.testing.assert_allclose(model.perplexity(sparse.csr_array(x)), np.exp(-total / (x - seen).sum()))
    assert model.perplexity(x) < WORDS / 2  # of words drawn evenly it is WORDS
    with pytest.raises(ValueError, match="two tokens"):
        model.score(np.eye(WORDS))


@pytest.mark.parametrize("measure", ["umass", "npmi"])
def test_coherence(world, measure):
    model = lda(max_iter=20).fit(shard(world, corpus()))
    found = model.coherence(shard(world, corpus()), 5, measure)
    present = corpus() > 0
    expected = []
    for words in model.top_words(5):
        values = []
        for i in range(1, 5):
            for j in range(i):
                v, w = present[:, words[j]], present[:, words[i]]
                both = (v & w).sum()
                if measure == "umass":
                    values.append(np.log((both + 1) / max(v.sum(), 1)))
                elif both in (0, DOCUMENTS):
                    values.append(1.0 if both else -1.0)
                else:
                    share = both / DOCUMENTS
                    values.append(np.log(share / v.mean() / w.mean()) / -np.log(share))
        expected.append(np.mean(values))
    np.testing.assert_allclose(found, expected)
    assert_same_bits(world, found)


def test_a_fast_rank_makes_further_passes(world):
    """Rank 0 goes on once rank 1 has told it of a further pass, so that there is one for certain."""
    if world.size == 1:
        pytest.skip("needs two ranks")

    class Waiting(Sampler):
        told = False

        def push(self, block):
            super().push(block)
            if world.rank == 0 and not self.told:
                self.told = world.recv(source=1, tag=77)

        def improve(self, block, done):
            super().improve(block, done)
            if world.rank == 1 and not self.told:
                world.send(True, 0, tag=77)
                self.told = True

    counts = sparse.csr_matrix(shard(world, corpus()))
    prior = Prior(np.full(TOPICS, 0.1), 0.05)
    with Ranks(world) as ranks, Waiting(ranks, counts, prior, 1, Options(passes=3, check=True)) as sampler:
        for _ in range(3):
            sampler.sweep()
        if world.rank == 1:
            assert 1 <= sampler.extra <= 9 * world.size
        np.testing.assert_array_equal(sampler.table().sum(axis=0), corpus().sum(axis=0))
        found = world.allgather(sampler.extra)
    assert sum(found) >= 1


BAD = {
    "negative": (-1, "Negative values in data: .* whole numbers ≥ 0, document 0 has -1 of word 2"),
    "fraction": (0.5, "Fractions in data: .* document 0 has 0.5 of word 2"),
    "NaN": (np.nan, "NaN"),
    "too many": (2.0**40, "Values above"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_wrong_counts_on_one_rank_are_an_error_on_all(world, case, form):
    value, message = BAD[case]
    x = corpus().astype(float)
    if world.rank == world.size - 1:
        x[0, 2] = value
    with pytest.raises(ValueError, match=message):
        lda().fit(form(x))


def test_other_errors_on_all_ranks(world):
    x, last = shard(world, corpus()), world.rank == world.size - 1
    with pytest.raises(ValueError, match="no rank has a document with a word"):
        lda().fit(np.zeros((2, 5)))
    for wrong in ({"n_components": 0}, {"doc_topic_prior": 0}, {"topic_word_prior": np.nan}, {"sync": "never"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LatentDirichletAllocation(**wrong).fit(x)
    words = [f"word {number}" for number in range(WORDS)]
    with pytest.raises(ValueError, match="vocabulary has 29 words, x 30 columns"):
        lda().fit(x, vocabulary=words[:-1] if last else words)
    if world.size > 1:
        with pytest.raises(ValueError, match="another number on others"):
            lda().fit(x[:, :-1] if last else x)
        with pytest.raises(MismatchError, match="fingerprint"):
            lda().fit(x, vocabulary=words[::-1] if last else words)
        with pytest.raises(MismatchError, match="no vocabulary"):
            lda().fit(x, vocabulary=None if last else words)
        with pytest.raises(MismatchError, match="max_iter"):
            lda(max_iter=3 if last else 4).fit(x)
    model = lda().fit(x)
    with pytest.raises(ValueError, match="measure must be one of"):
        model.coherence(x, measure="other" if last else "umass")
