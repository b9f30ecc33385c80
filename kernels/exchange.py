"""Exchanges of few calls, since in Python the steps of a small one cost more than what they do.

Inside a node one call does what a rank does with the memory it shares, and waits for others. It goes on as far as it
can without waiting long; where it stopped, in ``progress``, the next one resumes. Ranks meet by the phases of a board
(`sfb.kernels.sync`). A rank that repeats an exchange writes its data before it shows its header: if all do, they need
not wait for each other's data once they agree. Between nodes one call does all that a rank does when it repeats a
small exchange.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from numba import njit, types
from sfb.kernels import _loops, rounds
from sfb.kernels._loops import accumulate, overlap, reduce, update, update_dense
from sfb.kernels._vectors import flat
from sfb.kernels.rounds import ALIKE, UNFIT, WORK, gather, sum_values
from sfb.kernels.rules import ASSIGN, SGD
from sfb.kernels.sync import AGREED, ARRIVED, DONE, PENDING, RING, WORDS, look, meet, now, reach, reached

__all__ = ["FIRST", "PROGRESS", "REFUSED", "dense", "node", "open_dense", "open_node", "phase", "trade", "trade_sum"]

# The first phase of an exchange, after that in which its ranks agreed on it.
FIRST = ARRIVED + 1

# Words of what tells where an exchange inside a node has got to: its stage; nanoseconds of work; and whether all ranks
# have written their data before they agreed.
PROGRESS = 3
_STAGE, _WORK, _AHEAD = range(PROGRESS)
# The stage in which a rank has shown its header, before it knows those of all.
_SHOWN = -1
# What stands in a header, in place of the time, for data that have been written: of factors, of a product.
_FACTORS, _PRODUCT = -1, -2
# What an opening returns, beside what `sfb.kernels.sync.look` does, if the arrays do not fit.
REFUSED = -1

_SMALL = "a kernel refused the arrays or the scratch of an exchange"

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
_FLOATS = types.float32, types.float64


def _array(t, dimensions, readonly=False):
    return types.Array(t, dimensions, "C", readonly=readonly)


def _signature(t, *between):
    """What both take: about the call, u and v, what is between, and the rule with its arrays."""
    i, f = types.int64, types.float64
    factors = [_array(t, 2, readonly=True)] * 2
    rule = [i, f, f, _array(t, 1), *[_array(t, 2)] * 3, i]
    start = [_array(i, 1), types.UniTuple(i, 4), i, i, _array(i, 1)]
    return types.boolean(*start, *factors, *between, *rule, types.boolean, _array(t, 1))


@njit(**_OPTIONS)
def _add(sums, terms, first):
    if first:
        sums[:] = terms[: sums.size]
    else:
        for i in range(sums.size):
            sums[i] += terms[i]


@njit(**_OPTIONS)
def _copy(source, target, first):
    for j in range(source.shape[0]):
        row = target[first + j]
        for c in range(source.shape[1]):
            row[c] = source[j, c]


@njit(**_OPTIONS)
def _take(kind, alpha, beta, p, u, v, w, s, t, arrays, start, stop, scratch):
    """Let a rule take uᵀv in some rows."""
    if kind in (ASSIGN, SGD):
        done = accumulate(u, v, w, 0, start, stop, kind == SGD, alpha, beta, scratch)
    else:
        done = update(kind, p, u, v, w, s, t, arrays, 0, start, stop, alpha, scratch)
    if done != _loops.DONE:
        raise RuntimeError(_SMALL)


@njit(**_OPTIONS)
def _form(u, v, product, scratch, low=0):
    """Form rows of uᵀv, from ``low`` on; return whether that was possible."""
    return accumulate(u, v, product, -low, 0, product.shape[0], False, 1.0, 0.0, scratch) == _loops.DONE


@njit(**_OPTIONS)
def _product(u, v, slab, low, rows, scratch):
    """Form them in a slab."""
    return _form(u, v, slab[: rows * v.shape[1]].reshape(rows, v.shape[1]), scratch, low)


@njit(**_OPTIONS)
def _fits(u, v, w, s, t, samples, rows, columns):
    """Return whether the arrays are of these sizes, and u and v apart from those that a sum changes."""
    if w.shape != (rows, columns) or s.shape != w.shape or t.shape != w.shape:
        return False
    if u.shape != (samples, rows) or v.shape != (samples, columns):
        return False
    apart = True
    for array in (w, s, t):
        apart = apart and not (overlap(u, array) or overlap(v, array))
    return apart


@njit(**_OPTIONS)
def _meet(board, place, call, progress, digest, samples, kind, stage):
    """Show a header that says that data of a kind have been written, or look again; return what `look` does.

    If all agree, the exchange goes on at ``stage``, where it waits for the data unless all have written theirs.
    """
    ranks, me, spins, patience = place
    if progress[_STAGE] == 0:
        progress[_STAGE] = _SHOWN
        verdict = meet(board, ranks, me, call, digest, samples, kind, spins, patience)
    else:
        verdict = look(board, ranks, me, call, spins, patience)
    if verdict == AGREED:
        progress[_AHEAD] = 1
        for rank in range(ranks):
            if board[(rank * RING + call % RING) * WORDS + 2] != kind:
                progress[_AHEAD] = 0
        if progress[_AHEAD] == 0:
            reach(board, me, call, FIRST)
        progress[_STAGE] = stage
    return verdict


def _opening(t, *between):
    """The signature of both openings: about the call, u and v, what is between, and the arrays of the receiver."""
    i = types.int64
    start = [_array(i, 1), types.UniTuple(i, 4), i, i, _array(i, 1), i, i]
    return i(*start, *[_array(t, 2, readonly=True)] * 2, *between, *[_array(t, 2)] * 3, _array(t, 1))


_NODE = {t: (_array(t, 2), _array(t, 2), types.UniTuple(types.int64, 3)) for t in _FLOATS}
_DENSE = {t: (_array(t, 2), types.int64, types.int64) for t in _FLOATS}


@njit([_opening(t, *between) for t, between in _NODE.items()], **_OPTIONS)
def open_node(board, place, call, user, progress, digest, samples, u, v, all_u, all_v, rows, w, s, t, scratch):
    """Copy this rank's factors among those of all, and agree with them to go on with `node`.

    Arguments as of `node`, but for: ``digest`` and ``samples``, this rank's header.

    Returns:
        `REFUSED` if the arrays do not fit, with nothing shown, else as `sfb.kernels.sync.look`: if ranks are missing,
        to be called again.
    """
    if progress[_STAGE] == 0:
        if not _fits(u, v, w, s, t, samples, all_u.shape[1], all_v.shape[1]):
            return REFUSED
        if user > 0 and not reached(board, 0, place[0], user, DONE, place[2], place[3]):
            return PENDING
        _copy(u, all_u, rows[0])
        _copy(v, all_v, rows[0])
    return _meet(board, place, call, progress, digest, samples, _FACTORS, 1)


@njit([_opening(t, *between) for t, between in _DENSE.items()], **_OPTIONS)
def open_dense(board, place, call, user, progress, digest, samples, u, v, slabs, high, pieces, w, s, t, scratch):
    """Form the first piece of this rank's product, and agree with the others to go on with `dense`; as `open_node`."""
    if progress[_STAGE] == 0:
        rows = min(high, w.shape[0])
        if pieces == 0 or rows * w.shape[1] > slabs.shape[1] or not _fits(u, v, w, s, t, samples, *w.shape):
            return REFUSED
        if user > 0 and not reached(board, 0, place[0], user, DONE, place[2], place[3]):
            return PENDING
        began = now()
        if not _product(u, v, slabs[place[1]], 0, rows, scratch):
            return REFUSED
        progress[_WORK] = now() - began
    return _meet(board, place, call, progress, digest, samples, _PRODUCT, 2)


@njit([_signature(t, *between) for t, between in _NODE.items()], **_OPTIONS)
def node(
    board,
    place,
    call,
    user,
    progress,
    u,
    v,
    all_u,
    all_v,
    rows,
    kind,
    alpha,
    beta,
    p,
    w,
    s,
    t,
    arrays,
    shared,
    scratch,
):
    """Copy this rank's factors among those of all, and take the sum in this rank's rows; return whether that is done.

    Args:
        board: Of the node.
        place: Its ranks, this one's number, looks to wait for, and looks before the core is yielded.
        call: Number of this call.
        user: That of the call that used ``all_u`` and ``all_v`` last, or 0.
        progress: `PROGRESS` words, 0 at first.
        u: S×K, this rank's.
        v: S×D.
        all_u: m×K, of all ranks, in memory that they share.
        all_v: m×D.
        rows: Where this rank's samples begin there, and the rows of w that it works.
        kind: The rule.
        alpha: Factor of the gradient where the rule is linear, and
        beta: that of w.
        p: The rule's numbers.
        w: K×D.
        s: K×D, the rule's first state.
        t: K×D, its second.
        arrays: How many of w, s and t are used.
        shared: Whether w is shared, so that all ranks have to be done.
        scratch: Of this thread.
    """
    ranks, me, spins, patience = place
    low, start, stop = rows
    if progress[_STAGE] == 0:
        if user > 0 and not reached(board, 0, ranks, user, DONE, spins, patience):
            return False
        _copy(u, all_u, low)
        _copy(v, all_v, low)
        reach(board, me, call, FIRST)
        progress[_STAGE] = 1
    if progress[_STAGE] == 1:
        if progress[_AHEAD] == 0 and not reached(board, 0, ranks, call, FIRST, spins, patience):
            return False
        began = now()
        _take(kind, alpha, beta, p, all_u, all_v, w, s, t, arrays, start, stop, scratch)
        progress[_WORK] += now() - began
        reach(board, me, call, DONE)
        progress[_STAGE] = 2
    return not shared or reached(board, 0, ranks, call, DONE, spins, patience)


@njit([_signature(t, *between) for t, between in _DENSE.items()], **_OPTIONS)
def dense(
    board,
    place,
    call,
    user,
    progress,
    u,
    v,
    slabs,
    high,
    pieces,
    kind,
    alpha,
    beta,
    p,
    w,
    s,
    t,
    arrays,
    shared,
    scratch,
):
    """Sum the ranks' products in their order, in pieces of rows; return whether that is done.

    Arguments as of `node`, but for: ``slabs``, two sets of a slab of every rank, which take turns, (2·ranks)×n in
    memory that they share; ``high``, the rows of a piece, of which the last may have fewer; ``pieces``, how many there
    are; and ``shared``, with which each rank works its rows of a piece, rather than all.
    """
    ranks, me, spins, patience = place
    columns = w.shape[1]
    if progress[_STAGE] == 0:
        if user > 0 and not reached(board, 0, ranks, user, DONE, spins, patience):
            return False
        progress[_STAGE] = 1
    while progress[_STAGE] <= 3 * pieces:
        piece, stage = divmod(progress[_STAGE] - 1, 3)
        low = piece * high
        rows = min(high, w.shape[0] - low)
        turn = slabs[piece % 2 * ranks : (piece % 2 + 1) * ranks]
        start, stop = rows * me // ranks, rows * (me + 1) // ranks
        ahead = progress[_AHEAD] != 0 and piece == 0 and stage == 1
        if stage == 0:
            began = now()
            if not _product(u, v, turn[me], low, rows, scratch):
                raise RuntimeError(_SMALL)
            progress[_WORK] += now() - began
            reach(board, me, call, FIRST + 2 * piece)
        elif not ahead and not reached(board, 0, ranks, call, FIRST + 2 * piece + stage - 1, spins, patience):
            return False
        else:
            began = now()
            total = turn[0][: rows * columns].reshape(rows, columns)
            if stage == 1:
                reduce(turn, start * columns, stop * columns)
            if (stage == 1) == shared:
                first, last = (low + start, low + stop) if shared else (low, low + rows)
                update_dense(kind, p, total, w, s, t, low, first, last, 1.0)
            progress[_WORK] += now() - began
            if stage == 1 and not shared:
                reach(board, me, call, FIRST + 2 * piece + 1)
        progress[_STAGE] += 2 if stage == 1 and shared else 1
    if progress[_STAGE] == 3 * pieces + 1:
        reach(board, me, call, DONE)
        progress[_STAGE] += 1
    return not shared or reached(board, 0, ranks, call, DONE, spins, patience)


@njit(**_OPTIONS)
def _begin(words, head, digest, samples, spent, kind, nbytes):
    """Write the header of a rank that is a node."""
    words[0], words[1], words[2] = digest, samples, spent
    words[head - 2], words[head - 1] = kind, nbytes


def _trade(t, *between):
    """The signature of both below: of the rounds, what is between, and the arrays and the rule of the call."""
    i, f, words = types.int64, types.float64, _array(types.int64, 1)
    arrays = [*[_array(t, 2, readonly=True)] * 2, *[_array(t, 2)] * 3]
    rule = [i, f, f, _array(t, 1), i]
    return i(words, _array(i, 2), words, *[i] * 3, words, *between, *arrays, *rule, _array(t, 1))


_SUM = {t: (*[types.int64] * 4, _array(types.int64, 1), _array(t, 2)) for t in _FLOATS}
_PARCELS = {t: (*[types.int64] * 5, types.boolean, _array(types.int64, 1), _array(t, 2), _array(t, 2)) for t in _FLOATS}


@njit([_trade(t, *between) for t, between in _SUM.items()], **_OPTIONS)
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
        w: K×D, as of `node`.
        s: K×D.
        t: K×D.
        kind: The rule, as of `node`.
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
        if not _fits(u, v, w, s, t, samples, *values.shape) or not _form(u, v, values, scratch):
            return UNFIT
        state[WORK] = now() - began
        _begin(words, head, digest, samples, spent, parcel, 0)
    code = sum_values(mpi, plan, state, spins, tag, head, words, received, values)
    if code == rounds.DONE and state[ALIKE] != 0:
        began = now()
        update_dense(kind, p, values, w, s, t, 0, 0, w.shape[0], 1.0)
        state[WORK] += now() - began
    return code


@njit([_trade(t, *between) for t, between in _PARCELS.items()], **_OPTIONS)
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
        w: K×D, as of `node`.
        s: K×D.
        t: K×D.
        kind: The rule, as of `node`.
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
        if not _fits(u, v, w, s, t, samples, one.shape[0] if products else one.shape[1], two.shape[1]):
            return UNFIT
        began = now()
        mine = words[head:].view(u.dtype)
        if not products:
            mine[: u.size] = flat(u)
            mine[u.size : u.size + v.size] = flat(v)
        elif not _form(u, v, mine[: w.size].reshape(w.shape), scratch):
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
            _take(kind, alpha, beta, p, one, two, w, s, t, arrays, 0, w.shape[0], scratch)
        state[WORK] += now() - began
    return code


def phase(kind, progress, pieces):
    """Return the phase that an exchange waits for."""
    stage = int(progress[_STAGE])
    if stage == _SHOWN:
        return ARRIVED
    if kind == "node":
        return (DONE, FIRST, DONE)[stage]
    if stage == 0 or stage > 3 * pieces:
        return DONE
    piece, step = divmod(stage - 1, 3)
    return FIRST + 2 * piece + step - 1
