"""Collapsed Gibbs sampling by the ranks of a fit: documents stay, blocks of the word-topic table rotate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import digamma, gammaln

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks
from sfb.schedule import Block, BlockProgram, Rotation, Sweep, Trace, partition

__all__ = ["Options", "Prior", "Sampler"]

_CHUNK = 1 << 17  # tokens between two looks at messages
_LEAST = 1e-6  # α of a topic that no document has
_ROUNDS = 5  # of the fixed point of one optimisation


@dataclass(frozen=True)
class Prior:
    """The Dirichlet priors.

    Attributes:
        alpha: K parameters of the topics of documents.
        beta: The parameter of the words of topics, the same for all words.
    """

    alpha: np.ndarray
    beta: float


@dataclass(frozen=True)
class Options:
    """How blocks rotate.

    Attributes:
        blocks: Blocks of the word-topic table for each rank; with two or more they travel while ranks sample.
        sync: When ranks sum the totals of topics: after each "step" or each "sweep".
        passes: Most further passes over a block that a rank makes while others are not done.
        check: Whether to check the counts at each sync point.
        trace: A record of what this rank does.
    """

    blocks: int = 1
    sync: str = "step"
    passes: int = 0
    check: bool = False
    trace: Trace | None = None


class _Words:
    """The words of a block, and the tokens that this rank has of them.

    Args:
        starts: Where the pairs of each word begin in the block.
        tokens: The tokens of this rank.
    """

    def __init__(self, starts: np.ndarray, tokens: Any) -> None:
        self.starts = starts
        self.tokens = tokens
        count = len(starts) - 1
        marks = np.arange(_CHUNK, int(tokens.starts[-1]), _CHUNK)
        self.chunks = np.unique(np.concatenate([[0, count], np.searchsorted(tokens.starts, marks, side="right") - 1]))

    def table(self, arrays: Sequence[np.ndarray]) -> Any:
        """Return the block as the kernels take it."""
        return compiled("gibbs").Table(self.starts, *arrays)


class Sampler(BlockProgram):
    """The topics of the tokens of all ranks, and their counts; a context manager. Making and freeing it is collective.

    A rank keeps its documents. The words are divided into blocks of about as many tokens, whose counts by topic rotate.

    Args:
        ranks: The ranks.
        counts: N×V counts of words in this rank's documents, a CSR matrix of int64 without duplicates.
        prior: The priors.
        seed: The seed; equal on all ranks.
        options: How blocks rotate; equal on all ranks.
        base: K×V counts of tokens that keep their topics, equal on all ranks; None for none.

    Attributes:
        totals: K tokens of each topic, as this rank knows them.
        tokens: The tokens of all ranks, without those of ``base``.
        prior: The priors; may be changed between sweeps.
        sweeps: The number of sweeps.
        moved: Tokens of this rank whose topic the last sweep has changed.
    """

    summand: np.ndarray

    def __init__(
        self,
        ranks: Ranks,
        counts: csr_matrix,
        prior: Prior,
        seed: int,
        options: Options | None = None,
        *,
        base: np.ndarray | None = None,
    ) -> None:
        options = options or Options()
        self.prior, self.sweeps, self.moved = prior, 0, 0
        self._draws = 0
        self._ranks, self._seed, self._check = ranks, seed, options.check
        self._kernels = compiled("gibbs")
        self._topics, self._vocabulary = len(prior.alpha), counts.shape[1]
        own = np.asarray(counts.sum(axis=0), np.int64).ravel()
        frequencies = ranks.sum(own.copy())
        self.tokens = int(frequencies.sum())
        if base is not None:
            frequencies = frequencies + base.sum(axis=0)
        blocks = ranks.size * options.blocks
        self._block_of = partition(frequencies, blocks)
        self._words = [np.flatnonzero(self._block_of == block) for block in range(blocks)]
        self._parts = self._divide(counts, own, frequencies)
        self._documents = self._count_documents(counts)
        home = {block: self._empty(block, base) for block in range(blocks) if block // options.blocks == ranks.rank}
        self.totals = np.zeros(self._topics, np.int64)
        if base is not None:
            self.totals += base.sum(axis=1)
        self._begun = self.totals.copy()  # at the last sync point
        self._base = self.totals.copy()
        self.summand = np.zeros((2 if options.check else 1, self._topics), np.int64)
        self._rotation = Rotation(
            ranks.comm, home, passes=options.passes, sync=options.sync, check=options.check, trace=options.trace
        )
        self._rotation.sweep(_Tally(self._parts, self._topics))
        self._counting = self._rotation.extra
        self.totals += ranks.sum(self._document_totals())
        self._begun[:] = self.totals

    def _divide(self, counts: csr_matrix, own: np.ndarray, frequencies: np.ndarray) -> list[_Words]:
        """Give each token a topic, the same for any number of ranks, and return the tokens by block and word."""
        number = int(counts.data.sum())
        before = sum(self._ranks.gather(number)[: self._ranks.rank])
        topics = (_mix(np.arange(before, before + number, dtype=np.uint64), self._seed) % self._topics).astype(
            np.uint32
        )
        documents = np.repeat(np.arange(counts.shape[0], dtype=np.uint32), np.diff(counts.indptr))
        words = np.repeat(counts.indices, counts.data)
        documents = np.repeat(documents, counts.data)
        order_of_words = np.concatenate(self._words)
        place = np.empty(self._vocabulary, np.int64)
        place[order_of_words] = np.arange(self._vocabulary)
        order = np.argsort(place[words], kind="stable")
        documents, topics = documents[order], topics[order]
        ends = np.concatenate([[0], np.cumsum(own[order_of_words])])
        room = np.minimum(frequencies, self._topics)
        parts, first = [], 0
        for numbers in self._words:
            last = first + len(numbers)
            begin, end = ends[first], ends[last]
            tokens = self._kernels.Tokens(documents[begin:end], topics[begin:end], ends[first : last + 1] - begin)
            parts.append(_Words(_starts(room[numbers]), tokens))
            first = last
        return parts

    def _count_documents(self, counts: csr_matrix) -> Any:
        """Return the table of this rank's documents."""
        self._lengths = np.asarray(counts.sum(axis=1), np.int64).ravel()
        starts = _starts(np.minimum(self._lengths, self._topics))
        table = self._kernels.Table(
            starts, np.zeros(len(self._lengths), np.uint32), np.zeros((starts[-1], 2), np.uint32)
        )
        for part in self._parts:
            self._kernels.tally_documents(part.tokens, table)
        return table

    def _empty(self, block: int, base: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the arrays of a block before this fit's tokens are counted."""
        starts, numbers = self._parts[block].starts, self._words[block]
        used, pairs = np.zeros(len(numbers), np.uint32), np.zeros((starts[-1], 2), np.uint32)
        if base is not None:
            counts = base[:, numbers].T
            words, topics = np.nonzero(counts)
            used[:] = np.bincount(words, minlength=len(numbers))
            place = np.repeat(starts[:-1], used) + _within(used)
            pairs[place, 0], pairs[place, 1] = topics, counts[words, topics]
        return used, pairs

    def sweep(self) -> Sweep:
        """Draw the topic of each token once; collective.

        Raises:
            RuntimeError: With ``check``, counts were lost; on every rank.
        """
        self.moved = 0
        done = self._rotation.sweep(self)
        self.sweeps += 1
        if self._check:
            self._check_table()
        return done

    def push(self, block: Block) -> None:
        """Draw the topics of this rank's tokens of a block."""
        self._draw(block, lambda: False)

    def improve(self, block: Block, done: Callable[[], bool]) -> None:
        """Draw topics again until all ranks are done."""
        self._draw(block, done)

    def pull(self, total: np.ndarray) -> None:
        """Take the changes of all ranks to the totals of topics."""
        self._begun += total[0]
        self.totals[:] = self._begun
        if self._check and not np.array_equal(total[1] + self._base, self.totals):
            raise RuntimeError("tokens are lost: the topics of documents do not add up to the totals of topics")

    def _draw(self, block: Block, done: Callable[[], bool]) -> None:
        """Draw the topics of the tokens of a block, word by word, until ``done``, and note what has changed."""
        part, prior = self._parts[block.number], self.prior
        before = self.totals - self._block_totals(block.number, block.arrays) if self._check else None
        stream = np.random.SeedSequence([self._seed, self._ranks.rank, self._draws]).generate_state(1, np.uint64)
        self._draws += 1
        table, beta_sum = part.table(block.arrays), self._vocabulary * prior.beta
        for first, last in zip(part.chunks[:-1].tolist(), part.chunks[1:].tolist(), strict=True):
            if done():
                break
            self.moved += self._kernels.sample(
                part.tokens, table, self._documents, self.totals, prior.alpha, prior.beta, beta_sum, first, last, stream
            )
            block.progress()
        self.summand[0] = self.totals - self._begun
        if before is not None:
            self.summand[1] = self._document_totals()
            if not np.array_equal(before, self.totals - self._block_totals(block.number, block.arrays)):
                raise RuntimeError(f"tokens are lost: block {block.number} does not add up to the totals of topics")

    def log_likelihood(self) -> float:
        """Return the logarithm of the joint probability of words and topics of all ranks; collective.

        Griffiths and Steyvers, PNAS 101, 2004, equations 2 and 3.
        """
        alpha, beta = self.prior.alpha, self.prior.beta
        counts = np.concatenate([self._pairs(number)[:, 1] for number in self._rotation.blocks] or [np.empty(0)])
        own = float((gammaln(counts + beta) - gammaln(beta)).sum())
        pairs = _present(self._documents)
        own += float((gammaln(pairs[:, 1] + alpha[pairs[:, 0]]) - gammaln(alpha[pairs[:, 0]])).sum())
        own += float((gammaln(alpha.sum()) - gammaln(self._lengths + alpha.sum())).sum())
        whole = self._vocabulary * beta
        topics = float((gammaln(whole) - gammaln(self.totals + whole)).sum())
        return float(self._ranks.sum(np.array([own]))[0]) + topics

    def optimise(self) -> None:
        """Fit the priors to the topics, by Minka's fixed point; collective.

        T. P. Minka, "Estimating a Dirichlet distribution", 2000, equation 55; H. M. Wallach, D. Mimno and A. McCallum,
        "Rethinking LDA: Why Priors Matter", NIPS 2009: a parameter for each topic, and one for all words.
        """
        pairs = _present(self._documents).astype(np.int64)
        seen, times = np.unique(pairs, axis=0, return_counts=True) if len(pairs) else (pairs, np.empty(0))
        lengths, often = np.unique(self._lengths[self._lengths > 0], return_counts=True)
        blocks = [self._pairs(number)[:, 1] for number in self._rotation.blocks]
        counts, words = np.unique(np.concatenate(blocks or [np.empty(0)]), return_counts=True)
        alpha, beta = self.prior.alpha.copy(), self.prior.beta
        for _ in range(_ROUNDS):
            each = times * (digamma(seen[:, 1] + alpha[seen[:, 0]]) - digamma(alpha[seen[:, 0]]))
            above = np.bincount(seen[:, 0], each, minlength=self._topics)
            below = float((often * (digamma(lengths + alpha.sum()) - digamma(alpha.sum()))).sum())
            of_words = float((words * (digamma(counts + beta) - digamma(beta))).sum())
            sums = self._ranks.sum(np.concatenate([above, [below, of_words]]))
            alpha = np.maximum(alpha * sums[:-2] / sums[-2], _LEAST)
            whole = self._vocabulary * beta
            topics = float((digamma(self.totals + whole) - digamma(whole)).sum())
            beta = max(beta * float(sums[-1]) / (self._vocabulary * topics), _LEAST)
        self.prior = Prior(alpha, beta)

    def table(self) -> np.ndarray:
        """Return the K×V counts of all ranks, int64; collective."""
        own = []
        for number in self._rotation.blocks:
            pairs, used = self._pairs(number), self._rotation.blocks[number][0]
            own.append((np.repeat(self._words[number], used), pairs))
        found = np.zeros((self._topics, self._vocabulary), np.int64)
        for part in self._ranks.gather(own):
            for words, pairs in part:
                found[pairs[:, 0], words] = pairs[:, 1]
        return found

    def documents(self) -> np.ndarray:
        """Return the N×K counts of this rank's documents, int64."""
        found = np.zeros((len(self._lengths), self._topics), np.int64)
        pairs = _present(self._documents)
        found[np.repeat(np.arange(len(found)), self._documents.used), pairs[:, 0]] = pairs[:, 1]
        return found

    @property
    def extra(self) -> int:
        """Further passes over blocks that this rank has made."""
        return self._rotation.extra - self._counting

    def free(self) -> None:
        """Free the rotation's communicator; collective."""
        self._rotation.free()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # as Rotation does
            self.free()

    def _pairs(self, number: int) -> np.ndarray:
        """Return the topics and counts of a block at home, in the order of its words."""
        return _present(self._parts[number].table(self._rotation.blocks[number]))

    def _block_totals(self, number: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        pairs = _present(self._parts[number].table(arrays))
        return _tally(pairs, self._topics)

    def _document_totals(self) -> np.ndarray:
        return _tally(_present(self._documents), self._topics)

    def _check_table(self) -> None:
        """Raise RuntimeError on every rank if the blocks do not add up to the totals; collective."""
        own = np.zeros(self._topics, np.int64)
        for number, arrays in self._rotation.blocks.items():
            own += self._block_totals(number, arrays)
        whole = self._ranks.sum(own)
        with self._ranks.together("sweep"):
            if not np.array_equal(whole, self.totals):
                raise RuntimeError("tokens are lost: the blocks do not add up to the totals of topics")


class _Tally(BlockProgram):
    """Counts the tokens of all ranks in their first topics."""

    def __init__(self, parts: list[_Words], topics: int) -> None:
        self._parts, self._topics = parts, topics

    def push(self, block: Block) -> None:
        part = self._parts[block.number]
        compiled("gibbs").tally(part.tokens, part.table(block.arrays), self._topics)

    def improve(self, block: Block, done: Callable[[], bool]) -> None:
        """Count nothing twice."""


def _mix(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Return a random number for each number, of the 64 bits of SplitMix64."""
    first = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    z = first + (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _starts(room: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(room)]).astype(np.int64)


def _within(used: np.ndarray) -> np.ndarray:
    """Return 0, 1, … for the pairs of each row."""
    ends = np.cumsum(used, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - used, used)


def _present(table: Any) -> np.ndarray:
    """Return the pairs of a table, row by row."""
    pairs: np.ndarray = table.pairs[np.repeat(table.starts[:-1], table.used) + _within(table.used)]
    return pairs


def _tally(pairs: np.ndarray, topics: int) -> np.ndarray:
    """Return the summed counts of each topic."""
    totals = np.zeros(topics, np.int64)
    np.add.at(totals, pairs[:, 0], pairs[:, 1].astype(np.int64))
    return totals
