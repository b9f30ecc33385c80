"""Tokens per second of Gibbs sampling, beside tomotopy and gensim on one core."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_matrix

from sfb.bench.engine import Benchmark, Column, Heading, Row, columns
from sfb.models.ranks import Ranks
from sfb.models.topics.gibbs import Options, Prior, Sampler
from sfb.schedule import Block, Trace

__all__ = ["CANDIDATES", "COLUMNS", "Config", "SlowSampler", "made_corpus", "run"]

CANDIDATES = ("sfb", "tomotopy", "gensim")
_TRUE = 100  # topics that draw the corpus


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        topics: Numbers of topics K.
        documents: Documents of all ranks.
        words: Words V.
        length: Mean tokens of a document.
        candidates: Any of "sfb", "tomotopy" and "gensim"; the last two run on rank 0 alone, while others wait.
        sweeps: Timed sweeps of each candidate, in turn.
        warmups: Sweeps before them.
        alpha: Prior of each topic.
        beta: Prior of each word.
        blocks: Blocks of words for each rank.
        passes: Most further passes over a block while others are not done.
        slow: By which factor rank 0 is slower; it sleeps.
        sync: When totals are summed: "step" or "sweep".
        seed: Seed of corpus and topics.
    """

    topics: Sequence[int] = (20, 1000)
    documents: int = 100_000
    words: int = 50_000
    length: int = 100
    candidates: Sequence[str] = CANDIDATES
    sweeps: int = 5
    warmups: int = 5
    alpha: float = 0.1
    beta: float = 0.01
    blocks: int = 1
    passes: int = 0
    slow: float = 1.0
    sync: str = "step"
    seed: int = 0


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


COLUMNS = [
    Column("candidate", "candidate", width=12),
    Column("topics", "topics", width=8),
    *columns(_millions, 14, rate="Mtokens/s", rate_of_a_core="per core"),
    Column("seconds", "sweep(s)", "{:.3f}".format, 12),
    Column("log_likelihood", "ll/token", lambda value: "-" if value is None else f"{value:.3f}", 10),
    *columns(lambda value: "-" if value is None else f"{100 * value:.1f}", 10, wait="wait(%)", improve="extra(%)"),
    Column("extra", "passes", lambda value: "-" if value is None else str(value), 8),
]


def made_corpus(
    documents: int, words: int, length: int, seed: int, first: int = 0, last: int | None = None
) -> csr_matrix:
    """Return counts of words that a topic model draws, documents ``first`` to ``last``, int64.

    Words have Zipf's law in each of 100 topics, in another order each; documents have five topics. A document is the
    same whatever the range.

    Args:
        documents: Documents of the whole corpus.
        words: The number of words.
        length: Mean tokens of a document.
        seed: Seed.
        first: The first document to return.
        last: The document behind the last one; None for all.
    """
    chances = np.cumsum(1 / (np.arange(words) + 10.0))
    chances /= chances[-1]
    rng = np.random.default_rng([seed, 0])
    orders = np.stack([rng.permutation(words) for _ in range(_TRUE)])
    rows, found = [], []
    for chunk in range(0, documents, 1000):
        begin, end = max(first, chunk), min(documents if last is None else last, chunk + 1000)
        if begin >= end:
            continue
        own = np.random.default_rng([seed, 1, chunk])
        lengths = own.poisson(length, min(1000, documents - chunk))
        document = np.repeat(np.arange(len(lengths)), lengths)
        topics = own.integers(0, _TRUE, (len(lengths), 5))[document, own.integers(0, 5, len(document))]
        ranks = np.minimum(np.searchsorted(chances, own.random(len(document))), words - 1)
        kept = (document + chunk >= begin) & (document + chunk < end)
        rows.append(document[kept] + chunk - first)
        found.append(orders[topics[kept], ranks[kept]])
    place = np.concatenate(rows or [np.empty(0, np.int64)]), np.concatenate(found or [np.empty(0, np.int64)])
    shape = (documents if last is None else last) - first, words
    return csr_matrix((np.ones(len(place[0]), np.int64), place), shape=shape)


class SlowSampler(Sampler):
    """A sampler whose rank takes ``factor`` times as long over each block, by sleeping."""

    factor = 1.0

    def push(self, block: Block) -> None:
        """Draw topics, then sleep."""
        began = perf_counter()
        super().push(block)
        sleep((self.factor - 1) * (perf_counter() - began))


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each number of topics and candidate; collective."""
    first, last = (config.documents * (world.rank + part) // world.size for part in (0, 1))
    counts = made_corpus(config.documents, config.words, config.length, config.seed, first, last)
    tokens = int(world.allreduce(int(counts.sum())))
    heading(
        "Gibbs sampling of topics",
        f"{config.documents} documents, {config.words} words, {tokens} tokens",
        "sfb on all ranks; tomotopy with one worker and gensim on rank 0 alone; candidates take sweeps in turn",
        "gensim's sweep is a pass of variational inference, of another objective",
    )
    whole = None
    others = [name for name in config.candidates if name != "sfb"]
    if others and world.rank == 0:
        whole = made_corpus(config.documents, config.words, config.length, config.seed)
    for topics in config.topics:
        yield from _of_topics(world, config, counts, whole, topics, tokens)


def _of_topics(
    world: MPI.Intracomm, config: Config, counts: csr_matrix, whole: csr_matrix | None, topics: int, tokens: int
) -> Iterator[Row]:
    """Yield the rows of a number of topics; collective."""
    prior = Prior(np.full(topics, config.alpha), config.beta)
    trace = Trace(world)
    options = Options(config.blocks, config.sync, config.passes, trace=trace)
    with Ranks(world) as ranks:
        sampler = SlowSampler(ranks, counts, prior, config.seed, options)
        sampler.factor = config.slow if world.rank == 0 else 1.0
        calls: dict[str, Callable[[], Any]] = {}
        for name in config.candidates:
            if name == "sfb":
                calls[name] = sampler.sweep
            else:
                calls[name] = _OTHERS[name](whole, topics, config) if world.rank == 0 else lambda: None
        for call in calls.values():
            for _ in range(config.warmups):
                call()
        trace.spans.clear()
        before = sampler.extra
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(config.sweeps):
            for name, call in calls.items():
                world.Barrier()
                began = perf_counter()
                call()
                times[name].append(world.allreduce(perf_counter() - began, MPI.MAX))
        spent = np.array(world.allgather([trace.seconds().get(kind, 0.0) for kind in ("wait", "extra")])).mean(axis=0)
        extra = world.allreduce(sampler.extra - before)
        likelihood = sampler.log_likelihood() / tokens
        sampler.free()
    for name, taken in times.items():
        seconds, own = float(np.median(taken)), name == "sfb"
        cores = world.size if own else 1
        yield {
            "candidate": name,
            "topics": topics,
            "rate": tokens / seconds,
            "rate_of_a_core": tokens / seconds / cores,
            "seconds": seconds,
            "log_likelihood": likelihood if own else None,
            "wait": float(spent[0] / sum(taken)) if own else None,
            "improve": float(spent[1] / sum(taken)) if own else None,
            "extra": extra if own else None,
            "ranks": cores,
        }


def _tomotopy(counts: csr_matrix, topics: int, config: Config) -> Callable[[], Any]:
    import tomotopy

    model = tomotopy.LDAModel(k=topics, alpha=config.alpha, eta=config.beta, seed=config.seed + 1)
    model.optim_interval = 0
    names = [str(word) for word in range(counts.shape[1])]
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        words = np.repeat(counts.indices[start:end], counts.data[start:end])
        model.add_doc([names[word] for word in words])

    def sweep() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of seeds and workers
            model.train(1, workers=1)

    return sweep


def _gensim(counts: csr_matrix, topics: int, config: Config) -> Callable[[], Any]:
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel

    corpus = Sparse2Corpus(counts, documents_columns=False)
    model = LdaModel(
        num_topics=topics,
        id2word={word: str(word) for word in range(counts.shape[1])},
        alpha=[config.alpha] * topics,
        eta=config.beta,
        passes=1,
        eval_every=None,
        random_state=config.seed,
    )
    return lambda: model.update(corpus)


_OTHERS = {"tomotopy": _tomotopy, "gensim": _gensim}


run = Benchmark(COLUMNS, _rows)
