"""Eager exchanges of factors: one call of a kernel does the whole exchange of a rank, with one rank per node.

The payload, factors or a product, travels beside the header. So an exchange takes no other messages than those by which
the ranks agree.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._parts import FLOATS, arguments, array_type, fits, form, take
from sfb.kernels._updates import update_dense
from sfb.kernels._vectors import flat
from sfb.kernels._views import VIEW, describe, matrix_at, words_at
from sfb.kernels.header import DIGEST, KIND, NBYTES, NOTE, SIZE, UNLIKE
from sfb.kernels.rounds import ALIKE, WORK, WRONG, gather, reset, sum_values
from sfb.kernels.status import APART, DONE, PENDING, UNFIT
from sfb.kernels.sync import message_words, now

__all__ = ["FACTORS", "PRODUCTS", "SUM", "bind", "exchange"]

# The payload: a product that the rounds sum, a product that they gather, or factors.
SUM, PRODUCTS, FACTORS = range(3)

# The words of ``bound``: the payload; words of the head of a message; S; the kind and the bytes of the payload, for the
# head of a message; the bounds of unlike S; then arrays.
_PAYLOAD, _HEAD, _SAMPLES, _KIND, _BYTES, _BOUNDS = range(6)
_MPI, _PLAN, _WORDS, _MORE, _ONE, _TWO = range(9, 9 + 6 * VIEW, VIEW)


def bind(payload, head, samples, nbytes, mpi, plan, words, more, one, two):
    """Return ``bound`` of `exchange`; the caller keeps the arrays alive.

    Args:
        payload: `SUM`, `PRODUCTS` or `FACTORS`.
        head: Words of a message before its payload.
        samples: S, the same on all ranks; or, for a product of ranks with unlike S, the least and the most samples of
            all ranks together, and of the rank that has the most.
        nbytes: The bytes of the payload.
        mpi: MPI's functions and handles (`sfb.kernels.rounds`).
        plan: The rounds (`sfb.kernels.rounds`).
        words: Memory for the messages of all nodes.
        more: Memory of the same size for messages that arrive if the payload is `SUM`; else nodes + 1 words, which
            receive the words at which messages begin.
        one: K×D, for the sum; for `FACTORS` m×K, for u of all ranks.
        two: The same array as ``one``; for `FACTORS` m×D, for v of all ranks.
    """
    arrays = [word for array in (mpi, plan, words, more, one, two) for word in describe(array)]
    if np.ndim(samples) == 0:
        return np.array([payload, head, samples, 1 + payload, nbytes, 0, 0, 0, 0, *arrays], np.int64)
    return np.array([payload, head, -1, 1 + payload | UNLIKE, nbytes, *samples, *arrays], np.int64)


@inner
def _add(sums, terms, first):
    if first:
        sums[:] = terms[: sums.size]
    else:
        for i in range(sums.size):
            sums[i] += terms[i]


@inner
def _write(bound, words, one, u, v, scratch):
    """Write the payload of this rank, and return whether the arrays fit."""
    if bound[_PAYLOAD] == SUM:
        return form(u, v, one, scratch)
    mine = words[bound[_HEAD] :].view(u.dtype)
    if bound[_PAYLOAD] == PRODUCTS:
        return form(u, v, mine[: one.size].reshape(one.shape), scratch)
    mine[: u.size] = flat(u)
    mine[u.size : u.size + v.size] = flat(v)
    return True


@inner
def _served(bound, words, starts, ranks):
    """Return whether this exchange is for S of the ranks: unlike ones, within its bounds, if it is for unlike S."""
    if bound[_SAMPLES] >= 0:
        return True
    total, most, equal = 0, 0, True
    for rank in range(ranks):
        start = rank * bound[_HEAD] if bound[_PAYLOAD] == SUM else starts[rank]
        size = words[start + SIZE]
        total += size
        most = max(most, size)
        equal = equal and size == words[SIZE]
    low, high, first, last = bound[_BOUNDS : _BOUNDS + 4]
    return not equal and low <= total <= high and first <= most <= last


@inner
def _collect(bound, words, plan, one, two, u, v):
    """Sum the products of all ranks in their order, or copy their factors one behind the other."""
    head = bound[_HEAD]
    length = message_words(head, bound[_BYTES])
    ranks, me = plan[-1, 0], plan[-1, 1]
    for rank in range(ranks):
        # Messages lie in the order in which they come (sfb.runtime.rounds).
        position = rank ^ me if ranks & (ranks - 1) == 0 else (rank - me) % ranks
        its = words[position * length + head : (position + 1) * length].view(u.dtype)
        if bound[_PAYLOAD] == PRODUCTS:
            _add(flat(one), its, rank == 0)
        else:
            flat(one)[rank * u.size : (rank + 1) * u.size] = its[: u.size]
            flat(two)[rank * v.size : (rank + 1) * v.size] = its[u.size : u.size + v.size]


def _signature(t):
    i, words = types.int64, array_type(types.int64, 1)
    return i(words, words, i, i, i, *arguments(t))


@kernel([_signature(t) for t in FLOATS])
def exchange(bound, state, spins, tag, digest, u, v, w, s, t, kind, alpha, beta, p, arrays, scratch):
    """Exchange headers and payloads; if all headers go together, take the sum: w ← rule(w, Σ uᵀv).

    The arguments from u to the scratch are those of `sfb.kernels.fused.node`.

    Args:
        bound: The words that `bind` returns.
        state: The state of the exchange, 0 before the first call (`sfb.kernels.rounds`).
        spins: Looks for a message before the kernel returns.
        tag: The tag of the messages.
        digest: The digest of the header.
        u: S×K, of this rank.
        v: S×D.
        w: K×D.
        s: The first state of the rule.
        t: The second state.
        kind: The rule.
        alpha: The factor of the sum.
        beta: The factor of w.
        p: The rule's numbers.
        arrays: How many of w, s and t the rule uses.
        scratch: Memory of this thread.

    Returns:
        `DONE`; `PENDING`, to be called again with the same arguments; `APART`, with headers exchanged and no sum taken,
        if headers differ or S are not within the bounds; `DAMAGED`, with no sum taken, if a message has arrived
        damaged; `UNFIT`, with nothing sent, if the arrays or the scratch do not fit; or, above 0, an error code of MPI.
    """
    mpi, plan, words = words_at(bound, _MPI), matrix_at(bound, _PLAN, bound), words_at(bound, _WORDS)
    more, one, two = words_at(bound, _MORE), matrix_at(bound, _ONE, w), matrix_at(bound, _TWO, w)
    head = bound[_HEAD]
    if state[0] == 0 and state[1] == 0:
        began = now()
        state[WRONG] = 0
        rows = one.shape[1] if bound[_PAYLOAD] == FACTORS else one.shape[0]
        samples = u.shape[0] if bound[_SAMPLES] < 0 else bound[_SAMPLES]
        if not fits(u, v, w, s, t, samples, rows, two.shape[1]):
            return UNFIT
        if not _write(bound, words, one, u, v, scratch):
            return UNFIT
        words[DIGEST], words[SIZE], words[NOTE] = digest, samples, 0
        words[head + KIND], words[head + NBYTES] = bound[_KIND], bound[_BYTES]
        if bound[_PAYLOAD] != SUM:
            more[0], more[1] = 0, message_words(head, bound[_BYTES])
        state[WORK] = now() - began
    if bound[_PAYLOAD] == SUM:
        code = sum_values(mpi, plan, state, spins, tag, head, words, more, one)
    else:
        code = gather(mpi, plan, state, spins, tag, head, words, more)
    if code == PENDING:
        return code
    reset(state)
    if code != DONE:
        return code
    if state[ALIKE] == 0 or not _served(bound, words, more, plan[-1, 0]):
        return APART
    began = now()
    if bound[_PAYLOAD] != SUM:
        _collect(bound, words, plan, one, two, u, v)
    if bound[_PAYLOAD] == FACTORS:
        take(kind, alpha, beta, p, one, two, w, s, t, arrays, 0, w.shape[0], scratch)
    else:
        update_dense(kind, p, one, w, s, t, 0, 0, w.shape[0], 1.0)
    state[WORK] += now() - began
    return DONE
