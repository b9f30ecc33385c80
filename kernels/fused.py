"""Exchanges within a node in few calls, since in Python the steps of a small one cost more than what they do.

Inside a node one call does what a rank does with the memory it shares, and waits for others. It goes on as far as it
can without waiting long; where it stopped, in ``progress``, the next one resumes. Ranks meet by the phases of a board
(`sfb.kernels.sync`). A rank that repeats an exchange writes its data before it shows its header: if all do, they need
not wait for each other's data once they agree. Between nodes: `sfb.kernels.eager`.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from numba import njit, types

from sfb.kernels._compile import INNER, KERNEL
from sfb.kernels._parts import FLOATS, SMALL, array_type, fits, form, take
from sfb.kernels._reductions import reduce
from sfb.kernels._updates import update_dense
from sfb.kernels.header import NOTE
from sfb.kernels.status import AGREED, PENDING, UNFIT
from sfb.kernels.sync import ARRIVED, LAST, look, meet, now, reach, reached, slot

__all__ = ["FIRST", "PROGRESS", "dense", "node", "open_dense", "open_node", "phase"]

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


def _signature(t, *between):
    """What both take: about the call, u and v, what is between, and the rule with its arrays."""
    i, f = types.int64, types.float64
    factors = [array_type(t, 2, readonly=True)] * 2
    rule = [i, f, f, array_type(t, 1), *[array_type(t, 2)] * 3, i]
    start = [array_type(i, 1), types.UniTuple(i, 4), i, i, array_type(i, 1)]
    return types.boolean(*start, *factors, *between, *rule, types.boolean, array_type(t, 1))


@njit(**INNER)
def _copy(source, target, first):
    for j in range(source.shape[0]):
        row = target[first + j]
        for c in range(source.shape[1]):
            row[c] = source[j, c]


@njit(**INNER)
def _product(u, v, slab, low, rows, scratch):
    """Form them in a slab."""
    return form(u, v, slab[: rows * v.shape[1]].reshape(rows, v.shape[1]), scratch, low)


@njit(**INNER)
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
            if board[slot(rank, call) + NOTE] != kind:
                progress[_AHEAD] = 0
        if progress[_AHEAD] == 0:
            reach(board, me, call, FIRST)
        progress[_STAGE] = stage
    return verdict


def _opening(t, *between):
    """The signature of both openings: about the call, u and v, what is between, and the arrays of the receiver."""
    i = types.int64
    start = [array_type(i, 1), types.UniTuple(i, 4), i, i, array_type(i, 1), i, i]
    return i(*start, *[array_type(t, 2, readonly=True)] * 2, *between, *[array_type(t, 2)] * 3, array_type(t, 1))


_NODE = {t: (array_type(t, 2), array_type(t, 2), types.UniTuple(types.int64, 3)) for t in FLOATS}
_DENSE = {t: (array_type(t, 2), types.int64, types.int64) for t in FLOATS}


@njit([_opening(t, *between) for t, between in _NODE.items()], **KERNEL)
def open_node(board, place, call, user, progress, digest, samples, u, v, all_u, all_v, rows, w, s, t, scratch):
    """Copy this rank's factors among those of all, and agree with them to go on with `node`.

    Arguments as of `node`, but for: ``digest`` and ``samples``, this rank's header.

    Returns:
        `UNFIT` if the arrays do not fit, with nothing shown, else as `sfb.kernels.sync.look`: if ranks are missing,
        to be called again.
    """
    if progress[_STAGE] == 0:
        if not fits(u, v, w, s, t, samples, all_u.shape[1], all_v.shape[1]):
            return UNFIT
        if user > 0 and not reached(board, 0, place[0], user, LAST, place[2], place[3]):
            return PENDING
        _copy(u, all_u, rows[0])
        _copy(v, all_v, rows[0])
    return _meet(board, place, call, progress, digest, samples, _FACTORS, 1)


@njit([_opening(t, *between) for t, between in _DENSE.items()], **KERNEL)
def open_dense(board, place, call, user, progress, digest, samples, u, v, slabs, high, pieces, w, s, t, scratch):
    """Form the first piece of this rank's product, and agree with the others to go on with `dense`; as `open_node`."""
    if progress[_STAGE] == 0:
        rows = min(high, w.shape[0])
        if pieces == 0 or rows * w.shape[1] > slabs.shape[1] or not fits(u, v, w, s, t, samples, *w.shape):
            return UNFIT
        if user > 0 and not reached(board, 0, place[0], user, LAST, place[2], place[3]):
            return PENDING
        began = now()
        if not _product(u, v, slabs[place[1]], 0, rows, scratch):
            return UNFIT
        progress[_WORK] = now() - began
    return _meet(board, place, call, progress, digest, samples, _PRODUCT, 2)


@njit([_signature(t, *between) for t, between in _NODE.items()], **KERNEL)
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
        if user > 0 and not reached(board, 0, ranks, user, LAST, spins, patience):
            return False
        _copy(u, all_u, low)
        _copy(v, all_v, low)
        reach(board, me, call, FIRST)
        progress[_STAGE] = 1
    if progress[_STAGE] == 1:
        if progress[_AHEAD] == 0 and not reached(board, 0, ranks, call, FIRST, spins, patience):
            return False
        began = now()
        take(kind, alpha, beta, p, all_u, all_v, w, s, t, arrays, start, stop, scratch)
        progress[_WORK] += now() - began
        reach(board, me, call, LAST)
        progress[_STAGE] = 2
    return not shared or reached(board, 0, ranks, call, LAST, spins, patience)


@njit([_signature(t, *between) for t, between in _DENSE.items()], **KERNEL)
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
        if user > 0 and not reached(board, 0, ranks, user, LAST, spins, patience):
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
                raise RuntimeError(SMALL)
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
        reach(board, me, call, LAST)
        progress[_STAGE] += 1
    return not shared or reached(board, 0, ranks, call, LAST, spins, patience)


def phase(kind, progress, pieces):
    """Return the phase that an exchange waits for."""
    stage = int(progress[_STAGE])
    if stage == _SHOWN:
        return ARRIVED
    if kind == "node":
        return (LAST, FIRST, LAST)[stage]
    if stage == 0 or stage > 3 * pieces:
        return LAST
    piece, step = divmod(stage - 1, 3)
    return FIRST + 2 * piece + step - 1
