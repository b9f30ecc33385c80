"""Small exchanges of ranks that are nodes: one call does all that a rank does when it repeats one.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from numba import njit, types
from sfb.kernels import rounds
from sfb.kernels._loops import update_dense
from sfb.kernels._parts import FLOATS, OPTIONS, array_type, fits, form, take
from sfb.kernels._vectors import flat
from sfb.kernels.rounds import ALIKE, UNFIT, WORK, gather, sum_values
from sfb.kernels.sync import now

__all__ = ["trade", "trade_sum"]


_WORDS = array_type(types.int64, 1)


@njit(**OPTIONS)
def _add(sums, terms, first):
    if first:
        sums[:] = terms[: sums.size]
    else:
        for i in range(sums.size):
            sums[i] += terms[i]


@njit(**OPTIONS)
def _begin(words, head, digest, samples, spent, kind, nbytes):
    """Write the header of a rank that is a node."""
    words[0], words[1], words[2] = digest, samples, spent
    words[head - 2], words[head - 1] = kind, nbytes


def _trade(t, *between):
    """The signature of both below: of the rounds, what is between, and the arrays and the rule of the call."""
    i, f = types.int64, types.float64
    arrays = [*[array_type(t, 2, readonly=True)] * 2, *[array_type(t, 2)] * 3]
    rule = [i, f, f, array_type(t, 1), i]
    return i(_WORDS, array_type(i, 2), _WORDS, *[i] * 3, _WORDS, *between, *arrays, *rule, array_type(t, 1))


_SUM = {t: (*[types.int64] * 4, _WORDS, array_type(t, 2)) for t in FLOATS}
_PARCELS = {t: (*[types.int64] * 5, types.boolean, _WORDS, array_type(t, 2), array_type(t, 2)) for t in FLOATS}


@njit([_trade(t, *between) for t, between in _SUM.items()], **OPTIONS)
def trade_sum(
    mpi,
    plan,
    state,
    spins,
    tag,
    head,
    words,
    digest,
    samples,
    spent,
    parcel,
    received,
    values,
    u,
    v,
    w,
    s,
    t,
    kind,
    alpha,
    beta,
    p,
    arrays,
    scratch,
):
    """Exchange headers, and add up the products of all ranks, which are nodes; if all are alike, take the sum.

    Args:
        mpi: As of `sfb.kernels.rounds.sum_values`.
        plan: As of that.
        state: As of that.
        spins: As of that.
        tag: As of that.
        head: As of that.
        words: As of that; the header is written here.
        digest: Of the call, as `sfb.kernels.sync` compares them.
        samples: S.
        spent: What the header says of times, as `sfb.kernels.sync.times`.
        parcel: The kind of what goes with the header.
        received: As of `sum_values`.
        values: K×D, for the product, and then the sum.
        u: S×K, this rank's.
        v: S×D.
        w: K×D, as of `sfb.kernels.exchange.node`.
        s: K×D.
        t: K×D.
        kind: The rule, as of `sfb.kernels.exchange.node`.
        alpha: As of that.
        beta: As of that.
        p: As of that.
        arrays: As of that.
        scratch: Of this thread.

    Returns:
        `UNFIT` if the arrays or the scratch do not fit, with nothing done, else as `sum_values`.
    """
    if state[0] == 0 and state[1] == 0:
        began = now()
        if not fits(u, v, w, s, t, samples, *values.shape) or not form(u, v, values, scratch):
            return UNFIT
        state[WORK] = now() - began
        _begin(words, head, digest, samples, spent, parcel, 0)
    code = sum_values(mpi, plan, state, spins, tag, head, words, received, values)
    if code == rounds.DONE and state[ALIKE] != 0:
        began = now()
        update_dense(kind, p, values, w, s, t, 0, 0, w.shape[0], 1.0)
        state[WORK] += now() - began
    return code


@njit([_trade(t, *between) for t, between in _PARCELS.items()], **OPTIONS)
def trade(
    mpi,
    plan,
    state,
    spins,
    tag,
    head,
    words,
    digest,
    samples,
    spent,
    parcel,
    nbytes,
    products,
    starts,
    one,
    two,
    u,
    v,
    w,
    s,
    t,
    kind,
    alpha,
    beta,
    p,
    arrays,
    scratch,
):
    """Exchange headers and what follows them, of ranks which are nodes; if all are alike, take the sum.

    Args:
        mpi: As of `sfb.kernels.rounds.gather`.
        plan: As of that.
        state: As of that.
        spins: As of that.
        tag: As of that.
        head: As of that.
        words: As of that; this rank's message is written here.
        digest: As of `trade_sum`.
        samples: S.
        spent: What the header says of times, as `sfb.kernels.sync.times`.
        parcel: The kind of what follows the header.
        nbytes: That it has.
        products: Whether that is the product, K×D; otherwise it is u and v.
        starts: As of `gather`.
        one: K×D, where the sum of the products goes; or m×K, where u of all ranks does.
        two: The same; or m×D, for v.
        u: S×K.
        v: S×D.
        w: K×D, as of `sfb.kernels.exchange.node`.
        s: K×D.
        t: K×D.
        kind: The rule, as of `sfb.kernels.exchange.node`.
        alpha: As of that.
        beta: As of that.
        p: As of that.
        arrays: As of that.
        scratch: Of this thread.

    Returns:
        `UNFIT` if the arrays or the scratch do not fit, with nothing done, else as `gather`.
    """
    length = head + (nbytes + 7) // 8
    if state[0] == 0 and state[1] == 0:
        if not fits(u, v, w, s, t, samples, one.shape[0] if products else one.shape[1], two.shape[1]):
            return UNFIT
        began = now()
        mine = words[head:].view(u.dtype)
        if not products:
            mine[: u.size] = flat(u)
            mine[u.size : u.size + v.size] = flat(v)
        elif not form(u, v, mine[: w.size].reshape(w.shape), scratch):
            return UNFIT
        state[WORK] = now() - began
        _begin(words, head, digest, samples, spent, parcel, nbytes)
        starts[0], starts[1] = 0, length
    code = gather(mpi, plan, state, spins, tag, head, words, starts)
    if code == rounds.DONE and state[ALIKE] != 0:
        began = now()
        ranks, me = plan[-1, 0], plan[-1, 1]
        for rank in range(ranks):
            # As `sfb.rounds` orders them.
            place = rank ^ me if ranks & (ranks - 1) == 0 else (rank - me) % ranks
            start = place * length + head
            its = words[start : start + length - head].view(u.dtype)
            if products:
                _add(flat(one), its, rank == 0)
            else:
                flat(one)[rank * u.size : (rank + 1) * u.size] = its[: u.size]
                flat(two)[rank * v.size : (rank + 1) * v.size] = its[u.size : u.size + v.size]
        if products:
            update_dense(kind, p, one, w, s, t, 0, 0, w.shape[0], 1.0)
        else:
            take(kind, alpha, beta, p, one, two, w, s, t, arrays, 0, w.shape[0], scratch)
        state[WORK] += now() - began
    return code
