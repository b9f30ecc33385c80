"""Latent Dirichlet allocation: documents stay with their rank, blocks of the word-topic table rotate."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sfb.kernels.stages import compiled
from sfb.models.compiling import load
from sfb.models.estimator import Estimator, Number
from sfb.models.finite import naming_samples
from sfb.models.ranks import Ranks
from sfb.models.topics.gibbs import Options, Prior, Sampler

__all__ = ["LatentDirichletAllocation"]

_MOST = 2**31 - 1  # what a count may be


class LatentDirichletAllocation(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """Topics of documents by collapsed Gibbs sampling, of which every rank keeps its shard of the documents.

    A document draws a distribution over topics from a Dirichlet prior with parameters α, a topic one over words from a
    symmetric one with β; each token draws a topic, then a word. A sweep draws the topic of every token anew, given
    those of all others (Griffiths and Steyvers, "Finding scientific topics", PNAS 101, 2004). The words are divided
    into blocks. Their counts by topic move around the ring of ranks, so that each block is on one rank at a time (Lee
    et al., "On Model Parallelization and Scheduling Strategies for Distributed Machine Learning", NIPS 2014, section
    3.2). Only the totals of topics are stale between sync points. A token takes time in proportion to the topics of its
    document.

    The same seed and the same number of ranks give the same topics, unless ``extra_passes`` is above 0. A document
    without words has the topics of the prior. Parameters are named as in `sklearn.decomposition`, whose estimator
    optimises a variational bound.

    Args:
        n_components: Topics K, ≥ 1.
        doc_topic_prior: α of each topic, > 0; None for 1/K.
        topic_word_prior: β, > 0; None for 1/K.
        max_iter: Sweeps, ≥ 0.
        optimize_interval: Sweeps between two fits of the priors by Minka's fixed point: a parameter for each topic, and
            one for all words; 0 to keep them.
        evaluate_every: Sweeps between two entries of ``log_likelihoods_``; 0 or less for none.
        mean_change_tol: The mean change of a token's distribution over topics at which `transform` stops, > 0.
        max_doc_update_iter: Most rounds of `transform` over a document, ≥ 1.
        blocks_per_rank: Blocks of words for each rank; with two or more they travel while ranks sample.
        sync: When ranks sum the totals of topics: after each "step", in which a rank works on one block, or each
            "sweep".
        extra_passes: Most further passes over a block that a rank makes while slower ranks are not done with theirs.
        debug: Whether to check at each sync point that no token is lost, and that each block is on one rank.
        random_state: Seed, or generator, of rank 0.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        components_: Counts of words by topic plus β, K×V; the same bits on all ranks.
        doc_topic_prior_: α, K.
        topic_word_prior_: β.
        log_likelihood_: log p(words, topics) / tokens after the last sweep.
        log_likelihoods_: The same every ``evaluate_every`` sweeps.
        n_tokens_: Tokens of all ranks.
        extra_passes_: Further passes over blocks that this rank has made.
        n_features_in_: Number of words V.
        n_iter_: Sweeps made.
        vocabulary_: The words, if they were passed.

    >>> import numpy as np
    >>> from sfb.models import LatentDirichletAllocation
    >>> X = np.array([[3, 2, 0, 0], [2, 4, 0, 0], [0, 0, 5, 1], [0, 0, 2, 2]])
    >>> lda = LatentDirichletAllocation(2, topic_word_prior=0.1, max_iter=20, random_state=0).fit(X)
    >>> topics = lda.transform(X).argmax(axis=1)
    >>> bool(topics[0] == topics[1] != topics[2] == topics[3])
    True
    """

    numbers: ClassVar = {
        "n_components": Number(1, whole=True),
        "max_iter": Number(0, whole=True),
        "optimize_interval": Number(0, whole=True),
        "evaluate_every": Number(-1, whole=True),
        "mean_change_tol": Number(0, above=True),
        "max_doc_update_iter": Number(1, whole=True),
        "blocks_per_rank": Number(1, whole=True),
        "extra_passes": Number(0, whole=True),
    }
    choices: ClassVar = {"sync": ("step", "sweep")}

    components_: np.ndarray
    doc_topic_prior_: np.ndarray
    topic_word_prior_: float

    def __init__(
        self,
        n_components: int = 10,
        *,
        doc_topic_prior: float | None = None,
        topic_word_prior: float | None = None,
        max_iter: int = 200,
        optimize_interval: int = 0,
        evaluate_every: int = -1,
        mean_change_tol: float = 1e-3,
        max_doc_update_iter: int = 100,
        blocks_per_rank: int = 1,
        sync: str = "step",
        extra_passes: int = 0,
        debug: bool = False,
        random_state: Any = None,
        comm: Any = None,
    ) -> None:
        self.n_components = n_components
        self.doc_topic_prior = doc_topic_prior
        self.topic_word_prior = topic_word_prior
        self.max_iter = max_iter
        self.optimize_interval = optimize_interval
        self.evaluate_every = evaluate_every
        self.mean_change_tol = mean_change_tol
        self.max_doc_update_iter = max_doc_update_iter
        self.blocks_per_rank = blocks_per_rank
        self.sync = sync
        self.extra_passes = extra_passes
        self.debug = debug
        self.random_state = random_state
        self.comm = comm

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.categorical = True  # whole numbers, in the checks of scikit-learn
        return tags

    def fit(self, X: Any, y: Any = None, *, vocabulary: Sequence[str] | None = None) -> LatentDirichletAllocation:
        """Sample the topics of the documents of all ranks; collective.

        Args:
            X: N×V counts of words in this rank's documents, an array or a SciPy sparse matrix of whole numbers ≥ 0; N
                may be 0 on some ranks.
            y: Ignored.
            vocabulary: The V words, for `top_words`; the same on all ranks.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
            MismatchError: Ranks differ in parameters, or in their vocabulary; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            counts = self._counts(ranks, X, vocabulary, reset=True)
            alpha = 1 / self.n_components if self.doc_topic_prior is None else float(self.doc_topic_prior)
            beta = 1 / self.n_components if self.topic_word_prior is None else float(self.topic_word_prior)
            self._sample(ranks, counts, Prior(np.full(self.n_components, alpha), beta), None)
            self.n_iter_ = self.max_iter
        return self

    def partial_fit(
        self, X: Any, y: Any = None, *, vocabulary: Sequence[str] | None = None
    ) -> LatentDirichletAllocation:
        """Sample the topics of further documents of all ranks; collective.

        The tokens of earlier calls keep their topics and count for the new ones, as in Banerjee and Basu, "Topic Models
        over Text Streams", SDM 2007. The model of rank 0 goes on.

        Args:
            X: Counts, as for `fit`.
            y: Ignored.
            vocabulary: The words, as for `fit`.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError, MismatchError: As `fit` does.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            before = ranks.first(getattr(self, "components_", None))
            if before is None:
                return self.fit(X, vocabulary=vocabulary)
            alpha, beta, swept = ranks.first(
                tuple(getattr(self, name, None) for name in ("doc_topic_prior_", "topic_word_prior_", "n_iter_"))
            )
            with ranks.together("partial_fit"):
                check_is_fitted(self)
                if len(before) != self.n_components:
                    raise ValueError(f"n_components was {len(before)} in the first call, got {self.n_components}")
            counts = self._counts(ranks, X, vocabulary, reset=False)
            base = np.rint(before - beta).astype(np.int64)
            self._sample(ranks, counts, Prior(alpha, beta), base)
            self.n_iter_ = swept + self.max_iter
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the distribution over topics of each local document, N×K; without words, that of the prior.

        Words seldom have the same topic in the whole model; rounds over a document's words settle them given
        ``components_`` (CVB0: Asuncion et al., "On Smoothing and Inference for Topic Models", UAI 2009, section 3.4).
        """
        check_is_fitted(self)
        return self._infer(self._read(X), self._topics())

    def perplexity(self, X: Any) -> float:
        """Return the perplexity of local documents that were not fitted, by completion.

        Of each document's words, in their order, every second token is scored by the topics that the others give
        (Wallach, Murray, Salakhutdinov and Mimno, "Evaluation Methods for Topic Models", ICML 2009, section 5.1).

        Raises:
            ValueError: No document has two tokens.
        """
        return float(np.exp(-self.score(X)))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean logarithm of the probability of a token, that of `perplexity`; local documents."""
        check_is_fitted(self)
        counts = self._read(X)
        seen, held_out = _halves(counts)
        if not held_out.nnz:
            raise ValueError("a score needs a document with two tokens")
        words = self._topics()
        topics = self._infer(seen, words)
        documents = np.repeat(np.arange(held_out.shape[0]), np.diff(held_out.indptr))
        total = 0.0
        for part in np.array_split(np.arange(held_out.nnz), -(-held_out.nnz * words.shape[1] // (1 << 24))):
            chances = np.einsum("ij,ij->i", topics[documents[part]], words[held_out.indices[part]])
            total += float(held_out.data[part] @ np.log(chances))
        return total / float(held_out.data.sum())

    def top_words(self, n: int = 10) -> list[list[Any]]:
        """Return the n likeliest words of each topic: words if `fit` has been given them, else their numbers."""
        check_is_fitted(self)
        order = np.argsort(-self.components_, axis=1, kind="stable")[:, :n].tolist()
        vocabulary = getattr(self, "vocabulary_", None)
        return order if vocabulary is None else [[vocabulary[word] for word in row] for row in order]

    def coherence(self, X: Any, n: int = 10, measure: str = "umass") -> np.ndarray:
        """Return how well the n likeliest words of each topic go together in the documents of all ranks; collective.

        "umass" is the mean of log((D(v, w) + 1)/D(v)) over pairs of words, v the likelier one and D the number of
        documents with these words (Mimno et al., "Optimizing Semantic Coherence in Topic Models", EMNLP 2011, equation
        1, there summed). "npmi" is the mean of log(p(v, w)/(p(v)·p(w)))/−log p(v, w), from −1, for words that never
        meet, to 1, by documents (Bouma, "Normalized (Pointwise) Mutual Information in Collocation Extraction", GSCL
        2009).

        Args:
            X: Counts of words in this rank's documents.
            n: Words of a topic, ≥ 2.
            measure: "umass" or "npmi".

        Returns:
            K numbers, the same on all ranks.

        Raises:
            TypeError, ValueError: What a rank passed is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            with ranks.together("coherence"):
                check_is_fitted(self)
                Number(2, whole=True).check("n", n)
                if measure not in ("umass", "npmi"):
                    raise ValueError(f"measure must be one of umass, npmi, got {measure!r}")
                counts = _whole(
                    validate_data(
                        self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False, ensure_min_samples=0
                    )
                )
            ranks.compare("coherence", f"coherence of n={n}, measure={measure}")
            top = np.argsort(-self.components_, axis=1, kind="stable")[:, :n]
            present = csr_matrix((np.ones(counts.nnz), counts.indices, counts.indptr), shape=counts.shape)
            both = np.stack([(part.T @ part).toarray() for part in (present[:, words] for words in top)])
            sums = ranks.sum(np.concatenate([both.ravel(), [counts.shape[0]]]))
        both, documents = sums[:-1].reshape(both.shape), sums[-1]
        later, earlier = np.tril_indices(top.shape[1], -1)
        joint, alone = both[:, later, earlier], np.diagonal(both, axis1=1, axis2=2)
        if measure == "umass":
            return np.asarray(np.log((joint + 1) / np.maximum(alone[:, earlier], 1)).mean(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = joint / documents
            value = np.log(share * documents**2 / (alone[:, later] * alone[:, earlier])) / -np.log(share)
        return np.where(joint == 0, -1.0, np.where(joint == documents, 1.0, value)).mean(axis=1)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        found = {
            "kind": "lda",
            "model": type(self).__name__,
            "components": self.components_,
            "doc_topic_prior": np.asarray(self.doc_topic_prior_, np.float64),
            "mean_change_tol": float(self.mean_change_tol),
            "max_doc_update_iter": int(self.max_doc_update_iter),
        }
        if hasattr(self, "vocabulary_"):
            found["vocabulary"] = np.array(self.vocabulary_, np.str_)
        return found

    def _read(self, x: Any) -> csr_matrix:
        """Return the counts of documents to find topics of, checked."""
        with naming_samples(x):
            x = validate_data(self, x, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return _whole(x)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("doc_topic_prior", "topic_word_prior"):
            if getattr(self, name) is not None:
                Number(0, above=True).check(name, getattr(self, name))

    def _counts(self, ranks: Ranks, x: Any, vocabulary: Sequence[str] | None, *, reset: bool) -> csr_matrix:
        """Return the counts of this rank's documents, checked; collective."""
        least = int(ranks.size == 1)
        with ranks.together("fit"), naming_samples(x):
            x = validate_data(
                self, x, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_min_samples=least, reset=reset
            )
            counts = _whole(x)
            if vocabulary is not None and len(vocabulary) != counts.shape[1]:
                raise ValueError(f"vocabulary has {len(vocabulary)} words, x {counts.shape[1]} columns")
        said = ranks.gather((counts.shape[1], int(counts.data.sum())))
        with ranks.together("fit"):
            if len({words for words, _ in said}) > 1:
                raise ValueError(f"x has {counts.shape[1]} words on this rank, and another number on others")
            if not any(tokens for _, tokens in said):
                raise ValueError("no rank has a document with a word")
        names = getattr(self, "feature_names_in_", None) if vocabulary is None else vocabulary
        ranks.compare(
            "fit", "no vocabulary" if names is None else f"a vocabulary with fingerprint {_fingerprint(names)}"
        )
        if names is not None:
            self.vocabulary_ = [str(name) for name in names]
        elif reset and hasattr(self, "vocabulary_"):
            del self.vocabulary_
        return counts

    def _sample(self, ranks: Ranks, counts: csr_matrix, prior: Prior, base: np.ndarray | None) -> None:
        """Make the sweeps, and set what they have found; collective."""
        with ranks.together("fit"):
            seed = int(check_random_state(self.random_state).randint(_MOST))
        load(ranks, "gibbs")
        options = Options(self.blocks_per_rank, self.sync, self.extra_passes, self.debug)
        self.log_likelihoods_ = []
        with Sampler(ranks, counts, prior, ranks.first(seed), options, base=base) as sampler:
            for sweep in range(1, self.max_iter + 1):
                sampler.sweep()
                if self.optimize_interval and sweep % self.optimize_interval == 0:
                    sampler.optimise()
                if self.evaluate_every > 0 and sweep % self.evaluate_every == 0:
                    self.log_likelihoods_.append(sampler.log_likelihood() / sampler.tokens)
            self.log_likelihood_ = sampler.log_likelihood() / sampler.tokens
            self.doc_topic_prior_, self.topic_word_prior_ = sampler.prior.alpha, sampler.prior.beta
            self.components_ = sampler.table() + sampler.prior.beta
            self.n_tokens_, self.extra_passes_ = sampler.tokens, sampler.extra

    def _topics(self) -> np.ndarray:
        """Return the probability of each word in each topic, V×K."""
        return np.ascontiguousarray((self.components_ / self.components_.sum(axis=1, keepdims=True)).T)

    def _infer(self, counts: csr_matrix, words: np.ndarray) -> np.ndarray:
        found = np.empty((counts.shape[0], words.shape[1]))
        compiled("gibbs").infer(
            counts.indptr.astype(np.int64),
            counts.indices.astype(np.uint32),
            counts.data.astype(np.float64),
            words,
            np.ascontiguousarray(self.doc_topic_prior_),
            self.max_doc_update_iter,
            self.mean_change_tol,
            found,
        )
        return found


def _whole(x: Any) -> csr_matrix:
    """Return counts as a CSR matrix of int64, without zeros and duplicates.

    Raises:
        ValueError: A count is negative, no whole number, or too large.
    """
    counts = csr_matrix(x, copy=issparse(x))
    counts.sum_duplicates()
    for wrong, what in (
        (counts.data < 0, "Negative values in data"),
        (counts.data != np.rint(counts.data), "Fractions in data"),
        (counts.data > _MOST, "Values above 2³¹ − 1 in data"),
    ):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            document = int(np.searchsorted(counts.indptr, first, side="right")) - 1
            raise ValueError(
                f"{what}: counts of words must be whole numbers ≥ 0, document {document} has {counts.data[first]:g} of "
                f"word {counts.indices[first]}"
            )
    counts.eliminate_zeros()
    return csr_matrix((counts.data.astype(np.int64), counts.indices, counts.indptr), shape=counts.shape)


def _halves(counts: csr_matrix) -> tuple[csr_matrix, csr_matrix]:
    """Divide the tokens of each document, in the order of their words, into those with even and odd numbers."""
    ends = np.concatenate([[0], np.cumsum(counts.data)])
    begin = ends[:-1] - np.repeat(ends[counts.indptr[:-1]], np.diff(counts.indptr))
    even = (begin + counts.data + 1) // 2 - (begin + 1) // 2
    parts = []
    for data in (even, counts.data - even):
        part = csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def _fingerprint(words: Sequence[str]) -> str:
    return sha256("\0".join(map(str, words)).encode()).hexdigest()[:16]
