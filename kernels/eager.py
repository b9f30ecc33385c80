"""Small exchanges of ranks that are nodes: one call does all that a rank does when it repeats one.

What stays the same from call to call is bound once, since each argument costs a call its time.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from sfb.kernels._compile import INNER, KERNEL
from sfb.kernels._parts import FLOATS, array_type, fits, form, take
from sfb.kernels._updates import update_dense
from sfb.kernels._vectors import flat
from sfb.kernels.header import DIGEST, KIND, NBYTES, NOTE, SIZE
from sfb.kernels.rounds import ALIKE, WORK, gather, reset, sum_values
from sfb.kernels.status import APART, DONE, PENDING, UNFIT
from sfb.kernels.sync import message_words, now

__all__ = ["FACTORS", "PRODUCTS", "SUM", "bind", "trade"]

# What goes with the headers: products that are summed in the rounds, products, or factors.
SUM, PRODUCTS, FACTORS = range(3)

# The words of what is bound: how the exchange goes, words of a header, S, the kind and the bytes of what follows a
# header; then arrays, of each its address, rows and columns.
_HOW, _HEAD, _SAMPLES, _KIND, _BYTES = range(5)
_MPI, _PLAN, _WORDS, _MORE, _ONE, _TWO = range(5, 23, 3)


def bind(how, head, samples, kind, nbytes, mpi, plan, words, more, one, two):
    """Return what `trade` takes as ``bound``, for which the arrays have to be kept.

    Args:
        how: `SUM`, `PRODUCTS` or `FACTORS`.
        head: Words of a header.
        samples: S.
        kind: Of what follows a header, as headers say it.
        nbytes: That it has.
        mpi: As of `sfb.kernels.rounds.gather`.
        plan: As of that.
        words: As of that.
        more: ``starts`` of that; or ``received`` of `sfb.kernels.rounds.sum_values`.
        one: K×D, where the sum goes; or m×K, where u of all ranks does.
        two: The same; or m×D, for v.
    """
    arrays = [np.atleast_2d(array) for array in (mpi, plan, words, more, one, two)]
    places = [word for array in arrays for word in (array.ctypes.data, *array.shape)]
    return np.array([how, head, samples, kind, nbytes, *places], np.int64)


@intrinsic
def _view(typing_context, like, address, rows, columns):
    """Return the matrix that lies at an address, of elements as those of another array; it keeps nothing alive."""
    result = types.Array(like.dtype, 2, "C")

    def generate(context, builder, signature, arguments):
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(like.dtype)))
        array = make_array(result)(context, builder)
        data = builder.inttoptr(arguments[1], context.get_data_type(like.dtype).as_pointer())
        shape = list(arguments[2:])
        populate_array(array, data, shape, [builder.mul(shape[1], item), item], item, None)
        return array._getvalue()

    return result(like, types.int64, types.int64, types.int64), generate


@njit(**INNER)
def _at(bound, which, like):
    return _view(like, bound[which], bound[which + 1], bound[which + 2])


@njit(**INNER)
def _add(sums, terms, first):
    if first:
        sums[:] = terms[: sums.size]
    else:
        for i in range(sums.size):
            sums[i] += terms[i]


@njit(**INNER)
def _write(bound, words, one, u, v, scratch):
    """Write what this rank sends; return whether that was possible."""
    if bound[_HOW] == SUM:
        return form(u, v, one, scratch)
    mine = words[bound[_HEAD] :].view(u.dtype)
    if bound[_HOW] == PRODUCTS:
        return form(u, v, mine[: one.size].reshape(one.shape), scratch)
    mine[: u.size] = flat(u)
    mine[u.size : u.size + v.size] = flat(v)
    return True


@njit(**INNER)
def _collect(bound, words, plan, one, two, u, v):
    """Add up the products of all ranks in their order, or put their factors one behind the other."""
    head = bound[_HEAD]
    length = (bound[_BYTES] + 7) // 8
    ranks, me = plan[-1, 0], plan[-1, 1]
    for rank in range(ranks):
        # As `sfb.runtime.rounds` orders them.
        place = rank ^ me if ranks & (ranks - 1) == 0 else (rank - me) % ranks
        start = place * (head + length) + head
        its = words[start : start + length].view(u.dtype)
        if bound[_HOW] == PRODUCTS:
            _add(flat(one), its, rank == 0)
        else:
            flat(one)[rank * u.size : (rank + 1) * u.size] = its[: u.size]
            flat(two)[rank * v.size : (rank + 1) * v.size] = its[u.size : u.size + v.size]


def _signature(t):
    i, f, words = types.int64, types.float64, array_type(types.int64, 1)
    arrays = [*[array_type(t, 2, readonly=True)] * 2, *[array_type(t, 2)] * 3]
    rule = [i, f, f, array_type(t, 1), i]
    return i(words, words, *[i] * 4, *arrays, *rule, array_type(t, 1))


@njit([_signature(t) for t in FLOATS], **KERNEL)
def trade(bound, state, spins, tag, digest, spent, u, v, w, s, t, kind, alpha, beta, p, arrays, scratch):
    """Exchange headers and what goes with them, of ranks which are nodes; if all are alike, take the sum.

    Args:
        bound: As `bind` returns it.
        state: Of the exchange, 0 at first and then as this leaves it; `sfb.kernels.rounds`.
        spins: As of `sfb.kernels.rounds.gather`.
        tag: As of that.
        digest: Of the call, as `sfb.kernels.sync` compares them.
        spent: What the header says of times, as `sfb.kernels.sync.times`.
        u: S×K, this rank's.
        v: S×D.
        w: K×D, as of `sfb.kernels.fused.node`.
        s: K×D.
        t: K×D.
        kind: The rule, as of `sfb.kernels.fused.node`.
        alpha: As of that.
        beta: As of that.
        p: As of that.
        arrays: As of that.
        scratch: Of this thread.

    Returns:
        `UNFIT` if the arrays or the scratch do not fit, with nothing done; `APART` if the ranks are not alike, with
        headers exchanged, but no sum taken; else as `sfb.kernels.rounds.gather`.
    """
    mpi, plan, words = flat(_at(bound, _MPI, bound)), _at(bound, _PLAN, bound), flat(_at(bound, _WORDS, bound))
    more, one, two = flat(_at(bound, _MORE, bound)), _at(bound, _ONE, w), _at(bound, _TWO, w)
    head = bound[_HEAD]
    if state[0] == 0 and state[1] == 0:
        began = now()
        rows = one.shape[1] if bound[_HOW] == FACTORS else one.shape[0]
        if not fits(u, v, w, s, t, bound[_SAMPLES], rows, two.shape[1]) or not _write(bound, words, one, u, v, scratch):
            return UNFIT
        words[DIGEST], words[SIZE], words[NOTE] = digest, bound[_SAMPLES], spent
        words[head + KIND], words[head + NBYTES] = bound[_KIND], bound[_BYTES]
        if bound[_HOW] != SUM:
            more[0], more[1] = 0, message_words(head, bound[_BYTES])
        state[WORK] = now() - began
    if bound[_HOW] == SUM:
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
    if bound[_HOW] != SUM:
        _collect(bound, words, plan, one, two, u, v)
    if bound[_HOW] == FACTORS:
        take(kind, alpha, beta, p, one, two, w, s, t, arrays, 0, w.shape[0], scratch)
    else:
        update_dense(kind, p, one, w, s, t, 0, 0, w.shape[0], 1.0)
    state[WORK] += now() - began
    return DONE
