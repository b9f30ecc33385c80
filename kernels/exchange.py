"""Exchanges of few calls, since in Python the steps of a small one cost more than what they do.

Inside a node one call does what a rank does with the memory it shares, and waits for others. It goes on as far as it
can without waiting long; where it stopped, in ``progress``, the next one resumes. Ranks meet by the phases of a board
(`sfb.kernels.sync`). Between nodes one call makes the message of a rank, and another takes those of all.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from numba import njit, types
from sfb.kernels import _loops
from sfb.kernels._loops import accumulate, overlap, reduce, update, update_dense
from sfb.kernels._vectors import flat
from sfb.kernels.rules import ASSIGN, SGD
from sfb.kernels.sync import ARRIVED, DONE, now, reach, reached

__all__ = ["FIRST", "dense", "give", "node", "phase", "take_factors", "take_products"]

# The first phase of an exchange, after that in which its ranks agreed on it.
FIRST = ARRIVED + 1

_SMALL = "a kernel refused the arrays or the scratch of an exchange"

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


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


@njit(
    [_signature(t, _array(t, 2), _array(t, 2), types.UniTuple(types.int64, 3)) for t in (types.float32, types.float64)],
    **_OPTIONS,
)
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
        progress: Where to resume, 0 at first, and nanoseconds of work so far.
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
    if progress[0] == 0:
        if user > 0 and not reached(board, 0, ranks, user, DONE, spins, patience):
            return False
        _copy(u, all_u, low)
        _copy(v, all_v, low)
        reach(board, me, call, FIRST)
        progress[0] = 1
    if progress[0] == 1:
        if not reached(board, 0, ranks, call, FIRST, spins, patience):
            return False
        began = now()
        _take(kind, alpha, beta, p, all_u, all_v, w, s, t, arrays, start, stop, scratch)
        progress[1] += now() - began
        reach(board, me, call, DONE)
        progress[0] = 2
    return not shared or reached(board, 0, ranks, call, DONE, spins, patience)


@njit(
    [_signature(t, _array(t, 2), types.int64, types.int64) for t in (types.float32, types.float64)],
    **_OPTIONS,
)
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
    if progress[0] == 0:
        if user > 0 and not reached(board, 0, ranks, user, DONE, spins, patience):
            return False
        progress[0] = 1
    while progress[0] <= 3 * pieces:
        piece, stage = divmod(progress[0] - 1, 3)
        low = piece * high
        rows = min(high, w.shape[0] - low)
        turn = slabs[piece % 2 * ranks : (piece % 2 + 1) * ranks]
        start, stop = rows * me // ranks, rows * (me + 1) // ranks
        if stage == 0:
            began = now()
            mine = turn[me][: rows * columns].reshape(rows, columns)
            if accumulate(u, v, mine, -low, 0, rows, False, 1.0, 0.0, scratch) != _loops.DONE:
                raise RuntimeError(_SMALL)
            progress[1] += now() - began
            reach(board, me, call, FIRST + 2 * piece)
        elif not reached(board, 0, ranks, call, FIRST + 2 * piece + stage - 1, spins, patience):
            return False
        else:
            began = now()
            total = turn[0][: rows * columns].reshape(rows, columns)
            if stage == 1:
                reduce(turn, start * columns, stop * columns)
            if (stage == 1) == shared:
                first, last = (low + start, low + stop) if shared else (low, low + rows)
                update_dense(kind, p, total, w, s, t, low, first, last, 1.0)
            progress[1] += now() - began
            if stage == 1 and not shared:
                reach(board, me, call, FIRST + 2 * piece + 1)
        progress[0] += 2 if stage == 1 and shared else 1
    if progress[0] == 3 * pieces + 1:
        reach(board, me, call, DONE)
        progress[0] += 1
    return not shared or reached(board, 0, ranks, call, DONE, spins, patience)


@njit(
    [
        types.boolean(
            _array(types.int64, 1),
            *[types.int64] * 5,
            types.boolean,
            *[_array(t, 2, readonly=True)] * 2,
            *[_array(t, 2)] * 3,
        )
        for t in (types.float32, types.float64)
    ],
    **_OPTIONS,
)
def give(words, head, digest, size, kind, nbytes, factors, u, v, w, s, t):
    """Write this rank's message to other nodes, and return whether the arrays fit: u and v are apart from the others.

    Args:
        words: Where to: three words of a header, to ``head`` − 2; the kind and the bytes of what follows; that.
        head: Words before it.
        digest: Of the call, as `sfb.kernels.sync` compares them.
        size: S.
        kind: Of what follows the header.
        nbytes: That it has.
        factors: Write u and v there; otherwise it is the caller's to write.
        u: S×K.
        v: S×D.
        w: K×D, which the sum changes.
        s: K×D, likewise, or w.
        t: K×D, likewise.
    """
    if u.shape != (size, w.shape[0]) or v.shape != (size, w.shape[1]) or s.shape != w.shape or t.shape != w.shape:
        return False
    for array in (w, s, t):
        if overlap(u, array) or overlap(v, array):
            return False
    words[0], words[1], words[2] = digest, size, 0
    words[head - 2], words[head - 1] = kind, nbytes
    if factors:
        parcel = words[head:].view(u.dtype)
        parcel[: u.size] = flat(u)
        parcel[u.size : u.size + v.size] = flat(v)
    return True


@njit(**_OPTIONS)
def _parcel(words, head, nbytes, ranks, first, rank):
    """Return the words that a rank has sent behind its header; they are in the order of `sfb.rounds`."""
    length = (nbytes + 7) // 8
    place = rank ^ first if ranks & (ranks - 1) == 0 else (rank - first) % ranks
    start = place * (head + length) + head
    return words[start : start + length]


@njit(
    [
        types.void(_array(types.int64, 1), *[types.int64] * 4, *[_array(t, 2)] * 2)
        for t in (types.float32, types.float64)
    ],
    **_OPTIONS,
)
def take_factors(words, head, nbytes, ranks, first, u, v):
    """Put the factors in the messages of all ranks one behind another.

    Args:
        words: The messages, as `give` writes them, one behind another.
        head: Words of a header.
        nbytes: Of what follows it, of each.
        ranks: How many there are.
        first: Of them, whose message comes first; the others follow in the order of `sfb.rounds`.
        u: m×K, where to.
        v: m×D.
    """
    flat_u, flat_v = flat(u), flat(v)
    rows, columns = u.size // ranks, v.size // ranks
    for rank in range(ranks):
        parcel = _parcel(words, head, nbytes, ranks, first, rank).view(u.dtype)
        flat_u[rank * rows : (rank + 1) * rows] = parcel[:rows]
        flat_v[rank * columns : (rank + 1) * columns] = parcel[rows : rows + columns]


@njit(
    [types.void(_array(types.int64, 1), *[types.int64] * 4, _array(t, 2)) for t in (types.float32, types.float64)],
    **_OPTIONS,
)
def take_products(words, head, nbytes, ranks, first, total):
    """Add up the products in the messages of all ranks, two at least, in the order of ranks; as `take_factors`."""
    sums = flat(total)
    one = _parcel(words, head, nbytes, ranks, first, 0).view(total.dtype)
    other = _parcel(words, head, nbytes, ranks, first, 1).view(total.dtype)
    for i in range(sums.size):
        sums[i] = one[i] + other[i]
    for rank in range(2, ranks):
        other = _parcel(words, head, nbytes, ranks, first, rank).view(total.dtype)
        for i in range(sums.size):
            sums[i] += other[i]


def phase(kind, progress, pieces):
    """Return the phase that an exchange waits for."""
    stage = int(progress[0])
    if kind == "node":
        return (DONE, FIRST, DONE)[stage]
    if stage == 0 or stage > 3 * pieces:
        return DONE
    piece, step = divmod(stage - 1, 3)
    return FIRST + 2 * piece + step - 1
