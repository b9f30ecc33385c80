"""Small exchanges of factors between nodes of one rank each: one call does all that a rank does.

The payload, factors or a product, travels beside the header, so that an exchange takes no messages but those by which
the ranks agree.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._parts import FLOATS, array_type, fits, form, take
from sfb.kernels._updates import update_dense
from sfb.kernels._vectors import flat
from sfb.kernels._views import VIEW, describe, matrix_at, words_at
from sfb.kernels.header import DIGEST, KIND, NBYTES, NOTE, SIZE
from sfb.kernels.rounds import ALIKE, WORK, gather, reset, sum_values
from sfb.kernels.status import APART, DONE, PENDING, UNFIT
from sfb.kernels.sync import message_words, now

__all__ = ["FACTORS", "PRODUCTS", "SUM", "bind", "exchange"]

# The payload: a product that is summed in the rounds, a product that is gathered, or factors.
SUM, PRODUCTS, FACTORS = range(3)

# The words of what is bound: the payload; words of the head of a message; S; the kind and the bytes of the payload, as
# messages tell them; then arrays.
_PAYLOAD, _HEAD, _SAMPLES, _KIND, _BYTES = range(5)
_MPI, _PLAN, _WORDS, _MORE, _ONE, _TWO = range(5, 5 + 6 * VIEW, VIEW)


def bind(payload, head, samples, kind, nbytes, mpi, plan, words, more, one, two):
    """Return what `exchange` takes as ``bound``; the caller keeps the arrays alive.

    Args:
        payload: `SUM`, `PRODUCTS` or `FACTORS`.
        head: Words of a message before its payload.
        samples: S, the same on all ranks.
        kind: What messages tell the payload to be.
        nbytes: The bytes of the payload.
        mpi: What `sfb.kernels.rounds` takes of MPI.
        plan: The rounds, as `sfb.kernels.rounds.gather` takes them.
        words: Memory for the messages of all nodes.
        more: For `SUM` as much memory again, for the messages received; else nodes + 1 words, where messages begin.
        one: K×D, for the sum; for `FACTORS` m×K, for u of all ranks.
        two: The same array; for `FACTORS` m×D, for v of all ranks.
    """
    arrays = [word for array in (mpi, plan, words, more, one, two) for word in describe(array)]
    return np.array([payload, head, samples, kind, nbytes, *arrays], np.int64)


@inner
def _add(sums, terms, first):
    if first:
        sums[:] = terms[: sums.size]
    else:
        for i in range(sums.size):
            sums[i] += terms[i]


@inner
def _write(bound, words, one, u, v, scratch):
    """Write the payload of this rank; return whether the arrays fit."""
    if bound[_PAYLOAD] == SUM:
        return form(u, v, one, scratch)
    mine = words[bound[_HEAD] :].view(u.dtype)
    if bound[_PAYLOAD] == PRODUCTS:
        return form(u, v, mine[: one.size].reshape(one.shape), scratch)
    mine[: u.size] = flat(u)
    mine[u.size : u.size + v.size] = flat(v)
    return True


@inner
def _collect(bound, words, plan, one, two, u, v):
    """Add up the products of all ranks in their order, or put their factors one behind the other."""
    head = bound[_HEAD]
    length = message_words(head, bound[_BYTES])
    ranks, me = plan[-1, 0], plan[-1, 1]
    for rank in range(ranks):
        # Messages lie in the order in which the rounds bring them (sfb.runtime.rounds).
        position = rank ^ me if ranks & (ranks - 1) == 0 else (rank - me) % ranks
        its = words[position * length + head : (position + 1) * length].view(u.dtype)
        if bound[_PAYLOAD] == PRODUCTS:
            _add(flat(one), its, rank == 0)
        else:
            flat(one)[rank * u.size : (rank + 1) * u.size] = its[: u.size]
            flat(two)[rank * v.size : (rank + 1) * v.size] = its[u.size : u.size + v.size]


def _signature(t):
    i, f, words = types.int64, types.float64, array_type(types.int64, 1)
    arrays = [*[array_type(t, 2, readonly=True)] * 2, *[array_type(t, 2)] * 3]
    return i(words, words, i, i, i, *arrays, i, f, f, array_type(t, 1), i, array_type(t, 1))


@kernel([_signature(t) for t in FLOATS])
def exchange(bound, state, spins, tag, digest, u, v, w, s, t, kind, alpha, beta, p, arrays, scratch):
    """Exchange headers and payloads; if the headers of all ranks are alike, take the sum: w ← rule(w, Σ uᵀv).

    Args:
        bound: As `bind` returns it.
        state: The state of the exchange, 0 before the first call (`sfb.kernels.rounds`).
        spins: Looks for a message before the call returns.
        tag: The tag of its messages.
        digest: What the header says has to be equal on all ranks.
        u: S×K, this rank's.
        v: S×D.
        w: K×D.
        s: K×D, the rule's first state.
        t: K×D, its second; w in place of a state that the rule lacks.
        kind: The rule (`sfb.kernels.rules`).
        alpha: Factor of the sum where the rule is linear.
        beta: Factor of w where it is.
        p: The rule's numbers.
        arrays: How many of w, s and t the rule uses.
        scratch: Memory of this thread.

    Returns:
        `DONE`; `PENDING`, to be called again with the same arguments; `APART`, with headers exchanged and no sum taken,
        if the ranks are not alike; `UNFIT`, with nothing sent, if the arrays or the scratch do not fit; or, above 0, an
        error code of MPI.
    """
    mpi, plan, words = words_at(bound, _MPI), matrix_at(bound, _PLAN, bound), words_at(bound, _WORDS)
    more, one, two = words_at(bound, _MORE), matrix_at(bound, _ONE, w), matrix_at(bound, _TWO, w)
    head = bound[_HEAD]
    if state[0] == 0 and state[1] == 0:
        began = now()
        rows = one.shape[1] if bound[_PAYLOAD] == FACTORS else one.shape[0]
        if not fits(u, v, w, s, t, bound[_SAMPLES], rows, two.shape[1]):
            return UNFIT
        if not _write(bound, words, one, u, v, scratch):
            return UNFIT
        words[DIGEST], words[SIZE], words[NOTE] = digest, bound[_SAMPLES], 0
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
    if state[ALIKE] == 0:
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
