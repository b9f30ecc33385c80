"""Latent Dirichlet allocation: Gibbs sampling of topics, and the topics of documents.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from sfb.kernels._compile import inner, kernel
from sfb.kernels._random import uniform

__all__ = ["Table", "Tokens", "infer", "sample", "tally", "tally_documents"]

# Words after which sums are formed anew, so that rounding errors do not add up; and tokens of which the document's
# counts are fetched ahead, in two steps, since the place of the second depends on the first.
_RENEWED, _NEAR, _FAR = 1024, 4, 8


class Tokens(NamedTuple):
    """The T tokens of a rank in the W words of a block, word by word.

    Attributes:
        documents: T numbers of documents, uint32.
        topics: T topics, uint32.
        starts: Where the tokens of each word begin, W + 1, int64.
    """

    documents: np.ndarray
    topics: np.ndarray
    starts: np.ndarray


class Table(NamedTuple):
    """The counts of N rows, words or documents, by topic; pairs in any order, without zeros.

    Attributes:
        starts: Where the pairs of each row begin, N + 1, int64; a row has room for as many as it may have.
        used: Pairs of each row, uint32.
        pairs: Topics and counts, M×2, uint32.
    """

    starts: np.ndarray
    used: np.ndarray
    pairs: np.ndarray


_U32 = types.Array(types.uint32, 1, "C")
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_PLACES = types.Array(types.int64, 1, "C")
_F64 = types.Array(types.float64, 1, "C", readonly=True)
_MATRIX = types.Array(types.float64, 2, "C")
_FIXED = types.Array(types.float64, 2, "C", readonly=True)
_STATE = types.Array(types.uint64, 1, "C")
_TOKENS = types.BaseTuple.from_types((_U32, _U32, _PLACES), Tokens)
_TABLE = types.BaseTuple.from_types((_PLACES, _U32, types.Array(types.uint32, 2, "C")), Table)


@intrinsic
def _fetch(typing_context, array, index):
    """Bring an element of a C-contiguous array, counted along its rows, into the cache."""

    def generate(context, builder, signature, arguments):
        place = builder.gep(make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@inner
def _renew(mass, groups, alpha, shift):
    """Form the sums of alpha·mass over groups of topics, and return the sum of all."""
    groups[:] = 0.0
    for k in range(mass.size):
        groups[k >> shift] += alpha[k] * mass[k]
    return groups.sum()


@inner
def _change(k, value, mass, groups, alpha, shift):
    """Set mass[k], and return by how much the sum of alpha·mass grows."""
    change = alpha[k] * (value - mass[k])
    mass[k] = value
    groups[k >> shift] += change
    return change


@inner
def _write(table, row, counts, listed, found):
    """Write the counts of the topics that are listed into a row, and clear them."""
    place = table.starts[row]
    for i in range(found):
        k = listed[i]
        if counts[k] > 0:
            table.pairs[place, 0], table.pairs[place, 1] = k, counts[k]
            place += 1
        counts[k] = -1
    table.used[row] = place - table.starts[row]


@inner
def _read(table, row, counts, listed):
    """Read a row, and return how many topics are listed; ``counts`` is −1 for topics that are not."""
    found = 0
    for place in range(table.starts[row], table.starts[row] + table.used[row]):
        k = table.pairs[place, 0]
        counts[k] = table.pairs[place, 1]
        listed[found] = k
        found += 1
    return found


@kernel([types.void(_TOKENS, _TABLE, types.int64)])
def tally(tokens, words, topics):
    """Add the topics of tokens to the counts of their words.

    Args:
        tokens: The tokens of a block.
        words: The table of its words.
        topics: The number of topics.
    """
    counts, listed = np.full(topics, -1, np.int64), np.empty(topics, np.uint32)
    for word in range(words.used.size):
        if tokens.starts[word] == tokens.starts[word + 1]:
            continue
        found = _read(words, word, counts, listed)
        for token in range(tokens.starts[word], tokens.starts[word + 1]):
            k = tokens.topics[token]
            if counts[k] < 0:
                counts[k] = 0
                listed[found] = k
                found += 1
            counts[k] += 1
        _write(words, word, counts, listed, found)


@inner
def _find(documents, start, used, topic):
    """Return the place of a topic among the pairs of a document, or −1."""
    for place in range(start, start + used):
        if documents.pairs[place, 0] == topic:
            return place
    return -1


@inner
def _move(documents, document, old, place_old, new, place_new):
    """Take a token of a document from a topic at ``place_old`` to another, at ``place_new``, or −1 for a new pair."""
    last = documents.starts[document] + np.int64(documents.used[document]) - 1
    alone = documents.pairs[place_old, 1] == 1
    if place_new >= 0:
        documents.pairs[place_new, 1] += 1
        if alone:
            documents.pairs[place_old, 0] = documents.pairs[last, 0]
            documents.pairs[place_old, 1] = documents.pairs[last, 1]
            documents.used[document] -= 1
    elif alone:  # its pair serves: a row may be full
        documents.pairs[place_old, 0] = new
    else:
        documents.pairs[last + 1, 0], documents.pairs[last + 1, 1] = new, 1
        documents.used[document] += 1
    if not alone:
        documents.pairs[place_old, 1] -= 1


@kernel([types.void(_TOKENS, _TABLE)])
def tally_documents(tokens, documents):
    """Add the topics of tokens to the counts of their documents.

    Args:
        tokens: The tokens; ``starts`` is not used.
        documents: The table of the documents.
    """
    for token in range(tokens.topics.size):
        document, topic = tokens.documents[token], tokens.topics[token]
        start, used = documents.starts[document], np.int64(documents.used[document])
        place = _find(documents, start, used, topic)
        if place >= 0:
            documents.pairs[place, 1] += 1
        else:
            documents.pairs[start + used, 0], documents.pairs[start + used, 1] = topic, 1
            documents.used[document] += 1


@kernel(
    [
        types.int64(
            _TOKENS, _TABLE, _TABLE, _PLACES, _F64, types.float64, types.float64, types.int64, types.int64, _STATE
        )
    ]
)
def sample(tokens, words, documents, totals, alpha, beta, beta_sum, first, last, state):
    """Draw the topic of each token of some words from its distribution given all others, and return how many moved.

    The probability of topic k is (n_dk + α_k)·q_k with q_k = (n_wk + β)/(n_k + Vβ), as Griffiths and Steyvers, "Finding
    scientific topics", PNAS 101, 2004, derive it. It is drawn in two parts (Yu et al., "A Scalable Asynchronous
    Distributed Algorithm for Topic Modeling", WWW 2015, section 3.2): n_dk·q_k, over the topics of the document, and
    α_k·q_k, whose sums over groups of about √K topics are kept up to date.

    Args:
        tokens: The tokens of a block; their topics change.
        words: The table of its words, which changes.
        documents: The table of the rank's documents, which changes.
        totals: K tokens of each topic, which change.
        alpha: K parameters of the prior of documents, > 0.
        beta: The parameter of the prior of words, > 0.
        beta_sum: beta times the number of words of all blocks.
        first: The first word of the block to sample.
        last: The word behind the last one.
        state: The stream of random numbers, one element, which changes.
    """
    size = totals.size
    shift = 0
    while 1 << (2 * shift) < size:
        shift += 1
    mass, inverse = np.empty(size), np.empty(size)
    groups, cumulative = np.empty(((size - 1) >> shift) + 1), np.empty(size)
    counts, listed = np.full(size, -1, np.int64), np.empty(size, np.uint32)
    for k in range(size):
        inverse[k] = 1 / (totals[k] + beta_sum)
        mass[k] = beta * inverse[k]
    smooth, moved = 0.0, 0
    end = tokens.starts[last]
    for word in range(first, last):
        if (word - first) % _RENEWED == 0:
            smooth = _renew(mass, groups, alpha, shift)
        if tokens.starts[word] == tokens.starts[word + 1]:
            continue
        found = _read(words, word, counts, listed)
        for i in range(found):
            k = listed[i]
            smooth += _change(k, (counts[k] + beta) * inverse[k], mass, groups, alpha, shift)
        for token in range(tokens.starts[word], tokens.starts[word + 1]):
            if token + _FAR < end:
                _fetch(documents.starts, np.int64(tokens.documents[token + _FAR]))
                _fetch(documents.used, np.int64(tokens.documents[token + _FAR]))
                place = 2 * documents.starts[tokens.documents[token + _NEAR]]
                _fetch(documents.pairs, place)
                _fetch(documents.pairs, place + 16)
            document, old = tokens.documents[token], tokens.topics[token]
            start = documents.starts[document]
            used = np.int64(documents.used[document])
            totals[old] -= 1
            counts[old] -= 1
            inverse[old] = 1 / (totals[old] + beta_sum)
            smooth += _change(old, (counts[old] + beta) * inverse[old], mass, groups, alpha, shift)
            total, place_old = 0.0, start
            for i in range(used):
                k = documents.pairs[start + i, 0]
                count = np.int64(documents.pairs[start + i, 1])
                if k == old:
                    place_old = start + i
                    count -= 1
                total += count * mass[k]
                cumulative[i] = total
            drawn = uniform(state) * (total + smooth)
            if drawn < total:
                i = 0
                while cumulative[i] <= drawn:
                    i += 1
                place_new = start + i
                new = documents.pairs[place_new, 0]
            else:
                drawn -= total
                group = 0
                while group < groups.size - 1 and drawn >= groups[group]:
                    drawn -= groups[group]
                    group += 1
                k, most = group << shift, min(size, (group + 1) << shift) - 1
                while k < most and drawn >= alpha[k] * mass[k]:
                    drawn -= alpha[k] * mass[k]
                    k += 1
                new = np.uint32(k)
                place_new = _find(documents, start, used, new)
            if new != old:
                _move(documents, document, old, place_old, new, place_new)
                tokens.topics[token] = new
                moved += 1
            totals[new] += 1
            if counts[new] < 0:
                counts[new] = 0
                listed[found] = new
                found += 1
            counts[new] += 1
            inverse[new] = 1 / (totals[new] + beta_sum)
            smooth += _change(new, (counts[new] + beta) * inverse[new], mass, groups, alpha, shift)
        for i in range(found):
            k = listed[i]
            smooth += _change(k, beta * inverse[k], mass, groups, alpha, shift)
        _write(words, word, counts, listed, found)
    return moved


@kernel([types.void(_I64, _U32, _F64, _FIXED, _F64, types.int64, types.float64, _MATRIX)])
def infer(starts, words, counts, topics, alpha, most, tol, found):
    """Set ``found`` to the topics of documents, given those of words.

    Each word has a distribution over topics, p_k ∝ φ_wk·(Σ p_k of the other tokens of the document + α_k), CVB0 of
    Asuncion et al., "On Smoothing and Inference for Topic Models", UAI 2009, section 3.4, with φ fixed.

    Args:
        starts: Where the entries of each document begin, N + 1.
        words: The word of each entry.
        counts: How often the document has it, > 0.
        topics: V×K probabilities of words, φ.
        alpha: K parameters of the prior.
        most: Rounds over the words of a document, at most.
        tol: The mean change of a token's distribution at which they end.
        found: N×K, receives the distribution over topics of each document.
    """
    size, longest = alpha.size, 0
    for document in range(starts.size - 1):
        longest = max(longest, starts[document + 1] - starts[document])
    parts, new, sums = np.empty((longest, size)), np.empty(size), np.empty(size)
    for document in range(starts.size - 1):
        start, entries = starts[document], starts[document + 1] - starts[document]
        sums[:] = alpha
        length = 0.0
        for entry in range(entries):
            count = counts[start + entry]
            row = topics[words[start + entry]]
            total = row.sum()
            length += count
            for k in range(size):
                parts[entry, k] = row[k] / total
                sums[k] += count * parts[entry, k]
        for _ in range(most):
            change = 0.0
            for entry in range(entries):
                count = counts[start + entry]
                row = topics[words[start + entry]]
                total = 0.0
                for k in range(size):
                    # Rounding may leave a sum of the others below 0.
                    new[k] = row[k] * max(sums[k] - parts[entry, k], alpha[k])
                    total += new[k]
                for k in range(size):
                    step = new[k] / total - parts[entry, k]
                    parts[entry, k] += step
                    sums[k] += count * step
                    change += count * abs(step)
            if change <= tol * length:
                break
        found[document] = sums / sums.sum()
